//! The bytes that a rank holds over time, of what depends on the schedule: activations, what waits for its weight
//! gradient, and tensors received. Parameters, gradients and optimizer states are there all the time and are not
//! in it.

use super::critical::Timed;
use super::{Origin, Time, Timeline};
use crate::costs::{Bytes, Costs};
use crate::error::Error;
use crate::network::Receive;
use crate::schedule::{Kind, Rank};

/// What a rank holds from a time on, in bytes. The layout is that of the numpy record that Python sees.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub struct Held {
    pub time: f64,
    /// Of each (stage, microbatch) from the start of its F to the end of its I or B.
    pub activation: f64,
    /// Of each from the end of its I to the end of its W.
    pub weight_grad: f64,
    /// Of each tensor from the posting of its receive to the end of the slot that takes it; from its sending
    /// where no receive is posted for it (eager, and measured).
    pub received: f64,
}

impl Held {
    pub fn total(&self) -> f64 {
        self.activation + self.weight_grad + self.received
    }
}

/// A change at a time.
type Change = Held;

impl Timeline {
    /// What each rank holds, from each time on at which that changes; by the timeline's own costs where none are
    /// given.
    pub fn memory(&self, costs: Option<&Costs>) -> Result<Vec<Vec<Held>>, Error> {
        let own = match &self.origin {
            Origin::Predicted { costs, .. } => Some(costs.as_ref()),
            Origin::Measured { .. } => None,
        };
        let Some(costs) = costs.or(own) else {
            let why = "a measured timeline knows no bytes; give costs=Costs(activation_bytes=...)";
            return Err(Error::Format(why.to_string()));
        };
        let bytes = costs.bytes(self.shape())?;
        let mut received = self.received(&bytes)?;
        let rank = |rank: Rank| summed(self.stashed(rank, &bytes), std::mem::take(&mut received[rank]));
        let held: Vec<Vec<Held>> = (0..self.ranks()).map(rank).collect();
        if !held.iter().flatten().all(|held| held.total().is_finite()) {
            let problem = "add up to more than a float can hold".to_string();
            return Err(Error::Cost { name: "bytes", problem });
        }
        Ok(held)
    }

    /// Activations and what waits for W.
    fn stashed(&self, rank: Rank, bytes: &Bytes) -> Vec<Change> {
        let mut changes = Vec::new();
        for (slot, Time { start, end }) in self.slots(rank) {
            for action in slot.actions() {
                let stage = action.stage as usize;
                let (activation, weight_grad) = (bytes.activation[stage], bytes.weight_grad[stage]);
                let mut change = |time, activation, weight_grad| {
                    changes.push(Change { time, activation, weight_grad, received: 0.0 });
                };
                match action.kind {
                    Kind::F => change(start, activation, 0.0),
                    Kind::I => change(end, -activation, weight_grad),
                    Kind::W => change(end, 0.0, -weight_grad),
                    Kind::B => change(end, -activation, 0.0),
                }
                if self.shape().forward_only() {
                    change(end, -activation, 0.0);
                }
            }
        }
        changes
    }

    /// Tensors received, by rank.
    fn received(&self, bytes: &Bytes) -> Result<Vec<Vec<Change>>, Error> {
        let mut changes = vec![Vec::new(); self.ranks()];
        let timed = Timed::new(self)?;
        for Receive { rank, slot, from, posted, .. } in timed.network.receives() {
            let size = bytes.p2p.at(from, rank);
            let posted = posted.node().map_or(self.start(), |node| timed.ends[node]);
            let used = self.times_of(rank)[slot].end;
            let at = |time, received| Change { time, received, ..Change::default() };
            changes[rank].extend([at(posted, size), at(used, -size)]);
        }
        Ok(changes)
    }
}

/// Sums changes; those of one time are one, what is let go before what is taken.
fn summed(mut changes: Vec<Change>, more: Vec<Change>) -> Vec<Held> {
    changes.extend(more);
    changes.sort_by(|a, b| a.time.total_cmp(&b.time).then(a.total().total_cmp(&b.total())));
    let mut held = Held::default();
    let mut all: Vec<Held> = Vec::with_capacity(changes.len());
    for change in changes {
        held = Held {
            time: change.time,
            activation: held.activation + change.activation,
            weight_grad: held.weight_grad + change.weight_grad,
            received: held.received + change.received,
        };
        match all.last_mut() {
            Some(last) if last.time == held.time => *last = held,
            _ => all.push(held),
        }
    }
    all.dedup_by(|next, before| Held { time: before.time, ..*next } == *before);
    all
}
