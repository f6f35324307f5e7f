//! Python's side of an execution: a Python object as the worker, and waiting without the GIL.

use pyo3::prelude::*;

#[cfg(feature = "cuda")]
use crate::cuda::DeviceError;
#[cfg(feature = "cuda")]
use crate::execute::device::step::DevicePort;
use crate::execute::{Patience, Stopped, Transport, Values, Worker};
use crate::schedule::{Action, Kind, Rank, Slot, Tensor};

/// What travels between stages: whatever the worker returns.
pub type Value = Py<PyAny>;

/// A rank's Python object with `forward`, `backward`, `backward_input`, `backward_weight` and
/// `forward_backward`.
pub struct PyWorker<'py>(pub Bound<'py, PyAny>);

impl PyWorker<'_> {
    fn one(&self, action: Action, input: Option<Value>) -> PyResult<Option<Value>> {
        let (stage, microbatch) = (action.stage, action.microbatch);
        let worker = &self.0;
        let output = match action.kind {
            Kind::F => worker.call_method1("forward", (stage, microbatch, input)),
            Kind::I => worker.call_method1("backward_input", (stage, microbatch, input)),
            Kind::W => worker.call_method1("backward_weight", (stage, microbatch)),
            Kind::B => worker.call_method1("backward", (stage, microbatch, input)),
        };
        Ok(some(output?.unbind(), worker.py()))
    }
}

fn some(value: Value, py: Python<'_>) -> Option<Value> {
    (!value.is_none(py)).then_some(value)
}

impl Worker for PyWorker<'_> {
    type Value = Value;
    type Error = PyErr;

    fn compute(&mut self, slot: Slot, inputs: Values<Value>) -> PyResult<Values<Value>> {
        let [first, second] = inputs;
        match slot {
            Slot::One(action) => Ok([self.one(action, first)?, None]),
            Slot::Pair(f, b) => {
                let arguments = (f.stage, f.microbatch, first, b.stage, b.microbatch, second);
                let made = self.0.call_method1("forward_backward", arguments)?;
                let (output, gradient): (Value, Value) = made.extract()?;
                Ok([some(output, self.0.py()), some(gradient, self.0.py())])
            }
        }
    }
}

/// A transport that lets other threads of Python run while it waits.
pub struct Detaching<'py, T> {
    pub py: Python<'py>,
    pub inner: T,
}

impl<T: Transport<Value: Send> + Send> Transport for Detaching<'_, T> {
    type Value = T::Value;

    fn post(&mut self, from: Rank, tensor: Tensor) -> Result<(), Stopped> {
        self.inner.post(from, tensor)
    }

    fn send(&mut self, to: Rank, tensor: Tensor, value: T::Value) -> Result<(), Stopped> {
        self.inner.send(to, tensor, value)
    }

    fn wait(&mut self, from: Rank, tensor: Tensor, patience: Patience) -> Result<Option<T::Value>, Stopped> {
        match self.inner.wait(from, tensor, Patience::Look)? {
            None if patience == Patience::Wait => {
                let inner = &mut self.inner;
                self.py.detach(|| inner.wait(from, tensor, Patience::Wait))
            }
            found => Ok(found),
        }
    }

    fn sent(&mut self, to: Rank, tensor: Tensor, patience: Patience) -> Result<bool, Stopped> {
        let sent = self.inner.sent(to, tensor, Patience::Look)?;
        if sent || patience == Patience::Look {
            return Ok(sent);
        }
        let inner = &mut self.inner;
        self.py.detach(|| inner.sent(to, tensor, Patience::Wait))
    }

    fn begin(&mut self) {
        self.inner.begin();
    }

    fn commit(&mut self) -> Result<(), Stopped> {
        let inner = &mut self.inner;
        self.py.detach(|| inner.commit())
    }

    fn enter(&mut self, index: usize, slot: Slot) -> Result<(), Stopped> {
        self.inner.enter(index, slot)
    }
}

#[cfg(feature = "cuda")]
impl<T: DevicePort + Send> DevicePort for Detaching<'_, T> {
    fn is_done(&mut self) -> Result<bool, DeviceError> {
        self.inner.is_done()
    }

    fn stopped(&self) -> bool {
        self.inner.stopped()
    }

    fn take_error(&mut self) -> Option<DeviceError> {
        self.inner.take_error()
    }

    fn succeed(&mut self) {
        self.inner.succeed();
    }

    fn give_up(&mut self) {
        let inner = &mut self.inner;
        self.py.detach(|| inner.give_up());
    }
}
