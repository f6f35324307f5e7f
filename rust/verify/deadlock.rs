//! Freedom from deadlock under eager P2P: a [`Network`], that is, an order of all slots in which each comes after what
//! it waits for; or a circle of ranks that wait for each other.
//!
//! Every rank runs as far as it can; one that cannot go on is looked at again when the rank it waits
//! for has moved. What stands still at the end is deadlocked: each such rank's next slot waits for a
//! slot that another such rank has yet to reach, so following the waits leads into a circle.

use std::collections::VecDeque;

use super::circle::shortest_circle;
use super::{Rule, Violation, maker};
use crate::network::{Input, Network, Node};
use crate::schedule::{Action, Kind, Rank, Schedule, Shape, Tensor};

/// The network of all slots, or one violation for each rank of a shortest circle among the ranks' next slots.
pub(super) fn network(schedule: &Schedule) -> Result<Network, Vec<Violation>> {
    let mut run = Run::new(schedule);
    run.as_far_as_it_goes();
    let complete = run.network.nodes().len() == schedule.slots();
    if complete { Ok(run.network) } else { Err(run.shortest_circle()) }
}

struct Run<'a> {
    schedule: &'a Schedule,
    /// How many slots of each rank have run.
    done: Vec<usize>,
    /// Each rank's last node.
    last: Vec<Input>,
    /// The node that has made each tensor, by [`crate::schedule::Shape::tensor_index`].
    made: Vec<Input>,
    network: Network,
    /// By rank: who stands still for want of a tensor of its making, and for which.
    waiters: Vec<Vec<(Rank, usize)>>,
}

impl<'a> Run<'a> {
    fn new(schedule: &'a Schedule) -> Self {
        let ranks = schedule.shape().ranks();
        Run {
            schedule,
            done: vec![0; ranks],
            last: vec![Input::NONE; ranks],
            made: vec![Input::NONE; schedule.shape().tensors()],
            network: Network::with_capacity(schedule.slots()),
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
                let is_made = |&mut (_, needed): &mut (Rank, usize)| made[needed] != Input::NONE;
                awake.extend(self.waiters[rank].extract_if(.., is_made).map(|waiter| waiter.0));
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
        let mut last = self.last[rank];
        let mut missing = None;
        let row = self.schedule.rows()[rank].iter().enumerate().skip(self.done[rank]);
        for (index, slot) in row {
            let (first, second) = slot.parts();
            let inputs = incoming(&shape, made, rank, first).and_then(|one| match second {
                Some(second) => Ok([last, one, incoming(&shape, made, rank, second)?]),
                None => Ok([last, one, Input::NONE]),
            });
            let node = match inputs {
                Ok(inputs) => Input::after(self.network.push(Node::slot(rank, index, inputs))),
                Err(needed) => {
                    missing = Some(needed);
                    break;
                }
            };
            for tensor in [first.tensor(), second.and_then(Action::tensor)].into_iter().flatten() {
                made[shape.tensor_index(tensor)] = node;
            }
            last = node;
            self.done[rank] = index + 1;
        }
        self.last[rank] = last;
        missing
    }

    /// What the next slot of a rank waits for: which action, and which tensor.
    fn blocked(&self, rank: Rank) -> impl Iterator<Item = (Action, Tensor)> {
        let shape = self.schedule.shape();
        let next = self.schedule.rows()[rank].get(self.done[rank]);
        let actions = next.map(|slot| slot.actions()).into_iter().flatten();
        actions
            .flat_map(move |action| shape.dependencies(action).map(move |needed| (action, needed)))
            .filter(|&(_, needed)| self.made[shape.tensor_index(needed)] == Input::NONE)
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

/// What an action of a rank waits for from other ranks, or the first tensor that it needs and that has not been
/// made.
#[inline(always)]
fn incoming(shape: &Shape, made: &[Input], rank: Rank, action: Action) -> Result<Input, Tensor> {
    let [own, other] = shape.needs(action);
    if let Some(own) = own.filter(|&own| made[shape.tensor_index(own)] == Input::NONE) {
        return Err(own);
    }
    let Some(other) = other else { return Ok(Input::NONE) };
    match made[shape.tensor_index(other)].node() {
        None => Err(other),
        // What its own rank made is there when the rank goes on.
        Some(_) if shape.rank_of(other.stage, other.microbatch) == rank => Ok(Input::NONE),
        Some(node) => Ok(Input::a_hop_after(node)),
    }
}

/// A rank, the action it stands before, and the tensor that it waits for.
type Wait = (Rank, Action, Tensor);
