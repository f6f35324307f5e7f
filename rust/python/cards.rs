//! What the ranks of a local group tell each other at a meeting, and what they make of it.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::errors::{RankError, UsageError};
use super::worker::Value;
use crate::execute::local::Outcome;
use crate::execute::{Failure, Record};
use crate::schedule::{Rank, Slot};
use crate::timeline::{Origin, Time, Timeline};
use crate::verify::Verified;

pub type LocalOutcome = Outcome<Card, Fault>;

/// What a rank lays on the table at a meeting.
pub enum Card {
    /// It begins a step: of which schedule, and who computes.
    Step { rank: Rank, fingerprint: u64, description: String, worker: Value },
    /// It has ended a step: what it ran, by rank.
    Done(Vec<(Rank, Vec<Record>)>),
    /// It hands an object to all others.
    Object { purpose: String, object: Value },
    /// It was to begin a step, and cannot.
    Refused { rank: Rank, why: String },
}

impl Card {
    /// What the rank is at, for the words of an error.
    pub fn describe(&self) -> String {
        match self {
            Card::Step { description, .. } => format!("begins a step of {description}"),
            Card::Done(_) => "ends a step".to_string(),
            Card::Object { purpose, .. } => purpose.clone(),
            Card::Refused { why, .. } => format!("cannot begin a step: {why}"),
        }
    }

    pub fn agrees(&self, other: &Card) -> bool {
        match (self, other) {
            (
                Card::Step { fingerprint, description, .. },
                Card::Step { fingerprint: other, description: words, .. },
            ) => fingerprint == other && description == words,
            (Card::Object { purpose, .. }, Card::Object { purpose: other, .. }) => purpose == other,
            (Card::Done(_), Card::Done(_)) => true,
            _ => false,
        }
    }
}

/// Where and why a rank failed.
pub struct Fault {
    pub rank: Rank,
    pub slot: Option<(usize, Slot)>,
    pub what: String,
    pub cause: Option<PyErr>,
}

impl Fault {
    /// What a rank failed with outside of its slots.
    #[cfg(feature = "cuda")]
    pub fn of(py: Python<'_>, rank: Rank, error: PyErr) -> Fault {
        Fault {
            rank,
            slot: None,
            what: in_words(py, &error),
            cause: Some(error),
        }
    }

    pub fn new(py: Python<'_>, rank: Rank, failure: Failure<PyErr>) -> Option<Fault> {
        match failure {
            Failure::Stopped => None,
            Failure::Worker { index, slot, error } => Some(Fault {
                rank,
                slot: Some((index, slot)),
                what: in_words(py, &error),
                cause: Some(error),
            }),
            Failure::NothingMade { index, slot, tensor } => Some(Fault {
                rank,
                slot: Some((index, slot)),
                what: format!("None was returned for {tensor}, and the next stage waits for it"),
                cause: None,
            }),
        }
    }

    /// What the rank itself raises: Ctrl-C and the like go through as they are.
    pub fn raised(&self, py: Python<'_>) -> PyErr {
        let through = self.cause.as_ref().filter(|cause| !cause.is_instance_of::<PyException>(py));
        through.map_or_else(|| self.to_error(py), |cause| cause.clone_ref(py))
    }

    pub fn to_error(&self, py: Python<'_>) -> PyErr {
        let Fault { rank, slot, what, cause } = self;
        let (place, index, action) = match slot {
            Some((index, slot)) => {
                (format!("rank {rank}, slot {index}, {slot}"), Some(*index), Some(slot.to_string()))
            }
            None => (format!("rank {rank}"), None, None),
        };
        let error = RankError::new_err((format!("{place}: {what}"), *rank, index, action));
        error.set_cause(py, cause.as_ref().map(|cause| cause.clone_ref(py)));
        error
    }
}

/// What a rank that cannot begin its step has the others raise.
pub fn refusal(cards: &[Card]) -> Option<PyErr> {
    cards.iter().find_map(|card| match card {
        Card::Refused { rank, why } => {
            let message = format!("rank {rank}, before the step: {why}");
            Some(RankError::new_err((message, *rank, None::<usize>, None::<String>)))
        }
        _ => None,
    })
}

/// `ValueError: what it said`.
fn in_words(py: Python<'_>, error: &PyErr) -> String {
    let name = error.get_type(py).name().map_or("an exception".to_string(), |name| name.to_string());
    format!("{name}: {}", error.value(py))
}

/// Two ranks are not at the same thing.
pub fn disagreement(cards: &[Card], other: usize) -> PyErr {
    let (first, second) = (cards[0].describe(), cards[other].describe());
    let hint = match first.contains("forward only") != second.contains("forward only") {
        true => ": give all of them the criterion, or put all of them under torch.no_grad()",
        false => "",
    };
    UsageError::new_err(format!(
        "rank 0 {first}, and rank {other} {second}; all ranks of a group must do the same{hint}"
    ))
}

/// The rank of the schedule that each member of the group takes, and its worker.
pub fn steps(start: &LocalOutcome) -> impl Iterator<Item = (Rank, &Value)> {
    start.cards.iter().filter_map(|card| match card {
        Card::Step { rank, worker, .. } => Some((*rank, worker)),
        _ => None,
    })
}

/// Each rank of the schedule is taken by one member of the group.
pub fn check_numbering(start: &LocalOutcome) -> PyResult<()> {
    let size = start.cards.len();
    let taken = |rank| steps(start).filter(|(taken, _)| *taken == rank).count();
    match (0..size).find(|&rank| taken(rank) != 1) {
        None => Ok(()),
        Some(rank) => Err(UsageError::new_err(format!(
            "rank {rank} of the schedule is taken by {} members of the group; rank_mapping gives each of the \
             {size} members another rank, and is the same on all of them",
            taken(rank)
        ))),
    }
}

/// Joins what the ranks recorded to one timeline that begins at 0.
pub fn measured(mut rows: Vec<&(Rank, Vec<Record>)>, verified: &Verified) -> Timeline {
    rows.sort_by_key(|(rank, _)| *rank);
    let records = || rows.iter().flat_map(|(_, row)| row.iter());
    let start = records().map(|record| record.start).fold(f64::INFINITY, f64::min);
    let times = records().map(|record| Time { start: record.start - start, end: record.end - start });
    let cpu = records().map(|record| record.cpu).collect();
    Timeline::new(verified.clone(), times.collect(), Vec::new(), Origin::Measured { cpu })
}

/// What the ranks have recorded, as they say at the end of a step.
pub fn rows(outcome: &LocalOutcome) -> Vec<&(Rank, Vec<Record>)> {
    let mut all = Vec::new();
    for card in &outcome.cards {
        if let Card::Done(rows) = card {
            all.extend(rows);
        }
    }
    all
}
