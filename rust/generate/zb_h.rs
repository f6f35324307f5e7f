//! ZB-H1 and ZB-H2: 1F1B with the backward split into I and W, and W put where 1F1B has its bubbles. Qi et
//! al., "Zero Bubble Pipeline Parallelism", ICLR 2024 (arXiv 2401.10241), figures 2 and 3. (DeepSeek's table
//! calls ZB-H1 "ZB1P".) The paper's synchronisation after the step is not part of an order.

use super::{each, illegal};
use crate::error::Error;
use crate::schedule::{Kind, Placement, Schedule, Shape, Slot, Stage};

/// Takes any number of ranks and microbatches. Peak p: 1F1B's memory, a third of its bubble.
pub fn zb_h1(ranks: usize, microbatches: usize) -> Result<Schedule, Error> {
    let (p, m) = (ranks, microbatches);
    let shape = |p, m| Shape::new(Placement::Linear, p, p, m);
    if p == 0 || m == 0 {
        let takes = "at least one rank and one microbatch";
        return Err(illegal("zb-h1", takes, (p, m), shape(p.max(1), m.max(1))));
    }
    let shape = shape(p, m)?;
    let rows = (0..p).map(|rank| row(rank, m, p - 1 - rank, rank)).collect();
    Schedule::new("zb-h1", shape, rows)
}

/// Takes any number of ranks p and at least 2p−1 microbatches. Peak 2p−1: twice 1F1B's memory, and no bubble
/// within a rank's own span where F = I = W.
pub fn zb_h2(ranks: usize, microbatches: usize) -> Result<Schedule, Error> {
    let (p, m) = (ranks, microbatches);
    let shape = |p, m| Shape::new(Placement::Linear, p, p, m);
    if p == 0 || m < p.saturating_mul(2) - 1 {
        let nearest = shape(p.max(1), m.max(p.max(1).saturating_mul(2) - 1));
        let takes = "at least one rank, and at least twice as many microbatches less one";
        return Err(illegal("zb-h2", takes, (p, m), nearest));
    }
    let shape = shape(p, m)?;
    let rows = (0..p).map(|rank| row(rank, m, 2 * (p - 1 - rank), 2 * rank)).collect();
    Schedule::new("zb-h2", shape, rows)
}

/// `warm_up` forwards; then F, I, W in turn, W being `lag` microbatches behind I; then the Ws that are left.
fn row(rank: usize, m: usize, warm_up: usize, lag: usize) -> Vec<Slot> {
    let stage = rank as Stage;
    let mut row: Vec<Slot> = Vec::with_capacity(3 * m);
    let mut forwards = each(stage, Kind::F, 0..m);
    let mut weights = each(stage, Kind::W, 0..m);
    row.extend(forwards.by_ref().take(warm_up));
    for (i, input) in each(stage, Kind::I, 0..m).enumerate() {
        row.extend(forwards.next());
        row.push(input);
        if i >= lag {
            row.extend(weights.next());
        }
    }
    row.extend(weights);
    row
}
