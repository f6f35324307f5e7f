//! The forms in which schedules and timelines are written down and read back.

mod cells;
pub mod chrome;
pub mod grid;
pub mod perfetto;
pub mod text;
pub mod torch_csv;
mod trace;
