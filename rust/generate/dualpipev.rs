//! DualPipeV: DualPipe cut in half and folded into a V, so that no weight is held twice. Proposed by
//! Sea AI Lab as "cut-in-half" and published by DeepSeek beside DualPipe, 2025
//! (github.com/deepseek-ai/DualPipe).

use super::dualpipe::{Direction, eight_steps};
use super::illegal;
use crate::error::Error;
use crate::schedule::{Placement, Schedule, Shape};

/// Takes any number of ranks and at least twice as many microbatches. Rank r holds stages r and
/// 2p−1−r; the last rank is the fold. Peak 2p+1 chunks on every rank.
pub fn dualpipev(ranks: usize, microbatches: usize) -> Result<Schedule, Error> {
    let (p, m) = (ranks, microbatches);
    let shape = |p: usize, m| Shape::new(Placement::V, p, p.saturating_mul(2), m);
    if p == 0 || m / 2 < p {
        let nearest = shape(p.max(1), m.max(p.max(1).saturating_mul(2)));
        let takes = "at least one rank and at least twice as many microbatches";
        return Err(illegal("dualpipev", takes, (p, m), nearest));
    }
    let shape = shape(p, m)?;
    let row = |rank: usize| {
        let down = Direction::new(rank, 0);
        let up = Direction::new(2 * p - 1 - rank, 0);
        eight_steps(down, up, rank, p, m)
    };
    Schedule::new("dualpipev", shape, (0..p).map(row).collect())
}
