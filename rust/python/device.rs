//! `DeviceRank` and `DeviceShared`: a rank's step on a GPU, with the callables of an `Executor` as its worker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

use super::callables::PyCallables;
use super::cards::Fault;
use super::errors::{self, UsageError, device_error};
use super::schedule::PySchedule;
use super::worker::Detaching;
use crate::array::Parcel;
use crate::cuda::DeviceError;
use crate::cuda::driver::{Device, Stream};
use crate::cuda::nccl::{Config, UniqueId};
use crate::execute::device::Control;
use crate::execute::device::board::Board;
use crate::execute::device::nccl::{Channels, Sharing};
use crate::execute::device::same::SameDevice;
use crate::execute::device::step::{Broken, DevicePort, Runner};
use crate::execute::interpreter::Progress;
use crate::execute::{Patience, Record, Values, Worker};
use crate::lower::Program;
use crate::schedule::{Rank, Slot};

/// What the ranks of one process share: announcements of what will be sent, and on one device the copies.
#[pyclass(frozen, name = "DeviceShared", module = "dualpipe_rs")]
pub struct PyDeviceShared {
    board: Board,
    same: Option<SameDevice>,
}

#[pymethods]
impl PyDeviceShared {
    /// `device`: the index of the one device of all ranks, or None where each has its own.
    #[new]
    #[pyo3(signature = (device))]
    fn new(device: Option<i32>) -> PyResult<PyDeviceShared> {
        let same = device.map(|ordinal| Device::open(ordinal).map(SameDevice::new));
        Ok(PyDeviceShared {
            board: Board::default(),
            same: same.transpose().map_err(device_error)?,
        })
    }
}

/// One rank's place on a GPU, from step to step: its device, and its communicators where it has some.
#[pyclass(frozen, name = "DeviceRank", module = "dualpipe_rs")]
pub struct PyDeviceRank {
    device: Arc<Device>,
    shared: Py<PyDeviceShared>,
    timeout: Duration,
    channels: Mutex<Option<Opening>>,
}

/// Communicators, and how far they have been started.
struct Opening {
    channels: Channels,
    is_open: bool,
}

#[pymethods]
impl PyDeviceRank {
    /// `timeout` in seconds bounds each wait for the device and for NCCL.
    #[new]
    fn new(device: i32, shared: Py<PyDeviceShared>, timeout: f64) -> PyResult<PyDeviceRank> {
        let timeout = Duration::try_from_secs_f64(timeout)
            .map_err(|error| UsageError::new_err(format!("timeout is {timeout}: {error}")))?;
        let device = match &shared.get().same {
            Some(same) => same.device().clone(),
            None => Device::open(device).map_err(device_error)?,
        };
        Ok(PyDeviceRank { device, shared, timeout, channels: Mutex::new(None) })
    }

    /// Begins to start this rank's communicators, those of `ids` that it is in; `poll` says when they stand.
    /// `ids` has the 128 bytes of an id for the two ranks of each.
    #[pyo3(signature = (rank, ids, sharing, max_ctas))]
    fn start(
        &self,
        rank: Rank,
        ids: BTreeMap<(Rank, Rank), Vec<u8>>,
        sharing: &str,
        max_ctas: Option<u32>,
    ) -> PyResult<()> {
        let id = |bytes: Vec<u8>| {
            let wrong =
                |bytes: Vec<u8>| UsageError::new_err(format!("an id has 128 bytes, not {}", bytes.len()));
            <[u8; 128]>::try_from(bytes).map(UniqueId).map_err(wrong)
        };
        let ids = ids.into_iter().map(|(pair, bytes)| Ok((pair, id(bytes)?))).collect::<PyResult<_>>()?;
        let config = Config { max_ctas, ..Config::default() };
        let channels = Channels::start(rank, &self.device, sharing_of(sharing)?, &ids, &config);
        let channels = channels.map_err(device_error)?;
        *self.lock() = Some(Opening { channels, is_open: false });
        Ok(())
    }

