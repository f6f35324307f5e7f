//! Every tensor that went from one rank to another: which slot made it, which slot took it, and when.
//!
//! What stays on its rank is no transfer. When a tensor came is known where the timeline was predicted; a measured one
//! knows no hops, and there the slot that took the tensor tells when it was there at the latest.

use super::critical::Timed;
use super::{Time, Timeline};
use crate::error::Error;
use crate::network::Receive;
use crate::schedule::{Action, Rank, Tensor};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transfer {
    /// The rank that made the tensor, and its slot.
    pub source: Rank,
    pub source_slot: usize,
    /// The rank that took it, and its slot.
    pub rank: Rank,
    pub slot: usize,
    /// What made it.
    pub action: Action,
    /// From when it was made to when it arrived; in a measured timeline to the start of the slot that took it.
    pub time: Time,
}

impl Timeline {
    /// All transfers, by the rank and slot that took them, and of a pair by its actions.
    pub fn transfers(&self) -> Result<Vec<Transfer>, Error> {
        let timed = Timed::new(self)?;
        let mut received = vec![Vec::new(); self.ranks()];
        for receive in timed.network.receives() {
            received[receive.rank].push(receive);
        }
        let of_rank = |(rank, received): (Rank, Vec<Receive>)| {
            let tensors = self.slots(rank).flat_map(move |(slot, _)| self.shape().incoming(rank, slot));
            tensors.zip(received)
        };
        let all = received.into_iter().enumerate().flat_map(of_rank);
        Ok(all.filter_map(|(tensor, receive)| self.transfer(&timed, tensor, receive)).collect())
    }

    fn transfer(&self, timed: &Timed, tensor: Tensor, receive: Receive) -> Option<Transfer> {
        let Receive { rank, slot, from, made_in, arrives, .. } = receive;
        let made = self.times_of(from)[made_in].end;
        let there = match timed.hops {
            Some(_) => timed.lets(arrives, rank)?,
            None => self.times_of(rank)[slot].start,
        };
        Some(Transfer {
            source: from,
            source_slot: made_in,
            rank,
            slot,
            action: self.maker(tensor, from, made_in)?,
            time: Time { start: made, end: there.max(made) },
        })
    }

    /// The action of a slot that makes a tensor.
    pub(super) fn maker(&self, tensor: Tensor, rank: Rank, slot: usize) -> Option<Action> {
        let mut actions = self.verified.schedule().rows()[rank][slot].actions();
        actions.find(|action| action.tensor() == Some(tensor))
    }
}
