//! `Program`.

use std::sync::Arc;

use pyo3::prelude::*;

use super::errors::index;
use crate::lower::Program;

/// A schedule with its sends and receives, as `Schedule.lower()` gives it; `print` shows it.
///
/// `post 0F1<2` makes room for the output of stage 0 for microbatch 1 from rank 2, `wait` goes on once it
/// is here, `send 0F1>3` hands it to rank 3; a gradient is named by a B, whether a B or an I
/// makes it. Under batched and blocking P2P `{0F1>3,2B0<3}` is a commit: it starts these sends and receives together
/// and goes on once all are done.
#[pyclass(frozen, name = "Program", module = "dualpipe_rs")]
pub struct PyProgram(pub Arc<Program>);

#[pymethods]
impl PyProgram {
    /// How many ranks run it.
    #[getter]
    fn num_ranks(&self) -> usize {
        self.0.rows().len()
    }

    /// The instructions of one rank, as text. UsageError for a rank out of range.
    fn rank(&self, rank: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
        words(self.0.rows(), rank)
    }

    fn __repr__(&self) -> String {
        let instructions: usize = self.0.rows().iter().map(Vec::len).sum();
        format!("<Program of {} ranks, {instructions} instructions>", self.0.rows().len())
    }

    fn __str__(&self) -> String {
        let row = |(rank, row): (usize, &Vec<_>)| {
            let words: Vec<String> = row.iter().map(ToString::to_string).collect();
            format!("rank {rank}: {}\n", words.join(", "))
        };
        self.0.rows().iter().enumerate().map(row).collect()
    }
}

/// One rank's row as text.
pub fn words<T: ToString>(rows: &[Vec<T>], rank: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    Ok(rows[index(("rank", "ranks"), rank, rows.len())?].iter().map(ToString::to_string).collect())
}
