//! `Costs`.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyIterator, PyString};

use super::errors::UsageError;
use crate::costs::{Costs, PerStage};

/// What an action, a pair and a hop cost, in a unit of time of your own.
///
/// `forward`, `backward_input`, `backward_weight` (default 1) and `backward` (a full backward; default I + W)
/// are numbers, or sequences of one number a stage. `overlap` is the cost of a fused pair (default F + B
/// of its two stages: nothing gained), `p2p` of one hop between ranks. UsageError for a negative, infinite
/// or NaN cost.
#[pyclass(frozen, eq, name = "Costs", module = "dualpipe_rs")]
#[derive(PartialEq)]
pub struct PyCosts(pub Costs);

#[pymethods]
impl PyCosts {
    #[new]
    #[pyo3(signature = (forward = None, backward_input = None, backward_weight = None, *, backward = None, overlap = None, p2p = None))]
    fn new(
        forward: Option<&Bound<'_, PyAny>>,
        backward_input: Option<&Bound<'_, PyAny>>,
        backward_weight: Option<&Bound<'_, PyAny>>,
        backward: Option<&Bound<'_, PyAny>>,
        overlap: Option<&Bound<'_, PyAny>>,
        p2p: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let unit = PerStage::Uniform(1.0);
        let costs = Costs {
            forward: per_stage("forward", forward)?.unwrap_or(unit.clone()),
            backward_input: per_stage("backward_input", backward_input)?.unwrap_or(unit.clone()),
            backward_weight: per_stage("backward_weight", backward_weight)?.unwrap_or(unit),
            backward: per_stage("backward", backward)?,
            overlap: overlap.map(|cost| one_number("overlap", cost)).transpose()?,
            p2p: p2p.map_or(Ok(0.0), |cost| one_number("p2p", cost))?,
        };
        costs.check()?;
        Ok(PyCosts(costs))
    }

    #[getter]
    fn forward<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.0.forward)
    }

    #[getter]
    fn backward_input<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.0.backward_input)
    }

    #[getter]
    fn backward_weight<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.0.backward_weight)
    }

    #[getter]
    fn backward<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.backward.as_ref().map(|cost| given(py, cost)).transpose()
    }

    #[getter]
    fn overlap(&self) -> Option<f64> {
        self.0.overlap
    }

    #[getter]
    fn p2p(&self) -> f64 {
        self.0.p2p
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let show = |cost: &PerStage| given(py, cost)?.repr().map(|text| text.to_string());
        let optional = |cost: &Option<PerStage>| cost.as_ref().map_or(Ok("None".to_string()), show);
        Ok(format!(
            "Costs(forward={}, backward_input={}, backward_weight={}, backward={}, overlap={}, p2p={})",
            show(&self.0.forward)?,
            show(&self.0.backward_input)?,
            show(&self.0.backward_weight)?,
            optional(&self.0.backward)?,
            self.0.overlap.map_or("None".to_string(), |overlap| overlap.to_string()),
            self.0.p2p
        ))
    }
}

pub fn one_number(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let refused = |_| match value.repr() {
        Ok(shown) => UsageError::new_err(format!("{name} is {shown}; it is a number")),
        Err(error) => error,
    };
    value.extract().map_err(refused)
}

fn per_stage(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<PerStage>> {
    let Some(value) = value else { return Ok(None) };
    match one_or_each(value) {
        Some(cost) => Ok(Some(cost)),
        None => Err(UsageError::new_err(format!(
            "{name} is {}; a cost is a number, or a sequence of one number a stage",
            value.repr()?
        ))),
    }
}

/// A number, or a sequence (list, tuple, numpy array, ...) of numbers; `None` for all else.
pub fn one_or_each(value: &Bound<'_, PyAny>) -> Option<PerStage> {
    if let Ok(number) = value.extract::<f64>() {
        return Some(PerStage::Uniform(number));
    }
    let numbers = items(value)?.map(|item| item?.extract::<f64>());
    numbers.collect::<PyResult<Vec<f64>>>().ok().map(PerStage::Each)
}

/// What a sequence holds; `None` for what is none. An iterator is none: it has no length, and may have no end.
pub fn items<'py>(value: &Bound<'py, PyAny>) -> Option<Bound<'py, PyIterator>> {
    let sequence = !value.is_instance_of::<PyString>()
        && !value.is_instance_of::<PyBytes>()
        && !value.is_instance_of::<PyDict>();
    if !sequence {
        return None;
    }
    value.len().ok()?;
    value.try_iter().ok()
}

pub fn given<'py>(py: Python<'py>, cost: &PerStage) -> PyResult<Bound<'py, PyAny>> {
    match cost {
        PerStage::Uniform(cost) => Ok(cost.into_pyobject(py)?.into_any()),
        PerStage::Each(costs) => costs.into_pyobject(py),
    }
}
