//! `Costs`.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::components::PyComponents;
use super::errors::{UsageError, positive};
use super::numbers::{given, given_table, numbers, one_number, some_items, table, three};
use super::timeline::PyTimeline;
use crate::costs::{Costs, MOST_STAGES, Numbers, Table};
use crate::fit::{Clock, fit};
use crate::overlap::Components;

/// What an action, a pair, a hop and the end of a step cost, in a unit of time of your own, and the bytes held.
///
/// `forward`, `backward_input`, `backward_weight` (default 1) and `backward` (a full backward; default I + W)
/// are numbers, or sequences of one number a stage. Where `backward` is given and neither I nor W is, each is
/// half of it. `overlap` is the cost of a fused pair (default F + B
/// of its two stages: nothing gained): a number, or a table by [stage of the forward][stage of the backward].
///
/// A tensor's way from a rank to another takes `p2p + p2p_bytes / p2p_bandwidth`, each a number or a table by
/// [from rank][to rank] (default 0, 0, and no limit). `first_extra` and `last_extra` are what the first stage
/// (embedding) and the last (head and loss) take beside the rest: (F, I, W). `gradient_exchange` is the exchange at
/// the end between the two ranks that hold the same stages (bidirectional placements alone), `optimizer` what
/// comes last: a number, or one a rank.
///
/// Each (stage, microbatch) holds `activation_bytes` from the start of its F to the end of its I or B, and
/// `weight_grad_bytes` from there to the end of its W; a stage has `parameter_bytes`: numbers, or one a stage.
///
/// UsageError for a negative, infinite or NaN cost. Costs compare by value and can be pickled.
#[pyclass(frozen, eq, name = "Costs", module = "dualpipe_rs")]
#[derive(PartialEq)]
pub struct PyCosts(pub Costs);

/// The names of the fields, each a keyword of the constructor and an attribute.
const FIELDS: [&str; 15] = [
    "forward",
    "backward_input",
    "backward_weight",
    "backward",
    "overlap",
    "p2p",
    "p2p_bytes",
    "p2p_bandwidth",
    "first_extra",
    "last_extra",
    "gradient_exchange",
    "optimizer",
    "activation_bytes",
    "weight_grad_bytes",
    "parameter_bytes",
];

#[pymethods]
impl PyCosts {
    #[new]
    #[pyo3(signature = (
        forward = None, backward_input = None, backward_weight = None, *, backward = None, overlap = None, p2p = None,
        p2p_bytes = None, p2p_bandwidth = None, first_extra = None, last_extra = None, gradient_exchange = None,
        optimizer = None, activation_bytes = None, weight_grad_bytes = None, parameter_bytes = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are the keywords that users type")]
    fn new(
        forward: Option<&Bound<'_, PyAny>>,
        backward_input: Option<&Bound<'_, PyAny>>,
        backward_weight: Option<&Bound<'_, PyAny>>,
        backward: Option<&Bound<'_, PyAny>>,
        overlap: Option<&Bound<'_, PyAny>>,
        p2p: Option<&Bound<'_, PyAny>>,
        p2p_bytes: Option<&Bound<'_, PyAny>>,
        p2p_bandwidth: Option<&Bound<'_, PyAny>>,
        first_extra: Option<&Bound<'_, PyAny>>,
        last_extra: Option<&Bound<'_, PyAny>>,
        gradient_exchange: Option<&Bound<'_, PyAny>>,
        optimizer: Option<&Bound<'_, PyAny>>,
        activation_bytes: Option<&Bound<'_, PyAny>>,
        weight_grad_bytes: Option<&Bound<'_, PyAny>>,
        parameter_bytes: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let unit = Costs::default();
        let exchange = gradient_exchange.map(|cost| one_number("gradient_exchange", cost)).transpose()?;
        let backward = numbers("backward", "stage", backward)?;
        // A profile often has F and B alone.
        let half = backward.as_ref().filter(|_| backward_input.is_none() && backward_weight.is_none());
        let half = half.map_or(Numbers::One(1.0), |backward| backward.scaled(0.5, None));
        let costs = Costs {
            forward: numbers("forward", "stage", forward)?.unwrap_or(unit.forward),
            backward_input: numbers("backward_input", "stage", backward_input)?.unwrap_or(half.clone()),
            backward_weight: numbers("backward_weight", "stage", backward_weight)?.unwrap_or(half),
            backward,
            overlap: table("overlap", "stage", overlap)?,
            p2p: table("p2p", "rank", p2p)?.unwrap_or(unit.p2p),
            p2p_bytes: table("p2p_bytes", "rank", p2p_bytes)?.unwrap_or(unit.p2p_bytes),
            p2p_bandwidth: table("p2p_bandwidth", "rank", p2p_bandwidth)?
                .filter(|limit| *limit != Table::One(f64::INFINITY)),
            first_extra: three("first_extra", first_extra)?.unwrap_or(unit.first_extra),
            last_extra: three("last_extra", last_extra)?.unwrap_or(unit.last_extra),
            gradient_exchange: exchange.unwrap_or(unit.gradient_exchange),
            optimizer: numbers("optimizer", "rank", optimizer)?.unwrap_or(unit.optimizer),
            activation_bytes: numbers("activation_bytes", "stage", activation_bytes)?
                .unwrap_or(unit.activation_bytes),
            weight_grad_bytes: numbers("weight_grad_bytes", "stage", weight_grad_bytes)?
                .unwrap_or(unit.weight_grad_bytes),
            parameter_bytes: numbers("parameter_bytes", "stage", parameter_bytes)?
                .unwrap_or(unit.parameter_bytes),
        };
        costs.check()?;
        Ok(PyCosts(costs))
    }

