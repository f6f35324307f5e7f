//! `LocalGroup`: the ranks of one process, and a step of theirs with Python callables as workers.

use std::sync::Arc;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::errors::{RankError, UsageError, count};
use super::schedule::PySchedule;
use super::timeline::PyTimeline;
use super::worker::{Detaching, PyWorker, Value};
use crate::execute::interpreter::{Interpreter, RankFailure, run, run_interleaved};
use crate::execute::local::{Absence, Hub, Outcome, Port};
use crate::execute::{Failure, Record};
use crate::lower::Program;
use crate::schedule::{Rank, Slot};
use crate::timeline::{Span, Timeline};

type LocalHub = Hub<Value, Card, Fault>;
type LocalOutcome = Outcome<Card, Fault>;
type LocalTransport<'a, 'py> = Detaching<'py, Port<'a, Value, Card, Fault>>;

/// What a rank lays on the table at a meeting.
enum Card {
    /// It begins a step: of which schedule, and who computes.
    Step { rank: Rank, fingerprint: u64, description: String, worker: Value },
    /// It has ended a step: what it ran, by rank.
    Done(Vec<(Rank, Vec<Record>)>),
    /// It hands an object to all others.
    Object(Value),
}

impl Card {
    /// What the rank is at, for the words of an error.
    fn describe(&self) -> String {
        match self {
            Card::Step { description, .. } => format!("begins a step of {description}"),
            Card::Done(_) => "ends a step".to_string(),
            Card::Object(_) => "exchanges objects".to_string(),
        }
    }

    fn agrees(&self, other: &Card) -> bool {
        match (self, other) {
            (
                Card::Step { fingerprint, description, .. },
                Card::Step { fingerprint: other, description: words, .. },
            ) => fingerprint == other && description == words,
            (Card::Done(_), Card::Done(_)) | (Card::Object(_), Card::Object(_)) => true,
            _ => false,
        }
    }
}

/// Where and why a rank failed.
struct Fault {
    rank: Rank,
    slot: Option<(usize, Slot)>,
    what: String,
    cause: Option<PyErr>,
}

impl Fault {
    fn new(py: Python<'_>, rank: Rank, failure: Failure<PyErr>) -> Option<Fault> {
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
                what: format!("the worker returned None for {tensor}, and the next stage waits for it"),
                cause: None,
            }),
        }
    }

    fn to_error(&self, py: Python<'_>) -> PyErr {
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

/// `ValueError: what it said`.
fn in_words(py: Python<'_>, error: &PyErr) -> String {
    let name = error.get_type(py).name().map_or("an exception".to_string(), |name| name.to_string());
    format!("{name}: {}", error.value(py))
}

/// One rank of a group whose ranks are threads of this process; `dualpipe_rs.run_local` makes them.
///
/// Good as `process_group=` of the pipeline modules. `rank()` and `size()` are as torch's groups have them.
#[pyclass(frozen, name = "LocalGroup", module = "dualpipe_rs")]
pub struct PyLocalGroup {
    hub: Arc<LocalHub>,
    rank: Rank,
    interleaved: bool,
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
    let group = |rank| PyLocalGroup { hub: hub.clone(), rank, interleaved };
    Ok((0..ranks).map(group).collect())
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
    /// `settings` says in words what else must be the same on all members. Raises RankError on every member
    /// if one fails, UsageError if they do not do the same.
    #[pyo3(signature = (schedule, worker, rank, settings = ""))]
    fn step(
        &self,
        py: Python<'_>,
        schedule: &PySchedule,
        worker: Value,
        rank: Rank,
        settings: &str,
    ) -> PyResult<PyTimeline> {
        let program = schedule.program(py)?;
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
            description: format!("{}{settings}", schedule.describe()),
            worker: worker.clone_ref(py),
        };
        let start = self.meet(py, card)?;
        check_numbering(&start)?;
        let ended = match self.interleaved {
            false => self.run(py, &program, rank, worker.bind(py)).map(|records| vec![(rank, records)]),
            true if self.rank == 0 => self.run_all(py, &program, &start),
            true => Ok(Vec::new()),
        };
        let own_error = ended.as_ref().err().map(|error| error.clone_ref(py));
        let outcome = self.meet(py, Card::Done(ended.unwrap_or_default()))?;
        match (&outcome.fault, own_error) {
            // Ctrl-C and the like go through as they are.
            (_, Some(error)) if !error.is_instance_of::<PyException>(py) => Err(error),
            (Some(fault), _) => Err(fault.to_error(py)),
            (None, _) => Ok(PyTimeline::new(measured(&outcome))),
        }
    }

    /// Hands an object to all ranks and returns theirs, by rank.
    fn exchange<'py>(&self, py: Python<'py>, object: Value) -> PyResult<Bound<'py, PyList>> {
        let outcome = self.meet(py, Card::Object(object))?;
        let objects = outcome.cards.iter().map(|card| match card {
            Card::Object(object) => object.clone_ref(py),
            _ => unreachable!("meet() has compared the cards"),
        });
        PyList::new(py, objects.collect::<Vec<_>>())
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

    fn __repr__(&self) -> String {
        format!("<LocalGroup rank {} of {}>", self.rank, self.hub.size())
    }
}

