//! `Formula` and `Figure`, and the function that finds a formula by name.

use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::costs::PyCosts;
use super::errors::count;
use super::schedule::family_option;
use crate::error::Error;
use crate::formula::{Figure, Formula, Quantity, Simulated, find};

/// The published closed forms of one family of schedules: what `dualpipe_rs.formula(name)` gives.
///
/// Each method takes the sizes and options of `dualpipe_rs.schedule` and Costs (default: `Costs()`), and gives
/// a Figure. UsageError for sizes, options or costs that the schedule would refuse, or a quantity without a form.
/// F, I, W and B in the forms are what an action of one *stage* costs.
#[pyclass(frozen, name = "Formula", module = "dualpipe_rs")]
pub struct PyFormula(&'static Formula);

#[pymethods]
impl PyFormula {
    /// The family's name, such as `"dualpipe"`.
    #[getter]
    fn name(&self) -> &'static str {
        self.0.family
    }

    /// The names of the methods that this family has a form for.
    #[getter]
    fn quantities(&self) -> Vec<&'static str> {
        self.0.quantities().collect()
    }

    /// Where the forms are published, and which part of them is derived and tested here.
    #[getter]
    fn source(&self) -> &'static str {
        self.0.source
    }

    /// The idle time of the most idle rank, in the unit of the costs: the makespan less that rank's busy time.
    /// For zb-h2 and zb-v as their papers count it: a rank's own span less its busy time.
    /// `Figure.quantity` says which.
    #[pyo3(signature = (num_ranks, num_microbatches, costs = None, **options))]
    fn bubble(
        &self,
        py: Python<'_>,
        num_ranks: &Bound<'_, PyAny>,
        num_microbatches: &Bound<'_, PyAny>,
        costs: Option<&PyCosts>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyFigure> {
        self.figure(py, Quantity::Idle, (num_ranks, num_microbatches), costs, options)
    }

    /// Last end minus first start over all ranks, in the unit of the costs.
    #[pyo3(signature = (num_ranks, num_microbatches, costs = None, **options))]
    fn makespan(
        &self,
        py: Python<'_>,
        num_ranks: &Bound<'_, PyAny>,
        num_microbatches: &Bound<'_, PyAny>,
        costs: Option<&PyCosts>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyFigure> {
        self.figure(py, Quantity::Makespan, (num_ranks, num_microbatches), costs, options)
    }

    /// The longest single rank's own last end minus its first start, in the unit of the costs.
    #[pyo3(signature = (num_ranks, num_microbatches, costs = None, **options))]
    fn span(
        &self,
        py: Python<'_>,
        num_ranks: &Bound<'_, PyAny>,
        num_microbatches: &Bound<'_, PyAny>,
        costs: Option<&PyCosts>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyFigure> {
        self.figure(py, Quantity::Span, (num_ranks, num_microbatches), costs, options)
    }

    /// The most (stage, microbatch) that any rank holds at once; costs do not matter.
    #[pyo3(signature = (num_ranks, num_microbatches, costs = None, **options))]
    fn peak_activations(
        &self,
        py: Python<'_>,
        num_ranks: &Bound<'_, PyAny>,
        num_microbatches: &Bound<'_, PyAny>,
        costs: Option<&PyCosts>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyFigure> {
        self.figure(py, Quantity::PeakActivations, (num_ranks, num_microbatches), costs, options)
    }

    fn __repr__(&self) -> String {
        let quantities = self.0.quantities().collect::<Vec<_>>().join(", ");
        format!("<Formula {}: {quantities}; {}>", self.0.family, self.0.source)
    }
}

impl PyFormula {
    fn figure(
        &self,
        py: Python<'_>,
        quantity: Quantity,
        (ranks, microbatches): (&Bound<'_, PyAny>, &Bound<'_, PyAny>),
        costs: Option<&PyCosts>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyFigure> {
        let ranks = count("num_ranks", ranks)?;
        let microbatches = count("num_microbatches", microbatches)?;
        let option = family_option(self.0.schedules()?, options)?;
        let costs = costs.map(|costs| costs.0.clone()).unwrap_or_default();
        let figure = py.detach(|| self.0.figure(quantity, ranks, microbatches, option, costs))?;
        Ok(PyFigure { figure, simulated: OnceLock::new() })
    }
}

/// What a formula gives at some sizes and costs, and whether that is exact. `float(figure)` is its value.
#[pyclass(frozen, name = "Figure", module = "dualpipe_rs")]
pub struct PyFigure {
    figure: Figure,
    simulated: OnceLock<Result<Simulated, Error>>,
}

impl PyFigure {
    fn simulate(&self, py: Python<'_>) -> PyResult<Simulated> {
        let found = py.detach(|| self.simulated.get_or_init(|| self.figure.simulated()));
        Ok(found.clone()?)
    }
}

#[pymethods]
impl PyFigure {
    /// The value of the formula, in the unit of the costs (peak_activations: a count).
    #[getter]
    fn value(&self) -> f64 {
        self.figure.value()
    }

    /// Whether these sizes and costs are in the region in which the formula is exact.
    #[getter]
    fn exact(&self) -> bool {
        self.figure.exact()
    }

    /// The conditions of that region.
    #[getter]
    fn region(&self) -> String {
        self.figure.region()
    }

    /// The conditions that do not hold here, with the numbers; None where the formula is exact.
    #[getter]
    fn why(&self) -> Option<String> {
        self.figure.why()
    }

    /// What is counted, in words; of a bubble, how.
    #[getter]
    fn quantity(&self) -> &'static str {
        self.figure.quantity().words()
    }

    /// The formula, written out.
    #[getter]
    fn formula(&self) -> &'static str {
        self.figure.formula()
    }

    /// What the simulator gives for the same: the schedule generated, verified and simulated under eager P2P when
    /// this is first asked for.
    #[getter]
    fn simulated(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.simulate(py)?.value)
    }

    /// simulated - value: 0, up to rounding, where the formula is exact.
    #[getter]
    fn off(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.simulate(py)?.value - self.figure.value())
    }

    /// off / simulated makespan; 0 where nothing takes time. Of peak_activations: off / simulated.
    #[getter]
    fn relative_off(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.simulate(py)?.relative_off(&self.figure))
    }

    fn __float__(&self) -> f64 {
        self.figure.value()
    }

    fn __repr__(&self) -> String {
        format!("<Figure {}>", self.figure.describe())
    }
}

/// The published closed forms of a family, such as `formula("dualpipe").bubble(num_ranks=8, num_microbatches=20)`;
/// docs/formulas.md lists them. UsageError for an unknown name.
#[pyfunction]
pub fn formula(name: &str) -> PyResult<PyFormula> {
    Ok(PyFormula(find(name)?))
}
