//! `LocalGroup`: the ranks of one process, and a step of theirs with Python callables as workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::cards::{
    Card, Fault, LocalOutcome, check_numbering, disagreement, measured, refusal, rows, steps,
};
use super::errors::{self, RankError, UsageError, count};
use super::records::find_numpy;
use super::schedule::PySchedule;
use super::timeline::PyTimeline;
use super::worker::{Detaching, PyWorker, Value};
use crate::execute::Record;
use crate::execute::interpreter::{Interpreter, RankFailure, run, run_interleaved};
use crate::execute::local::{Absence, Hub, Port};
use crate::lower::Program;
use crate::schedule::Rank;

#[cfg(feature = "cuda")]
type OnDevice = super::device::PyDeviceRank;
#[cfg(not(feature = "cuda"))]
type OnDevice = PyAny;

type LocalHub = Hub<Value, Card, Fault>;
type LocalTransport<'a, 'py> = Detaching<'py, Port<'a, Value, Card, Fault>>;

/// One rank of a group whose ranks are threads of this process; `dualpipe_rs.run_local` makes them.
///
/// Good as `process_group=` of the pipeline modules. `rank()` and `size()` are as torch's groups have them.
#[pyclass(frozen, name = "LocalGroup", module = "dualpipe_rs")]
pub struct PyLocalGroup {
    hub: Arc<LocalHub>,
    rank: Rank,
    interleaved: bool,
    /// Whether this member is in a step, where its stages may not call for another meeting.
    in_step: AtomicBool,
}

/// The groups of `num_ranks` ranks, one for each.
#[pyfunction]
#[pyo3(signature = (num_ranks, *, interleaved = false))]
pub fn local_groups(num_ranks: &Bound<'_, PyAny>, interleaved: bool) -> PyResult<Vec<PyLocalGroup>> {
    let ranks = count("num_ranks", num_ranks)?;
    if ranks == 0 {
        return Err(UsageError::new_err("num_ranks is 0; a group has at least one rank"));
    }
    let hub = Arc::new(LocalHub::new(ranks));
    let group = |rank| PyLocalGroup {
        hub: hub.clone(),
        rank,
        interleaved,
        in_step: AtomicBool::new(false),
    };
    Ok((0..ranks).map(group).collect())
}

/// Runs one step of `schedule`, all ranks in turn on this thread with the one `worker`, which is as for
/// `LocalGroup.step`; returns the measured Timeline. Raises RankError if a rank fails.
#[pyfunction]
#[pyo3(signature = (schedule, worker, p2p = "eager", device = None))]
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there are no devices"))]
pub fn run_ranks(
    py: Python<'_>,
    schedule: &PySchedule,
    worker: &Bound<'_, PyAny>,
    p2p: &str,
    device: Option<&Bound<'_, OnDevice>>,
) -> PyResult<PyTimeline> {
    find_numpy(py)?;
    let program = schedule.program(py, errors::p2p(p2p, None)?)?;
    #[cfg(feature = "cuda")]
    if let Some(device) = device {
        let rows = super::device::run_all(py, &program, worker.cast()?, device.get());
        let rows = rows.map_err(|fault| fault.raised(py))?;
        return Ok(PyTimeline::new(measured(rows.iter().collect(), schedule.verified(py)?)));
    }
    let hub = LocalHub::new(program.rows().len());
    let ranks = (0..hub.size()).map(|rank| interpreter(&hub, py, &program, rank, worker)).collect();
    match run_interleaved(ranks) {
        Ok(records) => {
            let rows: Vec<(Rank, Vec<Record>)> = records.into_iter().enumerate().collect();
            Ok(PyTimeline::new(measured(rows.iter().collect(), schedule.verified(py)?)))
        }
        Err(RankFailure { rank, failure }) => {
            let fault = Fault::new(py, rank, failure).expect("no other rank can have stopped it");
            Err(fault.raised(py))
        }
    }
}

#[pymethods]
impl PyLocalGroup {
    /// This member's number in the group.
    fn rank(&self) -> Rank {
        self.rank
    }

    /// How many members the group has.
    fn size(&self) -> usize {
        self.hub.size()
    }

    /// Whether steps run on one thread, all ranks in turn.
    #[getter]
    fn interleaved(&self) -> bool {
        self.interleaved
    }

