//! GPipe: all forwards, then all backwards. Huang et al., "GPipe: Efficient Training of Giant Neural
//! Networks using Pipeline Parallelism", NeurIPS 2019 (arXiv 1811.06965), figure 2c.

use super::{each, illegal};
use crate::error::Error;
use crate::schedule::{Kind, Placement, Schedule, Shape, Stage};

/// Takes any number of ranks and microbatches. Peak m.
pub fn gpipe(ranks: usize, microbatches: usize) -> Result<Schedule, Error> {
    let shape = |ranks, microbatches| Shape::new(Placement::Linear, ranks, ranks, microbatches);
    if ranks == 0 || microbatches == 0 {
        let nearest = shape(ranks.max(1), microbatches.max(1));
        let takes = "at least one rank and one microbatch";
        return Err(illegal("gpipe", takes, (ranks, microbatches), nearest));
    }
    let shape = shape(ranks, microbatches)?;
    let row = |rank: usize| {
        let stage = rank as Stage;
        each(stage, Kind::F, 0..microbatches).chain(each(stage, Kind::B, 0..microbatches)).collect()
    };
    Schedule::new("gpipe", shape, (0..ranks).map(row).collect())
}
