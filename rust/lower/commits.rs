//! Batched and blocking: sends and receives happen at commits, and compute waits for them.
//!
//! Batched follows DeepSeek's commit points where the order is DualPipe's or DualPipeV's (deepseek.rs). Other
//! orders get a rule of our own, by the times of the order at unit costs: a tensor is sent at the commit after the
//! slot that makes it, and received at its taker's first commit before a slot that starts when it is made or later.
//!
//! That rule cannot deadlock. Of all ranks that stand at a commit for ever, look at the one whose next slot starts
//! first, at t. If it waits to receive a tensor, its sender stands before the slot that makes it or earlier, which
//! starts before that tensor is made, so before t. If it waits to send one, made at t or earlier, its taker stands
//! before the commit that receives it, so before a slot that starts at t or later; but that would be the first such
//! commit, and receive it. (The order's slots take time, so "before" is strict.) machine.rs checks it all the same.
//!
//! Blocking has a commit for each transfer alone, sends at once and receives when they are needed: what a script of
//! plain sends and receives does.

use std::collections::BTreeMap;

use super::channels::{Channels, Ticket};
use super::{Instruction, Transfer, deepseek, machine};
use crate::costs::Costs;
use crate::schedule::{Rank, Slot};
use crate::simulate::simulate;
use crate::verify::{Verified, Violations};

type Rows = Vec<Vec<Instruction>>;

pub(super) fn batched(verified: &Verified, channels: &Channels) -> Result<Rows, Box<Violations>> {
    let rows = deepseek::rows(verified, channels).unwrap_or_else(|| by_time(verified, channels));
    machine::prove(verified, &rows, "batched")?;
    Ok(rows)
}

pub(super) fn blocking(verified: &Verified, channels: &Channels) -> Result<Rows, Box<Violations>> {
    let rows = one_by_one(verified, channels);
    machine::prove(verified, &rows, "blocking")?;
    Ok(rows)
}

/// The rule of our own for batched.
fn by_time(verified: &Verified, channels: &Channels) -> Rows {
    let timeline = simulate(verified, &Costs::default()).expect("unit costs fit every schedule");
    let commits = |rank| vec![Vec::new(); timeline.times_of(rank).len() + 1];
    let mut commits: Vec<Vec<Vec<Transfer>>> = (0..timeline.ranks()).map(commits).collect();
    for (rank, row) in verified.schedule().rows().iter().enumerate() {
        for (index, slot) in row.iter().enumerate() {
            for made in slot.actions().filter_map(|action| channels.outgoing(verified, action)) {
                let to = made.1.to;
                let made_at = timeline.times_of(rank)[index].end;
                let first = timeline.times_of(to).partition_point(|time| time.start < made_at);
                commits[rank][index + 1].push(Transfer::send(made));
                commits[to][first].push(Transfer::receive(made));
            }
        }
    }
    let rows = verified.schedule().rows().iter().zip(commits);
    rows.map(|(row, commits)| {
        let mut out = Vec::new();
        let mut commits = commits.into_iter();
        commit(commits.next(), &mut out);
        for ((index, &slot), transfers) in row.iter().enumerate().zip(commits) {
            out.push(Instruction::Compute { index, slot });
            commit(Some(transfers), &mut out);
        }
        out
    })
    .collect()
}

/// The rule for blocking.
fn one_by_one(verified: &Verified, channels: &Channels) -> Rows {
    let row = |(rank, row): (Rank, &Vec<Slot>)| {
        let mut receiving = Receiving { channels, rank, received: BTreeMap::new() };
        let mut out = Vec::new();
        for (index, &slot) in row.iter().enumerate() {
            for (_, ticket) in slot.actions().filter_map(|action| channels.incoming(verified, action)) {
                receiving.up_to(ticket).for_each(|transfer| commit(Some(vec![transfer]), &mut out));
            }
            out.push(Instruction::Compute { index, slot });
            for made in slot.actions().filter_map(|action| channels.outgoing(verified, action)) {
                commit(Some(vec![Transfer::send(made)]), &mut out);
            }
        }
        out
    };
    verified.schedule().rows().iter().enumerate().map(row).collect()
}

fn commit(transfers: Option<Vec<Transfer>>, out: &mut Vec<Instruction>) {
    out.extend(transfers.filter(|transfers| !transfers.is_empty()).map(Instruction::Commit));
}

/// What a rank has received on each channel.
struct Receiving<'a> {
    channels: &'a Channels,
    rank: Rank,
    received: BTreeMap<Rank, usize>,
}

impl Receiving<'_> {
    /// Everything on a channel up to this tensor that has not been received.
    fn up_to(&mut self, ticket: Ticket) -> impl Iterator<Item = Transfer> {
        let received = self.received.entry(ticket.from).or_default();
        let from = std::mem::replace(received, (*received).max(ticket.place + 1));
        let tensors = self.channels.traffic(ticket.from, self.rank)[..*received].iter().skip(from);
        tensors.map(move |&tensor| Transfer::receive((tensor, ticket)))
    }
}
