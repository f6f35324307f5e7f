//! A step of one rank whose channels are a Python object: ranks in other processes, over torch.distributed.
//!
//! What travels how is Python's (dualpipe_rs/distributed/); the order is the interpreter's.

use std::collections::HashMap;
use std::time::Instant;

use numpy::{IntoPyArray, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::prelude::*;

use super::cards::Fault;
use super::errors::{self, UsageError};
use super::records::find_numpy;
use super::schedule::PySchedule;
use super::timeline::PyTimeline;
use super::worker::{PyWorker, Value};
use crate::execute::interpreter::{Interpreter, Progress};
use crate::execute::{Drain, Failure, Patience, Record, Stopped, Transport};
use crate::lower::{Instruction, Program, Side};
use crate::schedule::{Rank, Slot, Tensor};
use crate::timeline::{Origin, Time, Timeline};

/// Runs one rank's row of a step on this thread; returns start, end and CPU time of each slot, in seconds, as an
/// array of shape (slots, 3), or None if it was stopped because another rank failed.
///
/// `worker` is as for `LocalGroup.step`. `wire` has `post(rank, tensor)`, `wait(rank, tensor, delivered)` -> value
/// or None if there will be none, `send(rank, tensor, value or None)`, `sent(rank, tensor)`,
/// `discard(rank, tensor)`, `enter(index, slot)` -> whether to go on, and `failed(error or None)` -> whether to carry
/// out the rest of the program without computing, so that the channels end empty. A tensor is named as in a
/// Program; `delivered` is how many of the tensors sent to that rank have reached it for certain.
#[pyfunction]
#[pyo3(signature = (schedule, worker, wire, rank, p2p = "eager"))]
pub fn run_rank<'py>(
    py: Python<'py>,
    schedule: &PySchedule,
    worker: Bound<'py, PyAny>,
    wire: Bound<'py, PyAny>,
    rank: Rank,
    p2p: &str,
) -> PyResult<Option<Bound<'py, PyArray2<f64>>>> {
    find_numpy(py)?;
    let program = schedule.program(py, errors::p2p(p2p, None)?)?;
    let Some(instructions) = program.rows().get(rank) else {
        return Err(UsageError::new_err(format!("rank {rank} is not one of {}", schedule.describe())));
    };
    let wire = Wire {
        object: wire.clone(),
        delivered: delivered(&program, rank),
        error: None,
    };
    let mut interpreter =
        Interpreter::new(program.shape(), instructions, PyWorker(worker), wire, Instant::now());
    let failure = match interpreter.advance(Patience::Wait) {
        Ok(Progress::Done) => return records(py, &interpreter.into_records()).map(Some),
        Ok(Progress::Waiting { .. }) => unreachable!("a wait with patience ends with its tensor or an error"),
        Err(failure) => failure,
    };
    let error = interpreter.transport().explain(py, failure, rank, instructions);
    let told = error.as_ref().map(|told| told.announced.clone_ref(py));
    let drains: bool = interpreter.transport().object.call_method1("failed", (told,))?.extract()?;
    if drains {
        // An error of a channel now is of no use beside the first.
        let _ = interpreter.drain();
    }
    match error {
        Some(told) => Err(told.raised),
        None => Ok(None),
    }
}

/// The measured Timeline of a step, from the (start, end, CPU time) of each slot, all ranks' rows one after the
/// other, in seconds on one clock.
#[pyfunction]
pub fn measured_timeline(
    py: Python<'_>,
    schedule: &PySchedule,
    records: PyReadonlyArray2<'_, f64>,
) -> PyResult<PyTimeline> {
    let verified = schedule.verified(py)?;
    let slots: usize = verified.schedule().rows().iter().map(Vec::len).sum();
    let records = records.as_array();
    if records.dim() != (slots, 3) {
        return Err(UsageError::new_err(format!(
            "records has the shape {:?}; it is ({slots}, 3): start, end and CPU time of each slot of {}",
            records.dim(),
            schedule.describe()
        )));
    }
    let first = records.column(0).iter().copied().fold(f64::INFINITY, f64::min);
    let times = records.rows().into_iter().map(|row| Time { start: row[0] - first, end: row[1] - first });
    let cpu = records.column(2).to_vec();
    let origin = Origin::Measured { cpu };
    Ok(PyTimeline::new(Timeline::new(verified.clone(), times.collect(), Vec::new(), origin)))
}

/// How many slots each rank has, by rank.
#[pyfunction]
pub fn row_lengths(schedule: &PySchedule) -> Vec<usize> {
    schedule.row_lengths()
}

/// A number that is the same for the same schedule in every process.
#[pyfunction]
pub fn fingerprint(schedule: &PySchedule) -> u64 {
    schedule.fingerprint()
}

/// Start, end and CPU time of each slot, as an array of shape (slots, 3).
pub fn records<'py>(py: Python<'py>, records: &[Record]) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let numbers: Vec<f64> = records.iter().flat_map(|r| [r.start, r.end, r.cpu]).collect();
    numbers.into_pyarray(py).reshape([records.len(), 3])
}

