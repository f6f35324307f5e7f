//! The published schedules: one file a family, each a pure function from sizes to a [`Schedule`],
//! shaped like its paper.
//!
//! A size that a family cannot take is an [`Error::IllegalSize`] that names legal ones nearby.

use crate::error::Error;
use crate::schedule::{Action, Kind, Microbatch, Schedule, Shape, Slot, Stage};

mod dualpipe;
mod dualpipev;
mod gpipe;
mod one_f_one_b;

/// A published family under the name that users type.
struct Family {
    name: &'static str,
    generate: fn(ranks: usize, microbatches: usize) -> Result<Schedule, Error>,
}

const FAMILIES: [Family; 4] = [
    Family { name: "gpipe", generate: gpipe::gpipe },
    Family { name: "1f1b", generate: one_f_one_b::one_f_one_b },
    Family { name: "dualpipe", generate: dualpipe::dualpipe },
    Family { name: "dualpipev", generate: dualpipev::dualpipev },
];

/// The names that [`generate`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.name)
}

/// The schedule of a family at these sizes. `options` are the names of the options that were given:
/// none of these families has any.
pub fn generate(
    name: &str,
    ranks: usize,
    microbatches: usize,
    options: &[String],
) -> Result<Schedule, Error> {
    let family = FAMILIES.iter().find(|family| family.name == name);
    let family = family.ok_or_else(|| Error::UnknownFamily {
        name: name.to_string(),
        known: names().collect::<Vec<_>>().join(", "),
    })?;
    if let Some(option) = options.first() {
        return Err(Error::UnknownOption {
            family: family.name,
            option: option.clone(),
            accepted: "it has none beside num_ranks and num_microbatches".to_string(),
        });
    }
    (family.generate)(ranks, microbatches)
}

/// `nearest` is the shape of a legal size near the one that was asked for, if there is one.
fn illegal(
    family: &'static str,
    takes: &'static str,
    got: (usize, usize),
    nearest: Result<Shape, Error>,
) -> Error {
    let (ranks, microbatches) = got;
    let nearest = match nearest {
        Ok(shape) => {
            let (ranks, microbatches) = (shape.ranks(), shape.microbatches());
            format!("The nearest legal size is {ranks} ranks and {microbatches} microbatches")
        }
        Err(why) => format!("There is no legal size near: {why}"),
    };
    Error::IllegalSize { family, takes, ranks, microbatches, nearest }
}

/// `stage` does `kind` for each microbatch of a range.
fn each(stage: Stage, kind: Kind, microbatches: std::ops::Range<usize>) -> impl Iterator<Item = Slot> {
    microbatches.map(move |microbatch| Slot::One(Action::new(stage, kind, microbatch as Microbatch)))
}
