//! A formula at given sizes and costs, and what the simulator gives for the same.

use std::sync::Arc;

use super::Formula;
use super::case::Case;
use super::law::{Law, Quantity};
use crate::costs::Costs;
use crate::error::Error;
use crate::simulate::simulate;
use crate::timeline::Timeline;
use crate::verify::verify;

/// Ranks, microbatches, and the family's own option.
type Sizes = (usize, usize, Option<usize>);

pub struct Figure {
    formula: &'static Formula,
    law: &'static Law,
    sizes: Sizes,
    costs: Costs,
    case: Case,
    value: f64,
    broken: Vec<&'static str>,
}

/// What a simulated schedule has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Simulated {
    pub value: f64,
    pub makespan: f64,
}

impl Simulated {
    /// By how much of the makespan (of a count: of itself) a figure is off.
    pub fn relative_off(&self, figure: &Figure) -> f64 {
        let whole = match figure.quantity() {
            Quantity::PeakActivations => self.value,
            _ => self.makespan,
        };
        if whole > 0.0 { (self.value - figure.value()) / whole } else { 0.0 }
    }
}

impl Figure {
    pub(super) fn new(
        formula: &'static Formula,
        law: &'static Law,
        sizes: Sizes,
        costs: Costs,
    ) -> Result<Figure, Error> {
        let (ranks, microbatches, option) = sizes;
        // Which sizes are legal is the generator's to say.
        let schedule = formula.schedules()?.generate(ranks, microbatches, option)?;
        let case = Case::new(schedule.shape(), &costs)?;
        let value = law.value(&case);
        if !value.is_finite() {
            let problem = "add up to more than a float can hold".to_string();
            return Err(Error::Cost { name: "costs", problem });
        }
        Ok(Figure {
            formula,
            law,
            sizes,
            costs,
            case,
            value,
            broken: law.broken(&case),
        })
    }

    pub fn family(&self) -> &'static str {
        self.formula.family
    }

    pub fn quantity(&self) -> Quantity {
        self.law.quantity
    }

    /// The formula, written out.
    pub fn formula(&self) -> &'static str {
        self.law.text
    }

    pub fn value(&self) -> f64 {
        self.value
    }

    /// Whether these sizes and costs are in the region.
    pub fn exact(&self) -> bool {
        self.broken.is_empty()
    }

    pub fn region(&self) -> String {
        self.law.region()
    }

    /// The conditions of the region that are not met, and the numbers.
    pub fn why(&self) -> Option<String> {
        (!self.exact()).then(|| format!("not met: {} (here {})", self.broken.join("; "), self.case))
    }

    /// The real schedule, generated, verified and simulated under eager P2P.
    pub fn simulated(&self) -> Result<Simulated, Error> {
        let (ranks, microbatches, option) = self.sizes;
        let schedule = Arc::new(self.formula.schedules()?.generate(ranks, microbatches, option)?);
        let verified = verify(schedule.clone()).map_err(|found| Error::Format(found.report(&schedule)))?;
        let timeline = simulate(&verified, &self.costs)?;
        Ok(Simulated {
            value: measure(self.law.quantity, &timeline),
            makespan: timeline.makespan(),
        })
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let (ranks, microbatches, _) = self.sizes;
        let name = self.law.quantity.name();
        let exact = self.why().unwrap_or("exact".to_string());
        format!("{} of {} {ranks}x{microbatches}: {}, {exact}", name, self.family(), self.value)
    }
}

fn measure(quantity: Quantity, timeline: &Timeline) -> f64 {
    let most = |times: Vec<f64>| times.into_iter().fold(0.0, f64::max);
    match quantity {
        Quantity::Idle => most(timeline.idle()),
        Quantity::IdleWithin => most(idle_within(timeline)),
        Quantity::Makespan => timeline.makespan(),
        Quantity::Span => timeline.span(),
        Quantity::PeakActivations => timeline.peak_activations().into_iter().max().unwrap_or(0) as f64,
    }
}

/// How long each rank waits between its own actions.
fn idle_within(timeline: &Timeline) -> Vec<f64> {
    let own_span = |rank| match (timeline.times_of(rank).first(), timeline.times_of(rank).last()) {
        (Some(first), Some(last)) => last.end - first.start,
        _ => 0.0,
    };
    timeline.busy().into_iter().enumerate().map(|(rank, busy)| own_span(rank) - busy).collect()
}
