//! The waits of a [`Program`] as a [`Network`]: its instructions carried out with nodes in place of times. Programs are
//! proved, so this comes to an end.
//!
//! Under eager a tensor leaves when it is sent. Under rendezvous a tensor's leaving is an event: after it was sent,
//! its receive was posted, and the tensor before it on its edge had left. In a commit each transfer is an event
//! after both sides have come to it; the commit is complete, an event on each side, one hop after all of its own.

use std::collections::{HashMap, VecDeque};

use super::{Instruction, P2p, Program, Side, Transfer};
use crate::network::{Input, Network, Node, Receive};
use crate::schedule::{Action, Rank, Slot, Tensor};

pub(super) fn of(program: &Program) -> Network {
    let ranks = program.rows().len();
    let mut run = Run {
        program,
        holds_edges: matches!(program.p2p(), P2p::Rendezvous { .. }),
        next: vec![0; ranks],
        last: vec![Input::NONE; ranks],
        waited: vec![Vec::new(); ranks],
        started: vec![false; ranks],
        ways: vec![Way::default(); program.shape().tensors()],
        leaving: HashMap::new(),
        sleepers: HashMap::new(),
        network: Network::default(),
        receives: Vec::new(),
    };
    run.all();
    if program.p2p() != P2p::Eager {
        run.network.post(run.receives);
    }
    run.network
}

/// A tensor's way to another rank.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    /// After which node it was sent and its receive posted, once either was.
    sent: Option<Input>,
    posted: Option<Input>,
    /// The node after which only the hop is left; in a commit, of its arrival.
    there: Option<usize>,
    /// The index of the slot that makes it.
    made_in: usize,
}

struct Run<'a> {
    program: &'a Program,
    holds_edges: bool,
    /// Each rank's next instruction, its last node, and what it has waited for since.
    next: Vec<usize>,
    last: Vec<Input>,
    waited: Vec<Vec<Input>>,
    /// Whether the next instruction is a commit that has been started.
    started: Vec<bool>,
    /// By tensor.
    ways: Vec<Way>,
    /// The tensors of each edge that have been sent and have not left.
    leaving: HashMap<(Rank, Rank), Leaving>,
    /// Who waits until something happens to a tensor.
    sleepers: HashMap<Tensor, Rank>,
    network: Network,
    receives: Vec<Receive>,
}

struct Leaving {
    tensors: VecDeque<Tensor>,
    /// When the edge is free.
    free: Input,
}

