//! `Array`: DLPack in and out.

use std::sync::Arc;

use dlpark::ffi::{DLDevice, DLDeviceType, DLManagedTensor, DLManagedTensorVersioned};
#[cfg(feature = "cuda")]
use dlpark::python::CudaStreamRequest;
use dlpark::python::{DlpackExporter, DlpackStream, ExportRequest, ImportRequest, export_dlpack};
use dlpark::{DlpackFlags, Managed};
use pyo3::exceptions::{PyBufferError, PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use super::errors::UsageError;
#[cfg(feature = "cuda")]
use super::errors::device_error;
use crate::array::{Array, DeviceName, Layout};
#[cfg(feature = "cuda")]
use crate::cuda::driver::Stream;

/// An array that has come from another stage, as DLPack gives it on: `numpy.from_dlpack(array)`,
/// `torch.from_dlpack(array)` and the like take it without a copy.
#[pyclass(frozen, name = "Array", module = "dualpipe_rs")]
pub struct PyArray {
    pub array: Arc<Array>,
    /// On a GPU: the stream on which it can be used.
    #[cfg(feature = "cuda")]
    home: Option<Arc<Stream>>,
}

impl PyArray {
    /// An array that is ready.
    pub fn new(array: Arc<Array>) -> PyArray {
        PyArray {
            array,
            #[cfg(feature = "cuda")]
            home: None,
        }
    }

    /// An array that is ready for what is given to `home` from now on.
    #[cfg(feature = "cuda")]
    pub fn on_device(array: Arc<Array>, home: Arc<Stream>) -> PyArray {
        PyArray { array, home: Some(home) }
    }

    /// Has the stream of a consumer wait where it is another than the one on which the array is ready.
    #[cfg(feature = "cuda")]
    fn order(&self, request: &ExportRequest<'_>) -> PyResult<()> {
        let Some(home) = &self.home else { return Ok(()) };
        let consumer = match request.cuda_stream()? {
            CudaStreamRequest::NoSync => return Ok(()),
            // Who names no stream uses the legacy default one.
            CudaStreamRequest::Omitted | CudaStreamRequest::LegacyDefault => 1,
            CudaStreamRequest::PerThreadDefault => 2,
            CudaStreamRequest::Pointer(pointer) => pointer as u64,
        };
        if consumer == home.raw() as u64 || (consumer == 1 && home.raw().is_null()) {
            return Ok(());
        }
        // SAFETY: the consumer's own stream, on this device, used during this call alone.
        let consumer = unsafe { Stream::borrowed(home.device(), consumer) };
        home.record().and_then(|event| consumer.wait(&event)).map_err(device_error)
    }
}

#[pymethods]
impl PyArray {
    /// Its sizes by dimension.
    #[getter]
    fn shape(&self) -> Vec<i64> {
        self.array.layout.shape.clone()
    }

    /// A DLPack capsule, legacy or (from `max_version` 1.0) versioned. BufferError where `dl_device` or `copy` ask
    /// for anything but this memory as it is.
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__(
        &self,
        py: Python<'_>,
        stream: Option<&Bound<'_, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(u32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        export_dlpack(self, py, ExportRequest::parse(stream, max_version, dl_device, copy)?)
    }

    /// DLPack's number of the device's type, and the device's own.
    fn __dlpack_device__(&self) -> (u32, i32) {
        let DLDevice { device_type, device_id } = self.array.device;
        (device_type.0, device_id)
    }

    fn __repr__(&self) -> String {
        format!("<Array {} on {}>", self.array.layout, DeviceName(self.array.device))
    }
}

impl DlpackExporter for PyArray {
    fn device(&self) -> DLDevice {
        self.array.device
    }

    fn flags(&self) -> DlpackFlags {
        self.array.flags()
    }

    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "memory of the host is ready"))]
    fn prepare_export(&self, _: Python<'_>, request: &ExportRequest<'_>) -> PyResult<()> {
        #[cfg(feature = "cuda")]
        self.order(request)?;
        Ok(())
    }

    fn export_legacy(&self, _: Python<'_>) -> PyResult<Managed<DLManagedTensor>> {
        self.array.clone().header().map_err(|error| PyBufferError::new_err(error.to_string()))
    }

    fn export_versioned(&self, _: Python<'_>) -> PyResult<Managed<DLManagedTensorVersioned>> {
        self.array.clone().header().map_err(|error| PyBufferError::new_err(error.to_string()))
    }
}

