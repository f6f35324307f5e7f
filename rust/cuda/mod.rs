//! CUDA's libraries: found when they are asked for, never linked. What is here knows nothing of schedules.
//!
//! [`libcuda`] (is the driver there, whole and willing), [`driver`] (streams, events and memory), [`nccl`] (sends and receives between devices),
//! [`diagnose`] (what was found, in words), [`error`] (what both libraries answer).

pub mod diagnose;
pub mod driver;
pub mod error;
pub mod libcuda;
pub mod loading;
pub mod nccl;

pub use error::DeviceError;
