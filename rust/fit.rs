//! Costs fitted to a measured [`Timeline`]: the mean of what was measured, action by action. It fits means and no
//! distribution, and takes no account of what else the machine did.

use std::collections::BTreeMap;

use crate::costs::{Costs, Numbers, Table};
use crate::error::Error;
use crate::schedule::{Kind, Shape, Slot, Stage};
use crate::timeline::{Cause, Timeline};

/// Which clock says how long a slot took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    Wall,
    /// The rank's thread CPU time: where ranks share cores.
    Cpu,
}

/// F, I, W and B by stage, fused pairs by stage pair, and one hop for all edges.
///
/// A slot's cost includes the mean overhead before a slot that had all it needed. What a stage never did alone is
/// taken from what is known: of a B that was never split I and W have the share that they have in other stages, or
/// one half each; an F or B seen in pairs alone the mean of the other stages; a backward that never ran, I = W = F.
pub fn fit(timeline: &Timeline, clock: Clock) -> Result<Costs, Error> {
    let Some(cpu) = timeline.cpu() else {
        let why =
            "costs are fitted to a measured timeline, and this one was predicted; its costs are those given";
        return Err(Error::Format(why.to_string()));
    };
    let shape = timeline.shape();
    let mut seen = Seen::default();
    let slots = (0..timeline.ranks()).flat_map(|rank| timeline.slots(rank));
    for ((slot, time), &cpu) in slots.zip(cpu) {
        seen.count(slot, if clock == Clock::Cpu { cpu } else { time.duration() });
    }
    let (overhead, hop) = if clock == Clock::Cpu { (0.0, 0.0) } else { lags(timeline)? };
    Ok(seen.costs(shape, overhead, hop))
}

/// The mean gap before a slot that had all it needed, and the mean of what was left of a wait once what was waited
/// for had been made.
fn lags(timeline: &Timeline) -> Result<(f64, f64), Error> {
    let (mut overhead, mut hop) = (0.0, Mean::default());
    for wait in timeline.waits()? {
        match wait.cause {
            Cause::Overhead => overhead += wait.time.duration(),
            Cause::Hop => hop.add(wait.time.duration()),
            _ => {}
        }
    }
    let slots = timeline.verified().schedule().slots();
    Ok((overhead / slots as f64, hop.value().unwrap_or(0.0)))
}

#[derive(Default, Clone, Copy)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut mean = Mean::default();
    values.for_each(|value| mean.add(value));
    mean.value()
}

/// What was measured of each action and pair.
#[derive(Default)]
struct Seen {
    alone: BTreeMap<(Kind, Stage), Mean>,
    pairs: BTreeMap<(Stage, Stage), Mean>,
}

impl Seen {
    fn count(&mut self, slot: Slot, duration: f64) {
        match slot {
            Slot::One(action) => self.alone.entry((action.kind, action.stage)).or_default().add(duration),
            Slot::Pair(f, b) => self.pairs.entry((f.stage, b.stage)).or_default().add(duration),
        }
    }

    fn of(&self, kind: Kind, stage: Stage) -> Option<f64> {
        self.alone.get(&(kind, stage)).copied().and_then(Mean::value)
    }

    /// The mean over the stages of what one of them did.
    fn of_any(&self, kind: Kind, stages: usize) -> Option<f64> {
        mean((0..stages as Stage).filter_map(|stage| self.of(kind, stage)))
    }

    fn costs(&self, shape: &Shape, overhead: f64, hop: f64) -> Costs {
        let stages = shape.stages();
        let by_stage = |cost: &dyn Fn(Stage) -> f64| (0..stages as Stage).map(cost).collect::<Vec<f64>>();
        let forward = by_stage(&|stage| self.forward(stage, stages));
        let split = by_stage(&|stage| self.backward(stage, stages).0);
        let weight = by_stage(&|stage| self.backward(stage, stages).1);
        let full = by_stage(&|stage| self.backward(stage, stages).2);
        let with = |costs: &[f64]| Numbers::Each(costs.iter().map(|cost| cost + overhead).collect());
        let pair = |f: usize, b: usize| {
            let seen = self.pairs.get(&(f as Stage, b as Stage)).copied().and_then(Mean::value);
            seen.unwrap_or(forward[f] + full[b]) + overhead
        };
        let cells = || (0..stages * stages).map(|cell| pair(cell / stages, cell % stages)).collect();
        Costs {
            forward: with(&forward),
            backward_input: with(&split),
            backward_weight: with(&weight),
            backward: Some(with(&full)),
            overlap: (!self.pairs.is_empty()).then(|| Table::Each { size: stages, cells: cells() }),
            p2p: Table::One(hop),
            ..Costs::default()
        }
    }

    fn forward(&self, stage: Stage, stages: usize) -> f64 {
        let in_pairs = || mean(self.pairs.values().filter_map(|pair| pair.value())).map(|pair| pair / 3.0);
        self.of(Kind::F, stage).or_else(|| self.of_any(Kind::F, stages)).or_else(in_pairs).unwrap_or(0.0)
    }

    /// I, W and B.
    fn backward(&self, stage: Stage, stages: usize) -> (f64, f64, f64) {
        let split = |i: Option<f64>, w: Option<f64>| i.zip(w);
        let own = split(self.of(Kind::I, stage), self.of(Kind::W, stage));
        let any = split(self.of_any(Kind::I, stages), self.of_any(Kind::W, stages));
        let full = self.of(Kind::B, stage);
        let full = full.or(own.map(|(i, w)| i + w)).or_else(|| self.of_any(Kind::B, stages));
        let share = any.filter(|(i, w)| i + w > 0.0).map_or(0.5, |(i, w)| i / (i + w));
        match (own, full) {
            (Some((i, w)), full) => (i, w, full.unwrap_or(i + w)),
            (None, Some(full)) => (full * share, full * (1.0 - share), full),
            (None, None) => {
                let (i, w) = any.unwrap_or((self.forward(stage, stages), self.forward(stage, stages)));
                (i, w, i + w)
            }
        }
    }
}
