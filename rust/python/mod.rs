//! The extension module `dualpipe_rs._core`: classes and functions that convert and do nothing else.

use pyo3::prelude::*;

mod array;
mod callables;
mod cards;
mod components;
mod costs;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod device;
mod errors;
mod formula;
mod local_group;
mod many;
mod numbers;
mod picture;
mod program;
mod records;
mod remote;
#[cfg(feature = "cuda")]
mod remote_device;
mod schedule;
mod timeline;
mod worker;

#[pymodule]
#[pyo3(name = "_core")]
mod core_module {
    #[pymodule_export]
    use super::array::PyArray;
    #[pymodule_export]
    use super::callables::{PyCallables, PyParcel};
    #[pymodule_export]
    use super::components::PyComponents;
    #[pymodule_export]
    use super::costs::PyCosts;
    #[cfg(feature = "cuda")]
    #[pymodule_export]
    use super::cuda::{
        PyDevice, PyDiagnosis, PyDriver, PyNccl, cuda_diagnosis, cuda_is_available, nccl_look_in, nccl_try,
        nccl_unique_id,
    };
    #[cfg(feature = "cuda")]
    #[pymodule_export]
    use super::device::{PyDeviceRank, PyDeviceShared, communicators};
    #[pymodule_export]
    use super::formula::{PyFigure, PyFormula, formula};
    #[pymodule_export]
    use super::local_group::{PyLocalGroup, local_groups, run_ranks};
    #[pymodule_export]
    use super::many::{jitter, simulate_many};
    #[pymodule_export]
    use super::picture::PyPicture;
    #[pymodule_export]
    use super::program::PyProgram;
    #[pymodule_export]
    use super::remote::{fingerprint, measured_timeline, row_lengths, run_rank};
    #[cfg(feature = "cuda")]
    #[pymodule_export]
    use super::remote_device::run_rank_on;
    #[pymodule_export]
    use super::schedule::{PySchedule, schedule, schedule_names};
    #[pymodule_export]
    use super::timeline::PyTimeline;
}
