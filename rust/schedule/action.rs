//! What a rank can be told to compute: an [`Action`], or a [`Slot`] of one or a fused pair of them.

use std::fmt;

use super::{Microbatch, Stage};

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

    pub fn words(self) -> &'static str {
        match self {
            Kind::F => "forward",
            Kind::I => "backward for the input",
            Kind::W => "backward for the weights",
            Kind::B => "full backward",
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

    /// What it makes, in words.
    pub fn made_in_words(self) -> String {
        let Action { stage, microbatch, kind } = self;
        match kind {
            Kind::F => format!("the output of stage {stage} for microbatch {microbatch}"),
            _ => format!("the gradient of stage {stage}'s input for microbatch {microbatch}"),
        }
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
