//! 1F1B: a warm-up of forwards, then one forward and one backward in turn. Narayanan et al.,
//! "PipeDream: Generalized Pipeline Parallelism for DNN Training", SOSP 2019 (arXiv 1806.03377), in
//! the synchronous form of Narayanan et al. 2021 (arXiv 2104.04473), figure 4 top.

use super::{each, illegal};
use crate::error::Error;
use crate::schedule::{Kind, Placement, Schedule, Shape, Slot, Stage};

/// Takes any number of ranks and microbatches. Peak min(p − r, m) on rank r.
pub fn one_f_one_b(ranks: usize, microbatches: usize) -> Result<Schedule, Error> {
    let shape = |ranks, microbatches| Shape::new(Placement::Linear, ranks, ranks, microbatches);
    if ranks == 0 || microbatches == 0 {
        let nearest = shape(ranks.max(1), microbatches.max(1));
        let takes = "at least one rank and one microbatch";
        return Err(illegal("1f1b", takes, (ranks, microbatches), nearest));
    }
    let shape = shape(ranks, microbatches)?;
    let rows = (0..ranks).map(|rank| row(ranks, microbatches, rank)).collect();
    Schedule::new("1f1b", shape, rows)
}

fn row(ranks: usize, microbatches: usize, rank: usize) -> Vec<Slot> {
    let stage = rank as Stage;
    let warm_up = (ranks - 1 - rank).min(microbatches);
    let steady = microbatches - warm_up;

    // Warm-up: F × w
    let mut row: Vec<Slot> = each(stage, Kind::F, 0..warm_up).collect();
    // Steady state: (F, B) × (m − w)
    let forwards = each(stage, Kind::F, warm_up..microbatches);
    for (forward, backward) in forwards.zip(each(stage, Kind::B, 0..steady)) {
        row.extend([forward, backward]);
    }
    // Cool-down: B × w
    row.extend(each(stage, Kind::B, steady..microbatches));
    row
}
