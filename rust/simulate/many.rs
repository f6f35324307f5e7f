//! One schedule under many costs, or under noise.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use super::sweep::{Wish, sweep};
use super::{closing, simulate_network, too_much, walk};
use crate::costs::{Costs, Prices};
use crate::error::Error;
use crate::network::{Network, Node};
use crate::schedule::Rank;
use crate::verify::Verified;

/// What one of many simulations gave. The layout is that of the numpy record that Python sees.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct Summary {
    pub makespan: f64,
    pub span: f64,
    pub bubble_ratio: f64,
}

/// A simulation for each of `costs`; `None` where `watch` wished to stop.
pub fn simulate_many(
    verified: &Verified,
    network: &Arc<Network>,
    costs: &[Costs],
    threads: Option<usize>,
    watch: impl FnMut(usize) -> Wish,
) -> Result<Option<Vec<Summary>>, Error> {
    sweep(costs.len(), threads, watch, |index| {
        let timeline = simulate_network(verified, network.clone(), &costs[index])
            .map_err(|error| Error::Format(format!("costs[{index}]: {error}")))?;
        Ok(Summary {
            makespan: timeline.makespan(),
            span: timeline.span(),
            bubble_ratio: timeline.bubble_ratio(),
        })
    })
}

/// Every slot takes its price times a factor of its own: log-normal, with mean 1 and this standard deviation.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    pub sigma: f64,
    pub seed: u64,
    /// A rank whose slots and optimizer take so many times as long.
    pub slow: Option<(Rank, f64)>,
}

/// The makespan of each of `runs` simulations under noise; `None` where `watch` wished to stop. The n-th is the same
/// whatever their number and that of the threads.
pub fn jitter(
    verified: &Verified,
    network: &Network,
    costs: &Costs,
    noise: Noise,
    runs: usize,
    threads: Option<usize>,
    watch: impl FnMut(usize) -> Wish,
) -> Result<Option<Vec<f64>>, Error> {
    let mut prices = costs.prices(verified.shape())?;
    if let Some((rank, factor)) = noise.slow
        && let Some(optimizer) = prices.optimizer.get_mut(rank)
    {
        *optimizer *= factor;
    }
    let durations = durations(verified, network, &prices, noise.slow);
    let spread = (1.0 + noise.sigma * noise.sigma).ln();
    let deviation = spread.sqrt();
    let closes = !verified.shape().forward_only();
    sweep(runs, threads, watch, |run| {
        let mut random = ChaCha8Rng::seed_from_u64(noise.seed);
        random.set_stream(run as u64);
        let mut lasts = vec![0.0; verified.shape().ranks()];
        let mut durations = durations.iter();
        walk(network, &prices.hops, |node, _, start| {
            let normal: f64 = StandardNormal.sample(&mut random);
            let factor = (deviation * normal - spread / 2.0).exp();
            let end = start + durations.next().unwrap_or(&0.0) * factor;
            lasts[node.rank()] = end;
            end
        });
        let closing = if closes { closing(&prices, &lasts) } else { Vec::new() };
        let ends = lasts.into_iter().chain(closing.iter().map(|closing| closing.end));
        let makespan = ends.fold(0.0, f64::max);
        if makespan.is_finite() { Ok(makespan) } else { Err(too_much()) }
    })
}

/// What every slot takes without noise, in the order of the network.
fn durations(verified: &Verified, network: &Network, prices: &Prices, slow: Option<(Rank, f64)>) -> Vec<f64> {
    let rows = verified.schedule().rows();
    let of_slot = |node: &Node| {
        let rank = node.rank();
        let factor = slow.filter(|&(slow, _)| slow == rank).map_or(1.0, |(_, factor)| factor);
        Some(prices.slot(rows[rank][node.index()?]) * factor)
    };
    network.nodes().iter().filter_map(of_slot).collect()
}
