//! THE representation: what each rank computes, in which order. No time, no sends, no receives.
//!
//! action.rs has the cells of a schedule, shape.rs its sizes and the rules that follow from them.

mod action;
mod shape;

pub use action::{Action, Kind, Slot, Tensor};
pub use shape::{Placement, Shape};

use crate::error::Error;

pub type Rank = usize;
/// Global index of a slice of the model. 16 bits keep an [`Action`] in 8 bytes.
pub type Stage = u16;
pub type Microbatch = u32;

/// A compute order for every rank. Nothing is promised of it until [`crate::verify::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schedule {
    name: String,
    shape: Shape,
    rows: Vec<Vec<Slot>>,
}

impl Schedule {
    /// One row a rank, or an error that says how many rows there were.
    pub fn new(name: impl Into<String>, shape: Shape, rows: Vec<Vec<Slot>>) -> Result<Self, Error> {
        if rows.len() != shape.ranks() {
            return Err(Error::Shape {
                ranks: shape.ranks(),
                stages: shape.stages(),
                microbatches: shape.microbatches(),
                why: format!("there are {} rows; a schedule has one row a rank", rows.len()),
            });
        }
        let name = name.into();
        Ok(Schedule { name, shape, rows })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn rows(&self) -> &[Vec<Slot>] {
        &self.rows
    }

    pub fn slots(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    /// The number of each rank's first slot where all slots are counted rank by rank, and of all slots.
    pub fn firsts(&self) -> Vec<usize> {
        let lengths = self.rows.iter().map(Vec::len);
        let ends = lengths.scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// How many tensors each rank sends to each other, by [from × ranks + to].
    pub fn p2p_tensors(&self) -> Vec<u32> {
        let shape = self.shape;
        let mut counts = vec![0; shape.ranks() * shape.ranks()];
        for (to, row) in self.rows.iter().enumerate() {
            for tensor in row.iter().flat_map(|&slot| shape.incoming(to, slot)) {
                counts[shape.rank_of(tensor.stage, tensor.microbatch) * shape.ranks() + to] += 1;
            }
        }
        counts
    }

    /// The same order with the forwards alone: inference.
    pub fn forward_only(&self) -> Schedule {
        let forwards = |row: &Vec<Slot>| {
            let actions = row.iter().flat_map(Slot::actions);
            actions.filter(|action| action.kind == Kind::F).map(Slot::One).collect()
        };
        Schedule {
            name: self.name.clone(),
            shape: self.shape.for_inference(),
            rows: self.rows.iter().map(forwards).collect(),
        }
    }

    /// The name and the sizes in words, for messages.
    pub fn describe(&self) -> String {
        let shape = self.shape;
        let (ranks, stages, microbatches) = (shape.ranks(), shape.stages(), shape.microbatches());
        let mode = if shape.forward_only() { ", forward only" } else { "" };
        format!("{} ({ranks} ranks, {stages} stages, {microbatches} microbatches{mode})", self.name)
    }
}
