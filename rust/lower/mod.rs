//! Verified → [`Program`]: what each rank does, with its sends and receives; or why it cannot run so.
//!
//! Each directed edge (from one rank to another) is a channel of its own, on which tensors travel in the
//! order in which the sender makes them. [`P2p`] says who waits for whom on it. A program is proved free of
//! deadlock under its semantics before it is given out:
//!
//! - *eager* and *rendezvous* (posting.rs): no send and no post waits for anybody, and each wait is for a
//!   tensor whose receive, and all before it on its channel, have been posted. So the verifier's order of
//!   all slots is one in which the program can run.
//! - *batched* and *blocking* (commits.rs, deepseek.rs): the commits are carried out by an abstract machine
//!   (machine.rs) that either reaches the end or a circle of ranks that wait for each other.

use std::fmt;

use crate::network::Network;
use crate::schedule::{Rank, Shape, Slot, Tensor};
use crate::verify::{Verified, Violations};

mod channels;
mod commits;
mod deepseek;
mod machine;
mod network;
mod posting;

use channels::{Channels, Ticket};

/// Who waits for whom between two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum P2p {
    /// A send is delivered one hop later and holds nobody.
    Eager,
    /// Receives are posted in the sender's order, at most `depth` an edge whose tensor no slot has used; a
    /// send holds its edge until its receive is posted, never compute.
    Rendezvous { depth: usize },
    /// Sends wait for the next commit; at a commit all its sends and receives complete together, and compute
    /// waits for them.
    Batched,
    /// A send holds its rank until the receiver asks for the tensor, which it does when it needs it.
    Blocking,
}

/// How many receives are kept posted on each channel where nothing else is said.
pub const DEPTH: usize = 2;

/// What a rank does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// Make room for the next tensor on the channel from a rank. Waits for nobody.
    Post { from: Rank, tensor: Tensor },
    /// Go on once this tensor is here.
    Wait { from: Rank, tensor: Tensor },
    /// Compute a slot of the rank's row. What it needs is here; what it makes stays here.
    Compute { index: usize, slot: Slot },
    /// Give a tensor to the channel to a rank. Waits for nobody.
    Send { to: Rank, tensor: Tensor },
    /// Start all of these, and go on once all are done.
    Commit(Vec<Transfer>),
}

/// One side of a tensor's way to another rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    pub side: Side,
    pub tensor: Tensor,
    pub peer: Rank,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Send,
    Receive,
}

impl Transfer {
    fn send((tensor, ticket): (Tensor, Ticket)) -> Self {
        Transfer { side: Side::Send, tensor, peer: ticket.to }
    }

    fn receive((tensor, ticket): (Tensor, Ticket)) -> Self {
        Transfer { side: Side::Receive, tensor, peer: ticket.from }
    }
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = if self.side == Side::Send { '>' } else { '<' };
        write!(f, "{}{arrow}{}", self.tensor, self.peer)
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Instruction::Post { from, tensor } => write!(f, "post {tensor}<{from}"),
            Instruction::Wait { from, tensor } => write!(f, "wait {tensor}<{from}"),
            Instruction::Compute { slot, .. } => slot.fmt(f),
            Instruction::Send { to, tensor } => write!(f, "send {tensor}>{to}"),
            Instruction::Commit(transfers) => {
                let words: Vec<String> = transfers.iter().map(Transfer::to_string).collect();
                write!(f, "{{{}}}", words.join(","))
            }
        }
    }
}

/// What runs: the instructions of every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    shape: Shape,
    p2p: P2p,
    rows: Vec<Vec<Instruction>>,
}

impl Program {
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The semantics that it was lowered for.
    pub fn p2p(&self) -> P2p {
        self.p2p
    }

    pub fn rows(&self) -> &[Vec<Instruction>] {
        &self.rows
    }

    /// Who waits for whom, for the simulator.
    pub fn network(&self) -> Network {
        network::of(self)
    }
}

/// Places the sends and receives, and proves that no ranks wait for each other in a circle.
pub fn lower(verified: &Verified, p2p: P2p) -> Result<Program, Box<Violations>> {
    let channels = Channels::new(verified);
    let rows = match p2p {
        P2p::Eager => posting::eager(verified, &channels),
        P2p::Rendezvous { depth } => posting::rendezvous(verified, &channels, depth)?,
        P2p::Batched => commits::batched(verified, &channels)?,
        P2p::Blocking => commits::blocking(verified, &channels)?,
    };
    Ok(Program { shape: *verified.shape(), p2p, rows })
}

/// The least depth under which a schedule does not deadlock by [`P2p::Rendezvous`].
pub fn rendezvous_depth(verified: &Verified) -> usize {
    posting::depth(verified, &Channels::new(verified))
}
