//! The forms in which schedules and timelines are written down and read back.

mod cells;
pub mod grid;
pub mod text;
pub mod torch_csv;