    /// Runs one step of `schedule` with all others of the group, as rank `rank` of the schedule.
    ///
    /// `worker` has the methods `forward(stage, microbatch, value)`, `backward(stage, microbatch, value)`,
    /// `backward_input(stage, microbatch, value)`, `backward_weight(stage, microbatch)` and
    /// `forward_backward(stage, microbatch, value, stage, microbatch, value)`; a value is whatever they
    /// return, and travels to the next stage as it is. Returns the measured Timeline of all ranks, in seconds.
    /// `settings` says in words what else must be the same on all members. `p2p` is as for `Schedule.verify`.
    /// With `device` the step runs on a GPU: `worker` is `Callables`, and times are the device's, each rank's from
    /// where its stream begins the step.
    /// Raises RankError on every member if one fails, UsageError if they do not do the same.
    #[pyo3(signature = (schedule, worker, rank, settings = "", p2p = "eager", device = None))]
    #[expect(clippy::too_many_arguments, reason = "each is a setting of the step")]
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there are no devices"))]
    fn step(
        &self,
        py: Python<'_>,
        schedule: &PySchedule,
        worker: Value,
        rank: Rank,
        settings: &str,
        p2p: &str,
        device: Option<&Bound<'_, OnDevice>>,
    ) -> PyResult<PyTimeline> {
        find_numpy(py)?;
        self.outside_steps("step()")?;
        let program = schedule.program(py, errors::p2p(p2p, None)?)?;
        if program.rows().len() != self.hub.size() {
            return Err(UsageError::new_err(format!(
                "the schedule is of {} and the group has {} ranks; they must be as many",
                schedule.describe(),
                self.hub.size()
            )));
        }
        let card = Card::Step {
            rank,
            fingerprint: schedule.fingerprint(),
            description: format!("{}, p2p={p2p}{settings}", schedule.describe()),
            worker: worker.clone_ref(py),
        };
        let start = self.meet(py, card)?;
        check_numbering(&start)?;
        self.in_step.store(true, Ordering::Relaxed);
        let ended = match self.interleaved {
            #[cfg(feature = "cuda")]
            _ if let Some(device) = device => self.run_on(py, device.get(), &program, rank, worker.bind(py)),
            false => self.run(py, &program, rank, worker.bind(py)).map(|records| vec![(rank, records)]),
            true if self.rank == 0 => self.run_all(py, &program, &start),
            true => Ok(Vec::new()),
        };
        let own_error = ended.as_ref().err().map(|error| error.clone_ref(py));
        let outcome = self.meet(py, Card::Done(ended.unwrap_or_default()));
        self.in_step.store(false, Ordering::Relaxed);
        let outcome = outcome?;
        match (&outcome.fault, own_error) {
            // Ctrl-C and the like go through as they are.
            (_, Some(error)) if !error.is_instance_of::<PyException>(py) => Err(error),
            (Some(fault), _) => Err(fault.to_error(py)),
            (None, _) => Ok(PyTimeline::new(measured(rows(&outcome), schedule.verified(py)?))),
        }
    }

    /// Hands an object to all ranks and returns theirs, by rank, each as it is, without a copy.
    ///
    /// All ranks call it, outside of steps, with the same `purpose`: what a rank is at, in words such as
    /// "sums gradients". Raises RankError where a rank has left, UsageError where one does something else.
    #[pyo3(signature = (object, purpose = "exchanges objects"))]
    fn exchange<'py>(&self, py: Python<'py>, object: Value, purpose: &str) -> PyResult<Bound<'py, PyList>> {
        self.outside_steps("a collective")?;
        let outcome = self.meet(py, Card::Object { purpose: purpose.to_string(), object })?;
        let objects = outcome.cards.iter().map(|card| match card {
            Card::Object { object, .. } => object.clone_ref(py),
            _ => unreachable!("meet() has compared the cards"),
        });
        PyList::new(py, objects.collect::<Vec<_>>())
    }

    /// Comes to the beginning of a step only to say, in words, why this rank cannot take part in it: all others that
    /// begin one raise RankError.
    fn refuse(&self, py: Python<'_>, rank: Rank, why: String) {
        if self.outside_steps("a step").is_ok() {
            let card = Card::Refused { rank, why };
            // Who is not there to be told has been told otherwise.
            let _ = py.detach(|| self.hub.meet(self.rank, card));
        }
    }

    /// Says that this rank will take part in nothing more, and why.
    fn leave(&self, reason: String) {
        self.hub.leave(self.rank, reason);
    }

    /// Makes every rank stop at its next slot or wait, and raise.
    fn interrupt(&self, reason: String) {
        self.hub.fail(Fault {
            rank: self.rank,
            slot: None,
            what: reason.clone(),
            cause: None,
        });
        (0..self.hub.size()).for_each(|rank| self.hub.leave(rank, reason.clone()));
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a group, and a pipeline that belongs to one, cannot be copied or pickled; copy or save the stages \
             (pipe.module, or its state_dict()) and make another pipeline of them",
        ))
    }

    fn __repr__(&self) -> String {
        format!("<LocalGroup rank {} of {}>", self.rank, self.hub.size())
    }
}

