//! ZB-V: zero bubble over a V, so that no rank holds more than 1F1B's memory. Qi et al., "Zero Bubble Pipeline
//! Parallelism", ICLR 2024 (arXiv 2401.10241), section 6; the hand-written order for equal costs, not the
//! paper's search.

use super::illegal;
use crate::error::Error;
use crate::schedule::{Action, Kind, Microbatch, Placement, Schedule, Shape, Slot, Stage};

/// Takes any number of ranks p and of microbatches; fewer than 2p−1 are the order of 2p−1 with the others left
/// out. Rank r holds stages r and 2p−1−r. Peak 2p chunks where m ≥ p.
pub fn zb_v(ranks: usize, microbatches: usize) -> Result<Schedule, Error> {
    let (p, m) = (ranks, microbatches);
    let shape = |p: usize, m| Shape::new(Placement::V, p, p.saturating_mul(2), m);
    if p == 0 || m == 0 {
        let takes = "at least one rank and one microbatch";
        return Err(illegal("zb-v", takes, (p, m), shape(p.max(1), m.max(1))));
    }
    let shape = shape(p, m)?;
    let row = |rank| {
        let mut row = row(p, m.max(2 * p - 1), rank);
        row.retain(|slot| slot.actions().all(|action| (action.microbatch as usize) < m));
        row
    };
    Schedule::new("zb-v", shape, (0..p).map(row).collect())
}

/// A row under construction. Chunk 0 is on the way down the V, chunk 1 on the way up.
struct Row {
    stages: [Stage; 2],
    /// By kind (F, I, W) and chunk: the next microbatch.
    next: [[Microbatch; 2]; 3],
    slots: Vec<Slot>,
}

impl Row {
    fn add(&mut self, kind: Kind, chunk: usize) {
        let next = &mut self.next[kind as usize][chunk];
        self.slots.push(Slot::One(Action::new(self.stages[chunk], kind, *next)));
        *next += 1;
    }

    fn count(&self, kind: Kind, chunk: usize) -> usize {
        self.next[kind as usize][chunk] as usize
    }

    fn f(&mut self, chunk: usize) {
        self.add(Kind::F, chunk);
    }

    fn i(&mut self, chunk: usize) {
        self.add(Kind::I, chunk);
    }

    fn w(&mut self, chunk: usize) {
        self.add(Kind::W, chunk);
    }
}

fn row(p: usize, m: usize, rank: usize) -> Vec<Slot> {
    let mut row = Row {
        stages: [rank as Stage, (2 * p - 1 - rank) as Stage],
        next: [[0; 2]; 3],
        slots: Vec::with_capacity(6 * m),
    };
    // Warm-up: F0 × (2(p−r)−1), (F1 F0) × r, (F1 I1 W1) × (p−r)
    for _ in 0..2 * (p - rank) - 1 {
        row.f(0);
    }
    for _ in 0..rank {
        row.f(1);
        row.f(0);
    }
    for _ in 0..p - rank {
        row.f(1);
        row.i(1);
        row.w(1);
    }
    // Steady state: F0 I0 W0 F1 I1 W1, until both chunks' forwards are done
    while row.count(Kind::F, 0) < m || row.count(Kind::F, 1) < row.count(Kind::F, 0) {
        if row.count(Kind::F, 0) < m {
            row.f(0);
        }
        row.i(0);
        row.w(0);
        row.f(1);
        row.i(1);
        row.w(1);
    }
    // Cool-down: (I0 I1) × r, (I0 W0) × (p−r), the Ws that are left
    for _ in 0..rank {
        row.i(0);
        row.i(1);
    }
    for _ in 0..p - rank {
        row.i(0);
        row.w(0);
    }
    for chunk in [1, 0] {
        while row.count(Kind::W, chunk) < row.count(Kind::I, chunk) {
            row.w(chunk);
        }
    }
    row.slots
}
