//! A timeline as trace viewers show it: lanes of slices that do not overlap, flows from slot to slot, and counters.
//! All times are whole nanoseconds, as viewers have them.
//!
//! What is the same in every trace file is decided here; ../chrome.rs and ../perfetto.rs write it down and decide
//! nothing. label.rs says what a slice is called and what is told of it, lanes.rs which lane a tensor on its way is
//! drawn in, counters.rs what a rank holds.

use crate::error::Error;
use crate::schedule::Rank;
use crate::timeline::{Origin, Time, Timeline, Transfer, Wait};

mod counters;
mod label;
mod lanes;

pub use counters::{Counted, Counters, Point};
pub use label::{Category, Key, Subject, Value};
pub use lanes::Lane;

/// What a trace file shows.
pub struct Trace {
    /// By rank: how many lanes tensors on their way take, at least one.
    pub communications: Vec<usize>,
    /// Those of one lane in the order of time, and of all slots each after those that it takes something from: viewers
    /// go by the order in the file where times are equal.
    pub slices: Vec<Slice>,
    pub counters: Counters,
}

/// Something that takes time, in a lane of a rank.
pub struct Slice {
    pub rank: Rank,
    pub lane: Lane,
    pub start: u64,
    pub end: u64,
    pub subject: Subject,
    /// The flows that leave it and those that come to it; at most one for each action.
    pub leaving: [Option<Flow>; 2],
    pub coming: [Option<Flow>; 2],
}

/// The number of a tensor's way from a slot to another, from 1.
pub type Flow = u64;

impl Trace {
    /// `unit` is how many seconds one unit of the timeline's time is: where it is not given, 1 where the timeline was
    /// measured, and a microsecond where it was predicted.
    pub fn new(timeline: &Timeline, unit: Option<f64>) -> Result<Trace, Error> {
        let clock = Clock::new(timeline, unit)?;
        let transfers = timeline.transfers()?;
        let mut slices = slots(timeline, &clock, &transfers)?;
        let communications = lanes::assign(timeline.ranks(), &transfers, &clock, &mut slices)?;
        closing(timeline, &clock, &mut slices)?;
        let counters = Counters::new(timeline, &clock)?;
        Ok(Trace { communications, slices, counters })
    }

    pub fn ranks(&self) -> usize {
        self.communications.len()
    }

    /// Every lane, by rank.
    pub fn lanes(&self) -> impl Iterator<Item = (Rank, Lane)> {
        let ranks = self.communications.iter().enumerate();
        ranks.flat_map(|(rank, &lanes)| {
            let communications = (0..lanes).map(Lane::Communication);
            std::iter::once(Lane::Compute).chain(communications).map(move |lane| (rank, lane))
        })
    }
}

/// A slice for each slot, in the order in which slots wait for each other.
fn slots(timeline: &Timeline, clock: &Clock, transfers: &[Transfer]) -> Result<Vec<Slice>, Error> {
    let waits = timeline.waits()?;
    let flows = Flows::new(timeline, transfers);
    let rows = timeline.verified().schedule().rows();
    let nodes = timeline.verified().network().nodes().iter();
    let places = nodes.filter_map(|node| Some((node.rank(), node.index()?)));
    let slice = |(rank, index): (Rank, usize)| {
        let Span { start, end } = clock.span(timeline.times_of(rank)[index])?;
        let number = flows.firsts[rank] + index;
        Ok(Slice {
            rank,
            lane: Lane::Compute,
            start,
            end,
            subject: Subject::Slot {
                index,
                slot: rows[rank][index],
                waits: before(&waits, clock, rank, index)?,
            },
            leaving: flows.leaving[number],
            coming: flows.coming[number],
        })
    };
    places.map(slice).collect()
}

/// The waits before a slot, each with its length.
fn before(waits: &[Wait], clock: &Clock, rank: Rank, slot: usize) -> Result<Vec<(Wait, u64)>, Error> {
    let first = waits.partition_point(|wait| (wait.rank, wait.slot) < (rank, slot));
    let own = waits[first..].iter().take_while(|wait| (wait.rank, wait.slot) == (rank, slot));
    own.map(|&wait| clock.span(wait.time).map(|span| (wait, span.end - span.start))).collect()
}

