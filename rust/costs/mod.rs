//! What an action, a pair, a hop and the end of a step cost, and the bytes that a stage holds. Time has no unit of
//! its own: whatever the costs are in, the timeline is in; so with bytes.
//!
//! [`Costs`] is what the user says, for schedules of any size; [`Prices`] is that, checked and laid out for the
//! stages and ranks of one schedule. Nothing here measures: ../fit.rs makes costs of a measured timeline.

use crate::error::Error;

mod numbers;
mod prices;

pub use numbers::{MOST_STAGES, Numbers, Table};
pub use prices::{Bytes, Hops, Prices};

/// The costs as the user gives them; see the docstring of Python's `Costs` for what each field means.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// By stage.
    pub forward: Numbers,
    pub backward_input: Numbers,
    pub backward_weight: Numbers,
    /// A full backward; `None` means I + W.
    pub backward: Option<Numbers>,
    /// A fused pair, by the stage of its forward and the stage of its backward; `None` means F + B of its two
    /// stages, that is, nothing is gained.
    pub overlap: Option<Table>,
    /// A tensor's way from a rank to another, by edge: `p2p + p2p_bytes / p2p_bandwidth`. A tensor that stays on
    /// its rank takes no time.
    pub p2p: Table,
    pub p2p_bytes: Table,
    /// `None` means that bytes take no time.
    pub p2p_bandwidth: Option<Table>,
    /// What the first stage (embedding) and the last (head and loss) take beside the rest: F, I and W.
    pub first_extra: [f64; 3],
    pub last_extra: [f64; 3],
    /// At the end of a step, where stages live on two ranks: both have ended, then exchange gradients.
    pub gradient_exchange: f64,
    /// At the very end of a step, by rank.
    pub optimizer: Numbers,
    /// Held by each (stage, microbatch) from the start of its F to the end of its I or B, by stage.
    pub activation_bytes: Numbers,
    /// Held from the end of I to the end of W, by stage.
    pub weight_grad_bytes: Numbers,
    /// By stage.
    pub parameter_bytes: Numbers,
}

impl Default for Costs {
    /// Every action one unit; nothing gained by pairs, nothing beside the actions.
    fn default() -> Self {
        Costs {
            forward: Numbers::One(1.0),
            backward_input: Numbers::One(1.0),
            backward_weight: Numbers::One(1.0),
            backward: None,
            overlap: None,
            p2p: Table::One(0.0),
            p2p_bytes: Table::One(0.0),
            p2p_bandwidth: None,
            first_extra: [0.0; 3],
            last_extra: [0.0; 3],
            gradient_exchange: 0.0,
            optimizer: Numbers::One(0.0),
            activation_bytes: Numbers::One(0.0),
            weight_grad_bytes: Numbers::One(0.0),
            parameter_bytes: Numbers::One(0.0),
        }
    }
}

impl Costs {
    /// Refuses negative, infinite and NaN costs; what does not depend on a schedule.
    pub fn check(&self) -> Result<(), Error> {
        self.forward.check("forward")?;
        self.backward.iter().try_for_each(|cost| cost.check("backward"))?; // First: I and W may be its halves.
        self.backward_input.check("backward_input")?;
        self.backward_weight.check("backward_weight")?;
        self.overlap.iter().try_for_each(|cost| cost.check("overlap"))?;
        self.p2p.check("p2p")?;
        self.p2p_bytes.check("p2p_bytes")?;
        self.p2p_bandwidth.iter().try_for_each(Table::check_bandwidth)?;
        self.first_extra.iter().try_for_each(|&cost| numbers::check_one("first_extra", cost))?;
        self.last_extra.iter().try_for_each(|&cost| numbers::check_one("last_extra", cost))?;
        numbers::check_one("gradient_exchange", self.gradient_exchange)?;
        self.optimizer.check("optimizer")?;
        self.activation_bytes.check("activation_bytes")?;
        self.weight_grad_bytes.check("weight_grad_bytes")?;
        self.parameter_bytes.check("parameter_bytes")
    }

    /// The costs of the same model where each stage is cut into `parts` equal ones: what schedules with several
    /// stages a rank have on the same devices. Hops, extras and the end of the step stay as they are.
    pub fn cut(&self, parts: usize) -> Result<Costs, Error> {
        Ok(Costs {
            forward: self.forward.cut("forward", parts)?,
            backward_input: self.backward_input.cut("backward_input", parts)?,
            backward_weight: self.backward_weight.cut("backward_weight", parts)?,
            backward: self.backward.as_ref().map(|cost| cost.cut("backward", parts)).transpose()?,
            overlap: self.overlap.as_ref().map(|cost| cost.cut("overlap", parts)).transpose()?,
            activation_bytes: self.activation_bytes.cut("activation_bytes", parts)?,
            weight_grad_bytes: self.weight_grad_bytes.cut("weight_grad_bytes", parts)?,
            parameter_bytes: self.parameter_bytes.cut("parameter_bytes", parts)?,
            ..self.clone()
        })
    }

    /// Each cost of time by name, as [`Costs::scaled`] takes it; those that are not given are left out.
    pub fn times(&self) -> Vec<&'static str> {
        let given = [
            ("forward", true),
            ("backward_input", true),
            ("backward_weight", true),
            ("backward", self.backward.is_some()),
            ("overlap", self.overlap.is_some()),
            ("p2p", true),
            ("p2p_bytes", self.p2p_bandwidth.is_some()),
            ("first_extra", true),
            ("last_extra", true),
            ("gradient_exchange", true),
            ("optimizer", true),
        ];
        given.into_iter().filter(|&(_, given)| given).map(|(name, _)| name).collect()
    }

    /// The same with one of [`Costs::times`] multiplied; in one stage (or rank, of the optimizer; or cell, of a table)
    /// alone where `only` says which of how many.
    pub fn scaled(&self, name: &str, factor: f64, only: Option<(usize, usize)>) -> Costs {
        let mut costs = self.clone();
        let table = |cost: &mut Table| *cost = cost.scaled(factor, only);
        let numbers = |cost: &mut Numbers| *cost = cost.scaled(factor, only);
        match name {
            "forward" => numbers(&mut costs.forward),
            "backward_input" => numbers(&mut costs.backward_input),
            "backward_weight" => numbers(&mut costs.backward_weight),
            "backward" => costs.backward.iter_mut().for_each(numbers),
            "optimizer" => numbers(&mut costs.optimizer),
            "overlap" => costs.overlap.iter_mut().for_each(table),
            "p2p" => table(&mut costs.p2p),
            "p2p_bytes" => table(&mut costs.p2p_bytes),
            "first_extra" => costs.first_extra = costs.first_extra.map(|cost| cost * factor),
            "last_extra" => costs.last_extra = costs.last_extra.map(|cost| cost * factor),
            "gradient_exchange" => costs.gradient_exchange *= factor,
            other => unreachable!("{other} is none of Costs::times"),
        }
        costs
    }
}
