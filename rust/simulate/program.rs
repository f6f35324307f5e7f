//! The timeline of a [`Program`]: its instructions carried out with prices, under the semantics it was lowered for.
//!
//! A rank's time is the end of what it did last. A tensor sent on an edge leaves once it is sent, and under
//! rendezvous also once its receive is posted and the tensor before it on that edge has left; it is there one hop
//! later, and the rank that waits for it goes on then. A commit goes on one hop after its last transfer has been
//! started on both sides. Compute takes its price. Programs are proved, so this comes to an end.

use std::collections::{HashMap, VecDeque};

use super::{Spans, finite};
use crate::costs::{Costs, Prices};
use crate::error::Error;
use crate::lower::{Instruction, P2p, Program, Side, Transfer};
use crate::schedule::{Rank, Slot, Tensor};
use crate::timeline::Timeline;
use crate::verify::Verified;

/// What the costs give for `program`, which is `verified` lowered for `p2p`.
pub fn simulate_program(
    verified: &Verified,
    program: &Program,
    p2p: P2p,
    costs: &Costs,
) -> Result<Timeline, Error> {
    let shape = verified.shape();
    let ranks = shape.ranks();
    let mut run = Run {
        program,
        prices: costs.prices(shape)?,
        holds_edges: matches!(p2p, P2p::Rendezvous { .. }),
        next: vec![0; ranks],
        time: vec![0.0; ranks],
        started: vec![false; ranks],
        ways: vec![Way::default(); shape.tensors()],
        last: HashMap::new(),
        sleepers: HashMap::new(),
        spans: Spans::new(verified.schedule().rows()),
    };
    run.all();
    finite(&run.time)?;
    Ok(Timeline::new(ranks, run.spans.spans, None))
}

/// What has happened to a tensor on its way to another rank, and when.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    sent: Option<f64>,
    received: Option<f64>,
    /// When it left: under rendezvous its edge is free for the next tensor then.
    left: Option<f64>,
    /// The tensor before it on its edge.
    before: Option<Tensor>,
}

struct Run<'a> {
    program: &'a Program,
    prices: Prices,
    holds_edges: bool,
    /// Each rank's next instruction, and its time.
    next: Vec<usize>,
    time: Vec<f64>,
    /// Whether the next instruction is a commit that has been started.
    started: Vec<bool>,
    /// By tensor.
    ways: Vec<Way>,
    /// The last tensor sent on each edge.
    last: HashMap<(Rank, Rank), Tensor>,
    /// Who waits until something happens to a tensor.
    sleepers: HashMap<Tensor, Rank>,
    spans: Spans,
}

impl Run<'_> {
    fn all(&mut self) {
        let mut awake: VecDeque<Rank> = (0..self.next.len()).collect();
        while let Some(rank) = awake.pop_front() {
            while let Some(instruction) = self.program.rows()[rank].get(self.next[rank]) {
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
            Instruction::Post { tensor, .. } => self.way(*tensor).received = Some(self.time[rank]),
            Instruction::Send { to, tensor } => {
                let before = self.last.insert((rank, *to), *tensor);
                let sent = Some(self.time[rank]);
                let way = self.way(*tensor);
                (way.sent, way.before) = (sent, before);
                awake.extend(self.sleepers.remove(tensor));
            }
            Instruction::Wait { tensor, .. } => {
                let there = self.leaves(*tensor).ok_or(*tensor)? + self.prices.hop();
                self.time[rank] = self.time[rank].max(there);
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
        let start = self.time[rank];
        let end = start + self.prices.slot(slot);
        self.spans.record(rank as u32, index as u32, slot, start, end);
        self.time[rank] = end;
    }

    /// When a tensor leaves its sender; `None` where that is not known yet.
    fn leaves(&mut self, tensor: Tensor) -> Option<f64> {
        if !self.holds_edges {
            return self.way(tensor).sent;
        }
        // Back along the edge to the first whose time is known, then forward again.
        let mut chain = vec![tensor];
        let mut edge_free = 0.0;
        while let Some(before) = self.way(chain[chain.len() - 1]).before {
            if let Some(left) = self.way(before).left {
                edge_free = left;
                break;
            }
            chain.push(before);
        }
        for tensor in chain.into_iter().rev() {
            let way = self.way(tensor);
            let left = edge_free.max(way.sent?).max(way.received?);
            way.left = Some(left);
            edge_free = left;
        }
        Some(edge_free)
    }

    fn commit(
        &mut self,
        rank: Rank,
        transfers: &[Transfer],
        awake: &mut VecDeque<Rank>,
    ) -> Result<(), Tensor> {
        let now = Some(self.time[rank]);
        if !std::mem::replace(&mut self.started[rank], true) {
            for transfer in transfers {
                let way = self.way(transfer.tensor);
                match transfer.side {
                    Side::Send => way.sent = now,
                    Side::Receive => way.received = now,
                }
                awake.extend(self.sleepers.remove(&transfer.tensor));
            }
        }
        let mut all_started: f64 = 0.0;
        for transfer in transfers {
            let way = self.way(transfer.tensor);
            let both = way.sent.zip(way.received).map(|(sent, received)| sent.max(received));
            all_started = all_started.max(both.ok_or(transfer.tensor)?);
        }
        self.started[rank] = false;
        self.time[rank] = all_started + self.prices.hop();
        Ok(())
    }
}
