//! `Schedule`, and the functions that make one by name.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use numpy::{IntoPyArray, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::costs::PyCosts;
use super::errors::{self, UsageError, count, index, positive, schedule_error};
use super::picture;
use super::program::{PyProgram, words};
use super::records::find_numpy;
use super::timeline::PyTimeline;
use crate::formats::{text, torch_csv};
use crate::generate::{self, Family};
use crate::lower::{P2p, Program, lower, rendezvous_depth};
use crate::network::Network;
use crate::schedule::{Kind, Microbatch, Rank, Schedule, Stage};
use crate::simulate::{simulate_network, simulate_on_cores};
use crate::verify::{Verified, Violations, check_memory, verify};

/// A compute order for every rank: which slots it computes, in which order; no time, no sends.
///
/// Made by `dualpipe_rs.schedule(...)` or `Schedule.from_text(...)`. Equal schedules compare and hash equal.
/// A slot is an action such as `"2F0"` (stage 2, forward, microbatch 0; F, I, W, B are forward, backward
/// for the input, backward for the weights, and both) or a fused pair such as `"(0F7;7B3)"`.
#[pyclass(frozen, eq, hash, name = "Schedule", module = "dualpipe_rs")]
pub struct PySchedule {
    schedule: Arc<Schedule>,
    verified: OnceLock<Result<Verified, Box<Violations>>>,
    /// What was lowered, as each step runs it.
    programs: Mutex<Vec<Arc<Program>>>,
}

impl PartialEq for PySchedule {
    fn eq(&self, other: &Self) -> bool {
        self.schedule == other.schedule
    }
}

impl Hash for PySchedule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.schedule.hash(state);
    }
}

impl PySchedule {
    fn new(schedule: Schedule) -> Self {
        PySchedule {
            schedule: Arc::new(schedule),
            verified: OnceLock::new(),
            programs: Mutex::new(Vec::new()),
        }
    }

    /// Verifies once; the verdict is kept.
    pub fn verified(&self, py: Python<'_>) -> PyResult<&Verified> {
        self.verdict(py).map_err(|violations| schedule_error(py, &self.schedule, violations))
    }

    /// The same, without words.
    pub fn verdict(&self, py: Python<'_>) -> Result<&Verified, &Violations> {
        let verdict = py.detach(|| self.verified.get_or_init(|| verify(self.schedule.clone())));
        verdict.as_ref().map_err(|violations| violations.as_ref())
    }

    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Lowers once for each semantics.
    pub fn program(&self, py: Python<'_>, p2p: P2p) -> PyResult<Arc<Program>> {
        let programs = || self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = programs().iter().find(|program| program.p2p() == p2p) {
            return Ok(program.clone());
        }
        let verified = self.verified(py)?;
        let lowered = py.detach(|| lower(verified, p2p));
        let program = Arc::new(lowered.map_err(|found| schedule_error(py, &self.schedule, &found))?);
        programs().push(program.clone());
        Ok(program)
    }

    /// What the simulator walks under these semantics.
    pub fn network(&self, py: Python<'_>, p2p: P2p) -> PyResult<Arc<Network>> {
        if p2p == P2p::Eager {
            return Ok(self.verified(py)?.network().clone());
        }
        let program = self.program(py, p2p)?;
        Ok(Arc::new(py.detach(|| program.network())))
    }

    /// The same for the same schedule, in whichever rank's hands.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.schedule.hash(&mut hasher);
        hasher.finish()
    }

    pub fn describe(&self) -> String {
        self.schedule.describe()
    }

    pub fn row_lengths(&self) -> Vec<usize> {
        self.schedule.rows().iter().map(Vec::len).collect()
    }
}

#[pymethods]
impl PySchedule {
    /// The family's name, such as `"dualpipe"`.
    #[getter]
    fn name(&self) -> &str {
        self.schedule.name()
    }

