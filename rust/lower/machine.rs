//! Carries out a program's commits, with no tensors and no time, as far as it goes: to the end, which proves that
//! it cannot deadlock (a rank waits for nothing but commits, and which of them can complete does not depend on who
//! goes first), or to a circle of ranks that wait for each other.

use std::collections::{HashMap, VecDeque};

use super::{Instruction, Side, Transfer};
use crate::schedule::{Rank, Tensor};
use crate::verify::{Rule, Verified, Violation, Violations, shortest_circle};

/// Violations, one a rank of a shortest circle, if the program deadlocks.
pub(super) fn prove(
    verified: &Verified,
    rows: &[Vec<Instruction>],
    semantics: &'static str,
) -> Result<(), Box<Violations>> {
    let mut machine = Machine {
        verified,
        rows,
        semantics,
        next: vec![0; rows.len()],
        started: vec![false; rows.len()],
        offered: HashMap::new(),
        sleepers: HashMap::new(),
    };
    machine.run();
    match (0..rows.len()).any(|rank| machine.standing(rank).is_some()) {
        true => Err(Box::new(Violations::of(machine.circle()))),
        false => Ok(()),
    }
}

struct Machine<'a> {
    verified: &'a Verified,
    rows: &'a [Vec<Instruction>],
    semantics: &'static str,
    /// Each rank's next instruction.
    next: Vec<usize>,
    /// Whether that is a commit which the rank has started.
    started: Vec<bool>,
    /// The sides of each tensor's way that have been started.
    offered: HashMap<Tensor, Sides>,
    /// Who stands at a commit because the other side of a tensor has not been started.
    sleepers: HashMap<Tensor, Rank>,
}

#[derive(Default, Clone, Copy)]
struct Sides {
    send: bool,
    receive: bool,
}

impl Machine<'_> {
    fn run(&mut self) {
        let mut awake: VecDeque<Rank> = (0..self.rows.len()).collect();
        while let Some(rank) = awake.pop_front() {
            while let Some(instruction) = self.rows[rank].get(self.next[rank]) {
                if let Instruction::Commit(transfers) = instruction {
                    if !self.started[rank] {
                        self.start(rank, transfers, &mut awake);
                    }
                    let unmatched = self.unmatched(transfers).next().map(|transfer| transfer.tensor);
                    if let Some(tensor) = unmatched {
                        self.sleepers.insert(tensor, rank);
                        break;
                    }
                    self.started[rank] = false;
                }
                self.next[rank] += 1;
            }
        }
    }

    fn start(&mut self, rank: Rank, transfers: &[Transfer], awake: &mut VecDeque<Rank>) {
        self.started[rank] = true;
        for transfer in transfers {
            let sides = self.offered.entry(transfer.tensor).or_default();
            match transfer.side {
                Side::Send => sides.send = true,
                Side::Receive => sides.receive = true,
            }
            awake.extend(self.sleepers.remove(&transfer.tensor));
        }
    }

    /// The transfers of a commit whose other side has not been started.
    fn unmatched<'b>(&'b self, transfers: &'b [Transfer]) -> impl Iterator<Item = &'b Transfer> {
        transfers.iter().filter(|transfer| {
            let sides = self.offered.get(&transfer.tensor).copied().unwrap_or_default();
            !(sides.send && sides.receive)
        })
    }

    /// The commit at which a rank stands for ever.
    fn standing(&self, rank: Rank) -> Option<&[Transfer]> {
        match self.rows[rank].get(self.next[rank]) {
            Some(Instruction::Commit(transfers)) => Some(transfers),
            _ => None,
        }
    }

    fn circle(&self) -> Vec<Violation> {
        let waits = |rank: Rank| {
            let transfers = self.standing(rank).unwrap_or(&[]);
            self.unmatched(transfers).map(|transfer| (transfer.peer, *transfer)).collect::<Vec<_>>()
        };
        let circle = shortest_circle(self.rows.len(), waits);
        circle.iter().map(|&(rank, transfer)| self.violation(rank, transfer, circle.len())).collect()
    }

    fn violation(&self, rank: Rank, Transfer { side, tensor, peer }: Transfer, length: usize) -> Violation {
        let (slot, commit) = (self.slot(rank), &self.rows[rank][self.next[rank]]);
        let before = self.verified.schedule().rows()[rank][slot];
        let does = match side {
            Side::Send => format!("send {tensor} to"),
            Side::Receive => format!("receive {tensor} from"),
        };
        let there = &self.rows[peer][self.next[peer]];
        Violation {
            rule: Rule::Deadlock,
            rank,
            slot: Some(slot),
            action: before.parts().0,
            needs: Some(tensor),
            message: format!(
                "rank {rank}, slot {slot}: deadlock, a circle of {length} ranks under {} sends: at its commit \
                 {commit} before {before} rank {rank} is to {does} rank {peer}, which stands at an earlier commit \
                 {there} of its own",
                self.semantics
            ),
        }
    }

    /// The slot before which a rank stands; the last one where all have been computed.
    fn slot(&self, rank: Rank) -> usize {
        let mut left = self.rows[rank][self.next[rank]..].iter();
        left.find_map(|instruction| match instruction {
            Instruction::Compute { index, .. } => Some(*index),
            _ => None,
        })
        .unwrap_or_else(|| self.verified.schedule().rows()[rank].len().saturating_sub(1))
    }
}
