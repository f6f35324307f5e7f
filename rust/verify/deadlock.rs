//! Freedom from deadlock under eager P2P: an order of all slots in which each comes after what it
//! waits for, or a circle of ranks that wait for each other.
//!
//! Every rank runs as far as it can; one that cannot go on is looked at again when the rank it waits
//! for has moved. What stands still at the end is deadlocked: each such rank's next slot waits for a
//! slot that another such rank has yet to reach, so following the waits leads into a circle.

use std::collections::VecDeque;

use super::{Place, Rule, Violation, maker};
use crate::schedule::{Action, Kind, Rank, Schedule, Tensor};

/// The most steps of all searches for a circle together: up to 4000 ranks all of them are searched from.
const SEARCH_BUDGET: usize = 1 << 24;

/// An order, or one violation for each rank of a shortest circle among the ranks' next slots.
pub(super) fn order(schedule: &Schedule) -> Result<Vec<Place>, Vec<Violation>> {
    let mut run = Run::new(schedule);
    run.as_far_as_it_goes();
    if run.order.len() == schedule.slots() { Ok(run.order) } else { Err(run.shortest_circle()) }
}

struct Run<'a> {
    schedule: &'a Schedule,
    /// How many slots of each rank have run.
    done: Vec<usize>,
    /// Which tensors have been made, by [`crate::schedule::Shape::tensor_index`].
    made: Vec<bool>,
    order: Vec<Place>,
    /// The ranks to look at again once a rank has moved.
    waiters: Vec<Vec<Rank>>,
}

impl<'a> Run<'a> {
    fn new(schedule: &'a Schedule) -> Self {
        let ranks = schedule.shape().ranks();
        Run {
            schedule,
            done: vec![0; ranks],
            made: vec![false; schedule.shape().tensors()],
            order: Vec::with_capacity(schedule.slots()),
            waiters: vec![Vec::new(); ranks],
        }
    }

    fn as_far_as_it_goes(&mut self) {
        let mut awake: VecDeque<Rank> = (0..self.done.len()).collect();
        while let Some(rank) = awake.pop_front() {
            let before = self.done[rank];
            self.advance(rank);
            if self.done[rank] > before {
                awake.extend(self.waiters[rank].drain(..));
            }
            let waits_for = self.blocked(rank).next().map(|(_, needed)| needed);
            if let Some(needed) = waits_for {
                let on = self.schedule.shape().rank_of(needed.stage, needed.microbatch);
                self.waiters[on].push(rank);
            }
        }
    }

    /// Runs the slots of a rank up to the first that must wait.
    fn advance(&mut self, rank: Rank) {
        let shape = self.schedule.shape();
        while self.done[rank] < self.schedule.rows()[rank].len() && self.blocked(rank).next().is_none() {
            let slot = self.done[rank];
            for tensor in self.schedule.rows()[rank][slot].actions().filter_map(Action::tensor) {
                self.made[shape.tensor_index(tensor)] = true;
            }
            self.order.push(Place { rank: rank as u32, slot: slot as u32 });
            self.done[rank] += 1;
        }
    }

    /// What the next slot of a rank waits for: which action, and which tensor.
    fn blocked(&self, rank: Rank) -> impl Iterator<Item = (Action, Tensor)> {
        let shape = self.schedule.shape();
        let next = self.schedule.rows()[rank].get(self.done[rank]);
        let actions = next.map(|slot| slot.actions()).into_iter().flatten();
        actions
            .flat_map(move |action| shape.dependencies(action).map(move |needed| (action, needed)))
            .filter(|&(_, needed)| !self.made[shape.tensor_index(needed)])
    }

    /// Searches breadth first for the shortest way from a rank that stands still back to it: from all of
    /// them, or as many as the budget allows, of which the first is known to be on a circle.
    fn shortest_circle(&self) -> Vec<Violation> {
        let ranks = self.done.len();
        let searches = (SEARCH_BUDGET / ranks).max(1);
        let starts = self.on_a_circle().into_iter().chain(0..ranks).take(searches);
        let circles = starts.filter_map(|start| self.circle_from(start));
        let shortest = circles.min_by_key(Vec::len).unwrap_or_default();
        shortest.iter().map(|&wait| self.violation(wait, shortest.len())).collect()
    }

    /// Follows the waits of the first rank that stands still for as many steps as there are ranks.
    fn on_a_circle(&self) -> Option<Rank> {
        let mut at = (0..self.done.len()).find(|&rank| self.blocked(rank).next().is_some())?;
        for _ in 0..self.done.len() {
            let (_, needed) = self.blocked(at).next()?;
            at = self.schedule.shape().rank_of(needed.stage, needed.microbatch);
        }
        Some(at)
    }

    fn violation(&self, (rank, action, needed): Wait, circle: usize) -> Violation {
        let (slot, maker) = (self.done[rank], self.maker(needed));
        let on = self.schedule.shape().rank_of(needed.stage, needed.microbatch);
        let next = self.schedule.rows()[on][self.done[on]];
        let where_it_is = match next.actions().any(|action| action == maker) {
            true => format!("where rank {on} stands"),
            false => format!("which rank {on} has after {next}"),
        };
        let place = format!("rank {rank}, slot {slot}: deadlock, a circle of {circle} ranks");
        Violation {
            rule: Rule::Deadlock,
            rank,
            slot: Some(slot),
            action,
            needs: Some(maker),
            message: format!("{place}: {action} waits for {maker}, {where_it_is}"),
        }
    }

    fn circle_from(&self, start: Rank) -> Option<Vec<Wait>> {
        let shape = self.schedule.shape();
        let mut reached_by: Vec<Option<Wait>> = vec![None; self.done.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(rank) = queue.pop_front() {
            for (action, needed) in self.blocked(rank) {
                let on = shape.rank_of(needed.stage, needed.microbatch);
                if reached_by[on].is_none() {
                    reached_by[on] = Some((rank, action, needed));
                    queue.push_back(on);
                }
                if on == start {
                    return Some(way_back(&reached_by, start));
                }
            }
        }
        None
    }

    fn maker(&self, needed: Tensor) -> Action {
        let by_i = maker(needed, true);
        let rank = self.schedule.shape().rank_of(needed.stage, needed.microbatch);
        let mut row = self.schedule.rows()[rank].iter().flat_map(|slot| slot.actions());
        maker(needed, needed.kind == Kind::B && row.any(|action| action == by_i))
    }
}

/// A rank, the action it stands before, and the tensor that it waits for.
type Wait = (Rank, Action, Tensor);

fn way_back(reached_by: &[Option<Wait>], start: Rank) -> Vec<Wait> {
    let mut circle = Vec::new();
    let mut at = start;
    while let Some(wait) = reached_by[at] {
        circle.push(wait);
        at = wait.0;
        if at == start {
            break;
        }
    }
    circle.reverse();
    circle
}
