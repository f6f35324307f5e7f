//! `Callables`: the plain functions of an `Executor`, which take and make arrays of any library.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dlpark::ffi::{DLDevice, DLDeviceType};
use dlpark::python::{DlpackStream, StreamArg};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::array::{PyArray, import};
use super::errors::UsageError;
use crate::array::{Array, Parcel};
#[cfg(feature = "cuda")]
use crate::cuda::driver::Stream;
#[cfg(feature = "cuda")]
use crate::execute::Values;
#[cfg(feature = "cuda")]
use crate::schedule::Slot;
use crate::schedule::{Action, Kind, Microbatch, Stage};

/// What a stage has handed over, on its way to another: `Callables` make it and take it.
#[pyclass(frozen, name = "Parcel", module = "dualpipe_rs")]
pub struct PyParcel {
    arrays: Vec<Option<Py<PyArray>>>,
    single: bool,
    requires_grad: u64,
    /// What turns an `Array` into one of the library that the sender used.
    from_dlpack: Option<Py<PyAny>>,
}

/// The worker of an `Executor`: its methods, those that `LocalGroup.step` asks for, call plain functions.
///
/// Each function takes stage and microbatch, and but for `backward_weight` an array or a tuple of arrays (None
/// where no other stage hands anything over), and returns such. A missing one is None.
#[pyclass(frozen, name = "Callables", module = "dualpipe_rs")]
pub struct PyCallables {
    forward: Py<PyAny>,
    backward: Option<Py<PyAny>>,
    backward_input: Option<Py<PyAny>>,
    backward_weight: Option<Py<PyAny>>,
    forward_backward: Option<Py<PyAny>>,
    from_dlpack: Option<Py<PyAny>>,
    last_stage: Stage,
    /// Whether torch's `requires_grad` travels, too. Else such a tensor is refused.
    grad: bool,
    device: DLDevice,
    /// The handle of the stream on which the functions compute, on a GPU.
    stream: AtomicU64,
}

type Taken<'a, 'py> = Option<&'a Bound<'py, PyParcel>>;

#[pymethods]
impl PyCallables {
    #[new]
    #[pyo3(signature = (
        num_stages,
        forward,
        backward,
        backward_input,
        backward_weight,
        forward_backward,
        from_dlpack,
        device = None,
        grad = false
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are the functions that an Executor takes")]
    fn new(
        num_stages: Stage,
        forward: Py<PyAny>,
        backward: Option<Py<PyAny>>,
        backward_input: Option<Py<PyAny>>,
        backward_weight: Option<Py<PyAny>>,
        forward_backward: Option<Py<PyAny>>,
        from_dlpack: Option<Py<PyAny>>,
        device: Option<i32>,
        grad: bool,
    ) -> PyCallables {
        let on = |ordinal| DLDevice { device_type: DLDeviceType::CUDA, device_id: ordinal };
        PyCallables {
            device: device.map_or(DLDevice::CPU, on),
            stream: AtomicU64::new(0),
            grad,
            forward,
            backward,
            backward_input,
            backward_weight,
            forward_backward,
            from_dlpack,
            last_stage: num_stages.saturating_sub(1),
        }
    }