impl Run<'_> {
    fn all(&mut self) {
        let program = self.program;
        let mut awake: VecDeque<Rank> = (0..self.next.len()).collect();
        while let Some(rank) = awake.pop_front() {
            while let Some(instruction) = program.rows()[rank].get(self.next[rank]) {
                if let Err(tensor) = self.carry_out(rank, instruction, &mut awake) {
                    self.sleepers.insert(tensor, rank);
                    break;
                }
                self.next[rank] += 1;
            }
        }
    }

    /// Or the tensor to which something must happen first.
    fn carry_out(
        &mut self,
        rank: Rank,
        instruction: &Instruction,
        awake: &mut VecDeque<Rank>,
    ) -> Result<(), Tensor> {
        match instruction {
            Instruction::Post { tensor, .. } => self.way(*tensor).posted = Some(self.last[rank]),
            Instruction::Send { to, tensor } => {
                self.way(*tensor).sent = Some(self.last[rank]);
                let edge = self.leaving.entry((rank, *to)).or_insert(Leaving::new());
                edge.tensors.push_back(*tensor);
                awake.extend(self.sleepers.remove(tensor));
            }
            Instruction::Wait { from, tensor } => {
                let there = self.leave(*from, rank, *tensor).ok_or(*tensor)?;
                self.waited[rank].push(Input::a_hop_after(there));
            }
            Instruction::Compute { index, slot } => self.compute(rank, *index, *slot),
            Instruction::Commit(transfers) => return self.commit(rank, transfers, awake),
        }
        Ok(())
    }

    fn way(&mut self, tensor: Tensor) -> &mut Way {
        &mut self.ways[self.program.shape().tensor_index(tensor)]
    }

    fn compute(&mut self, rank: Rank, index: usize, slot: Slot) {
        let mut waited = self.waited[rank].drain(..);
        let inputs =
            [self.last[rank], waited.next().unwrap_or(Input::NONE), waited.next().unwrap_or(Input::NONE)];
        drop(waited);
        self.last[rank] = Input::after(self.network.push(Node::slot(rank, index, inputs)));
        for tensor in slot.actions().filter_map(Action::tensor) {
            self.way(tensor).made_in = index;
        }
        self.receive(rank, index, slot);
    }

    /// Notes what a slot took from other ranks.
    fn receive(&mut self, rank: Rank, index: usize, slot: Slot) {
        let shape = *self.program.shape();
        for tensor in shape.incoming(rank, slot) {
            let Way { posted: Some(posted), there: Some(there), made_in, .. } = *self.way(tensor) else {
                continue; // Under eager none is posted.
            };
            let arrives = if self.holds_edges { Input::a_hop_after(there) } else { Input::after(there) };
            let from = shape.rank_of(tensor.stage, tensor.microbatch);
            self.receives.push(Receive { rank, slot: index, from, made_in, posted, arrives });
        }
    }

    /// The node after which a tensor is on its way; `None` where it has not been sent.
    fn leave(&mut self, from: Rank, to: Rank, tensor: Tensor) -> Option<usize> {
        let sent = self.way(tensor).sent?;
        if !self.holds_edges {
            return sent.node();
        }
        while self.way(tensor).there.is_none() {
            let edge = self.leaving.get_mut(&(from, to))?;
            let (first, free) = (edge.tensors.pop_front()?, edge.free);
            let Way { sent, posted, .. } = *self.way(first);
            let left = self.network.push(Node::event(from, [free, sent?, posted?]));
            self.way(first).there = Some(left);
            self.leaving.get_mut(&(from, to))?.free = Input::after(left);
        }
        self.way(tensor).there
    }

    fn commit(
        &mut self,
        rank: Rank,
        transfers: &[Transfer],
        awake: &mut VecDeque<Rank>,
    ) -> Result<(), Tensor> {
        if !std::mem::replace(&mut self.started[rank], true) {
            transfers.iter().for_each(|&transfer| self.start(rank, transfer, awake));
        }
        let shape = *self.program.shape();
        let there =
            |transfer: &Transfer| self.ways[shape.tensor_index(transfer.tensor)].there.ok_or(transfer.tensor);
        let there = transfers.iter().map(there).collect::<Result<Vec<usize>, Tensor>>()?;
        self.started[rank] = false;
        for two in there.chunks(2) {
            let second = two.get(1).map_or(Input::NONE, |&node| Input::after(node));
            let inputs = [self.last[rank], Input::after(two[0]), second];
            self.last[rank] = Input::after(self.network.push(Node::event(rank, inputs)));
        }
        Ok(())
    }

    /// A rank comes to its side of a transfer; the second to come makes it happen.
    fn start(&mut self, rank: Rank, Transfer { side, tensor, peer }: Transfer, awake: &mut VecDeque<Rank>) {
        let now = Some(self.last[rank]);
        let way = self.way(tensor);
        match side {
            Side::Send => way.sent = now,
            Side::Receive => way.posted = now,
        }
        let (Some(sent), Some(posted)) = (way.sent, way.posted) else { return };
        let (from, to) = if side == Side::Send { (rank, peer) } else { (peer, rank) };
        let both = self.network.push(Node::event(from, [sent, posted, Input::NONE]));
        let arrival = Node::event(to, [Input::a_hop_after(both), Input::NONE, Input::NONE]);
        self.way(tensor).there = Some(self.network.push(arrival));
        awake.extend(self.sleepers.remove(&tensor));
    }
}

impl Leaving {
    fn new() -> Self {
        Leaving { tensors: VecDeque::new(), free: Input::NONE }
    }
}
