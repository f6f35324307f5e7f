//! Each action of a timeline as a record, laid out as the numpy record that Python sees.

use super::{Time, Timeline};
use crate::schedule::{Action, Rank};

/// One action. A pair is two spans of one slot with one start and end. `kind` is one UCS-4 character.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct Span {
    pub rank: u32,
    pub slot: u32,
    pub kind: char,
    pub stage: u32,
    pub microbatch: u32,
    /// Zero, where there would be padding of no set value: equal timelines are equal byte for byte.
    reserved: u32,
    pub start: f64,
    pub end: f64,
}

impl Span {
    fn new(rank: Rank, slot: usize, action: Action, time: Time) -> Self {
        Span {
            rank: rank as u32,
            slot: slot as u32,
            kind: action.kind.letter(),
            stage: action.stage.into(),
            microbatch: action.microbatch,
            reserved: 0,
            start: time.start,
            end: time.end,
        }
    }
}

pub(super) fn of(timeline: &Timeline) -> Vec<Span> {
    (0..timeline.ranks()).flat_map(|rank| of_rank(timeline, rank)).collect()
}

fn of_rank(timeline: &Timeline, rank: Rank) -> impl Iterator<Item = Span> {
    let slots = timeline.slots(rank).enumerate();
    slots.flat_map(move |(index, (slot, time))| {
        slot.actions().map(move |action| Span::new(rank, index, action, time))
    })
}

impl Timeline {
    /// The spans of some slots, each by its rank and index, in the order given.
    pub fn spans_of(&self, slots: impl Iterator<Item = (Rank, usize)>) -> Vec<Span> {
        let spans = slots.flat_map(|(rank, index)| {
            let slot = self.verified().schedule().rows()[rank][index];
            let time = self.times_of(rank)[index];
            slot.actions().map(move |action| Span::new(rank, index, action, time))
        });
        spans.collect()
    }
}
