//! Verified → [`Program`]: what each rank does, with its sends and receives.
//!
//! Eager P2P: a send leaves as soon as its tensor is made and holds nobody; compute waits only for
//! the tensor that it needs. Each directed edge (from one rank to another) is a channel of its own on
//! which tensors travel in the order in which the sender makes them, and receives are posted in that
//! order, early: at least [`DEPTH`] ahead of what has been used, and further where compute needs a
//! tensor that stands deeper in the channel.
//!
//! Freedom from deadlock follows from the verifier's: a send waits for nobody, and a wait is for a
//! tensor whose receive, and all before it on its channel, have been posted.

use std::collections::BTreeMap;
use std::fmt;

use crate::schedule::{Action, Rank, Shape, Slot, Tensor};
use crate::verify::Verified;

/// How many receives are kept posted on each channel.
pub const DEPTH: usize = 2;

/// What a rank does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// Make room for the next tensor on the channel from a rank. Waits for nobody.
    Post { from: Rank, tensor: Tensor },
    /// Go on once this tensor is here.
    Wait { from: Rank, tensor: Tensor },
    /// Compute a slot of the rank's row. What it needs is here; what it makes stays here.
    Compute { index: usize, slot: Slot },
    /// Give a tensor to the channel to a rank. Waits for nobody.
    Send { to: Rank, tensor: Tensor },
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Instruction::Post { from, tensor } => write!(f, "post {tensor}<{from}"),
            Instruction::Wait { from, tensor } => write!(f, "wait {tensor}<{from}"),
            Instruction::Compute { slot, .. } => slot.fmt(f),
            Instruction::Send { to, tensor } => write!(f, "send {tensor}>{to}"),
        }
    }
}

/// What runs: the instructions of every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    shape: Shape,
    rows: Vec<Vec<Instruction>>,
}

impl Program {
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn rows(&self) -> &[Vec<Instruction>] {
        &self.rows
    }
}

/// Places the sends and receives.
pub fn lower(verified: &Verified) -> Program {
    let shape = *verified.shape();
    let channels = Channels::new(verified);
    let rows = verified.schedule().rows().iter().enumerate();
    let rows = rows.map(|(rank, row)| Lowering::new(&shape, &channels, rank).row(row)).collect();
    Program { shape, rows }
}

/// What travels between ranks.
struct Channels {
    /// The tensors of each channel (from, to), in the sender's order.
    traffic: BTreeMap<(Rank, Rank), Vec<Tensor>>,
    /// By tensor: the rank that takes it and its place in the channel; `None` where it stays.
    ticket: Vec<Option<(Rank, usize)>>,
}

impl Channels {
    fn new(verified: &Verified) -> Self {
        let shape = verified.shape();
        let mut taker: Vec<Option<Rank>> = vec![None; shape.tensors()];
        each_action(verified, |rank, action| {
            if let Some(tensor) = shape.input(action) {
                taker[shape.tensor_index(tensor)] = Some(rank);
            }
        });
        let mut traffic: BTreeMap<(Rank, Rank), Vec<Tensor>> = BTreeMap::new();
        let mut ticket = vec![None; shape.tensors()];
        each_action(verified, |rank, action| {
            let Some(tensor) = action.tensor() else { return };
            let index = shape.tensor_index(tensor);
            if let Some(to) = taker[index].filter(|&to| to != rank) {
                let channel = traffic.entry((rank, to)).or_default();
                ticket[index] = Some((to, channel.len()));
                channel.push(tensor);
            }
        });
        Channels { traffic, ticket }
    }
}

fn each_action(verified: &Verified, mut visit: impl FnMut(Rank, Action)) {
    for (rank, row) in verified.schedule().rows().iter().enumerate() {
        row.iter().flat_map(Slot::actions).for_each(|action| visit(rank, action));
    }
}

/// One rank's instructions under construction.
struct Lowering<'a> {
    shape: &'a Shape,
    channels: &'a Channels,
    rank: Rank,
    /// How many receives have been posted on the channel from each rank that sends here, and how many
    /// of its tensors have been used.
    incoming: BTreeMap<Rank, Window>,
    out: Vec<Instruction>,
}

#[derive(Default)]
struct Window {
    posted: usize,
    used: usize,
}

impl<'a> Lowering<'a> {
    fn new(shape: &'a Shape, channels: &'a Channels, rank: Rank) -> Self {
        let senders = channels.traffic.keys().filter(|&&(_, to)| to == rank);
        let incoming = senders.map(|&(from, _)| (from, Window::default())).collect();
        Lowering { shape, channels, rank, incoming, out: Vec::new() }
    }

    fn row(mut self, row: &[Slot]) -> Vec<Instruction> {
        let senders: Vec<Rank> = self.incoming.keys().copied().collect();
        senders.into_iter().for_each(|from| self.post(from, DEPTH));
        for (index, &slot) in row.iter().enumerate() {
            let used: Vec<Rank> = slot.actions().filter_map(|action| self.take(action)).collect();
            self.out.push(Instruction::Compute { index, slot });
            slot.actions().for_each(|action| self.send(action));
            for from in used {
                let ahead = self.incoming[&from].used + DEPTH;
                self.post(from, ahead);
            }
        }
        self.out
    }

    /// Posts receives on a channel until `count` have been posted.
    fn post(&mut self, from: Rank, count: usize) {
        let traffic = &self.channels.traffic[&(from, self.rank)];
        let window = self.incoming.entry(from).or_default();
        while window.posted < count.min(traffic.len()) {
            self.out.push(Instruction::Post { from, tensor: traffic[window.posted] });
            window.posted += 1;
        }
    }

    /// Waits for what an action takes from another rank; says from which.
    fn take(&mut self, action: Action) -> Option<Rank> {
        let tensor = self.shape.input(action)?;
        let (_, place) = self.channels.ticket[self.shape.tensor_index(tensor)]?;
        let from = self.shape.rank_of(tensor.stage, tensor.microbatch);
        self.post(from, place + 1);
        self.out.push(Instruction::Wait { from, tensor });
        self.incoming.entry(from).or_default().used += 1;
        Some(from)
    }

    fn send(&mut self, action: Action) {
        let Some(tensor) = action.tensor() else { return };
        if let Some((to, _)) = self.channels.ticket[self.shape.tensor_index(tensor)] {
            self.out.push(Instruction::Send { to, tensor });
        }
    }
}
