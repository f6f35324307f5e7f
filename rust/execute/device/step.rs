//! One rank's step on a device: runs the program, measures with events, and waits for the device once, at the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::array::Parcel;
use crate::cuda::DeviceError;
use crate::cuda::driver::{Event, Stream};
use crate::execute::interpreter::{Interpreter, Progress};
use crate::execute::{Failure, Patience, Record, Transport, Values, Worker};
use crate::lower::Program;
use crate::schedule::{Rank, Slot};

/// A transport on a device, and how its step ends.
pub trait DevicePort: Transport<Value = Parcel> {
    /// Whether all its transfers are complete. Errors that show only now come out here.
    fn is_done(&mut self) -> Result<bool, DeviceError>;

    /// Whether another rank has failed.
    fn stopped(&self) -> bool;

    /// The error for which a call answered [`Stopped`](crate::execute::Stopped), if it was this rank's own.
    fn take_error(&mut self) -> Option<DeviceError>;

    /// The step has ended well: what it has shown of the tensors holds for the next.
    fn succeed(&mut self) {}

    /// Cuts off the transfers that wait for another rank: the step has failed.
    fn give_up(&mut self);
}

/// Why a rank's step failed.
#[derive(Debug)]
pub enum Broken<E> {
    /// As on the host.
    Failure(Failure<E>),
    /// The device or NCCL refused, or took too long.
    Device(DeviceError),
}

/// A step whose row has all been queued, to be waited for.
pub struct Waiting<P> {
    pub port: P,
    records: Vec<Record>,
    begin: Event,
    slots: Vec<(Event, Event)>,
    error: Option<DeviceError>,
    compute: Arc<Stream>,
}

/// The events around each slot.
pub struct Timed<W> {
    worker: W,
    compute: Arc<Stream>,
    slots: Vec<(Event, Event)>,
    error: Option<DeviceError>,
}

impl<W> Timed<W> {
    pub fn new(worker: W, compute: Arc<Stream>) -> Self {
        Timed { worker, compute, slots: Vec::new(), error: None }
    }
}

impl<W: Worker<Value = Parcel>> Worker for Timed<W> {
    type Value = Parcel;
    type Error = W::Error;

    fn compute(&mut self, slot: Slot, inputs: Values<Parcel>) -> Result<Values<Parcel>, W::Error> {
        let start = self.compute.record();
        let made = self.worker.compute(slot, inputs)?;
        // An error of the device shows again in the next call that can tell of it; this one cannot.
        match (start, self.compute.record()) {
            (Ok(start), Ok(end)) => self.slots.push((start, end)),
            (Err(error), _) | (_, Err(error)) => drop(self.error.get_or_insert(error)),
        }
        Ok(made)
    }
}

/// One rank in the middle of its step on a device.
pub struct Runner<'a, W: Worker<Value = Parcel>, P> {
    interpreter: Interpreter<'a, Timed<W>, P>,
    begin: Event,
    compute: Arc<Stream>,
}

impl<'a, W: Worker<Value = Parcel>, P: DevicePort> Runner<'a, W, P> {
    pub fn new(
        program: &'a Program,
        rank: Rank,
        worker: W,
        port: P,
        compute: &Arc<Stream>,
    ) -> Result<Self, DeviceError> {
        let worker = Timed::new(worker, compute.clone());
        let row = &program.rows()[rank];
        let begin = compute.record()?;
        let interpreter = Interpreter::new(program.shape(), row, worker, port, Instant::now());
        Ok(Runner { interpreter, begin, compute: compute.clone() })
    }

    /// Queues its row, to the end or (with [`Patience::Look`]) to where another thread's work is missing. The
    /// thread waits for no device.
    pub fn queue(&mut self, patience: Patience) -> Result<Progress, Broken<W::Error>> {
        self.interpreter.advance(patience).map_err(|failure| self.broken(failure))
    }

    fn broken(&mut self, failure: Failure<W::Error>) -> Broken<W::Error> {
        let port = self.interpreter.transport_mut();
        let own = port.take_error();
        port.give_up();
        match (failure, own) {
            (Failure::Stopped, Some(error)) => Broken::Device(error),
            (failure, _) => Broken::Failure(failure),
        }
    }

    /// Once all is queued: the worker, and what is to be waited for.
    pub fn split(self) -> (W, Waiting<P>) {
        let Runner { interpreter, begin, compute } = self;
        let (Timed { worker, slots, error, .. }, port, records) = interpreter.into_parts();
        (worker, Waiting { port, records, begin, slots, error, compute })
    }
}

impl<P> Waiting<P> {
    /// The same with the port taken out of a wrapper.
    pub fn with_port<Q>(self, port: impl FnOnce(P) -> Q) -> Waiting<Q> {
        let Waiting { port: own, records, begin, slots, error, compute } = self;
        Waiting { port: port(own), records, begin, slots, error, compute }
    }
}

impl<P: DevicePort> Waiting<P> {
    /// Waits for the device, at most `timeout`. The times of each slot, by the device's clock, count from the
    /// step's beginning on this rank's compute stream.
    pub fn finish<E>(&mut self, timeout: Duration) -> Result<Vec<Record>, Broken<E>> {
        let ended = match self.error.take() {
            Some(error) => Err(Broken::Device(error)),
            None => complete(&self.compute, &mut self.port, timeout),
        };
        let records = std::mem::take(&mut self.records);
        let times = ended.and_then(|()| measured(records, &self.slots, &self.begin).map_err(Broken::Device));
        match times {
            Ok(_) => self.port.succeed(),
            Err(_) => self.port.give_up(),
        }
        times
    }
}

/// Waits until all that was queued is done.
fn complete<E>(compute: &Stream, port: &mut impl DevicePort, timeout: Duration) -> Result<(), Broken<E>> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_micros(1);
    let end = compute.record().map_err(Broken::Device)?;
    loop {
        let done = end.is_complete().and_then(|end| Ok(end & port.is_done()?));
        if done.map_err(Broken::Device)? {
            return Ok(());
        }
        if port.stopped() {
            return Err(Broken::Failure(Failure::Stopped));
        }
        if Instant::now() > deadline {
            let what = "the device's part of the step".to_string();
            return Err(Broken::Device(DeviceError::Deadline { what, limit: timeout }));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_micros(200));
    }
}

fn measured(
    mut records: Vec<Record>,
    slots: &[(Event, Event)],
    begin: &Event,
) -> Result<Vec<Record>, DeviceError> {
    for (record, (start, end)) in records.iter_mut().zip(slots) {
        record.start = start.seconds_since(begin)?;
        record.end = end.seconds_since(begin)?;
    }
    Ok(records)
}