/// Takes an array of any library, or a capsule. `what` says in words what it is, for errors.
pub fn import(
    value: &Bound<'_, PyAny>,
    device: DLDevice,
    stream: Option<&dyn DlpackStream>,
    what: &dyn Fn() -> String,
) -> PyResult<Array> {
    let py = value.py();
    let wrong = |why: String| UsageError::new_err(format!("{} {why}", what()));
    // PyTorch's fast way gives such a tensor away without its graph, and says nothing.
    let requires_grad = value.getattr_opt("requires_grad")?.map(|flag| flag.is_truthy()).transpose()?;
    if requires_grad == Some(true) {
        return Err(wrong(
            "requires grad, and no graph reaches from rank to rank; hand over .detach() of it".into(),
        ));
    }
    if !value.is_instance_of::<PyCapsule>() && !value.hasattr("__dlpack__")? {
        return Err(wrong(format!(
            "is a {}, which DLPack cannot hand over; give an array of NumPy, PyTorch, CuPy, JAX or the like, or a \
             tuple of such",
            value.get_type().qualname()?
        )));
    }
    let unread = |error: PyErr| {
        // Ctrl-C and the like go through as they are.
        if !error.is_instance_of::<PyException>(py) {
            return error;
        }
        // What follows the first line is, with PyTorch, where in its sources it was.
        let said = error.to_string();
        let said = said.lines().next().unwrap_or_default();
        let wrapped = wrong(format!("cannot be handed over by DLPack: {said}"));
        wrapped.set_cause(py, Some(error));
        wrapped
    };
    let request = ImportRequest::new(value.as_borrowed()).map_err(unread)?;
    let known = request.device().ok();
    let elsewhere =
        |found| wrong(format!("is on {}; the executor works on {}", DeviceName(found), DeviceName(device)));
    if let Some(found) = known.filter(|found| !is_same(*found, device)) {
        return Err(elsewhere(found));
    }
    // A capsule, or a producer that negotiates nothing, cannot be told of a stream.
    let stream = stream.filter(|_| known.is_some());
    let imported = match request.import(stream, None) {
        Err(error) if error.is_instance_of::<PyTypeError>(py) && stream.is_none() => {
            // A producer of the first version of the protocol takes no arguments.
            let capsule = value.call_method0("__dlpack__").map_err(|_| unread(error))?;
            ImportRequest::new(capsule.as_borrowed()).and_then(|request| request.import(None, None))
        }
        imported => imported,
    };
    let imported = imported.map_err(unread)?;
    let read_only = imported.flags().contains(DlpackFlags::READ_ONLY);
    let (layout, found, data) = {
        let tensor =
            imported.validate().map_err(|error| wrong(format!("is no valid DLPack tensor: {error}")))?;
        let strides = tensor.strides_or_compact();
        let layout = Layout {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            strides: strides.map_err(|error| wrong(format!("has impossible sizes: {error}")))?.into_owned(),
        };
        (layout, tensor.device(), (tensor.data_ptr() as u64).wrapping_add(tensor.byte_offset()))
    };
    if !is_same(found, device) {
        return Err(elsewhere(found));
    }
    if layout.bytes().is_none() {
        return Err(wrong(format!("has impossible sizes: {layout}")));
    }
    // SAFETY: the producer vouches for its tensor until the deleter is called, which the owner does.
    Ok(unsafe { Array::new(layout, device, read_only, data, imported.into_deleter()) })
}

/// The host's memory is one device, whatever its number.
fn is_same(one: DLDevice, other: DLDevice) -> bool {
    one == other || (one.device_type == DLDeviceType::CPU && other.device_type == DLDeviceType::CPU)
}
