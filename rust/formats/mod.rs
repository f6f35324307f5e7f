//! The forms in which schedules and timelines are written down and read back.

pub mod grid;
pub mod text;
