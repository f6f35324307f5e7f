//! Lanes of a rank: one for what it computes, and as many for the tensors on their way to it as are under way at once,
//! so that no slice hides another.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;

use super::{Clock, Slice, Span, Subject};
use crate::error::Error;
use crate::timeline::Transfer;

/// A row of a rank in the viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Compute,
    /// By number, from 0.
    Communication(usize),
}

impl Lane {
    /// Its place below its rank, from 1.
    pub fn place(self) -> usize {
        match self {
            Lane::Compute => 1,
            Lane::Communication(number) => 2 + number,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lane::Compute => f.write_str("compute"),
            Lane::Communication(0) => f.write_str("communication"),
            Lane::Communication(number) => write!(f, "communication {}", number + 1),
        }
    }
}

/// Adds a slice for each transfer, in the lowest lane of its receiver that is free; gives how many lanes each rank
/// takes.
pub(super) fn assign(
    ranks: usize,
    transfers: &[Transfer],
    clock: &Clock,
    slices: &mut Vec<Slice>,
) -> Result<Vec<usize>, Error> {
    let spans = transfers.iter().map(|transfer| clock.span(transfer.time));
    let spans = spans.collect::<Result<Vec<Span>, Error>>()?;
    let mut order: Vec<usize> = (0..transfers.len()).collect();
    order.sort_by_key(|&number| (spans[number].start, spans[number].end, number));
    let mut receivers: Vec<Free> = (0..ranks).map(|_| Free::default()).collect();
    for number in order {
        let (transfer, span) = (transfers[number], spans[number]);
        let lane = Lane::Communication(receivers[transfer.rank].take(span));
        slices.push(Slice::new(transfer.rank, lane, span, Subject::Transfer(transfer)));
    }
    Ok(receivers.iter().map(|free| free.lanes.max(1)).collect())
}

/// The lanes of a rank as time goes on.
#[derive(Default)]
struct Free {
    lanes: usize,
    /// Until when each lane is taken that is.
    taken: BinaryHeap<Reverse<(u64, usize)>>,
    free: BinaryHeap<Reverse<usize>>,
}

impl Free {
    /// The lowest lane that is free at a start not before the last one.
    fn take(&mut self, Span { start, end }: Span) -> usize {
        while let Some(&Reverse((until, lane))) = self.taken.peek()
            && until <= start
        {
            self.taken.pop();
            self.free.push(Reverse(lane));
        }
        let lane = self.free.pop().map_or(self.lanes, |Reverse(lane)| lane);
        self.lanes = self.lanes.max(lane + 1);
        // What takes no time holds its lane for a moment, or viewers draw what starts with it as a part of it.
        self.taken.push(Reverse((end.max(start + 1), lane)));
        lane
    }
}
