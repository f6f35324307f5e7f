//! DualPipe: two pipelines in opposite directions over the same ranks, forwards and backwards of
//! different microbatches fused so that each hides the other's communication. DeepSeek-AI,
//! "DeepSeek-V3 Technical Report", 2024 (arXiv 2412.19437), section 3.2.1, figure 5.
//!
//! [`eight_steps`] is the order of one rank, and of DualPipeV's ranks too: cut DualPipe between its
//! two middle ranks, fold it there, and rank r of DualPipe(p, m) is rank r of DualPipeV(p/2, m/2).

use std::collections::VecDeque;

use super::illegal;
use crate::error::Error;
use crate::schedule::{Action, Kind, Microbatch, Placement, Schedule, Shape, Slot, Stage};

/// Takes an even number of ranks and an even number of microbatches, at least twice the ranks.
/// Microbatches 0..m/2 enter at rank 0, the others at rank p−1. Peak p+1 on every rank; each rank
/// holds two stages' weights.
pub fn dualpipe(ranks: usize, microbatches: usize) -> Result<Schedule, Error> {
    let (p, m) = (ranks, microbatches);
    let shape = |p, m| Shape::new(Placement::Bidirectional, p, p, m);
    if p == 0 || p % 2 == 1 || m % 2 == 1 || m / 2 < p {
        let even = |n: usize| n.saturating_add(n % 2);
        let nearest = shape(even(p.max(1)), even(m).max(even(p.max(1)).saturating_mul(2)));
        let takes = "an even number of ranks and an even number of microbatches, at least twice the ranks";
        return Err(illegal("dualpipe", takes, (p, m), nearest));
    }
    let shape = shape(p, m)?;
    let row = |rank: usize| {
        let h = rank.min(p - 1 - rank);
        let (own_first, other_first) = if rank < p / 2 { (0, m / 2) } else { (m / 2, 0) };
        let own = Direction::new(h, own_first);
        let other = Direction::new(p - 1 - h, other_first);
        eight_steps(own, other, h, p / 2, m / 2)
    };
    Schedule::new("dualpipe", shape, (0..p).map(row).collect())
}

/// One of the two stages of a rank and the microbatches that pass it, counted as they come.
pub(super) struct Direction {
    stage: Stage,
    forward: Microbatch,
    backward: Microbatch,
}

impl Direction {
    pub(super) fn new(stage: usize, first_microbatch: usize) -> Self {
        Direction {
            stage: stage as Stage,
            forward: first_microbatch as Microbatch,
            backward: first_microbatch as Microbatch,
        }
    }

    fn forward(&mut self) -> Action {
        self.forward += 1;
        Action::new(self.stage, Kind::F, self.forward - 1)
    }

    fn backward(&mut self, kind: Kind) -> Action {
        self.backward += 1;
        Action::new(self.stage, kind, self.backward - 1)
    }
}

/// A row under construction: F0 and B0 belong to the rank's own direction, F1 and B1 to the other.
struct Row {
    directions: [Direction; 2],
    slots: Vec<Slot>,
    /// The weight backwards put off, first in, first out.
    deferred: VecDeque<Action>,
}

impl Row {
    fn f(&mut self, direction: usize) {
        let action = self.directions[direction].forward();
        self.slots.push(Slot::One(action));
    }

    fn b(&mut self, direction: usize) {
        let action = self.directions[direction].backward(Kind::B);
        self.slots.push(Slot::One(action));
    }

    fn i(&mut self, direction: usize) {
        let action = self.directions[direction].backward(Kind::I);
        self.slots.push(Slot::One(action));
        self.deferred.push_back(Action { kind: Kind::W, ..action });
    }

    fn w(&mut self) {
        self.slots.extend(self.deferred.pop_front().map(Slot::One));
    }

    fn fb(&mut self, forward: usize, backward: usize) {
        let forward = self.directions[forward].forward();
        let backward = self.directions[backward].backward(Kind::B);
        self.slots.push(Slot::Pair(forward, backward));
    }
}

/// The order of a rank that is `h` away from the nearer end, `half` ranks from end to middle, with
/// `k` microbatches a direction. What comes out at the middle comes back in the other direction.
pub(super) fn eight_steps(own: Direction, other: Direction, h: usize, half: usize, k: usize) -> Vec<Slot> {
    let mut row = Row {
        directions: [own, other],
        slots: Vec::with_capacity(2 * k + 4 * half),
        deferred: VecDeque::new(),
    };
    let to_middle = half - h - 1;

    // Step 1: nF0
    for _ in 0..2 * to_middle {
        row.f(0);
    }
    // Step 2: nF0F1
    for _ in 0..h + 1 {
        row.f(0);
        row.f(1);
    }
    // Step 3: nI1W1F1
    for _ in 0..to_middle {
        row.i(1);
        row.w();
        row.f(1);
    }
    // Step 4 (the main step): n(F0&B1)(F1&B0)
    for n in 0..k - 2 * half + h + 1 {
        if n == 0 && to_middle == 0 {
            // The middle rank's neighbour needs this F0 before it can give anything back.
            row.f(0);
            row.b(1);
        } else {
            row.fb(0, 1);
        }
        row.fb(1, 0);
    }
    // Step 5: nB1(F1&B0)
    for _ in 0..to_middle {
        row.b(1);
        row.fb(1, 0);
    }
    // Step 6: nB1B0, the second part of it I1I0
    let mut defers = false;
    for n in 0..h + 1 {
        let switch = n == h.div_ceil(2);
        defers |= switch && h % 2 == 1;
        if defers {
            row.i(1)
        } else {
            row.b(1)
        }
        defers |= switch;
        if defers { row.i(0) } else { row.b(0) }
    }
    // Step 7: nWI0
    for _ in 0..to_middle {
        row.w();
        row.i(0);
    }
    // Step 8: nW
    for _ in 0..h + 1 {
        row.w();
    }
    row.slots
}
