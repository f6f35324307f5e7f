//! The shapes that every file of a picture is made of: rectangles, lines and texts, in pixels from the upper left,
//! and which of them are the cell of a slot.

use super::palette::Ink;
use crate::schedule::{Rank, Slot};
use crate::timeline::Time;

#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    pub width: f64,
    pub height: f64,
    /// From the lowest to the topmost.
    pub items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    Shape(Shape),
    Cell(Cell),
}

/// The shapes of one slot, and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    pub panel: usize,
    pub rank: Rank,
    pub index: usize,
    pub slot: Slot,
    pub time: Time,
    /// What a pointer over it is told.
    pub words: String,
    pub shapes: Vec<Shape>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    Rect { area: Area, fill: Option<Ink>, stroke: Option<(Ink, f64)>, opacity: f64 },
    Line { points: Vec<(f64, f64)>, ink: Ink, width: f64 },
    Text { at: (f64, f64), text: String, size: f64, anchor: Anchor, ink: Ink },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Area {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

/// Which end of a text stands at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

impl Shape {
    pub fn filled(area: Area, ink: Ink) -> Shape {
        Shape::Rect { area, fill: Some(ink), stroke: None, opacity: 1.0 }
    }

    pub fn outline(area: Area, ink: Ink, width: f64) -> Shape {
        Shape::Rect { area, fill: None, stroke: Some((ink, width)), opacity: 1.0 }
    }

    pub fn text(at: (f64, f64), text: impl Into<String>, size: f64, anchor: Anchor, ink: Ink) -> Shape {
        Shape::Text { at, text: text.into(), size, anchor, ink }
    }
}

impl Scene {
    pub fn draw(&mut self, shape: Shape) {
        self.items.push(Item::Shape(shape));
    }

    /// All shapes, from the lowest to the topmost.
    pub fn shapes(&self) -> impl Iterator<Item = &Shape> {
        self.items.iter().flat_map(|item| match item {
            Item::Shape(shape) => std::slice::from_ref(shape),
            Item::Cell(cell) => &cell.shapes,
        })
    }
}

/// About how wide a text is: digits and small letters of a sans-serif face.
pub fn text_width(text: &str, size: f64) -> f64 {
    text.chars().map(|letter| if letter.is_ascii_digit() { 0.56 } else { 0.5 }).sum::<f64>() * size
}
