//! What the caller can get wrong. A schedule that breaks a rule is not an `Error` but a list of
//! [`crate::verify::Violation`].

use thiserror::Error as ThisError;

/// The caller broke a contract. Each message says what was wrong and what would be right.
#[derive(Debug, Clone, PartialEq, ThisError)]
pub enum Error {
    #[error("there is no schedule named {name:?}; the names are {known}")]
    UnknownFamily { name: String, known: String },

    #[error("{family} takes no option {option:?}; {accepted}")]
    UnknownOption { family: &'static str, option: String, accepted: String },

    #[error("{family}: {option} is 0; it is at least 1")]
    ZeroOption { family: &'static str, option: &'static str },

    #[error("{family} takes {takes}; got {ranks} ranks and {microbatches} microbatches. {nearest}")]
    IllegalSize {
        family: &'static str,
        takes: &'static str,
        ranks: usize,
        microbatches: usize,
        nearest: String,
    },

    #[error("{family} has no formula of {wanted}; {known}")]
    NoFormula { family: &'static str, wanted: &'static str, known: String },

    #[error("{ranks} ranks, {stages} stages and {microbatches} microbatches: {why}")]
    Shape { ranks: usize, stages: usize, microbatches: usize, why: String },

    #[error("line {line}, column {column}: {message}")]
    Text { line: usize, column: usize, message: String },

    /// What has no place in a text of its own to point at.
    #[error("{0}")]
    Format(String),

    #[error("{name} {problem}")]
    Cost { name: &'static str, problem: String },
}