    /// For the garbage collector: a model whose methods these are holds its executor, as a rule.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.forward)?;
        let others = [
            &self.backward,
            &self.backward_input,
            &self.backward_weight,
            &self.forward_backward,
            &self.from_dlpack,
        ];
        others.into_iter().try_for_each(|function| visit.call(function))
    }

    /// The stream on which the functions compute from now on, by its handle.
    fn set_stream(&self, handle: u64) {
        self.stream.store(handle, Ordering::Relaxed);
    }

    /// The output of a stage, for the next one.
    fn forward(
        &self,
        py: Python<'_>,
        stage: Stage,
        microbatch: Microbatch,
        parcel: Taken<'_, '_>,
    ) -> PyResult<Option<PyParcel>> {
        self.one(py, Action::new(stage, Kind::F, microbatch), parcel)
    }

    /// The gradient of a stage's input, for the stage before; the weights' gradients are added up here.
    fn backward(
        &self,
        py: Python<'_>,
        stage: Stage,
        microbatch: Microbatch,
        parcel: Taken<'_, '_>,
    ) -> PyResult<Option<PyParcel>> {
        self.one(py, Action::new(stage, Kind::B, microbatch), parcel)
    }

    /// The gradient of a stage's input alone.
    fn backward_input(
        &self,
        py: Python<'_>,
        stage: Stage,
        microbatch: Microbatch,
        parcel: Taken<'_, '_>,
    ) -> PyResult<Option<PyParcel>> {
        self.one(py, Action::new(stage, Kind::I, microbatch), parcel)
    }

    /// The weights' gradients alone, after the input's.
    fn backward_weight(&self, py: Python<'_>, stage: Stage, microbatch: Microbatch) -> PyResult<()> {
        let function = self.function(Kind::W, stage)?;
        function.call1(py, (stage, microbatch)).map(|_| ())
    }

    /// A forward of one stage and a backward of another, together.
    #[expect(clippy::too_many_arguments, reason = "it is how LocalGroup.step calls a worker")]
    fn forward_backward(
        &self,
        py: Python<'_>,
        stage: Stage,
        microbatch: Microbatch,
        parcel: Taken<'_, '_>,
        backward_stage: Stage,
        backward_microbatch: Microbatch,
        gradient: Taken<'_, '_>,
    ) -> PyResult<(Option<PyParcel>, Option<PyParcel>)> {
        let f = Action::new(stage, Kind::F, microbatch);
        let b = Action::new(backward_stage, Kind::B, backward_microbatch);
        let Some(function) = &self.forward_backward else {
            return Ok((self.one(py, f, parcel)?, self.one(py, b, gradient)?));
        };
        let (input, gradient) = (self.unpack(py, parcel)?, self.unpack(py, gradient)?);
        let made =
            function.call1(py, (stage, microbatch, input, backward_stage, backward_microbatch, gradient))?;
        let two =
            made.extract::<Vec<Py<PyAny>>>(py).ok().and_then(|two| <[Py<PyAny>; 2]>::try_from(two).ok());
        let [output, gradient] = two.ok_or_else(|| {
            UsageError::new_err(format!(
                "forward_backward returned a {}; it returns the forward's output and the backward's gradient, two \
                 values",
                made.bind(py).get_type()
            ))
        })?;
        Ok((self.pack(output.bind(py), f)?, self.pack(gradient.bind(py), b)?))
    }
}

impl PyCallables {
    fn one(&self, py: Python<'_>, action: Action, parcel: Taken<'_, '_>) -> PyResult<Option<PyParcel>> {
        let (stage, microbatch) = (action.stage, action.microbatch);
        let input = self.unpack(py, parcel)?;
        if action.kind == Kind::B && self.backward.is_none() {
            let gradient = self.function(Kind::I, stage)?.call1(py, (stage, microbatch, input))?;
            self.function(Kind::W, stage)?.call1(py, (stage, microbatch))?;
            return self.pack(gradient.bind(py), action);
        }
        let made = self.function(action.kind, stage)?.call1(py, (stage, microbatch, input))?;
        self.pack(made.bind(py), action)
    }

    fn function(&self, kind: Kind, stage: Stage) -> PyResult<&Py<PyAny>> {
        let (name, function) = match kind {
            Kind::F => return Ok(&self.forward),
            Kind::B => ("backward", &self.backward),
            Kind::I => ("backward_input", &self.backward_input),
            Kind::W => ("backward_weight", &self.backward_weight),
        };
        let missing = || UsageError::new_err(format!("stage {stage} needs {name}=, which was not given"));
        function.as_ref().ok_or_else(missing)
    }

    fn unpack(&self, py: Python<'_>, parcel: Taken<'_, '_>) -> PyResult<Py<PyAny>> {
        let Some(parcel) = parcel else { return Ok(py.None()) };
        let parcel = parcel.get();
        let from_dlpack = self.from_dlpack.as_ref().or(parcel.from_dlpack.as_ref());
        let one = |(index, array): (usize, &Option<Py<PyArray>>)| {
            let Some(array) = array else { return Ok(py.None()) };
            let Some(from_dlpack) = from_dlpack else { return Ok(array.clone_ref(py).into_any()) };
            let array = from_dlpack.call1(py, (array.clone_ref(py),))?;
            match parcel.requires_grad >> index & 1 {
                0 => Ok(array),
                _ => array.call_method1(py, "requires_grad_", (true,)),
            }
        };
        if parcel.single {
            return one((0, &parcel.arrays[0]));
        }
        let arrays = parcel.arrays.iter().enumerate().map(one).collect::<PyResult<Vec<_>>>()?;
        Ok(PyTuple::new(py, arrays)?.into_any().unbind())
    }

