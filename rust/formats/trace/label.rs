//! What a slice of a trace is called, its category, and what is told of it when it is clicked on.

use std::fmt;

use crate::schedule::{Action, Kind, Slot};
use crate::timeline::{Cause, Transfer, Wait};

/// What takes the time of a slice.
pub enum Subject {
    /// A slot of a rank's row, with the waits before it and their lengths in nanoseconds.
    Slot {
        index: usize,
        slot: Slot,
        waits: Vec<(Wait, u64)>,
    },
    /// A tensor on its way.
    Transfer(Transfer),
    /// Gradients are exchanged with the rank that holds the same stages, which may have to be waited for.
    Exchange,
    Optimizer,
}

/// By what viewers group and colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    Forward,
    BackwardInput,
    BackwardWeight,
    Backward,
    Pair,
    Transfer,
    Exchange,
    Optimizer,
}

impl Category {
    pub const ALL: [Category; 8] = [
        Category::Forward,
        Category::BackwardInput,
        Category::BackwardWeight,
        Category::Backward,
        Category::Pair,
        Category::Transfer,
        Category::Exchange,
        Category::Optimizer,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Category::Forward => "forward",
            Category::BackwardInput => "backward_input",
            Category::BackwardWeight => "backward_weight",
            Category::Backward => "backward",
            Category::Pair => "pair",
            Category::Transfer => "transfer",
            Category::Exchange => "gradient_exchange",
            Category::Optimizer => "optimizer",
        }
    }
}

/// What something told of a slice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Rank,
    Slot,
    Action,
    /// Of a pair, those of its forward.
    Stage,
    Microbatch,
    BackwardStage,
    BackwardMicrobatch,
    /// Of a transfer: who made it.
    Source,
    SourceSlot,
    /// How long the slot waited for each cause, and for which action.
    WarmUp,
    Dependency,
    DependencyOn,
    Hop,
    HopOf,
    Partner,
    Overhead,
}

impl Key {
    pub const ALL: [Key; 16] = [
        Key::Rank,
        Key::Slot,
        Key::Action,
        Key::Stage,
        Key::Microbatch,
        Key::BackwardStage,
        Key::BackwardMicrobatch,
        Key::Source,
        Key::SourceSlot,
        Key::WarmUp,
        Key::Dependency,
        Key::DependencyOn,
        Key::Hop,
        Key::HopOf,
        Key::Partner,
        Key::Overhead,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Key::Rank => "rank",
            Key::Slot => "slot",
            Key::Action => "action",
            Key::Stage => "stage",
            Key::Microbatch => "microbatch",
            Key::BackwardStage => "backward_stage",
            Key::BackwardMicrobatch => "backward_microbatch",
            Key::Source => "source",
            Key::SourceSlot => "source_slot",
            Key::WarmUp => "warm_up_us",
            Key::Dependency => "dependency_us",
            Key::DependencyOn => "dependency_on",
            Key::Hop => "hop_us",
            Key::HopOf => "hop_of",
            Key::Partner => "partner_us",
            Key::Overhead => "overhead_us",
        }
    }

    /// For a wait's length and for what it waited for; nothing follows an exchange or a cool-down.
    fn of(cause: Cause) -> Option<(Key, Key)> {
        match cause {
            Cause::WarmUp => Some((Key::WarmUp, Key::Action)),
            Cause::Dependency => Some((Key::Dependency, Key::DependencyOn)),
            Cause::Hop => Some((Key::Hop, Key::HopOf)),
            Cause::Partner => Some((Key::Partner, Key::Action)),
            Cause::Overhead => Some((Key::Overhead, Key::Action)),
            Cause::Exchange | Cause::CoolDown => None,
        }
    }
}

pub enum Value {
    Number(u64),
    /// A length in nanoseconds, to be written in microseconds.
    Length(u64),
    Action(Action),
    Slot(Slot),
}

impl Subject {
    pub fn category(&self) -> Category {
        match self {
            Subject::Slot { slot: Slot::Pair(..), .. } => Category::Pair,
            Subject::Slot { slot: Slot::One(action), .. } => match action.kind {
                Kind::F => Category::Forward,
                Kind::I => Category::BackwardInput,
                Kind::W => Category::BackwardWeight,
                Kind::B => Category::Backward,
            },
            Subject::Transfer(_) => Category::Transfer,
            Subject::Exchange => Category::Exchange,
            Subject::Optimizer => Category::Optimizer,
        }
    }

    /// Tells all that is to be told beside the rank.
    pub fn tell(&self, mut tell: impl FnMut(Key, Value)) {
        match self {
            Subject::Slot { index, slot, waits } => {
                tell(Key::Slot, Value::Number(*index as u64));
                tell(Key::Action, Value::Slot(*slot));
                let (first, second) = slot.parts();
                tell_place(first, [Key::Stage, Key::Microbatch], &mut tell);
                if let Some(second) = second {
                    tell_place(second, [Key::BackwardStage, Key::BackwardMicrobatch], &mut tell);
                }
                waits.iter().for_each(|(wait, length)| tell_wait(wait, *length, &mut tell));
            }
            Subject::Transfer(transfer) => {
                tell(Key::Slot, Value::Number(transfer.slot as u64));
                tell(Key::Source, Value::Number(transfer.source as u64));
                tell(Key::SourceSlot, Value::Number(transfer.source_slot as u64));
                tell(Key::Action, Value::Action(transfer.action));
                tell_place(transfer.action, [Key::Stage, Key::Microbatch], &mut tell);
            }
            Subject::Exchange | Subject::Optimizer => {}
        }
    }
}

fn tell_place(action: Action, [stage, microbatch]: [Key; 2], tell: &mut impl FnMut(Key, Value)) {
    tell(stage, Value::Number(action.stage.into()));
    tell(microbatch, Value::Number(action.microbatch.into()));
}

fn tell_wait(wait: &Wait, length: u64, tell: &mut impl FnMut(Key, Value)) {
    let Some((how_long, for_what)) = Key::of(wait.cause) else { return };
    tell(how_long, Value::Length(length));
    if let Some(action) = wait.action {
        tell(for_what, Value::Action(action));
    }
}

/// The name in the viewer: `F 7`, or `F 7 & B 13`.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |action: Action| (action.kind.letter(), action.microbatch);
        match self {
            Subject::Slot { slot, .. } => {
                let (first, second) = slot.parts();
                let (kind, microbatch) = name(first);
                write!(f, "{kind} {microbatch}")?;
                let Some((kind, microbatch)) = second.map(name) else { return Ok(()) };
                write!(f, " & {kind} {microbatch}")
            }
            Subject::Transfer(Transfer { action, source, .. }) => {
                let (kind, microbatch) = name(*action);
                write!(f, "{kind} {microbatch} from rank {source}")
            }
            Subject::Exchange => f.write_str("gradient exchange"),
            Subject::Optimizer => f.write_str("optimizer"),
        }
    }
}
