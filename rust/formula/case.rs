//! Sizes and uniform costs, as the letters that formulas are written in.

use std::fmt;

use crate::costs::{Costs, Prices};
use crate::error::Error;
use crate::schedule::{Action, Kind, Microbatch, Shape, Slot, Stage};

/// What a formula is evaluated at. Counts are floats, so that formulas read as they are printed; they are exact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    /// Ranks, microbatches, and stages a rank.
    pub p: f64,
    pub m: f64,
    pub v: f64,
    /// What one stage's F, I, W and B cost, and a pair.
    pub f: f64,
    pub i: f64,
    pub w: f64,
    pub b: f64,
    pub fb: f64,
    /// A hop; none where one rank is alone.
    pub c: f64,
    /// Whether all stages cost the same, and all hops, and nothing comes after the slots; else the costs above are
    /// means.
    pub alike: bool,
}

impl Case {
    pub fn new(shape: &Shape, costs: &Costs) -> Result<Case, Error> {
        let per_rank = if shape.ranks() > 0 { shape.stages() / shape.ranks() } else { 0 };
        let uniform = Uniform::of(costs, shape)?;
        let [f, i, w, b, fb] = uniform.costs;
        Ok(Case {
            p: shape.ranks() as f64,
            m: shape.microbatches() as f64,
            v: per_rank as f64,
            f,
            i,
            w,
            b,
            fb,
            c: if shape.ranks() > 1 { uniform.hop } else { 0.0 },
            alike: uniform.alike,
        })
    }

    /// A microbatch's forward and full backward on one stage.
    pub fn fb_apart(&self) -> f64 {
        self.f + self.b
    }

    /// What a rank computes where every backward is whole.
    pub fn whole(&self) -> f64 {
        self.m * self.v * (self.f + self.b)
    }

    /// What a rank computes where every backward is split.
    pub fn split(&self) -> f64 {
        self.m * self.v * (self.f + self.i + self.w)
    }
}

/// Why a formula is not exact is told with the numbers.
impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { p, m, v, f, i, w, b, fb, c, alike } = self;
        let mean = if *alike { "" } else { "in the mean " };
        write!(out, "p = {p}, m = {m}")?;
        if *v > 1.0 {
            write!(out, ", v = {v}")?;
        }
        write!(out, "; {mean}F = {f}, I = {i}, W = {w}, B = {b}, FB = {fb}, c = {c}")
    }
}

/// a ≤ b, but for what rounding in sums of costs may take from it.
pub fn at_most(a: f64, b: f64) -> bool {
    a <= b || a - b <= 1e-12 * a.abs()
}

/// The same, but for rounding.
pub fn same(a: f64, b: f64) -> bool {
    at_most(a, b) && at_most(b, a)
}

/// One price for all stages, or their means.
struct Uniform {
    costs: [f64; 5],
    hop: f64,
    alike: bool,
}

impl Uniform {
    /// The one place where costs are read. A pair is asked for as the bidirectional orders fuse it: the forward of a
    /// stage with the backward of the stage as far from the other end.
    fn of(costs: &Costs, shape: &Shape) -> Result<Uniform, Error> {
        let prices = costs.prices(shape)?;
        let stages = 0..shape.stages() as Stage;
        let rows: Vec<[f64; 5]> = stages.map(|stage| of_stage(&prices, shape, stage)).collect();
        let alike = rows.windows(2).all(|pair| pair[0] == pair[1]);
        let first = rows.first().copied().unwrap_or_default();
        let mean = |column: usize| rows.iter().map(|row| row[column]).sum::<f64>() / rows.len() as f64;
        let costs = if alike { first } else { std::array::from_fn(mean) };
        let hops = hops(&prices, shape);
        let one_hop = hops.windows(2).all(|pair| pair[0] == pair[1]);
        let ends_there = prices.exchange.is_none() && prices.optimizer.is_empty();
        let hop = match hops.first() {
            Some(&first) if one_hop => first,
            Some(_) => hops.iter().sum::<f64>() / hops.len() as f64,
            None => 0.0,
        };
        Ok(Uniform { costs, hop, alike: alike && one_hop && ends_there })
    }
}

/// The hop between each two stages that follow each other, there and back, for the first microbatch and the last:
/// in a bidirectional placement these pass the ranks in opposite directions.
fn hops(prices: &Prices, shape: &Shape) -> Vec<f64> {
    let rank_of = |stage: usize, microbatch| shape.rank_of(stage as Stage, microbatch);
    let passes = [0, shape.microbatches() as Microbatch - 1];
    let edges = (1..shape.stages()).flat_map(|stage| {
        passes.map(|microbatch| (rank_of(stage - 1, microbatch), rank_of(stage, microbatch)))
    });
    let edges = edges.filter(|(from, to)| from != to);
    edges.flat_map(|(from, to)| [prices.hops.between(from, to), prices.hops.between(to, from)]).collect()
}

fn of_stage(prices: &Prices, shape: &Shape, stage: Stage) -> [f64; 5] {
    let action = |kind| Action::new(stage, kind, 0);
    let backward = Action::new((shape.stages() - 1) as Stage - stage, Kind::B, 1);
    let pair = Slot::Pair(action(Kind::F), backward);
    let [f, i, w, b] = [Kind::F, Kind::I, Kind::W, Kind::B].map(|kind| prices.action(action(kind)));
    [f, i, w, b, prices.slot(pair)]
}