    /// What an action made, where another stage takes it.
    fn pack(&self, value: &Bound<'_, PyAny>, action: Action) -> PyResult<Option<PyParcel>> {
        let end = if action.kind == Kind::F { self.last_stage } else { 0 };
        if action.stage == end || value.is_none() {
            return Ok(None);
        }
        let py = value.py();
        let what = || action.made_in_words();
        let several = value.is_instance_of::<PyTuple>() || value.is_instance_of::<PyList>();
        let mut values: Vec<Bound<'_, PyAny>> = if several { value.extract()? } else { vec![value.clone()] };
        let requires_grad = self.take_grads(&mut values)?;
        let import_one = |value: &Bound<'_, PyAny>| match value.is_none() {
            true => Ok(None),
            false => {
                let stream = OnStream(self.stream());
                let stream: Option<&dyn DlpackStream> =
                    (self.device.device_type == DLDeviceType::CUDA).then_some(&stream);
                import(value, self.device, stream, &what).map(|array| Some(Arc::new(array)))
            }
        };
        let parcel = Parcel {
            arrays: values.iter().map(import_one).collect::<PyResult<_>>()?,
            single: !several,
            requires_grad,
        };
        let first = values.iter().find(|value| !value.is_none());
        let from_dlpack = match (&self.from_dlpack, first) {
            (None, Some(array)) => library_of(array)?,
            _ => None,
        };
        PyParcel::new(py, parcel, from_dlpack, PyArray::new).map(Some)
    }

    /// Takes tensors of torch out of their graphs; which of them required grad.
    fn take_grads(&self, values: &mut [Bound<'_, PyAny>]) -> PyResult<u64> {
        if !self.grad {
            return Ok(0);
        }
        if values.len() > 64 {
            let count = values.len();
            return Err(UsageError::new_err(format!(
                "a stage hands over {count} tensors; at most 64 can be"
            )));
        }
        let mut required = 0;
        for (index, value) in values.iter_mut().enumerate().filter(|(_, value)| !value.is_none()) {
            if value.getattr("requires_grad")?.is_truthy()? {
                required |= 1 << index;
                *value = value.call_method0("detach")?;
            }
        }
        Ok(required)
    }

    pub fn stream(&self) -> u64 {
        self.stream.load(Ordering::Relaxed)
    }
}

#[cfg(feature = "cuda")]
impl PyCallables {
    /// Computes a slot on a GPU.
    pub fn compute(
        &self,
        py: Python<'_>,
        slot: Slot,
        inputs: Values<Parcel>,
        compute: &Arc<Stream>,
    ) -> PyResult<Values<Parcel>> {
        // What has come is good for what `compute` is given from now on.
        let array = |array| PyArray::on_device(array, compute.clone());
        let given = inputs.map(|parcel| {
            parcel.map(|parcel| Bound::new(py, PyParcel::new(py, parcel, None, array)?)).transpose()
        });
        let [first, second] = given;
        let (first, second) = (first?, second?);
        let made = match slot {
            Slot::One(action) => (self.one(py, action, first.as_ref())?, None),
            Slot::Pair(f, b) => self.forward_backward(
                py,
                f.stage,
                f.microbatch,
                first.as_ref(),
                b.stage,
                b.microbatch,
                second.as_ref(),
            )?,
        };
        Ok([made.0.map(PyParcel::into_parcel), made.1.map(PyParcel::into_parcel)])
    }
}

/// The stream on which a tensor of another library is to be ready.
struct OnStream(u64);

// SAFETY: the caller of the step has vouched that the handle is a stream of its device.
unsafe impl DlpackStream for OnStream {
    fn as_python_arg(&self, _: Python<'_>, _: DLDevice) -> PyResult<StreamArg> {
        Ok(dlpark::python::consumer::stream::cuda(self.0 as *mut c_void))
    }
}

impl PyParcel {
    /// `array` makes each an array of Python's.
    fn new(
        py: Python<'_>,
        parcel: Parcel,
        from_dlpack: Option<Py<PyAny>>,
        array: impl Fn(Arc<Array>) -> PyArray,
    ) -> PyResult<PyParcel> {
        let one = |given: Option<Arc<Array>>| given.map(|given| Py::new(py, array(given))).transpose();
        let arrays = parcel.arrays.into_iter().map(one).collect::<PyResult<_>>()?;
        Ok(PyParcel {
            arrays,
            single: parcel.single,
            requires_grad: parcel.requires_grad,
            from_dlpack,
        })
    }

    #[cfg(feature = "cuda")]
    fn into_parcel(self) -> Parcel {
        let arrays = self.arrays.into_iter().map(|array| array.map(|array| array.get().array.clone()));
        Parcel {
            arrays: arrays.collect(),
            single: self.single,
            requires_grad: self.requires_grad,
        }
    }
}

/// `from_dlpack` of the library whose class an array is of, if it has one: NumPy, PyTorch, CuPy, and JAX by its own
/// way.
fn library_of(array: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
    let py = array.py();
    let Ok(module) = array.get_type().module() else { return Ok(None) };
    let module = module.to_string();
    let root = module.split('.').next().unwrap_or_default();
    let name = if root == "jaxlib" { "jax.dlpack" } else { root };
    let modules = py.import("sys")?.getattr("modules")?;
    let Ok(library) = modules.get_item(name) else { return Ok(None) };
    Ok(library.getattr_opt("from_dlpack")?.map(Bound::unbind))
}
