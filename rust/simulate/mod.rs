//! (Verified, Network, Costs) → the Timeline that these costs give: each slot starts as soon as its rank is free and
//! what it needs has come. The P2P semantics are in the network: the verifier's is eager's, a Program has its own.
//!
//! Here is the pass over a network; cores.rs limits the cores, many.rs simulates a schedule under many
//! costs and under noise, sensitivity.rs tells which cost matters.

use std::sync::Arc;

use crate::costs::{Costs, Hops, Prices};
use crate::error::Error;
use crate::network::{Network, Node};
use crate::timeline::{Closing, Origin, Time, Timeline};
use crate::verify::Verified;

mod cores;
mod many;
mod sensitivity;
mod sweep;

pub use cores::simulate_on_cores;
pub use many::{Noise, Summary, jitter, simulate_many};
pub use sensitivity::{Change, sensitivity};
pub use sweep::Wish;

/// Under eager P2P: a tensor made on another rank comes one hop after it was made, and holds nobody.
pub fn simulate(verified: &Verified, costs: &Costs) -> Result<Timeline, Error> {
    simulate_network(verified, verified.network().clone(), costs)
}

/// As a Program of the schedule runs whose network this is.
pub fn simulate_network(
    verified: &Verified,
    network: Arc<Network>,
    costs: &Costs,
) -> Result<Timeline, Error> {
    let prices = costs.prices(verified.shape())?;
    let firsts = verified.schedule().firsts();
    let rows = verified.schedule().rows();
    let mut times = vec![Time::default(); verified.schedule().slots()];
    walk(&network, &prices.hops, |node, index, start| {
        let end = start + prices.slot(rows[node.rank()][index]);
        times[firsts[node.rank()] + index] = Time { start, end };
        end
    });
    finish(verified, network, costs, &prices, None, times)
}

/// One pass over a network: each node starts when its last input lets it. `compute` is told of each slot's start,
/// and gives its end.
#[inline(always)]
fn walk(network: &Network, hops: &Hops, mut compute: impl FnMut(&Node, usize, f64) -> f64) {
    match hops.uniform() {
        Some(hop) => walk_with(network, |_, _| hop, &mut compute),
        None => walk_with(network, |from, to| hops.between(from, to), &mut compute),
    }
}

#[inline(always)]
fn walk_with(
    network: &Network,
    hop: impl Fn(usize, usize) -> f64,
    compute: &mut impl FnMut(&Node, usize, f64) -> f64,
) {
    let nodes = network.nodes();
    let mut ends: Vec<f64> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let mut start = 0.0;
        for input in node.inputs {
            let Some(from) = input.node() else { continue };
            let lag = if input.is_hop() { hop(nodes[from].rank(), node.rank()) } else { 0.0 };
            let lets = ends[from] + lag;
            if lets > start {
                start = lets;
            }
        }
        ends.push(match node.index() {
            Some(index) => compute(node, index, start),
            None => start,
        });
    }
}

/// Adds what comes after the slots, and refuses times that are none.
fn finish(
    verified: &Verified,
    network: Arc<Network>,
    costs: &Costs,
    prices: &Prices,
    cores: Option<usize>,
    times: Vec<Time>,
) -> Result<Timeline, Error> {
    let lasts: Vec<f64> = verified
        .schedule()
        .firsts()
        .windows(2)
        .map(|row| if row[1] > row[0] { times[row[1] - 1].end } else { 0.0 })
        .collect();
    let closing = if verified.shape().forward_only() { Vec::new() } else { closing(prices, &lasts) };
    let mut ends = lasts.iter().copied().chain(closing.iter().map(|closing| closing.end));
    if !ends.all(f64::is_finite) {
        return Err(too_much());
    }
    let origin = Origin::Predicted { network, costs: Box::new(costs.clone()), cores };
    Ok(Timeline::new(verified.clone(), times, closing, origin))
}

fn too_much() -> Error {
    let problem = "add up to more than a float can hold".to_string();
    Error::Cost { name: "costs", problem }
}

/// The exchange of gradients between mirrored ranks, then the optimizer; nothing where neither takes time.
fn closing(prices: &Prices, lasts: &[f64]) -> Vec<Closing> {
    if prices.exchange.is_none() && prices.optimizer.is_empty() {
        return Vec::new();
    }
    let of_rank = |(rank, &last): (usize, &f64)| {
        // Of an odd number, the middle rank holds its stage alone.
        let mirror = Some(lasts.len() - 1 - rank).filter(|&mirror| mirror != rank);
        let exchanged =
            mirror.zip(prices.exchange).map_or(last, |(mirror, cost)| last.max(lasts[mirror]) + cost);
        Closing {
            exchanged,
            end: exchanged + prices.optimizer.get(rank).copied().unwrap_or(0.0),
        }
    };
    lasts.iter().enumerate().map(of_rank).collect()
}
