//! Which cost matters: how the makespan changes where one cost changes a little, found by simulating again.

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
/// rank alone, where the cost is by stage or rank.
pub fn sensitivity(
    timeline: &Timeline,
    percent: f64,
    each: bool,
) -> Result<Vec<(&'static str, Change)>, Error> {
    let Origin::Predicted { costs, .. } = timeline.origin() else {
        let why =
            "a measured timeline has no costs; fit some, Costs.from_timeline(timeline), and simulate them";
        return Err(Error::Format(why.to_string()));
    };
    let change = |costs: Costs| Ok(again(timeline, &costs)?.makespan() - timeline.makespan());
    let factor = 1.0 + percent / 100.0;
    let of_name = |name| {
        let Some(count) = count(timeline, name).filter(|_| each) else {
            return Ok((name, Change::Whole(change(costs.scaled(name, factor, None))?)));
        };
        let one = |index| change(costs.scaled(name, factor, Some((index, count))));
        Ok((name, Change::Each((0..count).map(one).collect::<Result<_, Error>>()?)))
    };
    costs.times().into_iter().map(of_name).collect()
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
