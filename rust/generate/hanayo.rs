//! Hanayo: stages laid over the ranks in waves, 0..p−1, p−1..0 and so on, so that bidirectional schedules need no
//! second copy of the weights. Liu et al., "Hanayo: Harnessing Wave-like Pipeline Parallelism for Enhanced Large
//! Model Training Efficiency", SC 2023 (arXiv 2308.15762), figure 6.
//!
//! The paper draws the orders and gives no formula; this is the list schedule that reproduces its bubble: with F and
//! B of one slot each, every rank takes what can start earliest, B before F, the oldest microbatch first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::illegal;
use crate::error::Error;
use crate::schedule::{Action, Kind, Microbatch, Placement, Schedule, Shape, Slot, Stage};

/// Takes any number of ranks, microbatches and waves; 2pW stages. At m = p the bubble is 2(p−1)/W times a rank's
/// full forward where B = 2F.
pub fn hanayo(ranks: usize, microbatches: usize, waves: usize) -> Result<Schedule, Error> {
    let shape = |p: usize, m| Shape::new(Placement::Wave, p, p.saturating_mul(2).saturating_mul(waves), m);
    if ranks == 0 || microbatches == 0 {
        let takes = "at least one rank and one microbatch";
        let nearest = shape(ranks.max(1), microbatches.max(1));
        return Err(illegal("hanayo", takes, (ranks, microbatches), nearest));
    }
    let shape = shape(ranks, microbatches)?;
    Schedule::new("hanayo", shape, list_schedule(&shape))
}

/// What a rank would rather do first: a backward, then the oldest microbatch, then the earlier stage.
type Preference = Reverse<(bool, Microbatch, Stage)>;

fn list_schedule(shape: &Shape) -> Vec<Vec<Slot>> {
    let mut ready: Vec<BinaryHeap<Preference>> = vec![BinaryHeap::new(); shape.ranks()];
    let mut rows: Vec<Vec<Slot>> = vec![Vec::new(); shape.ranks()];
    let first = (0..shape.microbatches() as Microbatch).map(|microbatch| Reverse((true, microbatch, 0)));
    ready[0].extend(first);
    let mut made = Vec::new();
    let mut left = 2 * shape.stages() * shape.microbatches();
    while left > 0 {
        for (ready, row) in ready.iter_mut().zip(&mut rows) {
            let Some(Reverse((forward, microbatch, stage))) = ready.pop() else { continue };
            let kind = if forward { Kind::F } else { Kind::B };
            let action = Action::new(stage, kind, microbatch);
            row.push(Slot::One(action));
            made.extend(next(shape, action));
            left -= 1;
        }
        // What this slot made can be taken from the next one on.
        for (kind, stage, microbatch) in made.drain(..) {
            let rank = shape.rank_of(stage, microbatch);
            ready[rank].push(Reverse((kind == Kind::F, microbatch, stage)));
        }
    }
    rows
}

/// What can be done once `action` is.
fn next(shape: &Shape, action: Action) -> Option<(Kind, Stage, Microbatch)> {
    let Action { stage, microbatch, .. } = action;
    let last = stage as usize + 1 == shape.stages();
    match action.kind {
        Kind::F if last => Some((Kind::B, stage, microbatch)),
        Kind::F => Some((Kind::F, stage + 1, microbatch)),
        _ => stage.checked_sub(1).map(|stage| (Kind::B, stage, microbatch)),
    }
}