/// For each tensor that comes to a rank: how many of those it sent to that peer, in order, the peer had waited for
/// before it sent this one. What has arrived need not be kept any longer.
fn delivered(program: &Program, rank: Rank) -> HashMap<Tensor, usize> {
    let mut delivered = HashMap::new();
    for row in program.rows() {
        let mut arrived = 0;
        for instruction in row {
            match instruction {
                Instruction::Wait { from, .. } if *from == rank => arrived += 1,
                Instruction::Send { to, tensor } if *to == rank => {
                    delivered.insert(*tensor, arrived);
                }
                Instruction::Commit(transfers) => {
                    let with_rank = || transfers.iter().filter(|transfer| transfer.peer == rank);
                    let sent = with_rank().filter(|transfer| transfer.side == Side::Send);
                    delivered.extend(sent.map(|transfer| (transfer.tensor, arrived)));
                    arrived += with_rank().filter(|transfer| transfer.side == Side::Receive).count();
                }
                _ => {}
            }
        }
    }
    delivered
}

/// Python's end of one rank's channels. Its first error is kept, and stops the rank at its next wait or slot: until
/// then it posts and sends on, so that the channels stay in order.
struct Wire<'py> {
    object: Bound<'py, PyAny>,
    delivered: HashMap<Tensor, usize>,
    error: Option<(Option<Tensor>, PyErr)>,
}

/// What a rank raises, and what it tells the others.
struct Told {
    raised: PyErr,
    announced: PyErr,
}

impl Wire<'_> {
    fn note<T>(&mut self, tensor: Option<Tensor>, answer: PyResult<T>) -> Result<T, Stopped> {
        answer.map_err(|error| {
            self.error.get_or_insert((tensor, error));
            Stopped
        })
    }

    fn explain(
        &self,
        py: Python<'_>,
        failure: Failure<PyErr>,
        rank: Rank,
        row: &[Instruction],
    ) -> Option<Told> {
        let fault = match (&self.error, failure) {
            (Some((Some(tensor), error)), _) if error.is_instance_of::<UsageError>(py) => {
                let (index, slot) = maker(row, *tensor)?;
                Fault::new(py, rank, Failure::Worker { index, slot, error: error.clone_ref(py) })?
            }
            (Some((_, error)), _) => {
                return Some(Told { raised: error.clone_ref(py), announced: error.clone_ref(py) });
            }
            (None, failure) => Fault::new(py, rank, failure)?,
        };
        Some(Told { raised: fault.raised(py), announced: fault.to_error(py) })
    }
}

/// The slot that makes a tensor.
fn maker(row: &[Instruction], tensor: Tensor) -> Option<(usize, Slot)> {
    row.iter().find_map(|instruction| match instruction {
        Instruction::Compute { index, slot } => {
            slot.actions().any(|action| action.tensor() == Some(tensor)).then_some((*index, *slot))
        }
        _ => None,
    })
}

impl Transport for Wire<'_> {
    type Value = Value;

    fn post(&mut self, from: Rank, tensor: Tensor) -> Result<(), Stopped> {
        let answer = self.object.call_method1("post", (from, tensor.to_string()));
        let _ = self.note(None, answer);
        Ok(())
    }

    fn send(&mut self, to: Rank, tensor: Tensor, value: Value) -> Result<(), Stopped> {
        let answer = self.object.call_method1("send", (to, tensor.to_string(), value));
        let _ = self.note(Some(tensor), answer);
        Ok(())
    }

    fn sent(&mut self, to: Rank, tensor: Tensor, _: Patience) -> Result<bool, Stopped> {
        let answer = self.object.call_method1("sent", (to, tensor.to_string()));
        self.note(None, answer).map(|_| true)
    }

    fn wait(&mut self, from: Rank, tensor: Tensor, _: Patience) -> Result<Option<Value>, Stopped> {
        if self.error.is_some() {
            return Err(Stopped);
        }
        let delivered = self.delivered.get(&tensor).copied().unwrap_or(0);
        let answer = self.object.call_method1("wait", (from, tensor.to_string(), delivered));
        let value = self.note(None, answer)?;
        if value.is_none() { Err(Stopped) } else { Ok(Some(value.unbind())) }
    }

    fn enter(&mut self, index: usize, slot: Slot) -> Result<(), Stopped> {
        if self.error.is_some() {
            return Err(Stopped);
        }
        let answer = self.object.call_method1("enter", (index, slot.to_string()));
        let goes_on = answer.and_then(|answer| answer.extract::<bool>());
        if self.note(None, goes_on)? { Ok(()) } else { Err(Stopped) }
    }
}

impl Drain for Wire<'_> {
    fn send_nothing(&mut self, to: Rank, tensor: Tensor) {
        let answer = self.object.call_method1("send", (to, tensor.to_string(), self.object.py().None()));
        let _ = self.note(None, answer);
    }

    fn discard(&mut self, from: Rank, tensor: Tensor) -> Result<(), Stopped> {
        let answer = self.object.call_method1("discard", (from, tensor.to_string()));
        answer.map(|_| ()).map_err(|_| Stopped)
    }
}
