//! THE representation: what each rank computes, in which order. No time, no sends, no receives.
//!
//! The one rule book of the project is here too: [`Shape::rank_of`] says where an action belongs and
//! [`Shape::dependencies`] what it waits for. Everything else (verifier, simulator, lowering,
//! drawing) asks these two and spells out no rule of its own.

use std::fmt;

use crate::error::Error;

pub type Rank = usize;
/// Global index of a slice of the model. 16 bits keep an [`Action`] in 8 bytes.
pub type Stage = u16;
pub type Microbatch = u32;

/// The most actions that a schedule may hold: 2²⁷ of them take 2 GiB.
const MAX_ACTIONS: u128 = 1 << 27;

/// What an action does to a microbatch in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Forward.
    F,
    /// Backward for the input. (Zero-bubble papers write B for this one.)
    I,
    /// Backward for the weights.
    W,
    /// Full backward: I, then W.
    B,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::F, Kind::I, Kind::W, Kind::B];

    pub fn letter(self) -> char {
        match self {
            Kind::F => 'F',
            Kind::I => 'I',
            Kind::W => 'W',
            Kind::B => 'B',
        }
    }

    pub fn from_letter(letter: char) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.letter() == letter)
    }
}

/// One piece of work: `2F0` is the forward of microbatch 0 in stage 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Action {
    pub microbatch: Microbatch,
    pub stage: Stage,
    pub kind: Kind,
}

impl Action {
    pub fn new(stage: Stage, kind: Kind, microbatch: Microbatch) -> Self {
        Action { stage, kind, microbatch }
    }

    /// Makes a tensor for another stage, as an F, an I or a B does.
    pub fn tensor(self) -> Option<Tensor> {
        match self.kind {
            Kind::F => Some(self),
            Kind::I | Kind::B => Some(Action::new(self.stage, Kind::B, self.microbatch)),
            Kind::W => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.stage, self.kind.letter(), self.microbatch)
    }
}

/// What an action leaves behind for others, named by the action that made it: `0F3` is the output
/// of stage 0, `3B4` the gradient for the input of stage 3, whether an I or a B made it.
/// The kind is F or B, never I or W.
pub type Tensor = Action;

/// One cell of a rank's row. A pair takes one duration: it starts when both its actions may start,
/// and both end together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    One(Action),
    /// A fused forward & backward: `(0F7;7B3)`.
    Pair(Action, Action),
}

impl Slot {
    pub fn actions(&self) -> impl Iterator<Item = Action> + Clone + use<> {
        let (first, second) = self.parts();
        std::iter::once(first).chain(second)
    }

    /// Its action, and the second one of a pair.
    #[inline]
    pub fn parts(&self) -> (Action, Option<Action>) {
        match *self {
            Slot::One(action) => (action, None),
            Slot::Pair(first, second) => (first, Some(second)),
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Slot::One(action) => action.fmt(f),
            Slot::Pair(first, second) => write!(f, "({first};{second})"),
        }
    }
}

/// Which rank holds which stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Stage s on rank s.
    Linear,
    /// Stage s on rank s mod p.
    Looped,
    /// Rank r holds stages r and 2p−1−r.
    V,
    /// Stages go 0..p−1, then p−1..0, and so on.
    Wave,
    /// Two pipelines in opposite directions: the first half of the microbatches enters at rank 0,
    /// the second half at the last rank; each stage lives on two ranks.
    Bidirectional,
}

impl Placement {
    pub const ALL: [Placement; 5] =
        [Placement::Linear, Placement::Looped, Placement::V, Placement::Wave, Placement::Bidirectional];

    pub fn name(self) -> &'static str {
        match self {
            Placement::Linear => "linear",
            Placement::Looped => "looped",
            Placement::V => "v",
            Placement::Wave => "wave",
            Placement::Bidirectional => "bidirectional",
        }
    }

    pub fn from_name(name: &str) -> Option<Placement> {
        Placement::ALL.into_iter().find(|placement| placement.name() == name)
    }

    /// Says why `stages` cannot be placed on `ranks`, if they cannot.
    fn refusal(self, ranks: usize, stages: usize) -> Option<String> {
        let (fits, rule) = match self {
            Placement::Linear | Placement::Bidirectional => (stages == ranks, "as many stages as ranks"),
            Placement::V => {
                (stages.is_multiple_of(2) && stages / 2 == ranks, "twice as many stages as ranks")
            }
            Placement::Looped => (stages.is_multiple_of(ranks), "a multiple of the ranks as stages"),
            Placement::Wave => {
                (stages.is_multiple_of(ranks.saturating_mul(2)), "a multiple of twice the ranks as stages")
            }
        };
        (!fits).then(|| format!("placement {} takes {rule}", self.name()))
    }
}

/// The sizes of a schedule and where its stages are: all that is needed to say what depends on what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    placement: Placement,
    ranks: usize,
    stages: usize,
    microbatches: usize,
    forward_only: bool,
}

impl Shape {
    /// Refuses sizes that no schedule can have: none of something, more stages than 16 bits number,
    /// more actions than memory is meant for, or stages that the placement cannot lay out.
    pub fn new(
        placement: Placement,
        ranks: usize,
        stages: usize,
        microbatches: usize,
    ) -> Result<Self, Error> {
        let actions = stages as u128 * microbatches as u128 * 3;
        let why = if ranks == 0 || stages == 0 || microbatches == 0 {
            Some("there must be at least one of each".to_string())
        } else if stages > Stage::MAX as usize {
            Some(format!("at most {} stages can be numbered", Stage::MAX))
        } else if actions > MAX_ACTIONS {
            Some(format!("that is more than {MAX_ACTIONS} actions"))
        } else {
            placement.refusal(ranks, stages)
        };
        match why {
            Some(why) => Err(Error::Shape { ranks, stages, microbatches, why }),
            None => Ok(Shape { placement, ranks, stages, microbatches, forward_only: false }),
        }
    }

