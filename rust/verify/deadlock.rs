//! Freedom from deadlock under eager P2P: an order of all slots in which each comes after what it
//! waits for, or a circle of ranks that wait for each other.
//!
//! Every rank runs as far as it can; one that cannot go on is looked at again when the rank it waits
//! for has moved. What stands still at the end is deadlocked: each such rank's next slot waits for a
//! slot that another such rank has yet to reach, so following the waits leads into a circle.

use std::collections::VecDeque;

use super::circle::shortest_circle;
use super::{Place, Rule, Violation, maker};
use crate::schedule::{Action, Kind, Rank, Schedule, Shape, Tensor};

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
    /// By rank: who stands still for want of a tensor of its making, and for which.
    waiters: Vec<Vec<(Rank, usize)>>,
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
            let waits_for = self.advance(rank);
            if self.done[rank] > before {
                let made = &self.made;
                awake.extend(self.waiters[rank].extract_if(.., |&mut (_, needed)| made[needed]).map(|w| w.0));
            }
            if let Some(needed) = waits_for {
                let shape = self.schedule.shape();
                let on = shape.rank_of(needed.stage, needed.microbatch);
                self.waiters[on].push((rank, shape.tensor_index(needed)));
            }
        }
    }

    /// Runs the slots of a rank up to the first that must wait; for what, if one must.
    fn advance(&mut self, rank: Rank) -> Option<Tensor> {
        let shape = *self.schedule.shape();
        let made = &mut self.made[..];
        let start = self.done[rank];
        let left = &self.schedule.rows()[rank][start..];
        let mut missing = None;
        let mut ran = 0;
        for slot in left {
            let (first, second) = slot.parts();
            missing = missing_of(&shape, made, first).or_else(|| missing_of(&shape, made, second?));
            if missing.is_some() {
                break;
            }
            for tensor in [first.tensor(), second.and_then(Action::tensor)].into_iter().flatten() {
                made[shape.tensor_index(tensor)] = true;
            }
            ran += 1;
        }
        let ran = start..start + ran;
        self.done[rank] = ran.end;
        self.order.extend(ran.map(|slot| Place { rank: rank as u32, slot: slot as u32 }));
        missing
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

    fn shortest_circle(&self) -> Vec<Violation> {
        let shape = self.schedule.shape();
        let waits = |rank: Rank| {
            let on = |needed: Tensor| shape.rank_of(needed.stage, needed.microbatch);
            self.blocked(rank).map(move |(action, needed)| (on(needed), (action, needed))).collect::<Vec<_>>()
        };
        let shortest = shortest_circle(self.done.len(), waits);
        shortest
            .iter()
            .map(|&(rank, (action, needed))| self.violation((rank, action, needed), shortest.len()))
            .collect()
    }

    fn violation(&self, (rank, action, needed): Wait, circle: usize) -> Violation {
        let (slot, maker) = (self.done[rank], self.maker(needed));
        let on = self.schedule.shape().rank_of(needed.stage, needed.microbatch);
        let next = self.schedule.rows()[on][self.done[on]];
        let where_it_is = match next.actions().any(|action| action == maker) {
            true => format!("which rank {on} would compute next"),
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

    fn maker(&self, needed: Tensor) -> Action {
        let by_i = maker(needed, true);
        let rank = self.schedule.shape().rank_of(needed.stage, needed.microbatch);
        let mut row = self.schedule.rows()[rank].iter().flat_map(|slot| slot.actions());
        maker(needed, needed.kind == Kind::B && row.any(|action| action == by_i))
    }
}

/// The first tensor that an action needs and that has not been made.
#[inline(always)]
fn missing_of(shape: &Shape, made: &[bool], action: Action) -> Option<Tensor> {
    let [own, other] = shape.needs(action);
    match (own, other) {
        (Some(own), _) if !made[shape.tensor_index(own)] => Some(own),
        (_, Some(other)) if !made[shape.tensor_index(other)] => Some(other),
        _ => None,
    }
}

/// A rank, the action it stands before, and the tensor that it waits for.
type Wait = (Rank, Action, Tensor);
