//! Rust errors as the exceptions of `dualpipe_rs/errors.py`.

use pyo3::import_exception;
use pyo3::prelude::*;

use crate::error::Error;
use crate::schedule::Schedule;
use crate::verify::{Violation, Violations};

import_exception!(dualpipe_rs.errors, UsageError);
import_exception!(dualpipe_rs.errors, ScheduleError);
import_exception!(dualpipe_rs.errors, RankError);

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        UsageError::new_err(error.to_string())
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

/// A whole number that counts something: clear words for a negative one.
pub fn count(name: &str, value: i64) -> PyResult<usize> {
    let message = || UsageError::new_err(format!("{name} is {value}; it is a whole number of at least 0"));
    usize::try_from(value).map_err(|_| message())
}

/// Only eager P2P so far.
pub fn check_p2p(p2p: &str) -> PyResult<()> {
    if p2p == "eager" {
        return Ok(());
    }
    Err(UsageError::new_err(format!("p2p={p2p:?} is not known; the P2P semantics are 'eager'")))
}
