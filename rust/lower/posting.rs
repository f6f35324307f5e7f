//! Eager and rendezvous: receives are posted early, sends leave at once, compute waits only for the tensor that
//! it needs.
//!
//! Receives are posted in the sender's order, as many ahead of what has been used as the depth allows. Where a
//! slot needs a tensor that stands deeper in its channel, eager posts further; rendezvous does not, and there the
//! slot waits for a receive that its own rank would post only after it: a circle of one rank.

use std::collections::BTreeMap;

use super::channels::{Channels, Ticket};
use super::{DEPTH, Instruction};
use crate::schedule::{Action, Rank, Slot, Tensor};
use crate::verify::{Rule, Verified, Violation, Violations};

type Rows = Vec<Vec<Instruction>>;

pub(super) fn eager(verified: &Verified, channels: &Channels) -> Rows {
    let post_deeper = |_: &Posting, _: Place, _: Ticket| Ok(());
    rows(verified, channels, DEPTH, post_deeper).0
}

pub(super) fn rendezvous(
    verified: &Verified,
    channels: &Channels,
    depth: usize,
) -> Result<Rows, Box<Violations>> {
    let hold_to_depth = |posting: &Posting, place: Place, ticket: Ticket| {
        if posting.reach(ticket) <= depth { Ok(()) } else { Err(posting.stuck(place, ticket, depth)) }
    };
    let (rows, stuck) = rows(verified, channels, depth, hold_to_depth);
    if stuck.is_empty() { Ok(rows) } else { Err(Box::new(Violations::of(stuck))) }
}

/// The deepest reach of all slots; at least 1, as something must be received at all.
pub(super) fn depth(verified: &Verified, channels: &Channels) -> usize {
    let deepest = std::cell::Cell::new(1);
    rows(verified, channels, DEPTH, |posting, _, ticket| {
        deepest.set(deepest.get().max(posting.reach(ticket)));
        Ok(())
    });
    deepest.get()
}

/// The instructions of every rank, and of each rank that `admit` stopped, why.
fn rows(
    verified: &Verified,
    channels: &Channels,
    depth: usize,
    admit: impl Fn(&Posting, Place, Ticket) -> Result<(), Violation>,
) -> (Rows, Vec<Violation>) {
    let mut stuck = Vec::new();
    let rows = verified.schedule().rows().iter().enumerate().map(|(rank, row)| {
        let mut posting = Posting::new(verified, channels, rank, depth);
        stuck.extend(posting.row(row, &admit).err());
        posting.out
    });
    (rows.collect(), stuck)
}

/// A slot, and which of its actions takes which tensor.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    action: Action,
    tensor: Tensor,
}

/// One rank's instructions under construction.
struct Posting<'a> {
    verified: &'a Verified,
    channels: &'a Channels,
    rank: Rank,
    depth: usize,
    /// By the rank that sends here.
    windows: BTreeMap<Rank, Window>,
    out: Vec<Instruction>,
}

/// How many receives have been posted on a channel, and how many of its tensors slots have used.
#[derive(Default, Clone, Copy)]
struct Window {
    posted: usize,
    used: usize,
}

impl<'a> Posting<'a> {
    fn new(verified: &'a Verified, channels: &'a Channels, rank: Rank, depth: usize) -> Self {
        let windows = channels.senders_to(rank).map(|from| (from, Window::default())).collect();
        Posting { verified, channels, rank, depth, windows, out: Vec::new() }
    }

    fn row(
        &mut self,
        row: &[Slot],
        admit: &impl Fn(&Posting, Place, Ticket) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let senders: Vec<Rank> = self.windows.keys().copied().collect();
        senders.into_iter().for_each(|from| self.post(from, self.depth));
        for (index, &slot) in row.iter().enumerate() {
            let mut used = [None, None];
            for (action, used) in slot.actions().zip(&mut used) {
                let Some((tensor, ticket)) = self.channels.incoming(self.verified, action) else { continue };
                admit(self, Place { index, action, tensor }, ticket)?;
                self.post(ticket.from, ticket.place + 1);
                self.out.push(Instruction::Wait { from: ticket.from, tensor });
                *used = Some(ticket.from);
            }
            self.out.push(Instruction::Compute { index, slot });
            for (tensor, ticket) in slot.actions().filter_map(|a| self.channels.outgoing(self.verified, a)) {
                self.out.push(Instruction::Send { to: ticket.to, tensor });
            }
            // A pair holds both its tensors until both are used.
            used.iter().flatten().for_each(|&from| self.window(from).used += 1);
            used.iter().flatten().for_each(|&from| {
                let ahead = self.window(from).used + self.depth;
                self.post(from, ahead);
            });
        }
        Ok(())
    }

    fn window(&mut self, from: Rank) -> &mut Window {
        self.windows.entry(from).or_default()
    }

    /// Posts receives on a channel until `count` have been posted.
    fn post(&mut self, from: Rank, count: usize) {
        let traffic = self.channels.traffic(from, self.rank);
        let window = self.windows.entry(from).or_default();
        while window.posted < count.min(traffic.len()) {
            self.out.push(Instruction::Post { from, tensor: traffic[window.posted] });
            window.posted += 1;
        }
    }

    /// How many receives must be posted on a channel, beyond the tensors used, for this one to be there.
    fn reach(&self, ticket: Ticket) -> usize {
        (ticket.place + 1).saturating_sub(self.windows[&ticket.from].used)
    }

    fn stuck(&self, Place { index, action, tensor }: Place, ticket: Ticket, depth: usize) -> Violation {
        let (rank, from, reach) = (self.rank, ticket.from, self.reach(ticket));
        Violation {
            rule: Rule::Deadlock,
            rank,
            slot: Some(index),
            action,
            needs: Some(tensor),
            message: format!(
                "rank {rank}, slot {index}: deadlock under rendezvous at depth {depth}: {action} needs {tensor} from \
                 rank {from}, and by then {reach} tensors of that edge would have to be received and not used, \
                 as those sent before {tensor} are used in this slot or a later one; {depth} may be"
            ),
        }
    }
}