    /// Which rank holds which stage: `"linear"`, `"looped"`, `"v"`, `"wave"` or `"bidirectional"`.
    #[getter]
    fn placement(&self) -> &'static str {
        self.schedule.shape().placement().name()
    }

    /// How many ranks compute.
    #[getter]
    fn num_ranks(&self) -> usize {
        self.schedule.shape().ranks()
    }

    /// How many stages the model is cut into.
    #[getter]
    fn num_stages(&self) -> usize {
        self.schedule.shape().stages()
    }

    /// How many microbatches a step has, over all directions.
    #[getter]
    fn num_microbatches(&self) -> usize {
        self.schedule.shape().microbatches()
    }

    /// The stages that `rank` holds, in the order of its modules: under DualPipe (r, p-1-r), under
    /// DualPipeV (r, 2p-1-r). UsageError for a rank out of range.
    fn stages_of(&self, rank: &Bound<'_, PyAny>) -> PyResult<Vec<Stage>> {
        let shape = self.schedule.shape();
        Ok(shape.stages_of(index(("rank", "ranks"), rank, shape.ranks())?))
    }

    /// The rank that computes `stage` for `microbatch`. UsageError for either out of range.
    fn rank_of(&self, stage: &Bound<'_, PyAny>, microbatch: &Bound<'_, PyAny>) -> PyResult<Rank> {
        let shape = self.schedule.shape();
        let stage = index(("stage", "stages"), stage, shape.stages())?;
        let microbatch = index(("microbatch", "microbatches"), microbatch, shape.microbatches())?;
        Ok(shape.rank_of(stage as Stage, microbatch as Microbatch))
    }

    /// The (stage, microbatch) of `rank` whose backward is split into I and W, in the order of their I; all
    /// others have a B. UsageError for a rank out of range.
    fn split_backwards(&self, rank: &Bound<'_, PyAny>) -> PyResult<Vec<(Stage, Microbatch)>> {
        let rows = self.schedule.rows();
        let row = &rows[index(("rank", "ranks"), rank, rows.len())?];
        let inputs = row.iter().flat_map(|slot| slot.actions()).filter(|action| action.kind == Kind::I);
        Ok(inputs.map(|action| (action.stage, action.microbatch)).collect())
    }

    /// How many tensors go from each rank to each other in a step: uint32 of shape (ranks, ranks), [from, to].
    fn p2p_tensors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<u32>>> {
        find_numpy(py)?;
        let ranks = self.schedule.shape().ranks();
        py.detach(|| self.schedule.p2p_tensors()).into_pyarray(py).reshape([ranks, ranks])
    }

    /// The slots of one rank in order, as text. UsageError for a rank out of range.
    fn rank(&self, rank: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
        words(self.schedule.rows(), rank)
    }

    /// One `#` line with name, placement and sizes, then one row a rank; `from_text` reads it back.
    fn to_text(&self) -> String {
        text::write(&self.schedule)
    }

    /// Reads what `to_text` writes, strictly; does not verify it. UsageError with line and column.
    #[staticmethod]
    fn from_text(py: Python<'_>, text: &str) -> PyResult<Self> {
        Ok(PySchedule::new(py.detach(|| text::read(text))?))
    }

    /// The `compute_only` CSV of torch.distributed.pipelining: one row a rank, pairs as
    /// `(0F7;7B3)OVERLAP_F_B`. UsageError where stages live on two ranks (DualPipe, Chimera).
    fn to_torch_csv(&self) -> PyResult<String> {
        Ok(torch_csv::write(&self.schedule)?)
    }

    /// Reads torch's `compute_only` CSV, strictly; does not verify it. The sizes and the placement are read off
    /// the cells where they are not given. UsageError with line and column.
    #[staticmethod]
    #[pyo3(signature = (text, *, name = "torch", placement = None, num_stages = None, num_microbatches = None))]
    fn from_torch_csv(
        py: Python<'_>,
        text: &str,
        name: &str,
        placement: Option<&str>,
        num_stages: Option<&Bound<'_, PyAny>>,
        num_microbatches: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let given = torch_csv::Given {
            name: text::checked_name(name)?,
            placement: placement.map(text::placement).transpose()?,
            stages: num_stages.map(|value| count("num_stages", value)).transpose()?,
            microbatches: num_microbatches.map(|value| count("num_microbatches", value)).transpose()?,
        };
        Ok(PySchedule::new(py.detach(|| torch_csv::read(text, given))?))
    }

    /// The same order with the forwards alone: inference.
    fn forward_only(&self) -> Self {
        PySchedule::new(self.schedule.forward_only())
    }

    /// Proves that every action stands once, on its rank, after what it needs, and that no ranks wait for
    /// each other in a circle. ScheduleError, whose `.violations` lists every rule broken and where.
    ///
    /// `p2p` says who waits for whom between ranks. Under `"eager"` a send is delivered and holds nobody. Under
    /// `"rendezvous"` tensors of an edge travel in order, receives are posted in that order, at most `depth`
    /// (default 2) whose tensor no slot has used; a send holds its edge until its receive is posted, never
    /// compute. Under `"batched"` sends wait for the next commit, at which all its sends and receives complete
    /// together, and compute waits for them: at DeepSeek's commit points for DualPipe's and DualPipeV's orders,
    /// else before each slot for which there is something to send or receive. Under `"blocking"` each send holds
    /// its rank until the receiver needs the tensor. `max_activations` is the most (stage, microbatch) that a
    /// rank may hold at once, from its F to the end of its last backward action. Circles and memory are looked at
    /// where all else holds; a list of violations ends at 10 000 (the message counts all).
    #[pyo3(signature = (p2p = "eager", *, depth = None, max_activations = None))]
    fn verify(
        &self,
        py: Python<'_>,
        p2p: &str,
        depth: Option<&Bound<'_, PyAny>>,
        max_activations: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let semantics = errors::p2p(p2p, depth)?;
        let most = max_activations.map(|most| count("max_activations", most)).transpose()?;
        let verified = self.verified(py)?;
        let found = py.detach(|| {
            let memory = most.and_then(|most| check_memory(verified, most).err());
            let circle = (semantics != P2p::Eager).then(|| lower(verified, semantics).err()).flatten();
            memory.into_iter().chain(circle).flat_map(|found| found.list).collect::<Vec<_>>()
        });
        match found.is_empty() {
            true => Ok(()),
            false => Err(schedule_error(py, &self.schedule, &Violations::of(found))),
        }
    }

    /// The least `depth` under which `verify(p2p="rendezvous")` passes. ScheduleError if a rule is broken.
    fn rendezvous_depth(&self, py: Python<'_>) -> PyResult<usize> {
        let verified = self.verified(py)?;
        Ok(py.detach(|| rendezvous_depth(verified)))
    }

    /// The Timeline that these costs give (default: every action 1), in their unit of time, under P2P semantics as
    /// `verify` takes them. Each slot starts as soon as its rank is free and what it needs has come; under
    /// "batched" and "blocking" a rank is not free before its commit is complete. With `cores`, slots that run at
    /// one time share so many cores equally, as ranks of one machine do (eager alone; what comes after the slots
    /// shares none). ScheduleError if a rule is
    /// broken or ranks would wait for each other in a circle, UsageError if the costs do not fit the schedule.
    #[pyo3(signature = (costs = None, *, p2p = "eager", depth = None, cores = None))]
    fn simulate(
        &self,
        py: Python<'_>,
        costs: Option<&PyCosts>,
        p2p: &str,
        depth: Option<&Bound<'_, PyAny>>,
        cores: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyTimeline> {
        find_numpy(py)?;
        let semantics = errors::p2p(p2p, depth)?;
        let verified = self.verified(py)?;
        let costs = costs.map(|costs| costs.0.clone()).unwrap_or_default();
        let cores = cores.map(|cores| positive("cores", cores, 1 << 32)).transpose()?;
        let timeline = match (semantics, cores) {
            (semantics, None) => {
                let network = self.network(py, semantics)?;
                py.detach(|| simulate_network(verified, network, &costs))?
            }
            (P2p::Eager, Some(cores)) => py.detach(|| simulate_on_cores(verified, &costs, cores))?,
            (_, Some(_)) => return Err(UsageError::new_err("cores goes with p2p=\"eager\" alone")),
        };
        Ok(PyTimeline::new(timeline))
    }

    /// The Program: this order with its sends and receives, under P2P semantics as `verify` takes them.
    /// ScheduleError if a rule is broken or ranks would wait for each other in a circle.
    #[pyo3(signature = (p2p = "eager", *, depth = None))]
    fn lower(slf: &Bound<'_, Self>, p2p: &str, depth: Option<&Bound<'_, PyAny>>) -> PyResult<PyProgram> {
        let program = slf.get().program(slf.py(), errors::p2p(p2p, depth)?)?;
        Ok(PyProgram { program, schedule: slf.clone().unbind() })
    }

    /// Shows the schedule with unit costs (F = I = W = 1), and others below it: a `View`, as `Timeline.show` gives it.
    /// One that breaks rules is drawn as its rows stand, with the cells marked.
    #[pyo3(signature = (*others, **options))]
    fn show<'py>(
        slf: &Bound<'py, Self>,
        others: &Bound<'py, PyTuple>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        picture::show(slf.as_any(), others, options, false)
    }

    /// Writes a file of the kind that the suffix of `path` says: a picture or a trace with unit costs, as
    /// `Timeline.save` writes it, or the order itself, .txt as `to_text` has it and .csv as `to_torch_csv`.
    /// UsageError for an unknown suffix or option, OSError where the file cannot be written.
    #[pyo3(signature = (path, *others, **options))]
    fn save(
        slf: &Bound<'_, Self>,
        path: &Bound<'_, PyAny>,
        others: &Bound<'_, PyTuple>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        picture::save(slf.as_any(), path, others, options)
    }

    #[pyo3(signature = (include = None, exclude = None))]
    fn _repr_mimebundle_<'py>(
        slf: &Bound<'py, Self>,
        include: Option<&Bound<'py, PyAny>>,
        exclude: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let view = picture::show(slf.as_any(), &PyTuple::empty(slf.py()), None, false)?;
        view.call_method1("_repr_mimebundle_", (include, exclude))
    }

    fn __repr__(&self) -> String {
        format!("<Schedule {}>", self.schedule.describe())
    }

    fn __str__(&self) -> String {
        self.to_text()
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        Ok((py.get_type::<PySchedule>().getattr("from_text")?, (self.to_text(),)))
    }
}