impl PyLocalGroup {
    fn outside_steps(&self, what: &str) -> PyResult<()> {
        if !self.in_step.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(UsageError::new_err(format!(
            "{what} was called on rank {} inside a stage, where the other ranks cannot take part; call it \
             between steps",
            self.rank
        )))
    }

    /// Meets all other ranks and sees to it that all have come for the same thing.
    fn meet(&self, py: Python<'_>, card: Card) -> PyResult<Arc<LocalOutcome>> {
        let purpose = card.describe();
        let outcome = py.detach(|| self.hub.meet(self.rank, card));
        let outcome = outcome.map_err(|Absence { rank, reason }| {
            let message = match rank == self.rank {
                true => format!(
                    "rank {rank} {reason}, and cannot go on; a pipeline works inside the run_local that it was \
                     made in"
                ),
                false => format!("rank {rank} {reason}, and rank {} {purpose} with it", self.rank),
            };
            RankError::new_err((message, rank, None::<usize>, None::<String>))
        })?;
        if let Some(error) = refusal(&outcome.cards) {
            return Err(error);
        }
        match outcome.cards.iter().position(|card| !card.agrees(&outcome.cards[0])) {
            None => Ok(outcome),
            Some(other) => Err(disagreement(&outcome.cards, other)),
        }
    }

    /// Runs one rank on this thread.
    fn run(
        &self,
        py: Python<'_>,
        program: &Program,
        rank: Rank,
        worker: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<Record>> {
        let interpreter = interpreter(&self.hub, py, program, rank, worker);
        run(interpreter).map_err(|failure| self.fail(py, rank, Fault::new(py, rank, failure)))
    }

    /// Runs one rank on its GPU.
    #[cfg(feature = "cuda")]
    fn run_on(
        &self,
        py: Python<'_>,
        device: &OnDevice,
        program: &Program,
        rank: Rank,
        worker: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<(Rank, Vec<Record>)>> {
        let records = device.run(py, program, rank, worker.cast()?, || self.hub.has_failed());
        Ok(vec![(rank, records.map_err(|fault| self.fail(py, rank, fault.map(|fault| *fault)))?)])
    }

    /// Runs all ranks in turn on this thread.
    fn run_all(
        &self,
        py: Python<'_>,
        program: &Program,
        start: &LocalOutcome,
    ) -> PyResult<Vec<(Rank, Vec<Record>)>> {
        let mut workers: Vec<(Rank, &Value)> = steps(start).collect();
        workers.sort_by_key(|(rank, _)| *rank);
        let one = |(rank, worker): (Rank, &Value)| interpreter(&self.hub, py, program, rank, worker.bind(py));
        let ranks = workers.into_iter().map(one).collect();
        let records = run_interleaved(ranks)
            .map_err(|RankFailure { rank, failure }| self.fail(py, rank, Fault::new(py, rank, failure)))?;
        Ok(records.into_iter().enumerate().collect())
    }

    /// Tells every rank why this one failed, if it was the first; returns its own error.
    fn fail(&self, py: Python<'_>, rank: Rank, fault: Option<Fault>) -> PyErr {
        let Some(fault) = fault else {
            return RankError::new_err(("another rank failed", rank, None::<usize>, None::<String>));
        };
        let error = match &fault.cause {
            Some(cause) => cause.clone_ref(py),
            None => fault.to_error(py),
        };
        self.hub.fail(fault);
        error
    }
}

fn interpreter<'a, 'py>(
    hub: &'a LocalHub,
    py: Python<'py>,
    program: &'a Program,
    rank: Rank,
    worker: &Bound<'py, PyAny>,
) -> Interpreter<'a, PyWorker<'py>, LocalTransport<'a, 'py>> {
    let worker = PyWorker(worker.clone());
    let transport = Detaching { py, inner: hub.port(rank) };
    Interpreter::new(program.shape(), &program.rows()[rank], worker, transport, hub.clock())
}
