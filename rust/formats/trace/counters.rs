//! What each rank holds over time: bytes where the costs of the timeline have bytes, else the number of activations.

use super::Clock;
use crate::costs::{Costs, Numbers};
use crate::error::Error;
use crate::timeline::{Held, Origin, Timeline};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    Bytes,
    /// (stage, microbatch), from the start of F to the end of the last backward action.
    Activations,
}

impl Counted {
    pub fn name(self) -> &'static str {
        match self {
            Counted::Bytes => "bytes held",
            Counted::Activations => "activations held",
        }
    }
}

/// The parts of what is held, as [`Held`] has them.
const PARTS: [&str; 3] = ["activation", "weight_grad", "received"];

pub struct Counters {
    pub counted: Counted,
    /// The parts that any rank ever holds some of, by name and place in [`Point::parts`]; none of activations, which
    /// have no parts.
    pub parts: Vec<(&'static str, usize)>,
    /// By rank and time: what is held from a time on.
    pub points: Vec<Vec<Point>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub time: u64,
    pub total: f64,
    pub parts: [f64; PARTS.len()],
}

impl Counters {
    pub(super) fn new(timeline: &Timeline, clock: &Clock) -> Result<Self, Error> {
        let (counted, held) = match bytes(timeline)? {
            Some(held) => (Counted::Bytes, held),
            None => (Counted::Activations, timeline.memory(Some(&one_each()))?),
        };
        let points =
            held.iter().map(|held| points(held, clock)).collect::<Result<Vec<Vec<Point>>, Error>>()?;
        let is_held = |part: usize| points.iter().flatten().any(|point| point.parts[part] != 0.0);
        let parts = match counted {
            Counted::Bytes => PARTS.into_iter().zip(0..).filter(|&(_, part)| is_held(part)).collect(),
            Counted::Activations => Vec::new(),
        };
        Ok(Counters { counted, parts, points })
    }
}

/// The bytes by the timeline's own costs, if these have any.
fn bytes(timeline: &Timeline) -> Result<Option<Vec<Vec<Held>>>, Error> {
    match timeline.origin() {
        Origin::Measured { .. } => Ok(None),
        Origin::Predicted { .. } => {
            let held = timeline.memory(None)?;
            let any = held.iter().flatten().any(|held| held.total() != 0.0);
            Ok(any.then_some(held))
        }
    }
}

/// Each activation is one byte until its I or B has ended, and from I to W what its W needs is one.
fn one_each() -> Costs {
    Costs {
        activation_bytes: Numbers::One(1.0),
        weight_grad_bytes: Numbers::One(1.0),
        ..Costs::default()
    }
}

/// Of what changes within a nanosecond, the last.
fn points(held: &[Held], clock: &Clock) -> Result<Vec<Point>, Error> {
    let mut points: Vec<Point> = Vec::with_capacity(held.len());
    for held in held {
        let parts = [held.activation, held.weight_grad, held.received];
        let point = Point {
            time: clock.nanoseconds(held.time)?,
            total: held.total(),
            parts,
        };
        match points.last_mut() {
            Some(last) if last.time == point.time => *last = point,
            _ => points.push(point),
        }
    }
    Ok(points)
}
