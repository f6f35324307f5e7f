//! V-Half and V-Min: half and a third of 1F1B's activation memory, on a V placement with split
//! backwards. Qi et al., "Pipeline Parallelism with Controllable Memory", 2024 (arXiv 2405.15362).
//!
//! The paper repeats a building block, one microbatch's actions in slots of equal length, every six
//! slots, and then moves actions into the idle slots of the warm-up and the cool-down as far as the peak
//! allows. The blocks here are the paper's. The moves are not: the paper leaves them open, and these
//! are this file's own, so the orders need not be those of the authors' program.
//!
//! The moves: the F's and I's of all blocks are taken in the order of their slots in the pattern, and
//! each is put in the first idle slot of its rank after what it waits for. A W has no slot of its own: it
//! waits, first in, first out, until its rank holds so many chunks that the next F needs it done, and is
//! then put in the first idle slot after its I. The W's left at the end go in the same way, into what the
//! cool-down leaves idle.
//!
//! Why that works: no F or I comes later than its slot in the pattern. All that its rank has put in
//! before it has an earlier slot there, W's included, so these cannot fill every slot up to its own; and
//! enough I's are done for the W's that an F needs, as the pattern keeps to the same peak. As whatever an
//! action waits for is in an earlier slot, the rows, read by slot, cannot deadlock.

use std::collections::VecDeque;

use super::illegal;
use crate::error::Error;
use crate::schedule::{Action, Kind, Microbatch, Placement, Schedule, Shape, Slot, Stage, Tensor};

/// Slots from one microbatch to the next: two F, two I, two W.
const PERIOD: u32 = 6;

/// Takes any number of ranks and microbatches. Peak p+2 chunks on any rank, p+1 where p is odd.
pub fn v_half(ranks: usize, microbatches: usize) -> Result<Schedule, Error> {
    // The delay keeps blocks that overlap out of each other's slots.
    let block = |p, i| {
        let delay = if p % 2 == 0 { 3 } else { 0 };
        [2 * i, 3 * p - i - 2, 3 * p + delay + 2 * i - 1, 6 * p + delay - i - 2]
    };
    repeat("v-half", block, |p| p + 2 - p % 2, (ranks, microbatches))
}

/// Takes any number of ranks and microbatches. Peak 2⌊(p+4)/3⌋ chunks on any rank.
pub fn v_min(ranks: usize, microbatches: usize) -> Result<Schedule, Error> {
    let block = |p, i| {
        let delay = if p % 3 == 0 { 2 } else { 0 };
        [i, 2 * p - i - 1, 2 * p + delay + i, 4 * p + delay - i - 1]
    };
    repeat("v-min", block, |p| 2 * ((p + 4) / 3), (ranks, microbatches))
}

/// The slots of F0, F1, I1, I0 on rank i of p, where 0 is the rank's stage on the way down, 1 that on
/// the way up.
type Block = fn(p: u32, i: u32) -> [u32; 4];

fn repeat(
    family: &'static str,
    block: Block,
    peak: fn(usize) -> usize,
    (p, m): (usize, usize),
) -> Result<Schedule, Error> {
    let shape = |p: usize, m| Shape::new(Placement::V, p, p.saturating_mul(2), m);
    if p == 0 || m == 0 {
        let takes = "at least one rank and one microbatch";
        return Err(illegal(family, takes, (p, m), shape(p.max(1), m.max(1))));
    }
    let shape = shape(p, m)?;
    let pattern = Pattern { shape, block };
    let rows = reorder(&pattern, peak(p));
    let slots = |row: Row| row.cells.into_iter().map(|(_, action)| Slot::One(action)).collect();
    Schedule::new(family, shape, rows.into_iter().map(slots).collect())
}

/// The block, repeated for each microbatch.
struct Pattern {
    shape: Shape,
    block: Block,
}

impl Pattern {
    /// The slot of an F or an I.
    fn slot(&self, action: Tensor) -> u32 {
        let Action { stage, kind, microbatch } = action;
        let rank = self.shape.rank_of(stage, microbatch);
        let [f0, f1, i1, i0] = (self.block)(self.shape.ranks() as u32, rank as u32);
        let down = (stage as usize) < self.shape.ranks();
        let start = match (kind, down) {
            (Kind::F, true) => f0,
            (Kind::F, false) => f1,
            (_, false) => i1,
            (_, true) => i0,
        };
        start + PERIOD * microbatch
    }

