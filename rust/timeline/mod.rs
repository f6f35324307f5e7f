//! When every slot started and ended, predicted or measured: the same type, so that both are drawn, explained and
//! compared by the same code.
//!
//! Here are the numbers; span.rs has each action as a record, waits.rs the idle time by cause, critical.rs the
//! critical path and the slack, memory.rs the bytes over time, transfers.rs the tensors between ranks.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::costs::{Costs, Hops};
use crate::error::Error;
use crate::network::Network;
use crate::schedule::{Kind, Rank, Shape, Slot};
use crate::verify::Verified;

mod critical;
mod memory;
mod span;
mod transfers;
mod waits;

pub use memory::Held;
pub use span::Span;
pub use transfers::Transfer;
pub use waits::{CAUSES, Cause, Wait};

/// A start and an end.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Time {
    pub start: f64,
    pub end: f64,
}

impl Time {
    pub fn duration(&self) -> f64 {
        self.end - self.start
    }
}

/// What a rank does after its last slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Closing {
    /// When its gradients are those of both ranks that hold its stages: at the end of its row where nothing is
    /// exchanged.
    pub exchanged: f64,
    /// When the optimizer is done.
    pub end: f64,
}

/// The times of a step.
#[derive(Debug, Clone)]
pub struct Timeline {
    verified: Verified,
    /// By rank, then slot.
    times: Vec<Time>,
    /// Where each rank's slots are in `times`; one more than there are ranks.
    firsts: Vec<usize>,
    /// By rank; empty where nothing is done after the last slot.
    closing: Vec<Closing>,
    origin: Origin,
    spans: OnceLock<Vec<Span>>,
}

/// Where the times come from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// From costs, under P2P semantics that are in the network, on so many cores if their number was limited.
    Predicted { network: Arc<Network>, costs: Box<Costs>, cores: Option<usize> },
    /// From a run, with the thread CPU time of each slot.
    Measured { cpu: Vec<f64> },
}

impl Timeline {
    /// `times` has one entry for each slot, by rank; `closing` one a rank, or none.
    pub fn new(verified: Verified, times: Vec<Time>, closing: Vec<Closing>, origin: Origin) -> Self {
        let firsts = verified.schedule().firsts();
        debug_assert_eq!(
            times.len(),
            *firsts.last().expect("firsts has one entry more than there are ranks")
        );
        Timeline {
            verified,
            times,
            firsts,
            closing,
            origin,
            spans: OnceLock::new(),
        }
    }

    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    pub fn shape(&self) -> &Shape {
        self.verified.shape()
    }

    pub fn ranks(&self) -> usize {
        self.shape().ranks()
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub fn closing(&self) -> &[Closing] {
        &self.closing
    }

    fn row(&self, rank: Rank) -> Range<usize> {
        self.firsts[rank]..self.firsts[rank + 1]
    }

    /// The times of one rank's slots.
    pub fn times_of(&self, rank: Rank) -> &[Time] {
        &self.times[self.row(rank)]
    }

    /// The slots of one rank with their times.
    pub fn slots(&self, rank: Rank) -> impl Iterator<Item = (Slot, Time)> {
        let slots = self.verified.schedule().rows()[rank].iter().copied();
        slots.zip(self.times_of(rank).iter().copied())
    }

    /// The CPU time of each slot, by rank, of a measured timeline.
    pub fn cpu(&self) -> Option<&[f64]> {
        match &self.origin {
            Origin::Measured { cpu } => Some(cpu),
            Origin::Predicted { .. } => None,
        }
    }

    /// Every action, by rank and slot; made when first asked for.
    pub fn spans(&self) -> &[Span] {
        self.spans.get_or_init(|| span::of(self))
    }

    /// The first start.
    pub fn start(&self) -> f64 {
        let starts = (0..self.ranks()).filter_map(|rank| self.times_of(rank).first());
        starts.map(|time| time.start).reduce(f64::min).unwrap_or(0.0)
    }

    /// When a rank has done all: its last slot, and what comes after.
    fn end_of(&self, rank: Rank) -> Option<f64> {
        let last = self.times_of(rank).last().map(|time| time.end);
        self.closing.get(rank).map(|closing| closing.end).or(last)
    }

    /// The last end.
    pub fn end(&self) -> f64 {
        (0..self.ranks()).filter_map(|rank| self.end_of(rank)).reduce(f64::max).unwrap_or(0.0)
    }

    /// The last end minus the first start over all ranks.
    pub fn makespan(&self) -> f64 {
        self.end() - self.start()
    }

    /// The longest single rank's own last end minus its first start.
    pub fn span(&self) -> f64 {
        let own = |rank| match (self.times_of(rank).first(), self.end_of(rank)) {
            (Some(first), Some(end)) => end - first.start,
            _ => 0.0,
        };
        (0..self.ranks()).map(own).fold(0.0, f64::max)
    }

    /// The time of each rank's slots and of its optimizer.
    pub fn busy(&self) -> Vec<f64> {
        let optimizer = |rank| self.closing.get(rank).map_or(0.0, |c: &Closing| c.end - c.exchanged);
        let busy = |rank| self.times_of(rank).iter().map(Time::duration).sum::<f64>() + optimizer(rank);
        (0..self.ranks()).map(busy).collect()
    }

    /// The makespan less the busy time of each rank.
    pub fn idle(&self) -> Vec<f64> {
        let makespan = self.makespan();
        self.busy().into_iter().map(|busy| makespan - busy).collect()
    }

    /// 1 − Σ busy / (ranks × makespan); 0 where nothing takes time.
    pub fn bubble_ratio(&self) -> f64 {
        self.bubble_of(self.makespan())
    }

    /// The same by the span in place of the makespan.
    pub fn span_bubble_ratio(&self) -> f64 {
        self.bubble_of(self.span())
    }

    fn bubble_of(&self, time: f64) -> f64 {
        if time > 0.0 { 1.0 - self.busy_share(time) / self.ranks() as f64 } else { 0.0 }
    }

    /// Σ idle / Σ busy; 0 where nothing takes time.
    pub fn bubble_over_ideal(&self) -> f64 {
        let share = self.busy_share(self.makespan());
        if share > 0.0 { (self.ranks() as f64 - share) / share } else { 0.0 }
    }

    /// Σ busy / time, where the sum of all ranks may be more than a float holds.
    fn busy_share(&self, time: f64) -> f64 {
        self.busy().into_iter().map(|busy| busy / time).sum()
    }

    /// The most (stage, microbatch) that each rank holds at once, from the start of its F to the end
    /// of its last backward action. A schedule for inference holds each for its F alone.
    pub fn peak_activations(&self) -> Vec<usize> {
        self.verified.schedule().rows().iter().map(|row| peak(row, self.shape())).collect()
    }

    /// What hops cost; nothing that is known where the timeline was measured.
    fn hops(&self) -> Result<Option<Hops>, Error> {
        match &self.origin {
            Origin::Predicted { costs, .. } => Ok(Some(costs.prices(self.shape())?.hops)),
            Origin::Measured { .. } => Ok(None),
        }
    }
}

/// Slots of a rank follow each other, so their order alone decides.
fn peak(row: &[Slot], shape: &Shape) -> usize {
    let (mut held, mut peak) = (0_usize, 0);
    for slot in row {
        held += slot.actions().filter(|action| action.kind == Kind::F).count();
        peak = peak.max(held);
        held -= slot.actions().filter(|action| shape.ends_holding(action.kind)).count();
    }
    peak
}
