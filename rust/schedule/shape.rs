//! The one rule book of the project: [`Shape::rank_of`] says where an action belongs and [`Shape::dependencies`]
//! what it waits for. Everything else (verifier, simulator, lowering, drawing) asks these two and spells out no
//! rule of its own.

use super::{Action, Kind, Microbatch, Rank, Slot, Stage, Tensor};
use crate::error::Error;

/// The most actions that a schedule may hold: 2²⁷ of them take 2 GiB.
const MAX_ACTIONS: u128 = 1 << 27;

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

    /// Whether a (stage, microbatch) is let go at the end of its action of this kind: after its W or B nothing is
    /// left to do for it, in inference after its F.
    pub fn ends_holding(&self, kind: Kind) -> bool {
        self.forward_only || matches!(kind, Kind::W | Kind::B)
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

    /// The tensors that a slot of this rank takes from other ranks, in the order of its actions.
    pub fn incoming(&self, rank: Rank, slot: Slot) -> impl Iterator<Item = Tensor> + use<> {
        let shape = *self;
        let taken = slot.actions().filter_map(move |action| shape.input(action));
        taken.filter(move |tensor| shape.rank_of(tensor.stage, tensor.microbatch) != rank)
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
