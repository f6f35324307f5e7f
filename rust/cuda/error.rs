//! What CUDA's driver and NCCL answer, and what is wrong with their files: one type for both, as sentences.

use std::fmt;
use std::time::Duration;

use thiserror::Error as ThisError;

/// A call failed, or the library to make it with is not usable.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum DeviceError {
    /// The driver refused, or a kernel or copy before this call failed.
    #[error("{call} failed: {answer}")]
    Driver { call: &'static str, answer: Answer },

    #[error("{call} failed: {answer}")]
    Nccl { call: &'static str, answer: Answer },

    #[error("{library} was not found; looked for {}", listed(.looked))]
    NotFound { library: &'static str, looked: Vec<String> },

    #[error("{library} lacks {}; {}", few(.symbols), remedy(.symbols))]
    MissingSymbols { library: String, symbols: Vec<&'static str> },

    #[error("{library} is {found}; the least is {least}: pip install --upgrade nvidia-nccl-cu12 (or -cu13)")]
    TooOld { library: String, found: String, least: String },

    #[error("{what} took longer than {limit:?}; look at whether every rank reached the same point")]
    Deadline { what: String, limit: Duration },

    /// The caller broke a contract.
    #[error("{0}")]
    Usage(String),
}

/// A result code in words. Codes are plain numbers: a newer library may answer one that is not known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub code: i32,
    /// Such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
    pub name: String,
    /// Such as "an illegal memory access was encountered"; empty if the library has no words for the code.
    pub text: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.code)?;
        if self.text.is_empty() { Ok(()) } else { write!(f, ", {}", self.text) }
    }
}

fn listed(looked: &[String]) -> String {
    if looked.is_empty() { "nothing".to_string() } else { looked.join("; ") }
}

/// All of a few symbols; of many the first four, since a wrong file lacks all of them.
fn few(symbols: &[&'static str]) -> String {
    match symbols {
        [first, second, third, fourth, rest @ ..] if rest.len() > 2 => {
            format!("{first}, {second}, {third}, {fourth} and {} more", rest.len())
        }
        all => all.join(", "),
    }
}

fn remedy(symbols: &[&'static str]) -> &'static str {
    if symbols.iter().all(|name| name.starts_with("nccl")) {
        "it is not NCCL, or one older than 2.14: pip install --upgrade nvidia-nccl-cu12 (or -cu13)"
    } else {
        "it is not NVIDIA's driver, or one older than CUDA 11.4: install a newer driver"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_sentence() {
        let text = "an illegal memory access was encountered".to_string();
        let answer = Answer {
            code: 700,
            name: "CUDA_ERROR_ILLEGAL_ADDRESS".to_string(),
            text,
        };
        let words = DeviceError::Driver { call: "cuStreamWaitEvent", answer }.to_string();
        let expected = "cuStreamWaitEvent failed: CUDA_ERROR_ILLEGAL_ADDRESS (700), an illegal memory access \
                        was encountered";
        assert_eq!(words, expected);
    }

    #[test]
    fn many_symbols_are_counted() {
        assert_eq!(few(&["a", "b"]), "a, b");
        assert_eq!(few(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d and 3 more");
    }

    #[test]
    fn it_goes_between_threads() {
        fn check<T: Clone + Send + Sync + 'static>() {}
        check::<DeviceError>();
    }
}