    /// Whether the communicators stand and their first bytes have come. DeviceError for what went wrong.
    fn poll(&self) -> PyResult<bool> {
        let mut guard = self.lock();
        let Some(opening) = guard.as_mut() else { return Ok(true) };
        let polled = (|| {
            let _entered = self.device.enter()?;
            opening.is_open = opening.is_open || opening.channels.is_open()?;
            Ok(opening.is_open)
        })();
        polled.map_err(device_error)
    }

    /// Begins to end the communicators in peace; all ranks do. True once it is done: ask again until then.
    fn close(&self) -> PyResult<bool> {
        let mut guard = self.lock();
        let Some(opening) = guard.as_mut() else { return Ok(true) };
        if opening.channels.is_cut() {
            *guard = None;
            return Ok(true);
        }
        if std::mem::take(&mut opening.is_open) {
            opening.channels.finalize().map_err(device_error)?;
        }
        if !opening.channels.is_ready().map_err(device_error)? {
            return Ok(false);
        }
        let channels = guard.take().map(|opening| opening.channels);
        channels.map_or(Ok(()), Channels::destroy).map_err(device_error)?;
        Ok(true)
    }

    /// Lets the next step's tensors differ from those before, in shape and type. All ranks do.
    fn forget(&self) {
        if let Some(opening) = self.lock().as_mut() {
            opening.channels.forget();
        }
    }

    /// Cuts the communicators off, without waiting for anybody.
    fn abort(&self) {
        self.lock().take();
    }
}

/// The pairs of ranks that need a communicator each. The first rank of each makes its id.
#[pyfunction]
#[pyo3(signature = (schedule, p2p, sharing))]
pub fn communicators(
    py: Python<'_>,
    schedule: &PySchedule,
    p2p: &str,
    sharing: &str,
) -> PyResult<Vec<(Rank, Rank)>> {
    let program = schedule.program(py, errors::p2p(p2p, None)?)?;
    let sharing = sharing_of(sharing)?;
    if sharing == Sharing::Pair && matches!(p2p, "eager" | "rendezvous") {
        return Err(UsageError::new_err(format!(
            "communicators=\"pair\" under p2p={p2p:?} could deadlock: NCCL keeps what is queued on a communicator in \
             order, and a receive posted early would hold back the sends of the other direction; take \"edge\", or \
             p2p=\"batched\""
        )));
    }
    Ok(sharing.communicators(&program).into_iter().collect())
}

fn sharing_of(word: &str) -> PyResult<Sharing> {
    match word {
        "edge" => Ok(Sharing::Edge),
        "pair" => Ok(Sharing::Pair),
        _ => Err(UsageError::new_err(format!(
            "communicators={word:?} is not known; \"edge\" has one for each directed edge, \"pair\" one for both \
             directions between two ranks"
        ))),
    }
}

/// Calls Python's functions; arrays come and go as they are.
struct ArrayWorker<'py> {
    callables: Bound<'py, PyCallables>,
    compute: Arc<Stream>,
}

impl Worker for ArrayWorker<'_> {
    type Value = Parcel;
    type Error = PyErr;

    fn compute(&mut self, slot: Slot, inputs: Values<Parcel>) -> PyResult<Values<Parcel>> {
        self.callables.get().compute(self.callables.py(), slot, inputs, &self.compute)
    }
}

impl PyDeviceRank {
    fn lock(&self) -> MutexGuard<'_, Option<Opening>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one rank's row, whose ranks are threads; `failed` tells whether another one has failed.
    pub fn run(
        &self,
        py: Python<'_>,
        program: &Program,
        rank: Rank,
        worker: &Bound<'_, PyCallables>,
        failed: impl Fn() -> bool + Send,
    ) -> Result<Vec<Record>, Option<Box<Fault>>> {
        self.run_with(py, program, rank, worker, self.shared.get().board.seat(rank, failed))
    }

