//! What of CUDA is here, for Python. Every call that may load a library lets other threads run.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::{DeviceError as PyDeviceError, UsageError};
use crate::cuda::diagnose::{self, DeviceFound, Diagnosis, DriverFound, NcclFound};
use crate::cuda::error::DeviceError;
use crate::cuda::nccl::{Communicator, Config, Progress, UniqueId, library};

impl From<DeviceError> for PyErr {
    fn from(error: DeviceError) -> PyErr {
        match error {
            DeviceError::Usage(words) => UsageError::new_err(words),
            error => PyDeviceError::new_err(error.to_string()),
        }
    }
}

/// What was found of CUDA, what was not and why, and what to do about it.
#[pyclass(frozen, name = "Diagnosis", module = "dualpipe_rs.cuda")]
pub struct PyDiagnosis(Diagnosis);

#[pymethods]
impl PyDiagnosis {
    /// NVIDIA's driver.
    #[getter]
    fn driver(&self) -> PyDriver {
        PyDriver(self.0.driver.clone())
    }

    /// The devices that the driver shows, in its order.
    #[getter]
    fn devices(&self) -> Vec<PyDevice> {
        self.0.devices.iter().cloned().map(PyDevice).collect()
    }

    /// NVIDIA's library of sends and receives between devices.
    #[getter]
    fn nccl(&self) -> PyNccl {
        PyNccl(self.0.nccl.clone())
    }

    /// What to install or to look at, a sentence each; empty if nothing is missing.
    #[getter]
    fn advice(&self) -> Vec<String> {
        self.0.advice.clone()
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }
}

/// NVIDIA's driver library, as found.
#[pyclass(frozen, name = "Driver", module = "dualpipe_rs.cuda")]
pub struct PyDriver(DriverFound);

#[pymethods]
impl PyDriver {
    /// The library's file, or None.
    #[getter]
    fn path(&self) -> Option<String> {
        self.0.path.clone()
    }

    /// The CUDA version that it supports, such as ``(12, 4)``, or None.
    #[getter]
    fn version(&self) -> Option<(i32, i32)> {
        self.0.version
    }

    /// Why it is not usable, as a sentence; None if it is.
    #[getter]
    fn reason(&self) -> Option<String> {
        self.0.error.as_ref().map(ToString::to_string)
    }

    /// The functions that are needed and that it lacks.
    #[getter]
    fn missing_symbols(&self) -> Vec<&'static str> {
        missing(self.0.error.as_ref())
    }
}

/// A device that the driver shows.
#[pyclass(frozen, name = "Device", module = "dualpipe_rs.cuda")]
pub struct PyDevice(DeviceFound);

#[pymethods]
impl PyDevice {
    /// The driver's number for it.
    #[getter]
    fn index(&self) -> i32 {
        self.0.index
    }

    /// Such as ``"NVIDIA H100 80GB HBM3"``.
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    /// Such as ``(9, 0)``.
    #[getter]
    fn compute_capability(&self) -> (i32, i32) {
        self.0.compute_capability
    }

    /// Whether memory can be allocated in a stream's order.
    #[getter]
    fn memory_pools(&self) -> bool {
        self.0.memory_pools
    }

    /// As ``nvidia-smi -L`` writes it.
    #[getter]
    fn uuid(&self) -> &str {
        &self.0.uuid
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }
}

/// NCCL, as found.
#[pyclass(frozen, name = "Nccl", module = "dualpipe_rs.cuda")]
pub struct PyNccl(NcclFound);

#[pymethods]
impl PyNccl {
    /// The library's file, or None.
    #[getter]
    fn path(&self) -> Option<String> {
        self.0.path.clone()
    }

    /// Such as ``(2, 27, 3)``, or None.
    #[getter]
    fn version(&self) -> Option<(i32, i32, i32)> {
        self.0.version
    }

    /// Why it is not usable, as a sentence; None if it is.
    #[getter]
    fn reason(&self) -> Option<String> {
        self.0.error.as_ref().map(ToString::to_string)
    }

    /// Where it was looked for in vain, and why each place would not do.
    #[getter]
    fn looked(&self) -> Vec<String> {
        match &self.0.error {
            Some(DeviceError::NotFound { looked, .. }) => looked.clone(),
            _ => Vec::new(),
        }
    }

    /// The functions that are needed and that the library found lacks.
    #[getter]
    fn missing_symbols(&self) -> Vec<&'static str> {
        missing(self.0.error.as_ref())
    }
}

fn missing(error: Option<&DeviceError>) -> Vec<&'static str> {
    match error {
        Some(DeviceError::MissingSymbols { symbols, .. }) => symbols.clone(),
        _ => Vec::new(),
    }
}

/// Whether there is a driver that works and a device.
#[pyfunction]
pub fn cuda_is_available(py: Python<'_>) -> bool {
    py.detach(diagnose::is_available)
}

/// Everything found; loads NCCL if it is there.
#[pyfunction]
pub fn cuda_diagnosis(py: Python<'_>) -> PyDiagnosis {
    PyDiagnosis(py.detach(diagnose::diagnose))
}

/// Folders of installed packages in which NCCL may lie.
#[pyfunction]
pub fn nccl_look_in(folders: Vec<PathBuf>) {
    library::look_in(folders);
}

/// An id for communicators to meet by: 128 bytes.
#[pyfunction]
pub fn nccl_unique_id(py: Python<'_>) -> PyResult<Bound<'_, PyBytes>> {
    let id = py.detach(UniqueId::new)?;
    Ok(PyBytes::new(py, &id.0))
}

/// Starts a communicator on the current device and ends it: whether NCCL works here, and between ranks.
#[pyfunction]
pub fn nccl_try(py: Python<'_>, unique_id: &[u8], size: i32, rank: i32, timeout: f64) -> PyResult<()> {
    let words = |_| UsageError::new_err(format!("unique_id has {} bytes; it has 128", unique_id.len()));
    let id = UniqueId(unique_id.try_into().map_err(words)?);
    let timeout = Duration::try_from_secs_f64(timeout).map_err(|_| {
        UsageError::new_err(format!("timeout is {timeout}; it is a number of seconds from 0"))
    })?;
    py.detach(|| start_and_end(&id, size, rank, timeout))?;
    Ok(())
}

fn start_and_end(id: &UniqueId, size: i32, rank: i32, timeout: Duration) -> Result<(), DeviceError> {
    let begun = Instant::now();
    let wait = |communicator: &Communicator, what: &str| {
        while communicator.poll()? == Progress::InProgress {
            if begun.elapsed() > timeout {
                return Err(DeviceError::Deadline { what: what.to_string(), limit: timeout });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    let mut communicator = Communicator::start(id, size, rank, &Config::default())?;
    wait(&communicator, "starting a communicator")?;
    communicator.finalize()?;
    wait(&communicator, "ending a communicator")?;
    communicator.destroy()
}