    /// The same sizes, for a schedule that holds forwards alone.
    pub fn for_inference(self) -> Self {
        Shape { forward_only: true, ..self }
    }

    pub fn placement(&self) -> Placement {
        self.placement
    }

    pub fn ranks(&self) -> usize {
        self.ranks
    }

    pub fn stages(&self) -> usize {
        self.stages
    }

    pub fn microbatches(&self) -> usize {
        self.microbatches
    }

    /// A schedule for inference holds forwards alone.
    pub fn forward_only(&self) -> bool {
        self.forward_only
    }

    pub fn contains(&self, action: Action) -> bool {
        (action.stage as usize) < self.stages && (action.microbatch as usize) < self.microbatches
    }

    /// In a bidirectional placement the first half of the microbatches enters at rank 0; elsewhere
    /// all of them do.
    pub fn enters_first(&self, microbatch: Microbatch) -> bool {
        self.placement != Placement::Bidirectional || 2 * (microbatch as usize) < self.microbatches
    }

    /// The rank that computes this stage for this microbatch.
    #[inline]
    pub fn rank_of(&self, stage: Stage, microbatch: Microbatch) -> Rank {
        let stage = stage as usize;
        let ranks = self.ranks;
        match self.placement {
            Placement::Linear => stage,
            Placement::Looped => stage % ranks,
            Placement::V => stage.min(2 * ranks - 1 - stage),
            Placement::Wave => {
                let place = stage % (2 * ranks);
                place.min(2 * ranks - 1 - place)
            }
            Placement::Bidirectional if self.enters_first(microbatch) => stage,
            Placement::Bidirectional => ranks - 1 - stage,
        }
    }

    /// The stages that a rank holds, in the order of its modules: ascending, but in a bidirectional
    /// placement the stage of the rank's own direction first (r, p−1−r).
    pub fn stages_of(&self, rank: Rank) -> Vec<Stage> {
        if self.placement == Placement::Bidirectional {
            let mut stages = vec![rank as Stage, (self.ranks - 1 - rank) as Stage];
            stages.dedup(); // The middle one of an odd number of ranks.
            return stages;
        }
        (0..self.stages as Stage).filter(|&stage| self.rank_of(stage, 0) == rank).collect()
    }

    /// What must have ended before `action` starts, each as the [`Tensor`] it waits for: an F waits
    /// for the F of the stage before; an I or B for its own F and the gradient from the stage after;
    /// a W for its own I.
    pub fn dependencies(&self, action: Action) -> impl Iterator<Item = Tensor> + use<> {
        self.needs(action).into_iter().flatten()
    }

    /// [`Shape::dependencies`] as an array, of the own stage and of another: for loops over all slots, where an
    /// iterator takes twice the time.
    #[inline(always)]
    pub fn needs(&self, action: Action) -> [Option<Tensor>; 2] {
        let Action { stage, microbatch, .. } = action;
        let last = stage as usize + 1 == self.stages;
        match action.kind {
            Kind::F => [None, (stage > 0).then(|| Action::new(stage - 1, Kind::F, microbatch))],
            Kind::I | Kind::B => [
                Some(Action::new(stage, Kind::F, microbatch)),
                (!last).then(|| Action::new(stage + 1, Kind::B, microbatch)),
            ],
            Kind::W => [Some(Action::new(stage, Kind::B, microbatch)), None],
        }
    }

    /// The tensor that `action` takes from another stage, if it takes one.
    pub fn input(&self, action: Action) -> Option<Tensor> {
        self.dependencies(action).find(|needed| needed.stage != action.stage)
    }

    /// A dense index of tensors, below [`Shape::tensors`].
    #[inline(always)]
    pub fn tensor_index(&self, tensor: Tensor) -> usize {
        let half = if tensor.kind == Kind::F { 0 } else { self.stages };
        (half + tensor.stage as usize) * self.microbatches + tensor.microbatch as usize
    }

    pub fn tensors(&self) -> usize {
        2 * self.stages * self.microbatches
    }
}

/// A compute order for every rank. Nothing is promised of it until [`crate::verify::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schedule {
    name: String,
    shape: Shape,
    rows: Vec<Vec<Slot>>,
}

impl Schedule {
    /// One row a rank, or an error that says how many rows there were.
    pub fn new(name: impl Into<String>, shape: Shape, rows: Vec<Vec<Slot>>) -> Result<Self, Error> {
        if rows.len() != shape.ranks {
            return Err(Error::Shape {
                ranks: shape.ranks,
                stages: shape.stages,
                microbatches: shape.microbatches,
                why: format!("there are {} rows; a schedule has one row a rank", rows.len()),
            });
        }
        let name = name.into();
        Ok(Schedule { name, shape, rows })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn rows(&self) -> &[Vec<Slot>] {
        &self.rows
    }

    pub fn slots(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    /// The same order with the forwards alone: inference.
    pub fn forward_only(&self) -> Schedule {
        let forwards = |row: &Vec<Slot>| {
            let actions = row.iter().flat_map(Slot::actions);
            actions.filter(|action| action.kind == Kind::F).map(Slot::One).collect()
        };
        Schedule {
            name: self.name.clone(),
            shape: self.shape.for_inference(),
            rows: self.rows.iter().map(forwards).collect(),
        }
    }

    /// The name and the sizes in words, for messages.
    pub fn describe(&self) -> String {
        let Shape { ranks, stages, microbatches, .. } = self.shape;
        let mode = if self.shape.forward_only { ", forward only" } else { "" };
        format!("{} ({ranks} ranks, {stages} stages, {microbatches} microbatches{mode})", self.name)
    }
}
