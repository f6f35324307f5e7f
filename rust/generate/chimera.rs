//! Chimera: two 1F1B pipelines in opposite directions over the same ranks, laid into each other without
//! conflict. Li and Hoefler, "Chimera: Efficiently Training Large-Scale Neural Networks with Bidirectional
//! Pipelines", SC 2021 (arXiv 2107.06925), figures 2 and 7 (direct concatenation; not forward doubling or
//! backward halving).

use super::illegal;
use crate::error::Error;
use crate::schedule::{Action, Kind, Microbatch, Placement, Schedule, Shape, Slot, Stage};

/// Takes an even number of ranks D and a multiple of D microbatches: units of D, each with D/2 in each
/// direction. Each rank holds two stages' weights.
pub fn chimera(ranks: usize, microbatches: usize) -> Result<Schedule, Error> {
    let (d, m) = (ranks, microbatches);
    let shape = |d, m| Shape::new(Placement::Bidirectional, d, d, m);
    if d == 0 || d % 2 == 1 || m == 0 || !m.is_multiple_of(d) {
        let even = d.max(1).saturating_add(d.max(1) % 2);
        let units = (m / even + usize::from(m % even >= even / 2)).max(1);
        let nearest = shape(even, units.saturating_mul(even));
        let takes = "an even number of ranks, and a multiple of them as microbatches";
        return Err(illegal("chimera", takes, (d, m), nearest));
    }
    let shape = shape(d, m)?;
    let rows = (0..d).map(|rank| row(d, m, rank)).collect();
    Schedule::new("chimera", shape, rows)
}

/// In a unit, with F and B of one slot each, stage s does the j-th F of its direction in slot s + 2j and the
/// j-th B in slot 2D−1−s + 2j. The 2D slots of a rank differ from each other modulo 2D, so units that follow
/// at a distance of 2D fill each other's bubbles.
fn row(d: usize, m: usize, rank: usize) -> Vec<Slot> {
    let mut cells: Vec<(usize, Slot)> = Vec::with_capacity(2 * m);
    for (stage, first) in [(rank, 0), (d - 1 - rank, m / 2)] {
        for microbatch in 0..m / 2 {
            let (unit, j) = (microbatch / (d / 2), microbatch % (d / 2));
            let start = 2 * d * unit + 2 * j;
            let slot =
                |kind| Slot::One(Action::new(stage as Stage, kind, (first + microbatch) as Microbatch));
            cells.push((start + stage, slot(Kind::F)));
            cells.push((start + 2 * d - 1 - stage, slot(Kind::B)));
        }
    }
    cells.sort_by_key(|&(start, _)| start);
    cells.into_iter().map(|(_, slot)| slot).collect()
}