impl PyLocalGroup {
    /// Meets all other ranks and sees to it that all have come for the same thing.
    fn meet(&self, py: Python<'_>, card: Card) -> PyResult<Arc<LocalOutcome>> {
        let purpose = card.describe();
        let outcome = py.detach(|| self.hub.meet(self.rank, card));
        let outcome = outcome.map_err(|Absence { rank, reason }| {
            let message = format!("rank {rank} {reason}, and rank {} {purpose} with it", self.rank);
            RankError::new_err((message, rank, None::<usize>, None::<String>))
        })?;
        match outcome.cards.iter().position(|card| !card.agrees(&outcome.cards[0])) {
            None => Ok(outcome),
            Some(other) => Err(UsageError::new_err(format!(
                "rank 0 {}, and rank {other} {}; all ranks of a group must do the same",
                outcome.cards[0].describe(),
                outcome.cards[other].describe()
            ))),
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
        let interpreter = self.interpreter(py, program, rank, worker);
        run(interpreter).map_err(|failure| self.fail(py, rank, failure))
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
        let interpreter =
            |(rank, worker): (Rank, &Value)| self.interpreter(py, program, rank, worker.bind(py));
        let ranks = workers.into_iter().map(interpreter).collect();
        let records =
            run_interleaved(ranks).map_err(|RankFailure { rank, failure }| self.fail(py, rank, failure))?;
        Ok(records.into_iter().enumerate().collect())
    }

    fn interpreter<'a, 'py>(
        &'a self,
        py: Python<'py>,
        program: &'a Program,
        rank: Rank,
        worker: &Bound<'py, PyAny>,
    ) -> Interpreter<'a, PyWorker<'py>, LocalTransport<'a, 'py>> {
        let worker = PyWorker(worker.clone());
        let transport = Detaching { py, inner: self.hub.port(rank) };
        Interpreter::new(program.shape(), &program.rows()[rank], worker, transport, self.hub.clock())
    }

    /// Tells every rank; returns the worker's own error.
    fn fail(&self, py: Python<'_>, rank: Rank, failure: Failure<PyErr>) -> PyErr {
        match Fault::new(py, rank, failure) {
            None => RankError::new_err(("another rank failed", rank, None::<usize>, None::<String>)),
            Some(fault) => {
                let error = match &fault.cause {
                    Some(cause) => cause.clone_ref(py),
                    None => fault.to_error(py),
                };
                self.hub.fail(fault);
                error
            }
        }
    }
}

/// The rank of the schedule that each member of the group takes, and its worker.
fn steps(start: &LocalOutcome) -> impl Iterator<Item = (Rank, &Value)> {
    start.cards.iter().filter_map(|card| match card {
        Card::Step { rank, worker, .. } => Some((*rank, worker)),
        _ => None,
    })
}

/// Each rank of the schedule is taken by one member of the group.
fn check_numbering(start: &LocalOutcome) -> PyResult<()> {
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
fn measured(outcome: &LocalOutcome) -> Timeline {
    let mut rows: Vec<&(Rank, Vec<Record>)> = outcome
        .cards
        .iter()
        .flat_map(|card| match card {
            Card::Done(rows) => rows.iter(),
            _ => [].iter(),
        })
        .collect();
    rows.sort_by_key(|(rank, _)| *rank);
    let records = || rows.iter().flat_map(|(rank, row)| row.iter().map(|record| (*rank, record)));
    let start = records().map(|(_, record)| record.start).fold(f64::INFINITY, f64::min);
    let spans = records().flat_map(|(rank, record)| {
        let Record { index, slot, start: from, end: to, .. } = *record;
        slot.actions()
            .map(move |action| Span::new(rank as u32, index as u32, action, from - start, to - start))
    });
    let cpu = records().flat_map(|(_, record)| record.slot.actions().map(|_| record.cpu));
    Timeline::new(outcome.cards.len(), spans.collect(), Some(cpu.collect()))
}
