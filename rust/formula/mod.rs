//! Published closed forms, each with the region in which it is true; and what the simulator gives in its
//! place, so that anyone can look. No file here makes or times a schedule: a formula is arithmetic on a
//! [`Case`], and the tests hold it against the simulator, in its region and just outside.
//!
//! Where a paper's own formula is true in a part of a region in which a longer one still is, the longer one
//! stands here, and its text says where it becomes the paper's.

use crate::costs::Costs;
use crate::error::Error;
use crate::generate::{self, Family};

mod case;
mod dual;
mod figure;
mod folded;
mod law;
mod linear;
mod looped;

pub use case::Case;
pub use figure::{Figure, Simulated};
pub use law::{Law, Quantity};

/// The closed forms of one family.
pub struct Formula {
    pub family: &'static str,
    pub source: &'static str,
    laws: &'static [Law],
}

static FORMULAS: [Formula; 14] = [
    linear::GPIPE,
    linear::ONE_F_ONE_B,
    looped::INTERLEAVED,
    looped::INTERLEAVED_ZB,
    looped::LOOPED_BFS,
    linear::ZB_H1,
    linear::ZB_H2,
    folded::ZB_V,
    folded::V_HALF,
    folded::V_MIN,
    dual::DUALPIPE,
    dual::DUALPIPEV,
    dual::CHIMERA,
    folded::HANAYO,
];

/// The formulas of this family.
pub fn find(name: &str) -> Result<&'static Formula, Error> {
    let family = generate::find(name)?.name;
    FORMULAS.iter().find(|formula| formula.family == family).ok_or_else(|| Error::NoFormula {
        family,
        wanted: "anything",
        known: format!(
            "those that have some are {}",
            FORMULAS.each_ref().map(|formula| formula.family).join(", ")
        ),
    })
}

impl Formula {
    /// The names of what it has a form of.
    pub fn quantities(&self) -> impl Iterator<Item = &'static str> {
        self.laws.iter().map(|law| law.quantity.name())
    }

    /// The schedules that the form is of.
    pub fn schedules(&self) -> Result<&'static Family, Error> {
        generate::find(self.family)
    }

    /// The form of `quantity` (of a bubble, whichever way the family's is counted) at these sizes and costs. Sizes and
    /// options are refused as [`Family::generate`] refuses them.
    pub fn figure(
        &'static self,
        quantity: Quantity,
        ranks: usize,
        microbatches: usize,
        option: Option<usize>,
        costs: Costs,
    ) -> Result<Figure, Error> {
        let Some(law) = self.laws.iter().find(|law| law.quantity.name() == quantity.name()) else {
            let known = format!("it has {}", self.quantities().collect::<Vec<_>>().join(", "));
            return Err(Error::NoFormula { family: self.family, wanted: quantity.name(), known });
        };
        Figure::new(self, law, (ranks, microbatches, option), costs)
    }
}

#[cfg(test)]
mod tests;
