//! `Components`.

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::errors::{UsageError, count};
use super::numbers::{given, items, one_number, one_or_each};
use super::records::{LaidRecord, find_numpy};
use crate::costs::Numbers;
use crate::overlap::{Alone, Components, Layout, MOST_LAYERS, Orders, Part, Stream, alone, pair};

/// How long each part of a stage's layers takes by itself, and from this how long a fused forward & backward
/// pair takes, where communication runs beside computation.
///
/// `attention` and `mlp` are (F, I, W), `dispatch` and `combine` (F, I): forward, backward for the input,
/// backward for the weights. Each is a number, or a sequence of one number a layer, in a unit of time of your own;
/// `layers` counts the layers (default the length of the sequences, or 1). `communication_order` and
/// `computation_order` say in which order each stream runs the parts of a fused layer: words such as
/// "combine I" or "mlp W", each part of the stream once (default DeepSeek's). While a communication runs,
/// computation takes `compute_slowdown` times as long. UsageError for a negative, infinite or NaN time,
/// sequences of different lengths, and orders in which parts are missing or wait for each other in a circle.
#[pyclass(frozen, eq, name = "Components", module = "dualpipe_rs")]
#[derive(PartialEq)]
pub struct PyComponents(pub Components);

#[pymethods]
impl PyComponents {
    #[new]
    #[pyo3(
        signature = (
            attention, dispatch, mlp, combine, *,
            layers = None, communication_order = None, computation_order = None, compute_slowdown = None,
        ),
        text_signature = "(attention, dispatch, mlp, combine, *, layers=None, communication_order=None, \
                          computation_order=None, compute_slowdown=1.0)"
    )]
    #[expect(clippy::too_many_arguments, reason = "the signature that Python sees")]
    fn new(
        attention: &Bound<'_, PyAny>,
        dispatch: &Bound<'_, PyAny>,
        mlp: &Bound<'_, PyAny>,
        combine: &Bound<'_, PyAny>,
        layers: Option<&Bound<'_, PyAny>>,
        communication_order: Option<&Bound<'_, PyAny>>,
        computation_order: Option<&Bound<'_, PyAny>>,
        compute_slowdown: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let [attention_f, attention_i, attention_w] = times("attention", ["F", "I", "W"], attention)?;
        let [dispatch_f, dispatch_i] = times("dispatch", ["F", "I"], dispatch)?;
        let [mlp_f, mlp_i, mlp_w] = times("mlp", ["F", "I", "W"], mlp)?;
        let [combine_f, combine_i] = times("combine", ["F", "I"], combine)?;
        // By `Part`.
        let times = [
            attention_f,
            attention_i,
            attention_w,
            dispatch_f,
            dispatch_i,
            mlp_f,
            mlp_i,
            mlp_w,
            combine_f,
            combine_i,
        ];
        let layers = layers.map(|layers| count("layers", layers)).transpose()?;
        let communication =
            communication_order.map(|order| words("communication_order", order)).transpose()?;
        let computation = computation_order.map(|order| words("computation_order", order)).transpose()?;
        let slowdown = compute_slowdown.map_or(Ok(1.0), |value| one_number("compute_slowdown", value))?;
        let orders = Orders::new(communication.as_deref(), computation.as_deref())?;
        Ok(PyComponents(Components::new(&times, layers, orders, slowdown)?))
    }

    /// How many layers the stage has.
    #[getter]
    fn layers(&self) -> usize {
        self.0.layers()
    }

    /// (F, I, W), each a number, or a list of one number a layer where they differ.
    #[getter]
    fn attention<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        self.given(py, &[Part::AttentionF, Part::AttentionI, Part::AttentionW])
    }

    /// (F, I), each a number, or a list of one number a layer where they differ.
    #[getter]
    fn dispatch<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        self.given(py, &[Part::DispatchF, Part::DispatchI])
    }

    /// (F, I, W), each a number, or a list of one number a layer where they differ.
    #[getter]
    fn mlp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        self.given(py, &[Part::MlpF, Part::MlpI, Part::MlpW])
    }

    /// (F, I), each a number, or a list of one number a layer where they differ.
    #[getter]
    fn combine<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        self.given(py, &[Part::CombineF, Part::CombineI])
    }

    /// In which order communication runs the parts of a fused layer.
    #[getter]
    fn communication_order(&self) -> Vec<&'static str> {
        self.0.orders().of(Stream::Communication).iter().map(|part| part.name()).collect()
    }

    /// In which order computation runs the parts of a fused layer.
    #[getter]
    fn computation_order(&self) -> Vec<&'static str> {
        self.0.orders().of(Stream::Computation).iter().map(|part| part.name()).collect()
    }

    /// How many times as long computation takes while a communication runs.
    #[getter]
    fn compute_slowdown(&self) -> f64 {
        self.0.slowdown()
    }

    /// The duration of the stage's forward by itself.
    #[getter]
    fn forward(&self, py: Python<'_>) -> f64 {
        py.detach(|| alone(&self.0, Alone::Forward).duration())
    }

    /// The duration of the stage's backward for the input by itself.
    #[getter]
    fn backward_input(&self, py: Python<'_>) -> f64 {
        py.detach(|| alone(&self.0, Alone::BackwardInput).duration())
    }

    /// The duration of the stage's backward for the weights by itself.
    #[getter]
    fn backward_weight(&self, py: Python<'_>) -> f64 {
        py.detach(|| alone(&self.0, Alone::BackwardWeight).duration())
    }

    /// The duration of the stage's full backward by itself, the weights' parts beside communication.
    #[getter]
    fn backward(&self, py: Python<'_>) -> f64 {
        py.detach(|| alone(&self.0, Alone::Backward).duration())
    }

    /// The duration of this stage's forward fused with the backward of `other` (default its own). The streams run
    /// in the order and at the slowdown of this stage.
    #[pyo3(signature = (other = None))]
    fn pair(&self, py: Python<'_>, other: Option<&PyComponents>) -> PyResult<f64> {
        Ok(self.layout(py, "pair", other)?.duration())
    }

    /// When each part runs, in a "pair" with `other` as `pair` takes it, or in a "forward", "backward_input",
    /// "backward_weight" or "backward" by itself: a structured array of stream ('computation' or
    /// 'communication'), layer (of its own stage), component, kind ('F', 'I', 'W'), start and end, sorted by start,
    /// then computation before communication, then as the stream runs them. UsageError for another word, or for an
    /// `other` where there is no pair.
    #[pyo3(signature = (what = "pair", other = None))]
    fn lay<'py>(
        &self,
        py: Python<'py>,
        what: &str,
        other: Option<&PyComponents>,
    ) -> PyResult<Bound<'py, PyArray1<LaidRecord>>> {
        find_numpy(py)?;
        let layout = self.layout(py, what, other)?;
        Ok(layout.parts().iter().map(LaidRecord::from).collect::<Vec<_>>().into_pyarray(py))
    }

    /// How long a communication runs with no computation beside it, in what `lay` takes.
    #[pyo3(signature = (what = "pair", other = None))]
    fn exposed(&self, py: Python<'_>, what: &str, other: Option<&PyComponents>) -> PyResult<f64> {
        Ok(self.layout(py, what, other)?.exposed())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!(
            "Components(attention={}, dispatch={}, mlp={}, combine={}, layers={}, communication_order={}, \
             computation_order={}, compute_slowdown={})",
            self.attention(py)?.repr()?,
            self.dispatch(py)?.repr()?,
            self.mlp(py)?.repr()?,
            self.combine(py)?.repr()?,
            self.layers(),
            self.communication_order().into_pyobject(py)?.repr()?,
            self.computation_order().into_pyobject(py)?.repr()?,
            self.compute_slowdown().into_pyobject(py)?.repr()?
        ))
    }

    /// Keyword-only arguments travel in a `functools.partial`.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let keywords = PyDict::new(py);
        keywords.set_item("layers", self.layers())?;
        keywords.set_item("communication_order", self.communication_order())?;
        keywords.set_item("computation_order", self.computation_order())?;
        keywords.set_item("compute_slowdown", self.compute_slowdown())?;
        let partial = py.import("functools")?.getattr("partial")?;
        let make = partial.call((py.get_type::<PyComponents>(),), Some(&keywords))?;
        let times = [self.attention(py)?, self.dispatch(py)?, self.mlp(py)?, self.combine(py)?];
        Ok((make, PyTuple::new(py, times)?))
    }
}

