//! A fused forward & backward pair from its components: how long a stage's forward and another's backward
//! take together, where communication runs beside computation.
//!
//! A stage is a list of layers, each of attention, dispatch, mlp and combine. Attention and mlp run on one
//! stream, dispatch and combine on another, each stream in its order. In a pair the n-th layer that the
//! forward goes through is fused with the n-th that the backward goes through.
//!
//! This is no schedule: it knows neither ranks nor microbatches. It prices what [`crate::costs`] takes as one
//! number.

mod costs;
mod layout;
mod order;
mod part;
#[cfg(test)]
mod tests;

use crate::costs::Numbers;
use crate::error::Error;
use crate::schedule::Kind;

pub use layout::{Laid, Layout};
pub use order::Orders;
pub use part::{Component, Part, Stream};

/// The most layers of a stage; a typing error should not fill the memory.
pub const MOST_LAYERS: usize = 1 << 16;
/// The most time of a stage, and the most slowdown: any pair of stages then takes a time that a float holds.
const MOST_TIME: f64 = 1e300;
const MOST_SLOWDOWN: f64 = 1e6;

/// How long each part of each layer of a stage takes by itself, and how its streams run.
#[derive(Debug, Clone, PartialEq)]
pub struct Components {
    /// By layer, then by [`Part`].
    times: Vec<[f64; Part::COUNT]>,
    orders: Orders,
    slowdown: f64,
}

impl Components {
    /// `times` is by [`Part`]. `layers` is needed only where no entry of `times` has one number a layer. While a
    /// communication runs, computation takes `slowdown` times as long.
    pub fn new(
        times: &[Numbers; Part::COUNT],
        layers: Option<usize>,
        orders: Orders,
        slowdown: f64,
    ) -> Result<Self, Error> {
        if !(1.0..=MOST_SLOWDOWN).contains(&slowdown) {
            let problem = format!(
                "is {slowdown}; it is a number from 1 (communication takes nothing from computation) to {MOST_SLOWDOWN}"
            );
            return Err(Error::Cost { name: "compute_slowdown", problem });
        }
        let layers = count_layers(times, layers)?;
        let of_layer = |layer| {
            Part::ALL.map(|part| match &times[part as usize] {
                Numbers::One(time) => *time,
                Numbers::Each(times) => times[layer],
            })
        };
        let times: Vec<_> = (0..layers).map(of_layer).collect();
        check_times(&times)?;
        Ok(Components { times, orders, slowdown })
    }

    pub fn layers(&self) -> usize {
        self.times.len()
    }

    pub fn time(&self, layer: usize, part: Part) -> f64 {
        self.times[layer][part as usize]
    }

    /// The times of a part over the layers: one number where all are the same.
    pub fn times(&self, part: Part) -> Numbers {
        let times: Vec<f64> = (0..self.layers()).map(|layer| self.time(layer, part)).collect();
        match times.iter().all(|time| *time == times[0]) {
            true => Numbers::One(times[0]),
            false => Numbers::Each(times),
        }
    }

    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    pub fn slowdown(&self) -> f64 {
        self.slowdown
    }
}

fn count_layers(times: &[Numbers; Part::COUNT], layers: Option<usize>) -> Result<usize, Error> {
    let mut said = layers.map(|layers| (layers, format!("layers is {layers}")));
    for part in Part::ALL {
        let Numbers::Each(times) = &times[part as usize] else { continue };
        let entries = times.len();
        match &said {
            Some((layers, _)) if *layers == entries => {}
            Some((_, who)) => {
                let problem =
                    format!("has {entries} entries, but {who}; give one number, or one for each layer");
                return Err(Error::Cost { name: part.name(), problem });
            }
            None => said = Some((entries, format!("{part} has {entries}"))),
        }
    }
    let layers = said.map_or(1, |(layers, _)| layers);
    if (1..=MOST_LAYERS).contains(&layers) {
        return Ok(layers);
    }
    let problem = format!("is {layers}; a stage has from 1 to {MOST_LAYERS}");
    Err(Error::Cost { name: "layers", problem })
}

fn check_times(times: &[[f64; Part::COUNT]]) -> Result<(), Error> {
    for (layer, times) in times.iter().enumerate() {
        for part in Part::ALL {
            let time = times[part as usize];
            if !(time.is_finite() && time >= 0.0) {
                let problem =
                    format!("of layer {layer} is {time}; a time is a finite number that is not negative");
                return Err(Error::Cost { name: part.name(), problem });
            }
        }
    }
    let total: f64 = times.iter().flatten().sum();
    if total <= MOST_TIME {
        return Ok(());
    }
    let problem = format!("add up to more than {MOST_TIME:e}; give them in a larger unit");
    Err(Error::Cost { name: "times", problem })
}

/// What a stage does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    Forward,
    BackwardInput,
    BackwardWeight,
    /// Both: W runs beside the communication of I.
    Backward,
}

impl Alone {
    pub const ALL: [Alone; 4] =
        [Alone::Forward, Alone::BackwardInput, Alone::BackwardWeight, Alone::Backward];

    pub fn name(self) -> &'static str {
        match self {
            Alone::Forward => "forward",
            Alone::BackwardInput => "backward_input",
            Alone::BackwardWeight => "backward_weight",
            Alone::Backward => "backward",
        }
    }

    fn includes(self, kind: Kind) -> bool {
        match self {
            Alone::Forward => kind == Kind::F,
            Alone::BackwardInput => kind == Kind::I,
            Alone::BackwardWeight => kind == Kind::W,
            Alone::Backward => matches!(kind, Kind::I | Kind::W),
        }
    }
}

/// One direction of one stage on its own two streams, in the pair's order without the parts of the other.
pub fn alone(stage: &Components, what: Alone) -> Layout {
    let work = Work {
        forward: Some(stage).filter(|_| what == Alone::Forward),
        backward: Some(stage).filter(|_| what != Alone::Forward),
        includes: &|kind| what.includes(kind),
    };
    layout::lay(&work, &stage.orders, stage.slowdown)
}

/// The forward of one stage fused with the backward of another, or of the same. The streams run in the
/// order and at the slowdown of the stage that goes forward.
pub fn pair(forward: &Components, backward: &Components) -> Layout {
    let work = Work {
        forward: Some(forward),
        backward: Some(backward),
        includes: &|_| true,
    };
    layout::lay(&work, &forward.orders, forward.slowdown)
}

/// The parts that are laid out. A step is one layer up and one layer down, as far as there are such.
struct Work<'a> {
    forward: Option<&'a Components>,
    backward: Option<&'a Components>,
    includes: &'a dyn Fn(Kind) -> bool,
}

impl Work<'_> {
    fn steps(&self) -> usize {
        [self.forward, self.backward].into_iter().flatten().map(Components::layers).max().unwrap_or(0)
    }

    /// The layer and the time of a part in a step, if it has this part.
    fn find(&self, step: usize, part: Part) -> Option<(usize, f64)> {
        if !(self.includes)(part.kind()) {
            return None;
        }
        let (stage, layer) = match part.kind() {
            Kind::F => (self.forward?, Some(step)),
            _ => (self.backward?, (self.backward?.layers() - 1).checked_sub(step)),
        };
        let layer = layer.filter(|&layer| layer < stage.layers())?;
        Some((layer, stage.time(layer, part)))
    }
}
