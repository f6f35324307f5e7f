//! What travels between ranks: the tensors of each channel, in the sender's order.

use std::collections::BTreeMap;

use crate::schedule::{Action, Rank, Slot, Tensor};
use crate::verify::Verified;

/// The place of a tensor on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub from: Rank,
    pub to: Rank,
    /// Its number on the channel.
    pub place: usize,
}

pub(super) struct Channels {
    /// The tensors of each channel (from, to).
    traffic: BTreeMap<(Rank, Rank), Vec<Tensor>>,
    /// By tensor; `None` where it stays.
    tickets: Vec<Option<Ticket>>,
}

impl Channels {
    pub fn new(verified: &Verified) -> Self {
        let shape = verified.shape();
        let mut taker: Vec<Option<Rank>> = vec![None; shape.tensors()];
        each_action(verified, |rank, action| {
            if let Some(tensor) = shape.input(action) {
                taker[shape.tensor_index(tensor)] = Some(rank);
            }
        });
        let mut traffic: BTreeMap<(Rank, Rank), Vec<Tensor>> = BTreeMap::new();
        let mut tickets = vec![None; shape.tensors()];
        each_action(verified, |from, action| {
            let Some(tensor) = action.tensor() else { return };
            let index = shape.tensor_index(tensor);
            if let Some(to) = taker[index].filter(|&to| to != from) {
                let channel = traffic.entry((from, to)).or_default();
                tickets[index] = Some(Ticket { from, to, place: channel.len() });
                channel.push(tensor);
            }
        });
        Channels { traffic, tickets }
    }

    pub fn traffic(&self, from: Rank, to: Rank) -> &[Tensor] {
        self.traffic.get(&(from, to)).map_or(&[], Vec::as_slice)
    }

    /// The ranks that send to this one.
    pub fn senders_to(&self, to: Rank) -> impl Iterator<Item = Rank> {
        self.traffic.keys().filter(move |&&(_, receiver)| receiver == to).map(|&(from, _)| from)
    }

    /// How a tensor travels, if it does.
    pub fn ticket(&self, verified: &Verified, tensor: Tensor) -> Option<Ticket> {
        self.tickets[verified.shape().tensor_index(tensor)]
    }

    /// How what an action takes comes from another rank.
    pub fn incoming(&self, verified: &Verified, action: Action) -> Option<(Tensor, Ticket)> {
        let tensor = verified.shape().input(action)?;
        Some((tensor, self.ticket(verified, tensor)?))
    }

    /// How what an action makes goes to another rank.
    pub fn outgoing(&self, verified: &Verified, action: Action) -> Option<(Tensor, Ticket)> {
        let tensor = action.tensor()?;
        Some((tensor, self.ticket(verified, tensor)?))
    }
}

fn each_action(verified: &Verified, mut visit: impl FnMut(Rank, Action)) {
    for (rank, row) in verified.schedule().rows().iter().enumerate() {
        row.iter().flat_map(Slot::actions).for_each(|action| visit(rank, action));
    }
}
