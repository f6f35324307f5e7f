//! (Verified, Costs) → the Timeline that these costs give under eager P2P: every rank computes its row
//! in order, each slot as soon as the rank is free and what it needs has come; a tensor made on
//! another rank comes one hop after it was made, and holds nobody. program.rs prices the other P2P semantics.

use crate::costs::Costs;
use crate::error::Error;
use crate::schedule::{Action, Slot};
use crate::timeline::{Span, Timeline};
use crate::verify::Verified;

mod program;

pub use program::simulate_program;

/// One pass over the proven order, in which everything that a slot waits for comes before it.
pub fn simulate(verified: &Verified, costs: &Costs) -> Result<Timeline, Error> {
    let shape = verified.shape();
    let prices = costs.prices(shape)?;
    let rows = verified.schedule().rows();

    let mut spans = Spans::new(rows);
    let mut free = vec![0.0_f64; shape.ranks()];
    let mut made = vec![0.0_f64; shape.tensors()];
    for &place in verified.order() {
        let rank = place.rank as usize;
        let slot = verified.slot(place);
        let mut start = free[rank];
        let (first, second) = slot.parts();
        for action in [Some(first), second].into_iter().flatten() {
            for needed in shape.needs(action).into_iter().flatten() {
                let local = shape.rank_of(needed.stage, needed.microbatch) == rank;
                let hop = if local { 0.0 } else { prices.hop() };
                start = start.max(made[shape.tensor_index(needed)] + hop);
            }
        }
        let end = start + prices.slot(slot);
        for tensor in [first.tensor(), second.and_then(Action::tensor)].into_iter().flatten() {
            made[shape.tensor_index(tensor)] = end;
        }
        free[rank] = end;
        spans.record(place.rank, place.slot, slot, start, end);
    }
    finite(&free)?;
    Ok(Timeline::new(shape.ranks(), spans.spans, None))
}

fn finite(ends: &[f64]) -> Result<(), Error> {
    if ends.iter().all(|end| end.is_finite()) {
        return Ok(());
    }
    let problem = "add up to more than a float can hold".to_string();
    Err(Error::Cost { name: "costs", problem })
}

/// Spans by rank and slot, filled in any order of ranks.
struct Spans {
    spans: Vec<Span>,
    /// Where the next span of each rank goes.
    next: Vec<usize>,
}

impl Spans {
    fn new(rows: &[Vec<Slot>]) -> Self {
        let actions = |row: &Vec<Slot>| row.iter().map(|slot| slot.actions().count()).sum::<usize>();
        let mut total = 0;
        let next = rows
            .iter()
            .map(|row| {
                total += actions(row);
                total - actions(row)
            })
            .collect();
        Spans { spans: vec![Span::default(); total], next }
    }

    fn record(&mut self, rank: u32, index: u32, slot: Slot, start: f64, end: f64) {
        let next = &mut self.next[rank as usize];
        for action in slot.actions() {
            self.spans[*next] = Span::new(rank, index, action, start, end);
            *next += 1;
        }
    }
}
