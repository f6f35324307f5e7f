//! Runs a [`Program`](crate::Program).
//!
//! [`interpreter`] is the one loop over a rank's instructions. What an action computes is a
//! [`Worker`]'s business, how tensors travel a [`Transport`]'s; the tensors are opaque values here.
//! [`local`] is the transport between threads of one process, and how such threads agree on a step. Transports
//! between processes are Python's (rust/python/remote.rs).

#[cfg(feature = "cuda")]
pub mod device;
pub mod interpreter;
pub mod local;
#[cfg(test)]
mod tests;

use crate::schedule::{Rank, Slot, Tensor};

/// The values of a slot's actions, in their order: the second is for the second action of a pair.
pub type Values<V> = [Option<V>; 2];

/// Computes the slots of one rank.
pub trait Worker {
    type Value;
    type Error;

    /// `inputs` holds what each action takes from another stage: an F the output of the stage before,
    /// an I or B the gradient from the stage after; `None` where there is no such stage. The answer
    /// holds what each action makes for another stage, and may be `None` where there is none.
    fn compute(
        &mut self,
        slot: Slot,
        inputs: Values<Self::Value>,
    ) -> Result<Values<Self::Value>, Self::Error>;
}

/// One rank's ends of the channels. Tensors travel in the order of the channel's sender.
///
/// `Stopped` says that another rank has failed, or the transport itself, which then keeps the error.
pub trait Transport {
    type Value;

    /// Makes room for the next tensor from a rank. Waits for nobody.
    fn post(&mut self, from: Rank, tensor: Tensor) -> Result<(), Stopped>;

    /// Hands over a tensor. Waits for nobody.
    fn send(&mut self, to: Rank, tensor: Tensor, value: Self::Value) -> Result<(), Stopped>;

    /// The posts and sends from here to [`Transport::commit`] start together.
    fn begin(&mut self) {}

    /// Starts what was posted and sent since [`Transport::begin`].
    fn commit(&mut self) -> Result<(), Stopped> {
        Ok(())
    }

    /// Whether a tensor handed over has left, which a commit waits for.
    fn sent(&mut self, to: Rank, tensor: Tensor, patience: Patience) -> Result<bool, Stopped>;

    /// A tensor whose receive was posted, once it is here. `Ok(None)` where it is not and `patience`
    /// does not allow to wait; `Stopped` where another rank has failed.
    fn wait(
        &mut self,
        from: Rank,
        tensor: Tensor,
        patience: Patience,
    ) -> Result<Option<Self::Value>, Stopped>;

    /// The rank is about to compute a slot; `Stopped` where another has failed, so that it is of no use.
    fn enter(&mut self, index: usize, slot: Slot) -> Result<(), Stopped>;
}

/// A transport whose channels are empty after a failed step only if every rank carries out what is left of its
/// program, without computing: the program is proved to end, and nobody waits for what does not come.
pub trait Drain: Transport {
    /// Gives a channel something in the place of a tensor that was not made.
    fn send_nothing(&mut self, to: Rank, tensor: Tensor);

    /// Takes a tensor whose receive was posted, if it was not taken before, and drops it.
    fn discard(&mut self, from: Rank, tensor: Tensor) -> Result<(), Stopped>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    Wait,
    Look,
}

/// Another rank has failed; which, and why, the group knows. Or the transport has, and knows why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// Why a rank did not finish its step.
#[derive(Debug)]
pub enum Failure<E> {
    /// Another rank failed first, or the transport.
    Stopped,
    /// The worker failed in a slot.
    Worker { index: usize, slot: Slot, error: E },
    /// The worker made nothing where the next stage waits for something.
    NothingMade { index: usize, slot: Slot, tensor: Tensor },
}

/// When a slot ran, in seconds since the group was made, and the CPU time of its thread.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    pub index: usize,
    pub slot: Slot,
    pub start: f64,
    pub end: f64,
    pub cpu: f64,
}
