//! The transport between devices: NCCL's sends and receives, each edge on a stream of its own.
//!
//! NCCL carries out what is queued on one communicator in the order of the calls, on whatever streams. A receive
//! queued early on a communicator that serves both directions would hold back the sends that its peer waits for;
//! so each directed edge has a communicator of its own, and only under batched P2P, where all transfers of a
//! commit go together as a group, may a pair of ranks share one ([`Sharing`]).

mod channels;
mod port;

pub use channels::{Channels, Sharing};
pub use port::Port;
