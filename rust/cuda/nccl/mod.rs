//! NCCL: sends and receives between devices, on streams. Found at run time, bound by hand (16 functions).
//!
//! [`library`] finds it, [`table`] holds its functions, [`communicator`] is what the executor uses.

pub mod communicator;
pub mod config;
pub mod library;
pub mod table;

pub use communicator::{Communicator, Group, Progress, UniqueId};
pub use config::Config;
