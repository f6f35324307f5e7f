//! A step on a GPU of a rank whose others are in other processes: what they tell each other is a Python object's.

use std::sync::{Arc, Mutex, PoisonError};

use numpy::PyArray2;
use pyo3::prelude::*;

use super::callables::PyCallables;
use super::device::PyDeviceRank;
use super::errors::{self, UsageError};
use super::records::find_numpy;
use super::remote::records;
use super::schedule::PySchedule;
use crate::array::Form;
use crate::execute::device::Control;
use crate::execute::{Patience, Stopped};
use crate::schedule::{Rank, Slot, Tensor};

/// As `run_rank`, on a GPU: `worker` is `Callables`, `place` is open.
///
/// `control` has `enter(index, slot)` -> whether to go on, `failed()` -> whether another rank has failed,
/// `announce(rank, tensor, numbers)`, and `announced(rank, tensor, wait)` -> the numbers that were announced, or
/// None where there are none yet and `wait` is False, or another rank has failed.
#[pyfunction]
pub fn run_rank_on<'py>(
    py: Python<'py>,
    schedule: &PySchedule,
    worker: &Bound<'py, PyCallables>,
    place: &Bound<'py, PyDeviceRank>,
    control: Py<PyAny>,
    rank: Rank,
    p2p: &str,
) -> PyResult<Option<Bound<'py, PyArray2<f64>>>> {
    find_numpy(py)?;
    let program = schedule.program(py, errors::p2p(p2p, None)?)?;
    if rank >= program.rows().len() {
        return Err(UsageError::new_err(format!("rank {rank} is not one of {}", schedule.describe())));
    }
    let error = Arc::new(Mutex::new(None));
    let control = PyControl { object: control, error: error.clone() };
    match place.get().run_with(py, &program, rank, worker, control) {
        Ok(rows) => records(py, &rows).map(Some),
        Err(Some(fault)) => Err(fault.raised(py)),
        Err(None) => match error.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(None),
        },
    }
}

/// What ranks in several processes tell each other is Python's.
struct PyControl {
    object: Py<PyAny>,
    /// The first error of the object's.
    error: Arc<Mutex<Option<PyErr>>>,
}

impl PyControl {
    /// An error counts as the failure of a rank: this one.
    fn note<T>(&self, answer: PyResult<T>) -> Option<T> {
        answer
            .map_err(|error| {
                self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            })
            .ok()
    }
}

impl Control for PyControl {
    fn failed(&self) -> bool {
        let answer = Python::attach(|py| self.object.call_method0(py, "failed")?.is_truthy(py));
        self.note(answer).unwrap_or(true)
    }

    fn enter(&mut self, index: usize, slot: Slot) -> bool {
        let answer = Python::attach(|py| {
            self.object.call_method1(py, "enter", (index, slot.to_string()))?.is_truthy(py)
        });
        self.note(answer).unwrap_or(false)
    }

    fn announce(&mut self, to: Rank, tensor: Tensor, form: &Form) {
        let numbers = form.to_numbers();
        let told =
            Python::attach(|py| self.object.call_method1(py, "announce", (to, tensor.to_string(), numbers)));
        self.note(told);
    }

    fn announced(&mut self, from: Rank, tensor: Tensor, patience: Patience) -> Result<Option<Form>, Stopped> {
        let wait = patience == Patience::Wait;
        let answer = Python::attach(|py| {
            let answer = self.object.call_method1(py, "announced", (from, tensor.to_string(), wait))?;
            answer.extract::<Option<Vec<i64>>>(py)
        });
        let numbers = self.note(answer).ok_or(Stopped)?;
        let form = numbers.map(|numbers| Form::from_numbers(&numbers).ok_or(Stopped)).transpose()?;
        if wait && form.is_none() { Err(Stopped) } else { Ok(form) }
    }
}
