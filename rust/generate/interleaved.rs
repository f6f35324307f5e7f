//! Interleaved 1F1B: 1F1B over several chunks of the model a rank, so that a rank waits for a chunk and not
//! for all of its layers. Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters
//! Using Megatron-LM", SC 2021 (arXiv 2104.04473), figure 4 bottom. And interleaved zero bubble: the same
//! with the backward split, after Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024 (arXiv
//! 2401.10241), in the form of torch.distributed.pipelining's `ScheduleInterleavedZeroBubble`.

use super::illegal;
use crate::error::Error;
use crate::schedule::{Action, Kind, Microbatch, Placement, Schedule, Shape, Slot, Stage};

/// Takes any number of ranks and chunks, and microbatches that divide into equal rounds of at least p (fewer
/// than p are one round). Where p divides m, peak min(2(p−1) + (v−1)p + 1, mv) chunks on rank 0.
pub fn interleaved(ranks: usize, microbatches: usize, chunks: usize) -> Result<Schedule, Error> {
    let rounds = Rounds::new("interleaved", ranks, microbatches, chunks)?;
    let rows = (0..ranks).map(|rank| {
        // Each rank away from the last sends a forward, and waits for its backward: twice one hop.
        let warm_up = rounds.warm_up(2 * (ranks - 1 - rank));
        let mut row = Vec::new();
        for step in 0..warm_up + rounds.count() {
            row.extend(rounds.forward(rank, step));
            row.extend(step.checked_sub(warm_up).map(|step| rounds.backward(Kind::B, rank, step)));
        }
        row
    });
    Schedule::new("interleaved", rounds.shape, rows.collect())
}

/// Sizes as [`interleaved`]. On rank r, W lags r backwards behind I.
pub fn interleaved_zb(ranks: usize, microbatches: usize, chunks: usize) -> Result<Schedule, Error> {
    let rounds = Rounds::new("interleaved-zb", ranks, microbatches, chunks)?;
    let rows = (0..ranks).map(|rank| {
        let warm_up = rounds.warm_up(ranks - 1 - rank);
        let mut row = Vec::new();
        // A W belongs to the I of `rank` steps before, but none is put off before the warm-up is over.
        let mut weights = 0;
        for step in 0..warm_up + rounds.count() {
            row.extend(rounds.forward(rank, step));
            let Some(backward) = step.checked_sub(warm_up) else { continue };
            row.push(rounds.backward(Kind::I, rank, backward));
            if backward >= rank {
                row.push(rounds.backward(Kind::W, rank, weights));
                weights += 1;
            }
        }
        row.extend((weights..rounds.count()).map(|step| rounds.backward(Kind::W, rank, step)));
        row
    });
    Schedule::new("interleaved-zb", rounds.shape, rows.collect())
}

/// The n-th forward and backward of a rank: microbatches go through its chunks in rounds.
struct Rounds {
    shape: Shape,
    chunks: usize,
    /// Microbatches a round.
    length: usize,
}

impl Rounds {
    fn new(family: &'static str, p: usize, m: usize, v: usize) -> Result<Self, Error> {
        let shape = |p: usize, m| Shape::new(Placement::Looped, p, p.saturating_mul(v), m);
        let rounds = |m: usize| (m / p.max(1)).max(1);
        let divides = |&m: &usize| m > 0 && m.is_multiple_of(rounds(m));
        if p == 0 || !divides(&m) {
            // A multiple of p is never further away than p.
            let near = (0..=p.max(1)).flat_map(|away| [m.saturating_add(away), m.saturating_sub(away)]);
            let nearest = shape(p.max(1), near.into_iter().find(divides).unwrap_or(1));
            let takes = "at least one rank and one microbatch, and microbatches that make (microbatches / ranks, \
                         rounded down, at least 1) rounds of equal length, as multiples of the ranks do";
            return Err(illegal(family, takes, (p, m), nearest));
        }
        Ok(Rounds { shape: shape(p, m)?, chunks: v, length: m / rounds(m) })
    }

    /// Forwards, or backwards, of a rank.
    fn count(&self) -> usize {
        self.chunks * self.shape.microbatches()
    }

    /// All chunks but the last take a round before the first backward can come.
    fn warm_up(&self, extra: usize) -> usize {
        ((self.chunks - 1) * self.length + extra).min(self.count())
    }

    fn forward(&self, rank: usize, step: usize) -> Option<Slot> {
        (step < self.count()).then(|| self.slot(Kind::F, rank, step, self.chunk(step)))
    }

    fn backward(&self, kind: Kind, rank: usize, step: usize) -> Slot {
        self.slot(kind, rank, step, self.chunks - 1 - self.chunk(step))
    }

    fn chunk(&self, step: usize) -> usize {
        step / self.length % self.chunks
    }

    fn slot(&self, kind: Kind, rank: usize, step: usize, chunk: usize) -> Slot {
        let microbatch = step / (self.length * self.chunks) * self.length + step % self.length;
        let stage = chunk * self.shape.ranks() + rank;
        Slot::One(Action::new(stage as Stage, kind, microbatch as Microbatch))
    }
}
