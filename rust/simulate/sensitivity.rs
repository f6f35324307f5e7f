//! Which cost matters: how the makespan changes where one cost changes a little, found by simulating again.

use super::sweep::{Wish, sweep};
use super::{simulate, simulate_network, simulate_on_cores};
use crate::costs::{Costs, Table};
use crate::error::Error;
use crate::timeline::{Origin, Timeline};

/// The change in makespan where a cost grows, in all stages at once, in each of them (each rank, of the optimizer)
/// alone, or in each cell of a table, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Whole(f64),
    Each(Vec<f64>),
    Table { size: usize, cells: Vec<f64> },
}

/// What a cost is given for.
#[derive(Debug, Clone, Copy)]
enum Given {
    One,
    Each(usize),
    Table(usize),
}

impl Given {
    fn count(self) -> Option<usize> {
        match self {
            Given::One => None,
            Given::Each(count) => Some(count),
            Given::Table(size) => Some(size * size),
        }
    }
}

/// For each cost of time by name, what changes where it grows by so many per cent; with `each`, in each stage,
/// rank or cell alone, where the cost is by stage or rank, or a table. `None` where `watch` wished to stop.
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
    let given = |name| if each { given(timeline, costs, name) } else { Given::One };
    let names: Vec<(&'static str, Given)> =
        costs.times().into_iter().map(|name| (name, given(name))).collect();
    let variants: Vec<(&'static str, Option<(usize, usize)>)> = names
        .iter()
        .flat_map(|&(name, given)| {
            let count = given.count();
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
        let of_name = |(name, given): (&'static str, Given)| match given {
            Given::One => (name, Change::Whole(changes.next().unwrap_or_default())),
            Given::Each(count) => (name, Change::Each(changes.by_ref().take(count).collect())),
            Given::Table(size) => {
                let cells = changes.by_ref().take(size * size).collect();
                (name, Change::Table { size, cells })
            }
        };
        names.into_iter().map(of_name).collect()
    }))
}

fn given(timeline: &Timeline, costs: &Costs, name: &str) -> Given {
    let table = |table: Option<&Table>| match table {
        Some(Table::Each { size, .. }) => Given::Table(*size),
        _ => Given::One,
    };
    match name {
        "forward" | "backward_input" | "backward_weight" | "backward" => {
            Given::Each(timeline.shape().stages())
        }
        "optimizer" => Given::Each(timeline.ranks()),
        "overlap" => table(costs.overlap.as_ref()),
        "p2p" => table(Some(&costs.p2p)),
        "p2p_bytes" => table(Some(&costs.p2p_bytes)),
        _ => Given::One,
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
