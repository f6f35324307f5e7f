//! Rust errors as the exceptions of `dualpipe_rs/errors.py`.

#[cfg(feature = "cuda")]
use pyo3::exceptions::PyTimeoutError;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::import_exception;
use pyo3::prelude::*;
use pyo3::types::PyBool;

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::Error;
use crate::lower::{DEPTH, P2p};
use crate::schedule::Schedule;
use crate::verify::{Violation, Violations};

import_exception!(dualpipe_rs.errors, UsageError);
import_exception!(dualpipe_rs.errors, SizeError);
import_exception!(dualpipe_rs.errors, ScheduleError);
import_exception!(dualpipe_rs.errors, RankError);
#[cfg(feature = "cuda")]
import_exception!(dualpipe_rs.errors, DeviceError);

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        match error {
            Error::IllegalSize { .. } => SizeError::new_err(error.to_string()),
            _ => UsageError::new_err(error.to_string()),
        }
    }
}

/// A `ScheduleError` whose `violations` are those found.
pub fn schedule_error(py: Python<'_>, schedule: &Schedule, violations: &Violations) -> PyErr {
    let build = || -> PyResult<PyErr> {
        let class = py.import("dualpipe_rs.errors")?.getattr("Violation")?;
        let convert = |violation: &Violation| {
            let Violation { rule, rank, slot, action, needs, message } = violation;
            let needs = needs.map(|needs| needs.to_string());
            class.call1((rule.name(), rank, slot, action.to_string(), needs, message))
        };
        let list = violations.list.iter().map(convert).collect::<PyResult<Vec<_>>>()?;
        Ok(ScheduleError::new_err((violations.report(schedule), list.into_pyobject(py)?.unbind())))
    };
    build().unwrap_or_else(|error| error)
}

/// The exception of a refusal by the device.
#[cfg(feature = "cuda")]
pub fn device_error(error: cuda::DeviceError) -> PyErr {
    match error {
        cuda::DeviceError::Usage(words) => UsageError::new_err(words),
        cuda::DeviceError::Deadline { .. } => PyTimeoutError::new_err(error.to_string()),
        error => DeviceError::new_err(error.to_string()),
    }
}

/// A whole number that counts something; clear words for one that is negative or too large to count.
pub fn count(name: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    let most = 1 << 32;
    let words = || format!("{name} is {value}; it is a whole number from 0 to 2³²");
    whole_number(value)?.filter(|&number| number <= most).ok_or_else(|| UsageError::new_err(words()))
}

/// A whole number from 1.
pub fn positive(name: &str, value: &Bound<'_, PyAny>, most: usize) -> PyResult<usize> {
    let words = || UsageError::new_err(format!("{name} is {value}; it is a whole number from 1 to {most}"));
    whole_number(value)?.filter(|number| (1..=most).contains(number)).ok_or_else(words)
}

/// An index below `end`.
pub fn index((name, names): (&str, &str), value: &Bound<'_, PyAny>, end: usize) -> PyResult<usize> {
    let words = || format!("{name} {value} is out of range: {names} are 0 to {}", end - 1);
    whole_number(value)?.filter(|&number| number < end).ok_or_else(|| UsageError::new_err(words()))
}

/// `None` for a whole number that is negative or does not fit; TypeError for what is none.
fn whole_number(value: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    if value.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(format!("{value} is a bool; give a whole number")));
    }
    match value.extract::<i64>() {
        Ok(number) => Ok(usize::try_from(number).ok()),
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The P2P semantics by name; `depth` belongs to rendezvous alone.
pub fn p2p(name: &str, depth: Option<&Bound<'_, PyAny>>) -> PyResult<P2p> {
    let depth = depth.map(|value| count("depth", value)).transpose()?;
    match (name, depth) {
        ("rendezvous", Some(0)) => {
            Err(UsageError::new_err("depth is 0; at least 1 tensor an edge must be received ahead"))
        }
        ("rendezvous", depth) => Ok(P2p::Rendezvous { depth: depth.unwrap_or(DEPTH) }),
        ("eager" | "batched" | "blocking", Some(_)) => {
            Err(UsageError::new_err(format!("depth belongs to p2p=\"rendezvous\", not to {name:?}")))
        }
        ("eager", None) => Ok(P2p::Eager),
        ("batched", None) => Ok(P2p::Batched),
        ("blocking", None) => Ok(P2p::Blocking),
        _ => Err(UsageError::new_err(format!(
            "p2p={name:?} is not known; the P2P semantics are 'eager', 'rendezvous', 'batched' and 'blocking'"
        ))),
    }
}
