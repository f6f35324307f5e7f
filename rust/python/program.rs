//! `Program`.

use std::sync::Arc;

use pyo3::prelude::*;

use super::errors::index;
use super::schedule::PySchedule;
use crate::lower::{P2p, Program};

/// A schedule with its sends and receives, as `Schedule.lower()` gives it; `print` shows it.
///
/// `post 0F1<2` makes room for the output of stage 0 for microbatch 1 from rank 2, `wait` goes on once it
/// is here, `send 0F1>3` hands it to rank 3; a gradient is named by a B, whether a B or an I
/// makes it. Under batched and blocking P2P `{0F1>3,2B0<3}` is a commit: it starts these sends and receives together
/// and goes on once all are done.
#[pyclass(frozen, name = "Program", module = "dualpipe_rs")]
pub struct PyProgram {
    pub program: Arc<Program>,
    pub schedule: Py<PySchedule>,
}

#[pymethods]
impl PyProgram {
    /// How many ranks run it.
    #[getter]
    fn num_ranks(&self) -> usize {
        self.program.rows().len()
    }

    /// The schedule that it was made of.
    #[getter]
    fn schedule(&self, py: Python<'_>) -> Py<PySchedule> {
        self.schedule.clone_ref(py)
    }

    /// Who waits for whom, by the name that `Schedule.lower` was given.
    #[getter]
    fn p2p(&self) -> &'static str {
        match self.program.p2p() {
            P2p::Eager => "eager",
            P2p::Rendezvous { .. } => "rendezvous",
            P2p::Batched => "batched",
            P2p::Blocking => "blocking",
        }
    }

    /// Under rendezvous P2P: how many receives are kept posted on each channel. Else None.
    #[getter]
    fn depth(&self) -> Option<usize> {
        match self.program.p2p() {
            P2p::Rendezvous { depth } => Some(depth),
            _ => None,
        }
    }

    /// The instructions of one rank, as text. UsageError for a rank out of range.
    fn rank(&self, rank: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
        words(self.program.rows(), rank)
    }

    fn __repr__(&self) -> String {
        let instructions: usize = self.program.rows().iter().map(Vec::len).sum();
        format!("<Program of {} ranks, {instructions} instructions>", self.program.rows().len())
    }

    fn __str__(&self) -> String {
        let row = |(rank, row): (usize, &Vec<_>)| {
            let words: Vec<String> = row.iter().map(ToString::to_string).collect();
            format!("rank {rank}: {}\n", words.join(", "))
        };
        self.program.rows().iter().enumerate().map(row).collect()
    }
}

/// One rank's row as text.
pub fn words<T: ToString>(rows: &[Vec<T>], rank: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    Ok(rows[index(("rank", "ranks"), rank, rows.len())?].iter().map(ToString::to_string).collect())
}
