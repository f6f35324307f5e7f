//! A picture of a schedule or of timelines: what there is to see of each, and one layout of it as shapes.
//!
//! ```text
//! Timeline, or a Schedule that breaks rules ─► Panel ─┬─► layout ─► Scene ─► svg.rs; PNG and PDF in Python
//!                                                     └─► columns for the canvas of notebooks and pages
//! ```
//!
//! panel.rs collects what is to be seen, palette.rs has every colour, scene.rs the shapes that all files are made of,
//! layout.rs says where they go (rows.rs the cells of the ranks, curve.rs what the ranks hold, legend.rs the words
//! below). It reads timelines and changes nothing; the canvas itself is `dualpipe_rs/drawing/canvas/`.

mod curve;
mod layout;
mod legend;
mod palette;
mod panel;
mod rows;
mod scene;
mod svg;

pub use layout::{Options, layout};
pub use palette::{Ink, Theme, action_colour, text_on};
pub use panel::{Held, Hop, Level, Mark, Panel, Row, Unit};
pub use scene::{Anchor, Area, Item, Scene, Shape};
pub use svg::svg;

/// One timeline above another, on a common axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    pub panels: Vec<Panel>,
}