    pub(super) fn run_with(
        &self,
        py: Python<'_>,
        program: &Program,
        rank: Rank,
        worker: &Bound<'_, PyCallables>,
        control: impl Control + Send,
    ) -> Result<Vec<Record>, Option<Box<Fault>>> {
        let shared = self.shared.get();
        // SAFETY: the caller's stream is the one that its library computes on; it outlives what is computed there.
        let compute = unsafe { Stream::borrowed(&self.device, worker.get().stream()) };
        let device_fault = |error| fault(py, rank, Broken::Device(error));
        let _entered = self.device.enter().map_err(device_fault)?;
        match &shared.same {
            Some(same) => {
                drive(py, program, rank, worker, &compute, same.port(rank, &compute, control), self.timeout)
            }
            None => {
                let mut guard = self.lock();
                let closed = || DeviceError::Usage("the communicators of this rank do not stand".to_string());
                let opening = guard.as_mut().ok_or_else(|| device_fault(closed()))?;
                let port = opening.channels.port(&compute, control, self.timeout);
                drive(py, program, rank, worker, &compute, port, self.timeout)
            }
        }
    }
}

/// Runs all ranks in turn on this thread, all on one device and one stream.
pub fn run_all(
    py: Python<'_>,
    program: &Program,
    worker: &Bound<'_, PyCallables>,
    device: &PyDeviceRank,
) -> Result<Vec<(Rank, Vec<Record>)>, Box<Fault>> {
    let first = |rank, broken| fault(py, rank, broken).expect("no other rank can have stopped it");
    let shared = device.shared.get();
    let same = shared.same.as_ref().expect("who runs all ranks has made it for one device");
    // SAFETY: as in PyDeviceRank::run.
    let compute = unsafe { Stream::borrowed(&device.device, worker.get().stream()) };
    let _entered = device.device.enter().map_err(|error| first(0, Broken::Device(error)))?;
    let mut runners = Vec::new();
    for rank in 0..program.rows().len() {
        let worker = ArrayWorker { callables: worker.clone(), compute: compute.clone() };
        let port = same.port(rank, &compute, shared.board.seat(rank, || false));
        let runner = Runner::new(program, rank, worker, port, &compute);
        runners.push(runner.map_err(|error| first(rank, Broken::Device(error)))?);
    }
    let mut done = vec![false; runners.len()];
    while done.contains(&false) {
        for (rank, runner) in runners.iter_mut().enumerate() {
            done[rank] = done[rank]
                || runner.queue(Patience::Look).map_err(|broken| first(rank, broken))? == Progress::Done;
        }
    }
    let mut rows = Vec::new();
    for (rank, runner) in runners.into_iter().enumerate() {
        let (_, mut waiting) = runner.split();
        let records = py.detach(|| waiting.finish(device.timeout));
        rows.push((rank, records.map_err(|broken| first(rank, broken))?));
    }
    Ok(rows)
}

fn drive<P: DevicePort + Send>(
    py: Python<'_>,
    program: &Program,
    rank: Rank,
    worker: &Bound<'_, PyCallables>,
    compute: &Arc<Stream>,
    port: P,
    timeout: Duration,
) -> Result<Vec<Record>, Option<Box<Fault>>> {
    let worker = ArrayWorker { callables: worker.clone(), compute: compute.clone() };
    let told = |broken| fault(py, rank, broken);
    let port = Detaching { py, inner: port };
    let runner = Runner::new(program, rank, worker, port, compute);
    let mut runner = runner.map_err(|error| told(Broken::Device(error)))?;
    let progress = runner.queue(Patience::Wait).map_err(told)?;
    debug_assert_eq!(progress, Progress::Done);
    let (_, waiting) = runner.split();
    let mut waiting = waiting.with_port(|port| port.inner); // What waits without the GIL cannot hold it.
    py.detach(|| waiting.finish(timeout)).map_err(told)
}

/// Where and why a rank failed; `None` where another has.
fn fault(py: Python<'_>, rank: Rank, broken: Broken<PyErr>) -> Option<Box<Fault>> {
    match broken {
        Broken::Failure(failure) => Fault::new(py, rank, failure).map(Box::new),
        Broken::Device(error) => Some(Box::new(Fault::of(py, rank, device_error(error)))),
    }
}
