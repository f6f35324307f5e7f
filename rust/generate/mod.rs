//! The published schedules: one file a family, each a pure function from sizes to a [`Schedule`],
//! shaped like its paper.
//!
//! A size that a family cannot take is an [`Error::IllegalSize`] that names legal ones nearby.

use crate::error::Error;
use crate::schedule::{Action, Kind, Microbatch, Schedule, Shape, Slot, Stage};

mod chimera;
mod dualpipe;
mod dualpipev;
mod gpipe;
mod hanayo;
mod interleaved;
mod looped_bfs;
mod one_f_one_b;
mod v_memory;
mod zb_h;
mod zb_v;

/// A published family.
pub struct Family {
    /// What users type.
    pub name: &'static str,
    generate: Generate,
}

type Made = Result<Schedule, Error>;

/// How a family is made of ranks, microbatches, and the option that it takes beside them.
#[derive(Clone, Copy)]
enum Generate {
    Plain(fn(usize, usize) -> Made),
    /// `stages_per_rank`, 2 where it is left out.
    Chunks(fn(usize, usize, usize) -> Made),
    /// `waves`, 1 where it is left out.
    Waves(fn(usize, usize, usize) -> Made),
}

use Generate::{Chunks, Plain, Waves};

const FAMILIES: [Family; 14] = [
    Family { name: "gpipe", generate: Plain(gpipe::gpipe) },
    Family { name: "1f1b", generate: Plain(one_f_one_b::one_f_one_b) },
    Family {
        name: "interleaved",
        generate: Chunks(interleaved::interleaved),
    },
    Family {
        name: "interleaved-zb",
        generate: Chunks(interleaved::interleaved_zb),
    },
    Family { name: "looped-bfs", generate: Chunks(looped_bfs::looped_bfs) },
    Family { name: "zb-h1", generate: Plain(zb_h::zb_h1) },
    Family { name: "zb-h2", generate: Plain(zb_h::zb_h2) },
    Family { name: "zb-v", generate: Plain(zb_v::zb_v) },
    Family { name: "v-half", generate: Plain(v_memory::v_half) },
    Family { name: "v-min", generate: Plain(v_memory::v_min) },
    Family { name: "dualpipe", generate: Plain(dualpipe::dualpipe) },
    Family { name: "dualpipev", generate: Plain(dualpipev::dualpipev) },
    Family { name: "chimera", generate: Plain(chimera::chimera) },
    Family { name: "hanayo", generate: Waves(hanayo::hanayo) },
];

impl Generate {
    /// The name of the option and its value where it is left out.
    fn option(self) -> Option<(&'static str, usize)> {
        match self {
            Plain(_) => None,
            Chunks(_) => Some(("stages_per_rank", 2)),
            Waves(_) => Some(("waves", 1)),
        }
    }

    fn make(self, ranks: usize, microbatches: usize, option: usize) -> Made {
        match self {
            Plain(make) => make(ranks, microbatches),
            Chunks(make) | Waves(make) => make(ranks, microbatches, option),
        }
    }
}

/// The names that [`find`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.name)
}

/// The family of this name.
pub fn find(name: &str) -> Result<&'static Family, Error> {
    FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| Error::UnknownFamily {
        name: name.chars().take(40).collect(),
        known: names().collect::<Vec<_>>().join(", "),
    })
}

impl Family {
    /// The order for these sizes; `option` is the value of the option that [`Family::check_option`] knows.
    pub fn generate(&self, ranks: usize, microbatches: usize, option: Option<usize>) -> Made {
        let Some((name, default)) = self.generate.option() else {
            return self.generate.make(ranks, microbatches, 0);
        };
        match option.unwrap_or(default) {
            0 => Err(Error::ZeroOption { family: self.name, option: name }),
            value => self.generate.make(ranks, microbatches, value),
        }
    }

    /// Refuses the name of an option that the family does not take.
    pub fn check_option(&self, option: &str) -> Result<(), Error> {
        let own = self.generate.option().map(|(name, _)| name);
        if own == Some(option) {
            return Ok(());
        }
        Err(Error::UnknownOption {
            family: self.name,
            option: option.to_string(),
            accepted: format!("it has {} beside num_ranks and num_microbatches", own.unwrap_or("none")),
        })
    }
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