impl PyComponents {
    fn given<'py>(&self, py: Python<'py>, parts: &[Part]) -> PyResult<Bound<'py, PyTuple>> {
        let times = parts.iter().map(|&part| given(py, &self.0.times(part))).collect::<PyResult<Vec<_>>>()?;
        PyTuple::new(py, times)
    }

    fn layout(&self, py: Python<'_>, what: &str, other: Option<&PyComponents>) -> PyResult<Layout> {
        if what == "pair" {
            let backward = other.map_or(&self.0, |other| &other.0);
            return Ok(py.detach(|| pair(&self.0, backward)));
        }
        let Some(what) = Alone::ALL.into_iter().find(|alone| alone.name() == what) else {
            let names = Alone::ALL.map(Alone::name).join(", ");
            return Err(UsageError::new_err(format!(
                "what={what:?} is not known; it is one of pair, {names}"
            )));
        };
        if other.is_some() {
            let name = what.name();
            return Err(UsageError::new_err(format!("other belongs to what=\"pair\", not to {name:?}")));
        }
        Ok(py.detach(|| alone(&self.0, what)))
    }
}

/// The times of one component, by kind.
fn times<const N: usize>(name: &str, kinds: [&str; N], value: &Bound<'_, PyAny>) -> PyResult<[Numbers; N]> {
    let read = || {
        let three = items(value).filter(|_| value.len().is_ok_and(|len| len == N))?;
        let times: Vec<Numbers> = three.map(|time| one_or_each(&time.ok()?)).collect::<Option<_>>()?;
        times.try_into().ok()
    };
    let refused = |shown| {
        let kinds = kinds.join(", ");
        UsageError::new_err(format!(
            "{name} is {shown}; it is ({kinds}), each a number, or a sequence of one number a layer, at most \
             {MOST_LAYERS}"
        ))
    };
    match read() {
        Some(times) => Ok(times),
        None => Err(refused(value.repr()?)),
    }
}

/// The first few of a longer sequence: one of them stands in it twice, or is none of the words.
fn words(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    let read = |item: PyResult<Bound<'_, PyAny>>| item.ok()?.extract().ok();
    match items(value).and_then(|items| items.take(Part::COUNT + 1).map(read).collect()) {
        Some(words) => Ok(words),
        None => Err(UsageError::new_err(format!(
            "{name} is {}; it is a sequence of words such as \"combine I\" or \"mlp W\"",
            value.repr()?
        ))),
    }
}
