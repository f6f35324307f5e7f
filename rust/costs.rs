//! What an action, a pair and a hop cost. Time has no unit of its own: whatever the costs are in,
//! the timeline is in.

use crate::error::Error;
use crate::schedule::{Action, Kind, Shape, Slot};

/// One number for every stage, or one for each.
#[derive(Debug, Clone, PartialEq)]
pub enum PerStage {
    Uniform(f64),
    Each(Vec<f64>),
}

/// The costs as the user gives them; checked, and matched with the number of stages, by
/// [`Costs::prices`].
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    pub forward: PerStage,
    pub backward_input: PerStage,
    pub backward_weight: PerStage,
    /// A full backward; `None` means I + W.
    pub backward: Option<PerStage>,
    /// A fused pair; `None` means F + B of its two stages, that is, nothing is gained.
    pub overlap: Option<f64>,
    /// One hop from a rank to another. A tensor that stays on its rank takes none.
    pub p2p: f64,
}

impl Default for Costs {
    /// Every action one unit, and nothing gained by pairs.
    fn default() -> Self {
        Costs {
            forward: PerStage::Uniform(1.0),
            backward_input: PerStage::Uniform(1.0),
            backward_weight: PerStage::Uniform(1.0),
            backward: None,
            overlap: None,
            p2p: 0.0,
        }
    }
}

impl Costs {
    /// Refuses negative, infinite and NaN costs; what does not depend on a schedule.
    pub fn check(&self) -> Result<(), Error> {
        let per_stage = [
            ("forward", Some(&self.forward)),
            ("backward_input", Some(&self.backward_input)),
            ("backward_weight", Some(&self.backward_weight)),
            ("backward", self.backward.as_ref()),
        ];
        for (name, cost) in per_stage {
            match cost {
                Some(PerStage::Uniform(cost)) => check_one(name, *cost)?,
                Some(PerStage::Each(costs)) => costs.iter().try_for_each(|&cost| check_one(name, cost))?,
                None => {}
            }
        }
        check_one("overlap", self.overlap.unwrap_or(0.0))?;
        check_one("p2p", self.p2p)
    }

    /// A table of prices by stage for one schedule.
    pub fn prices(&self, shape: &Shape) -> Result<Prices, Error> {
        self.check()?;
        let stages = shape.stages();
        let input = table("backward_input", &self.backward_input, stages)?;
        let weight = table("backward_weight", &self.backward_weight, stages)?;
        let full = match &self.backward {
            Some(cost) => table("backward", cost, stages)?,
            None => input.iter().zip(&weight).map(|(input, weight)| input + weight).collect(),
        };
        Ok(Prices {
            by_kind: [table("forward", &self.forward, stages)?, input, weight, full],
            overlap: self.overlap,
            hop: self.p2p,
        })
    }
}

fn check_one(name: &'static str, cost: f64) -> Result<(), Error> {
    if cost.is_finite() && cost >= 0.0 {
        return Ok(());
    }
    let problem = format!("is {cost}; a cost is a finite number that is not negative");
    Err(Error::Cost { name, problem })
}

fn table(name: &'static str, cost: &PerStage, stages: usize) -> Result<Vec<f64>, Error> {
    match cost {
        PerStage::Uniform(cost) => Ok(vec![*cost; stages]),
        PerStage::Each(costs) if costs.len() == stages => Ok(costs.clone()),
        PerStage::Each(costs) => {
            let problem = format!(
                "has {} entries and the schedule {stages} stages; give one number, or one a stage",
                costs.len()
            );
            Err(Error::Cost { name, problem })
        }
    }
}

/// Checked costs, by kind and stage. A price is asked of this alone.
pub struct Prices {
    by_kind: [Vec<f64>; 4],
    overlap: Option<f64>,
    hop: f64,
}

impl Prices {
    #[inline]
    pub fn action(&self, action: Action) -> f64 {
        self.by_kind[action.kind as usize][action.stage as usize]
    }

    #[inline]
    pub fn slot(&self, slot: Slot) -> f64 {
        match slot {
            Slot::One(action) => self.action(action),
            Slot::Pair(forward, backward) => {
                let apart = || self.action(forward) + self.action(backward);
                self.overlap.unwrap_or_else(apart)
            }
        }
    }

    pub fn hop(&self) -> f64 {
        self.hop
    }
}

const _: () = assert!(Kind::F as usize == 0 && Kind::I as usize == 1 && Kind::W as usize == 2);
