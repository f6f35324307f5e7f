//! When every action started and ended, predicted or measured: the same type, so that both are
//! drawn and compared by the same code.

use crate::schedule::{Action, Kind, Rank};

/// One action. A pair is two spans of one slot with one start and end. The layout is that of the
/// numpy record that Python sees: `kind` is one UCS-4 character.
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
    pub fn new(rank: u32, slot: u32, action: Action, start: f64, end: f64) -> Self {
        Span {
            rank,
            slot,
            kind: action.kind.letter(),
            stage: action.stage.into(),
            microbatch: action.microbatch,
            reserved: 0,
            start,
            end,
        }
    }

    pub fn duration(&self) -> f64 {
        self.end - self.start
    }

    /// The second span of a pair has the slot of the one before it, and counts no time of its own.
    fn opens_slot(&self, before: Option<&Span>) -> bool {
        before.is_none_or(|before| (before.rank, before.slot) != (self.rank, self.slot))
    }
}

impl Default for Span {
    fn default() -> Self {
        Span::new(0, 0, Action::new(0, Kind::F, 0), 0.0, 0.0)
    }
}

/// The spans of a step, sorted by rank and slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    ranks: usize,
    spans: Vec<Span>,
    /// Of a measured timeline: the thread CPU time of each span's slot, as long as `spans`.
    cpu: Option<Vec<f64>>,
}

impl Timeline {
    /// `spans` are sorted by rank and slot, and every rank is below `ranks`.
    pub fn new(ranks: usize, spans: Vec<Span>, cpu: Option<Vec<f64>>) -> Self {
        debug_assert!(spans.is_sorted_by_key(|span| (span.rank, span.slot)));
        debug_assert!(cpu.as_ref().is_none_or(|cpu| cpu.len() == spans.len()));
        Timeline { ranks, spans, cpu }
    }

    pub fn ranks(&self) -> usize {
        self.ranks
    }

    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    pub fn cpu(&self) -> Option<&[f64]> {
        self.cpu.as_deref()
    }

    /// The spans of one rank.
    pub fn row(&self, rank: Rank) -> &[Span] {
        let from = self.spans.partition_point(|span| (span.rank as usize) < rank);
        let to = self.spans.partition_point(|span| (span.rank as usize) <= rank);
        &self.spans[from..to]
    }

    /// Each slot of one rank once, by its first span.
    pub fn slots(&self, rank: Rank) -> impl Iterator<Item = &Span> {
        let row = self.row(rank);
        row.iter()
            .enumerate()
            .filter(|(index, span)| span.opens_slot(index.checked_sub(1).map(|before| &row[before])))
            .map(|(_, span)| span)
    }

    /// The first start.
    pub fn start(&self) -> f64 {
        self.spans.iter().map(|span| span.start).reduce(f64::min).unwrap_or(0.0)
    }

    /// The last end.
    pub fn end(&self) -> f64 {
        self.spans.iter().map(|span| span.end).reduce(f64::max).unwrap_or(0.0)
    }

    /// The last end minus the first start over all ranks.
    pub fn makespan(&self) -> f64 {
        self.end() - self.start()
    }

    /// The longest single rank's own last end minus its first start.
    pub fn span(&self) -> f64 {
        let own = |rank| match (self.row(rank).first(), self.row(rank).last()) {
            (Some(first), Some(last)) => last.end - first.start,
            _ => 0.0,
        };
        (0..self.ranks).map(own).fold(0.0, f64::max)
    }

    /// The time of each rank's slots.
    pub fn busy(&self) -> Vec<f64> {
        let busy = |rank| self.slots(rank).map(Span::duration).sum();
        (0..self.ranks).map(busy).collect()
    }

    /// The makespan less the busy time of each rank.
    pub fn idle(&self) -> Vec<f64> {
        let makespan = self.makespan();
        self.busy().into_iter().map(|busy| makespan - busy).collect()
    }

    /// 1 − Σ busy / (ranks × makespan); 0 where nothing takes time.
    pub fn bubble_ratio(&self) -> f64 {
        let whole = self.makespan() * self.ranks as f64;
        if whole > 0.0 { 1.0 - self.busy().into_iter().sum::<f64>() / whole } else { 0.0 }
    }

    /// The most (stage, microbatch) that each rank holds at once, from the start of its F to the end
    /// of its last backward action. A schedule for inference holds each for its F alone.
    pub fn peak_activations(&self) -> Vec<usize> {
        (0..self.ranks).map(|rank| peak(self.row(rank))).collect()
    }
}

/// Slots of a rank follow each other, so their order alone decides.
fn peak(row: &[Span]) -> usize {
    let inference = row.iter().all(|span| span.kind == 'F');
    let (mut held, mut peak) = (0_usize, 0);
    for slot in row.chunk_by(|before, after| before.slot == after.slot) {
        held += slot.iter().filter(|span| span.kind == 'F').count();
        peak = peak.max(held);
        // After its W or B nothing is left to do for a microbatch.
        let ends = |span: &&Span| inference || matches!(span.kind, 'W' | 'B');
        held -= slot.iter().filter(ends).count();
    }
    peak
}
