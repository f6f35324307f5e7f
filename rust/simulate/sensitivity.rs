//! Which cost matters: how the makespan changes where one cost changes a little, found by simulating again.

use super::sweep::{Wish, sweep};
use super::{simulate, simulate_network, simulate_on_cores};
use crate::costs::Costs;
use crate::error::Error;
use crate::timeline::{Origin, Timeline};

/// The change in makespan where a cost grows, in all stages at once, or in each of them (each rank, of the optimizer)
/// alone.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Whole(f64),
    Each(Vec<f64>),
}

/// For each cost of time by name, what changes where it grows by so many per cent; with `each`, in each stage or
/// rank alone, where the cost is by stage or rank. `None` where `watch` wished to stop.
pub fn sensitivity(
    timeline: &Timeline,
    percent: f64,
    each: bool,
    watch: impl FnMut(usize) -> Wish,
) -> Result<Option<Vec<(&'static str, Change)>>, Error> {
    let Origin::Predicted { costs, .. } = timeline.origin() else {
        let why =
            "a measured timeline has no costs; fit some, Costs.from_timeline(timeline), and simulate them";
        return Err(Error::Format(why.to_string()));
    };
    let names: Vec<(&'static str, Option<usize>)> =
        costs.times().into_iter().map(|name| (name, count(timeline, name).filter(|_| each))).collect();
    let variants: Vec<(&'static str, Option<(usize, usize)>)> = names
        .iter()
        .flat_map(|&(name, count)| {
            let only = (0..count.unwrap_or(1)).map(move |index| count.map(|count| (index, count)));
            only.map(move |only| (name, only))
        })
        .collect();
    let makespan = timeline.makespan();
    let changes = sweep(variants.len(), None, watch, |index| {
        let (name, only) = variants[index];
        Ok(again(timeline, &costs.scaled(name, 1.0 + percent / 100.0, only))?.makespan() - makespan)
    })?;
    Ok(changes.map(|changes| {
        let mut changes = changes.into_iter();
        let of_name = |(name, count): (&'static str, Option<usize>)| match count {
            None => (name, Change::Whole(changes.next().unwrap_or_default())),
            Some(count) => (name, Change::Each(changes.by_ref().take(count).collect())),
        };
        names.into_iter().map(of_name).collect()
    }))
}

/// How many stages or ranks a cost is given for; `None` for one that is not by stage or rank.
fn count(timeline: &Timeline, name: &str) -> Option<usize> {
    match name {
        "forward" | "backward_input" | "backward_weight" | "backward" => Some(timeline.shape().stages()),
        "optimizer" => Some(timeline.ranks()),
        _ => None,
    }
}

/// The same step with other costs.
fn again(timeline: &Timeline, costs: &Costs) -> Result<Timeline, Error> {
    match timeline.origin() {
        Origin::Predicted { cores: Some(cores), .. } => simulate_on_cores(timeline.verified(), costs, *cores),
        Origin::Predicted { network, .. } => simulate_network(timeline.verified(), network.clone(), costs),
        Origin::Measured { .. } => simulate(timeline.verified(), costs),
    }
}
