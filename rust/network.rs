//! Who waits for whom, as a graph. The verifier makes one of every schedule, as the proof that it can run under eager
//! P2P, and [`crate::lower`] one of a Program; the simulator walks either. It holds no prices, so one network serves
//! any costs; and it is no Program: nothing is carried out by it.
//!
//! A node is a slot of a rank's row, or an event that takes no time itself (a tensor leaves, a commit is complete).
//! It starts when all its inputs have ended, or one hop after. Nodes stand in an order in which the inputs of each
//! come before it.

use crate::schedule::Rank;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    nodes: Vec<Node>,
    /// `None` where no receives are posted: tensors are there from their sending on.
    receives: Option<Vec<Receive>>,
}

/// A receive: who posts it, the slot that takes what it brings, and the slot that makes that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receive {
    pub rank: Rank,
    pub slot: usize,
    pub from: Rank,
    /// The index of a slot of `from`.
    pub made_in: usize,
    /// After which node it is posted; at the very start where there is none.
    pub posted: Input,
    /// When what it brings is there.
    pub arrives: Input,
}

/// 20 bytes: there is one for each slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    rank: u32,
    /// Its index in the rank's row, or [`EVENT`].
    slot: u32,
    /// Of a slot: what its rank did before, then what its actions take from other ranks, in their order.
    pub inputs: [Input; 3],
}

const EVENT: u32 = u32::MAX;

impl Node {
    pub fn slot(rank: Rank, slot: usize, inputs: [Input; 3]) -> Self {
        Node { rank: rank as u32, slot: slot as u32, inputs }
    }

    pub fn event(rank: Rank, inputs: [Input; 3]) -> Self {
        Node { rank: rank as u32, slot: EVENT, inputs }
    }

    #[inline(always)]
    pub fn rank(&self) -> Rank {
        self.rank as Rank
    }

    /// The index of the slot in its rank's row.
    #[inline(always)]
    pub fn index(&self) -> Option<usize> {
        (self.slot != EVENT).then_some(self.slot as usize)
    }
}

/// The end of another node, or one hop after it; or nothing to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input(u32);

impl Input {
    pub const NONE: Input = Input(u32::MAX);

    /// The end of a node. (A schedule's sizes keep nodes far below 2³¹.)
    #[inline(always)]
    pub fn after(node: usize) -> Self {
        Input((node as u32) << 1)
    }

    /// One hop after the end of a node of another rank.
    #[inline(always)]
    pub fn a_hop_after(node: usize) -> Self {
        Input((node as u32) << 1 | 1)
    }

    #[inline(always)]
    pub fn node(self) -> Option<usize> {
        (self != Input::NONE).then_some((self.0 >> 1) as usize)
    }

    #[inline(always)]
    pub fn is_hop(self) -> bool {
        self != Input::NONE && self.0 & 1 == 1
    }
}

impl Network {
    pub fn with_capacity(nodes: usize) -> Self {
        Network { nodes: Vec::with_capacity(nodes), receives: None }
    }

    /// Adds a node whose inputs are there; gives its number.
    #[inline(always)]
    pub fn push(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn post(&mut self, receives: Vec<Receive>) {
        self.receives = Some(receives);
    }

    /// Every tensor that a rank takes from another; those of one rank in the order of its slots, and of their actions.
    pub fn receives(&self) -> Vec<Receive> {
        match &self.receives {
            Some(receives) => receives.clone(),
            None => self.nodes.iter().flat_map(|node| self.sent_to(node)).collect(),
        }
    }

    /// What comes to a node where no receives are posted.
    fn sent_to(&self, node: &Node) -> impl Iterator<Item = Receive> {
        let (rank, slot) = (node.rank(), node.index());
        let hops = node.inputs.into_iter().filter(|input| input.is_hop());
        hops.filter_map(move |arrives| {
            let sender = arrives.node()?;
            let (from, made_in) = (self.nodes[sender].rank(), self.nodes[sender].index()?);
            Some(Receive {
                rank,
                slot: slot?,
                from,
                made_in,
                posted: Input::after(sender),
                arrives,
            })
        })
    }
}
