//! Pipeline-parallel schedules as data.
//!
//! ```text
//! generate ─► Schedule ─► verify ─► Verified ─┬─► simulate(costs) ─► Timeline (predicted)
//!                ▲                            └─► lower ─► Program ─► execute ─► Timeline (measured)
//!               text
//! ```
//!
//! Read in this order: [`schedule`], [`generate`] (`dualpipe.rs` first), [`verify`], [`simulate`],
//! [`lower`], [`execute`]; [`formula`] beside them. Dependencies between these point one way; `python/`
//! converts and does nothing else, and nothing imports it.
//!
//! | word | means |
//! |---|---|
//! | rank | a process, thread or device of the pipeline group |
//! | stage | global index of a slice of the model |
//! | microbatch | index of a piece of the batch |
//! | F, I, W, B | forward; backward for the input; backward for the weights; full backward (I then W) |
//! | slot | one cell of a rank's row: an action, or a fused forward & backward pair |
//! | placement | (stage, microbatch) → rank |
//! | tensor | what one stage hands to another: an output (of an F) or a gradient (of an I or B) |
//! | hop | a tensor's way from a rank to another |
//! | Schedule / Program | compute order only / with sends and receives |
//! | network | the waits of a Schedule or Program as a graph, without prices |

pub mod array;
pub mod costs;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
pub mod execute;
pub mod fit;
pub mod formats;
pub mod formula;
pub mod generate;
pub mod lower;
pub mod network;
pub mod overlap;
pub mod picture;
pub mod schedule;
pub mod simulate;
pub mod timeline;
pub mod verify;

#[cfg(feature = "python")]
mod python;

pub use costs::Costs;
pub use error::Error;
pub use lower::Program;
pub use schedule::Schedule;
pub use timeline::Timeline;
pub use verify::Verified;