/// The names of the published schedules, as `schedule()` takes them.
#[pyfunction]
pub fn schedule_names() -> Vec<&'static str> {
    generate::names().collect()
}

/// The published schedule of this name for `num_ranks` ranks and `num_microbatches` microbatches (over all
/// directions). UsageError for an unknown name or option, or a size that the family cannot take; it names the
/// nearest legal one.
///
/// "gpipe" (arXiv 1811.06965), "1f1b" (1806.03377, 2104.04473), "interleaved" (2104.04473), "interleaved-zb"
/// (2401.10241) and "looped-bfs" (2211.05953), which take `stages_per_rank` (2), "zb-h1", "zb-h2" and "zb-v"
/// (2401.10241), "v-half" and "v-min" (2405.15362), "dualpipe" (2412.19437), "dualpipev"
/// (github.com/deepseek-ai/DualPipe), "chimera" (2107.06925), "hanayo" (2308.15762), which takes `waves` (1).
#[pyfunction]
#[pyo3(signature = (name, num_ranks, num_microbatches, **options))]
pub fn schedule(
    py: Python<'_>,
    name: &str,
    num_ranks: &Bound<'_, PyAny>,
    num_microbatches: &Bound<'_, PyAny>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<PySchedule> {
    let ranks = count("num_ranks", num_ranks)?;
    let microbatches = count("num_microbatches", num_microbatches)?;
    let family = generate::find(name)?;
    let option = family_option(family, options)?;
    let schedule = py.detach(|| family.generate(ranks, microbatches, option))?;
    Ok(PySchedule::new(schedule))
}

/// The value of a family's own option, if it is among these; any other name is refused.
pub fn family_option(family: &Family, options: Option<&Bound<'_, PyDict>>) -> PyResult<Option<usize>> {
    let mut option = None;
    for (name, value) in options.into_iter().flatten() {
        let name: String = name.extract()?;
        family.check_option(&name)?;
        option = Some(count(&name, &value)?);
    }
    Ok(option)
}