    /// F, by stage: a float, or a list of one a stage.
    #[getter]
    fn forward<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.0.forward)
    }

    /// I, by stage: a float, or a list of one a stage.
    #[getter]
    fn backward_input<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.0.backward_input)
    }

    /// W, by stage: a float, or a list of one a stage.
    #[getter]
    fn backward_weight<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.0.backward_weight)
    }

    /// B, by stage: a float, a list of one a stage, or None for I + W.
    #[getter]
    fn backward<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.backward.as_ref().map(|cost| given(py, cost)).transpose()
    }

    /// A fused pair: a float, a table by [stage of the forward][stage of the backward], or None for F + B.
    #[getter]
    fn overlap<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.overlap.as_ref().map(|table| given_table(py, table)).transpose()
    }

    /// A hop, without its bytes: a float, or a table by [from rank][to rank].
    #[getter]
    fn p2p<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given_table(py, &self.0.p2p)
    }

    /// The bytes of a tensor on its way: a float, or a table by [from rank][to rank].
    #[getter]
    fn p2p_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given_table(py, &self.0.p2p_bytes)
    }

    /// Bytes a unit of time: a float, a table by [from rank][to rank], or None for no limit.
    #[getter]
    fn p2p_bandwidth<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.p2p_bandwidth.as_ref().map(|table| given_table(py, table)).transpose()
    }

    /// What the first stage takes beside the rest: (F, I, W).
    #[getter]
    fn first_extra(&self) -> (f64, f64, f64) {
        self.0.first_extra.into()
    }

    /// What the last stage takes beside the rest: (F, I, W).
    #[getter]
    fn last_extra(&self) -> (f64, f64, f64) {
        self.0.last_extra.into()
    }

    /// The exchange of gradients between the two ranks that hold the same stages.
    #[getter]
    fn gradient_exchange(&self) -> f64 {
        self.0.gradient_exchange
    }

    /// The optimizer step: a float, or a list of one a rank.
    #[getter]
    fn optimizer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.0.optimizer)
    }

    /// Held from the start of F to the end of I or B, by stage: a float, or a list of one a stage.
    #[getter]
    fn activation_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.0.activation_bytes)
    }

    /// Held from the end of I to the end of W, by stage: a float, or a list of one a stage.
    #[getter]
    fn weight_grad_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.0.weight_grad_bytes)
    }

    /// Of a stage's parameters: a float, or a list of one a stage.
    #[getter]
    fn parameter_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        given(py, &self.0.parameter_bytes)
    }

    /// The same costs with some of them changed: `costs.replace(p2p=0.2)`. Takes the constructor's keywords.
    #[pyo3(signature = (**changes))]
    fn replace<'py>(
        this: &Bound<'py, Self>,
        changes: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let fields = PyCosts::fields(this)?;
        if let Some(changes) = changes {
            fields.update(changes.as_mapping())?;
        }
        this.get_type().call((), Some(&fields))
    }

    /// The costs of the same model where each stage is cut into `parts` equal ones, as `compare` takes them for
    /// schedules of several stages a rank: all that is by stage is divided by `parts` (and each number of a sequence
    /// stands `parts` times). Hops, extras and the end of the step stay as they are. UsageError for no parts, or
    /// more stages than there can be.
    fn cut(&self, parts: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(PyCosts(self.0.cut(positive("parts", parts, MOST_STAGES)?)?))
    }

    /// Costs fitted to a measured timeline (a pipeline's, after its step), in seconds: F, I, W and B by stage, fused
    /// pairs by stage pair, one hop for all edges, each the mean of what was measured; what runs between slots is in
    /// them. With `cpu_time=True` slots take the CPU time of their rank's thread, and hops nothing: for ranks that
    /// share cores; `Schedule.simulate(costs, cores=...)` then predicts them. The first step of a run is slower
    /// than the rest: fit a later one.
    ///
    /// The overhead of all ranks (gaps before slots that had all they needed), divided by the number of all slots, is
    /// added to the mean of every kind of slot.
    /// What a stage never did alone is taken from what is known: of a B that was never split, I and W have their
    /// share in other stages, or one half each; an F seen in pairs alone the mean of other stages'; a backward that
    /// never ran, I = W = F. UsageError for a predicted timeline.
    #[staticmethod]
    #[pyo3(signature = (timeline, *, cpu_time = false))]
    fn from_timeline(py: Python<'_>, timeline: &PyTimeline, cpu_time: bool) -> PyResult<Self> {
        let clock = if cpu_time { Clock::Cpu } else { Clock::Wall };
        Ok(PyCosts(py.detach(|| fit(&timeline.0, clock))?))
    }

    /// The costs of stages known by their Components: F, I, W and B by stage, and fused pairs by stage pair.
    ///
    /// `stages` is one Components for all stages, or a sequence of one a stage; all else (hops, extras, bytes, ...)
    /// is given by keyword, as to the constructor. UsageError for what is no Components.
    #[staticmethod]
    #[pyo3(signature = (stages, **rest))]
    fn from_components<'py>(
        py: Python<'py>,
        stages: &Bound<'py, PyAny>,
        rest: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let one = || stages.cast::<PyComponents>().map(|stage| vec![stage.get()]).ok();
        let each: Vec<Bound<'py, PyAny>> =
            some_items(stages).map_or(Ok(Vec::new()), |items| items.collect::<PyResult<_>>())?;
        let several =
            || each.iter().map(|stage| stage.cast::<PyComponents>().ok().map(|s| s.get())).collect();
        let Some(stages) = one().or_else(several).filter(|stages: &Vec<&PyComponents>| !stages.is_empty())
        else {
            return Err(UsageError::new_err(format!(
                "stages is {}; it is a Components, or a sequence of one Components a stage",
                stages.repr()?
            )));
        };
        let stages: Vec<&Components> = stages.into_iter().map(|stage| &stage.0).collect();
        let costs = Bound::new(py, PyCosts(py.detach(|| Costs::of_components(&stages))))?;
        PyCosts::replace(&costs, rest)
    }

    fn __getnewargs_ex__<'py>(
        this: &Bound<'py, Self>,
    ) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        Ok((PyTuple::empty(this.py()), PyCosts::fields(this)?))
    }

    /// All that is not as it would be by itself.
    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let unit = Bound::new(this.py(), PyCosts(Costs::default()))?;
        let mut words = Vec::new();
        for name in FIELDS {
            let value = this.getattr(name)?;
            if matches!(name, "forward" | "backward_input" | "backward_weight")
                || !value.eq(unit.getattr(name)?)?
            {
                words.push(format!("{name}={}", value.repr()?));
            }
        }
        Ok(format!("Costs({})", words.join(", ")))
    }
}

impl PyCosts {
    fn fields<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let fields = PyDict::new(this.py());
        FIELDS.iter().try_for_each(|name| fields.set_item(name, this.getattr(*name)?))?;
        Ok(fields)
    }
}