/// The exchange of gradients and the optimizer. All tensors have come before, so the first lane is free.
fn closing(timeline: &Timeline, clock: &Clock, slices: &mut Vec<Slice>) -> Result<(), Error> {
    for (rank, closing) in timeline.closing().iter().enumerate() {
        let Some(last) = timeline.times_of(rank).last() else { continue };
        let exchange = Time { start: last.end, end: closing.exchanged };
        let optimizer = Time { start: closing.exchanged, end: closing.end };
        for (subject, lane, time) in [
            (Subject::Exchange, Lane::Communication(0), exchange),
            (Subject::Optimizer, Lane::Compute, optimizer),
        ] {
            if time.end > time.start {
                slices.push(Slice::new(rank, lane, clock.span(time)?, subject));
            }
        }
    }
    Ok(())
}

impl Slice {
    /// Without flows.
    fn new(rank: Rank, lane: Lane, Span { start, end }: Span, subject: Subject) -> Self {
        Slice {
            rank,
            lane,
            start,
            end,
            subject,
            leaving: [None; 2],
            coming: [None; 2],
        }
    }
}

/// The flows of each slot, slots being counted rank by rank.
struct Flows {
    firsts: Vec<usize>,
    leaving: Vec<[Option<Flow>; 2]>,
    coming: Vec<[Option<Flow>; 2]>,
}

impl Flows {
    fn new(timeline: &Timeline, transfers: &[Transfer]) -> Self {
        let schedule = timeline.verified().schedule();
        let none = vec![[None; 2]; schedule.slots()];
        let mut flows = Flows {
            firsts: schedule.firsts(),
            leaving: none.clone(),
            coming: none,
        };
        for (flow, transfer) in (1..).zip(transfers) {
            let (from, to) = (flows.firsts[transfer.source], flows.firsts[transfer.rank]);
            note(&mut flows.leaving[from + transfer.source_slot], flow);
            note(&mut flows.coming[to + transfer.slot], flow);
        }
        flows
    }
}

/// An action makes one tensor for another rank at most, and takes one.
fn note(flows: &mut [Option<Flow>; 2], flow: Flow) {
    let free = flows.iter_mut().find(|known| known.is_none());
    debug_assert!(free.is_some());
    free.into_iter().for_each(|free| *free = Some(flow));
}

/// A start and an end in nanoseconds.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

/// From the timeline's unit of time to nanoseconds.
struct Clock {
    /// Seconds.
    unit: f64,
}

/// Viewers have times as signed numbers of 64 bits.
const LATEST: f64 = i64::MAX as f64;

impl Clock {
    fn new(timeline: &Timeline, unit: Option<f64>) -> Result<Self, Error> {
        let usual = match timeline.origin() {
            Origin::Predicted { .. } => 1e-6,
            Origin::Measured { .. } => 1.0,
        };
        match unit.unwrap_or(usual) {
            unit if unit > 0.0 && unit.is_finite() => Ok(Clock { unit }),
            unit => Err(Error::Format(format!(
                "unit is {unit}; it is how many seconds one unit of the timeline's time is, such as 1e-3 where the \
                 costs are in milliseconds"
            ))),
        }
    }

    fn nanoseconds(&self, time: f64) -> Result<u64, Error> {
        let nanoseconds = (time * (self.unit * 1e9)).round();
        if (0.0..LATEST).contains(&nanoseconds) {
            return Ok(nanoseconds as u64);
        }
        Err(Error::Format(format!(
            "the timeline has the time {time:e}, which is {:e} s with unit={:e}; a trace file holds nanoseconds from 0 \
             to 2⁶³, about 292 years",
            time * self.unit,
            self.unit
        )))
    }

    fn span(&self, Time { start, end }: Time) -> Result<Span, Error> {
        let (start, end) = (self.nanoseconds(start)?, self.nanoseconds(end)?);
        Ok(Span { start, end: end.max(start) })
    }
}
