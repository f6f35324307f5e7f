//! [`Costs`] laid out for one schedule. A price is asked of this alone.

use super::{Costs, Table};
use crate::error::Error;
use crate::schedule::{Action, Kind, Placement, Rank, Shape, Slot, Stage};

/// Checked prices, by kind and stage.
#[derive(Debug, Clone)]
pub struct Prices {
    by_kind: [Vec<f64>; 4],
    overlap: Option<Table>,
    /// What the first and the last stage take beside a pair's own price: by kind.
    extras: [Extra; 2],
    pub hops: Hops,
    /// Where stages live on two ranks, what their exchange of gradients takes, if it takes time.
    pub exchange: Option<f64>,
    /// By rank; empty where it takes no time.
    pub optimizer: Vec<f64>,
}

/// A stage and what it takes beside the rest.
#[derive(Debug, Clone, Copy)]
struct Extra {
    stage: Stage,
    forward: f64,
    backward: f64,
}

/// What a tensor's way from a rank to another takes.
#[derive(Debug, Clone)]
pub struct Hops(Table);

impl Hops {
    #[inline(always)]
    pub fn between(&self, from: Rank, to: Rank) -> f64 {
        self.0.at(from, to)
    }

    /// All of them, if they are one.
    pub fn uniform(&self) -> Option<f64> {
        match self.0 {
            Table::One(hop) => Some(hop),
            Table::Each { .. } => None,
        }
    }
}

/// What a stage holds, by stage.
#[derive(Debug, Clone)]
pub struct Bytes {
    pub activation: Vec<f64>,
    pub weight_grad: Vec<f64>,
    pub parameters: Vec<f64>,
    /// Of a tensor on its way, by edge.
    pub p2p: Table,
}

impl Costs {
    /// A table of prices for one schedule.
    pub fn prices(&self, shape: &Shape) -> Result<Prices, Error> {
        self.bytes(shape)?; // No timeline should turn out not to fit its own bytes.
        let (stages, ranks) = (shape.stages(), shape.ranks());
        let by_stage = |name, cost: &super::Numbers| cost.list(name, stages, "stage");
        let full = self.backward.as_ref().map(|cost| by_stage("backward", cost)).transpose()?;
        let input = by_stage("backward_input", &self.backward_input)?;
        let weight = by_stage("backward_weight", &self.backward_weight)?;
        let sum = || input.iter().zip(&weight).map(|(input, weight)| input + weight).collect();
        let full = full.unwrap_or_else(sum);
        let mut by_kind = [by_stage("forward", &self.forward)?, input, weight, full];
        for (stage, [f, i, w]) in [(0, self.first_extra), (stages - 1, self.last_extra)] {
            for (kind, extra) in by_kind.iter_mut().zip([f, i, w, i + w]) {
                kind[stage] += extra;
            }
        }
        let extra = |stage, [f, i, w]: [f64; 3]| Extra { stage: stage as Stage, forward: f, backward: i + w };
        let extras = [extra(0, self.first_extra), extra(stages - 1, self.last_extra)];
        self.overlap.iter().try_for_each(|table| table.check_size("overlap", stages, "stage"))?;
        let optimizer = self.optimizer.list("optimizer", ranks, "rank")?;
        let mirrored = shape.placement() == Placement::Bidirectional && self.gradient_exchange > 0.0;
        Ok(Prices {
            by_kind,
            overlap: self.overlap.clone(),
            extras,
            hops: self.hops(ranks)?,
            exchange: mirrored.then_some(self.gradient_exchange),
            optimizer: if optimizer.iter().any(|&cost| cost > 0.0) { optimizer } else { Vec::new() },
        })
    }

    fn hops(&self, ranks: usize) -> Result<Hops, Error> {
        self.p2p.check_size("p2p", ranks, "rank")?;
        self.p2p_bytes.check_size("p2p_bytes", ranks, "rank")?;
        let Some(bandwidth) = &self.p2p_bandwidth else { return Ok(Hops(self.p2p.clone())) };
        bandwidth.check_size("p2p_bandwidth", ranks, "rank")?;
        let transfer = self.p2p_bytes.zip(bandwidth, |bytes, bandwidth| bytes / bandwidth);
        Ok(Hops(self.p2p.zip(&transfer, |latency, transfer| latency + transfer)))
    }

    /// The bytes by stage for one schedule.
    pub fn bytes(&self, shape: &Shape) -> Result<Bytes, Error> {
        self.check()?;
        let by_stage = |name, bytes: &super::Numbers| bytes.list(name, shape.stages(), "stage");
        self.p2p_bytes.check_size("p2p_bytes", shape.ranks(), "rank")?;
        Ok(Bytes {
            activation: by_stage("activation_bytes", &self.activation_bytes)?,
            weight_grad: by_stage("weight_grad_bytes", &self.weight_grad_bytes)?,
            parameters: by_stage("parameter_bytes", &self.parameter_bytes)?,
            p2p: self.p2p_bytes.clone(),
        })
    }
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
            Slot::Pair(forward, backward) => match &self.overlap {
                None => self.action(forward) + self.action(backward),
                Some(table) => {
                    let own = table.at(forward.stage as usize, backward.stage as usize);
                    let extra = |extra: &Extra| {
                        let forward = if forward.stage == extra.stage { extra.forward } else { 0.0 };
                        let backward = if backward.stage == extra.stage { extra.backward } else { 0.0 };
                        forward + backward
                    };
                    own + self.extras.iter().map(extra).sum::<f64>()
                }
            },
        }
    }
}

const _: () = assert!(Kind::F as usize == 0 && Kind::I as usize == 1 && Kind::W as usize == 2);
