//! Looped breadth-first: every microbatch through one chunk, then through the next. Lamy-Poirier,
//! "Breadth-First Pipeline Parallelism", MLSys 2023 (arXiv 2211.05953); the order is that of
//! torch.distributed.pipelining's `ScheduleLoopedBFS`, in which backwards run in reverse.

use super::{each, illegal};
use crate::error::Error;
use crate::schedule::{Kind, Placement, Schedule, Shape, Stage};

/// Takes any number of ranks, microbatches and stages a rank. Peak mv chunks on every rank.
pub fn looped_bfs(ranks: usize, microbatches: usize, chunks: usize) -> Result<Schedule, Error> {
    let shape = |p: usize, m| Shape::new(Placement::Looped, p, p.saturating_mul(chunks), m);
    if ranks == 0 || microbatches == 0 {
        let nearest = shape(ranks.max(1), microbatches.max(1));
        let takes = "at least one rank and one microbatch";
        return Err(illegal("looped-bfs", takes, (ranks, microbatches), nearest));
    }
    let shape = shape(ranks, microbatches)?;
    let row = |rank: usize| {
        let stages = (rank..shape.stages()).step_by(ranks);
        let forwards = stages.clone().flat_map(|stage| each(stage as Stage, Kind::F, 0..microbatches));
        let backwards = stages.rev().flat_map(|stage| {
            let all: Vec<_> = each(stage as Stage, Kind::B, 0..microbatches).collect();
            all.into_iter().rev()
        });
        forwards.chain(backwards).collect()
    };
    Schedule::new("looped-bfs", shape, (0..ranks).map(row).collect())
}