    /// All F's and I's, by slot.
    fn actions(&self) -> Vec<(u32, Action)> {
        let mut actions = Vec::new();
        for stage in 0..self.shape.stages() as Stage {
            for microbatch in 0..self.shape.microbatches() as Microbatch {
                for kind in [Kind::F, Kind::I] {
                    let action = Action::new(stage, kind, microbatch);
                    actions.push((self.slot(action), action));
                }
            }
        }
        actions.sort_unstable();
        actions
    }

    /// How many slots after `needed` an action may come, at the earliest.
    ///
    /// Between ranks, V-Half's pattern leaves a slot idle before each F0 and I1. Were it squeezed out of
    /// the steady state, every hop and every difference between F, I and W would delay each microbatch
    /// a little more than the one before. So it stays, but not for the first and the last ⌊p/2⌋
    /// microbatches, about as many as are in flight in warm-up and cool-down: there latency is all
    /// that counts. V-Min's pattern has no such slots to keep.
    fn distance(&self, needed: Tensor, action: Action) -> u32 {
        let (ranks, microbatch) = (self.shape.ranks(), action.microbatch as usize);
        let local = self.shape.rank_of(needed.stage, 0) == self.shape.rank_of(action.stage, 0);
        let steady = ranks / 2 <= microbatch && microbatch + ranks / 2 < self.shape.microbatches();
        if local || !steady {
            return 1;
        }
        (self.slot(action) - self.slot(needed)).min(2)
    }
}

/// Moves the pattern's actions to where the module's words say.
fn reorder(pattern: &Pattern, peak: usize) -> Vec<Row> {
    let shape = &pattern.shape;
    let mut rows: Vec<Row> = (0..shape.ranks()).map(|_| Row::default()).collect();
    let mut slots = vec![0; shape.tensors()];
    for (_, action) in pattern.actions() {
        let ready = |needed| slots[shape.tensor_index(needed)] + pattern.distance(needed, action);
        let from = shape.dependencies(action).map(ready).max().unwrap_or(0);
        let row = &mut rows[shape.rank_of(action.stage, action.microbatch)];
        let slot = if action.kind == Kind::F { row.f(action, from, peak) } else { row.i(action, from) };
        if let Some(made) = action.tensor() {
            slots[shape.tensor_index(made)] = slot;
        }
    }
    for row in &mut rows {
        while !row.waiting.is_empty() {
            row.w();
        }
    }
    rows
}

/// A rank's row under construction.
#[derive(Default)]
struct Row {
    /// By slot, ascending. The other slots are idle.
    cells: Vec<(u32, Action)>,
    /// The W's that have no slot yet, each with the first that it could have.
    waiting: VecDeque<(u32, Action)>,
    /// F's less W's put in so far.
    held: usize,
    /// The slot after the last of the W's put in so far: from there on, all that they free is free.
    freed: u32,
}

impl Row {
    fn f(&mut self, action: Action, from: u32, peak: usize) -> u32 {
        if self.held == peak {
            self.w();
        }
        self.held += 1;
        self.put(action, from.max(self.freed))
    }

    fn i(&mut self, action: Action, from: u32) -> u32 {
        let slot = self.put(action, from);
        self.waiting.push_back((slot + 1, Action { kind: Kind::W, ..action }));
        slot
    }

    fn w(&mut self) {
        if let Some((from, action)) = self.waiting.pop_front() {
            self.freed = self.freed.max(self.put(action, from) + 1);
            self.held -= 1;
        }
    }

    /// Takes the first idle slot. Near the end of the row, so that little is shifted.
    fn put(&mut self, action: Action, from: u32) -> u32 {
        let mut slot = from;
        let mut place = self.cells.partition_point(|&(taken, _)| taken < from);
        while self.cells.get(place).is_some_and(|&(taken, _)| taken == slot) {
            slot += 1;
            place += 1;
        }
        self.cells.insert(place, (slot, action));
        slot
    }
}
