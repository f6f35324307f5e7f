//! `Timeline`: numpy views of the spans, without a copy.

use numpy::ndarray::aview1;
use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use super::costs::PyCosts;
use super::errors::{self, UsageError};
use super::many::watched;
use super::picture;
use super::records::{ClosingRecord, TransferRecord, WaitRecord};
use crate::formats::{chrome, grid, perfetto};
use crate::simulate::{Change, sensitivity};
use crate::timeline::{CAUSES, Held, Span, Timeline};

/// When every action started and ended: predicted by `Schedule.simulate`, or measured by a pipeline's step.
///
/// Predicted times are in the unit of the costs, measured ones in seconds. `print` shows it as a grid.
#[pyclass(frozen, name = "Timeline", module = "dualpipe_rs")]
pub struct PyTimeline(pub Timeline);

impl PyTimeline {
    pub fn new(timeline: Timeline) -> Self {
        PyTimeline(timeline)
    }

    /// One value a slot as one a row of the spans.
    fn by_span(&self, slots: &[f64]) -> Vec<f64> {
        let rows = (0..self.0.ranks()).flat_map(|rank| self.0.slots(rank));
        let values = rows.zip(slots).flat_map(|((slot, _), &value)| slot.actions().map(move |_| value));
        values.collect()
    }

    /// A read-only array over memory that `this` owns.
    fn view<'py, T: Element>(this: &Bound<'py, Self>, data: &[T]) -> Bound<'py, PyArray1<T>> {
        // SAFETY: the timeline is frozen, so its vectors are neither changed nor moved while `this`,
        // the array's base object, is alive.
        let array = unsafe { PyArray1::borrow_from_array(&aview1(data), this.clone().into_any()) };
        array.readwrite().make_nonwriteable();
        array
    }
}

#[pymethods]
impl PyTimeline {
    /// How many ranks took part.
    #[getter]
    fn num_ranks(&self) -> usize {
        self.0.ranks()
    }

    /// Last end minus first start over all ranks, in the unit of the costs; in seconds where it was measured.
    #[getter]
    fn makespan(&self) -> f64 {
        self.0.makespan()
    }

    /// The longest single rank's own last end minus its first start (what ZB-H2, ZB-V, V-Half and V-Min
    /// papers report), in the same unit.
    #[getter]
    fn span(&self) -> f64 {
        self.0.span()
    }

    /// Idle time as a part of all time: 1 - sum(busy) / (ranks x makespan). Zero Bubble calls it the bubble rate.
    #[getter]
    fn bubble_ratio(&self) -> f64 {
        self.0.bubble_ratio()
    }

    /// Idle time over ideal time: sum(idle) / sum(busy), the other convention of the field. Megatron-LM's
    /// "bubble time fraction" (arXiv 2104.04473) is this: (p - 1) / m for 1F1B.
    #[getter]
    fn bubble_over_ideal(&self) -> f64 {
        self.0.bubble_over_ideal()
    }

    /// 1 - sum(busy) / (ranks x span): the bubble rate where steps may follow each other without a flush, as ZB-H2,
    /// ZB-V, V-Half and V-Min papers report it.
    #[getter]
    fn span_bubble_ratio(&self) -> f64 {
        self.0.span_bubble_ratio()
    }

    /// The time of each rank's slots and of its optimizer: float64 of shape (ranks,). A pair counts once.
    #[getter]
    fn busy<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.0.busy().into_pyarray(py)
    }

    /// makespan - busy, by rank: float64 of shape (ranks,).
    #[getter]
    fn idle<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.0.idle().into_pyarray(py)
    }

    /// The most (stage, microbatch) that each rank holds at once, from the start of F to the end of its last
    /// backward: int64 of shape (ranks,).
    #[getter]
    fn peak_activations<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let peaks: Vec<i64> = self.0.peak_activations().into_iter().map(|peak| peak as i64).collect();
        peaks.into_pyarray(py)
    }

    /// Every action: a read-only structured array, without a copy, of rank, slot, kind ('F', 'I', 'W', 'B'),
    /// stage, microbatch, start and end, sorted by rank and slot. A pair is two rows of one slot.
    #[getter]
    fn spans<'py>(this: &Bound<'py, Self>) -> Bound<'py, PyArray1<Span>> {
        let timeline = &this.get().0;
        PyTimeline::view(this, this.py().detach(|| timeline.spans()))
    }

    /// Of a measured timeline: the CPU time of the rank's own thread in each row's slot, in seconds
    /// (torch's intra-op threads are not counted); None for a predicted one. A pair's stands in both of its rows.
    #[getter]
    fn cpu_time<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<f64>>> {
        self.0.cpu().map(|cpu| self.by_span(cpu).into_pyarray(py))
    }

    /// Whether it was measured; else it was predicted.
    #[getter]
    fn is_measured(&self) -> bool {
        self.0.cpu().is_some()
    }

    /// Why each rank was idle: float64 arrays of shape (ranks,) by cause, which add up to `idle`.
    ///
    /// "warm_up" is before a rank's first slot, "cool_down" after its last; "dependency" is time until what the next
    /// slot takes had been made on another rank, "hop" until it could have come, "partner" what was waited beyond
    /// (for a rendezvous or a commit), "exchange" the exchange of gradients. A measured timeline does not know
    /// hops: what is left after a dependency is the hop, and "overhead" a gap before a slot that had all it needs.
    #[getter]
    fn idle_by_cause<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let sums = py.detach(|| self.0.idle_by_cause())?;
        let causes = PyDict::new(py);
        for (cause, sums) in CAUSES.into_iter().zip(sums) {
            causes.set_item(cause.name(), sums.into_pyarray(py))?;
        }
        Ok(causes)
    }

    /// Every idle time with its cause, by rank and time: a structured array of rank, slot (the one that came after;
    /// the number of slots for what comes after the last), cause (as in `idle_by_cause`), kind, stage and microbatch
    /// of the action that a dependency or hop waited for (kind is empty elsewhere), start and end.
    #[getter]
    fn waits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<WaitRecord>>> {
        let waits = py.detach(|| self.0.waits())?;
        Ok(waits.into_iter().map(WaitRecord::from).collect::<Vec<_>>().into_pyarray(py))
    }

    /// A longest chain of slots from the first start to the last end, in order: rows as `spans` has them. Each
    /// slot starts when the one before it ends, or when what that made has come. Of a measured timeline, each
    /// slot is preceded by what it waited for last, and the chain may begin on a rank that began late.
    fn critical_path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<Span>>> {
        let spans = py.detach(|| self.0.critical_path().map(|path| self.0.spans_of(path.into_iter())))?;
        Ok(spans.into_pyarray(py))
    }

    /// How much later the slot of each row of `spans` could end, all else as it is, without the step ending later:
    /// float64, one a row. 0 on the critical path.
    #[getter]
    fn slack<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let slack = py.detach(|| self.0.slack().map(|slack| self.by_span(&slack)))?;
        Ok(slack.into_pyarray(py))
    }

    /// By how much the makespan grows where a cost grows by `percent` (default 1), for each cost of time by the name
    /// it has in `Costs`, found by simulating again: floats, in the unit of the costs; with `each=True` float64
    /// arrays, one number a stage (a rank, of the optimizer), for the costs that are by stage, and of a table's shape
    /// for those that were given as tables. UsageError for a
    /// measured timeline: fit costs first, `Costs.from_timeline`. Uses all cores; Ctrl-C stops it.
    #[pyo3(signature = (percent = 1.0, *, each = false))]
    fn sensitivity<'py>(&self, py: Python<'py>, percent: f64, each: bool) -> PyResult<Bound<'py, PyDict>> {
        if !(percent.is_finite() && percent > -100.0) {
            return Err(UsageError::new_err(format!("percent is {percent}; it is a number above -100")));
        }
        let changes = PyDict::new(py);
        let found = watched(py, None, 0, |watch| sensitivity(&self.0, percent, each, watch))?;
        for (name, change) in found {
            match change {
                Change::Whole(change) => changes.set_item(name, change)?,
                Change::Each(changed) => changes.set_item(name, changed.into_pyarray(py))?,
                Change::Table { size, cells } => {
                    changes.set_item(name, cells.into_pyarray(py).reshape([size, size])?)?
                }
            }
        }
        Ok(changes)
    }

    /// The bytes that `rank` holds, from each time on at which that changes: a structured array of time, activation,
    /// weight_grad and received (float64). Activations are held from the start of F to the end of I or B, what a W
    /// needs from there to its end, a received tensor (`p2p_bytes`) from the posting of its receive (under eager
    /// P2P, from its sending) to the end of the slot that takes it. By the bytes of `costs`, or of the costs that
    /// the timeline was predicted from. UsageError for a rank out of range, or a measured timeline without costs.
    #[pyo3(signature = (rank, costs = None))]
    fn memory<'py>(
        &self,
        py: Python<'py>,
        rank: &Bound<'py, PyAny>,
        costs: Option<&PyCosts>,
    ) -> PyResult<Bound<'py, PyArray1<Held>>> {
        let rank = errors::index(("rank", "ranks"), rank, self.0.ranks())?;
        let mut held = py.detach(|| self.0.memory(costs.map(|costs| &costs.0)))?;
        Ok(held.swap_remove(rank).into_pyarray(py))
    }

    /// The most bytes that each rank holds at once of what `memory` tells: float64 of shape (ranks,).
    #[pyo3(signature = (costs = None))]
    fn peak_bytes<'py>(
        &self,
        py: Python<'py>,
        costs: Option<&PyCosts>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let held = py.detach(|| self.0.memory(costs.map(|costs| &costs.0)))?;
        let peak = |held: &Vec<Held>| held.iter().map(Held::total).fold(0.0, f64::max);
        Ok(held.iter().map(peak).collect::<Vec<f64>>().into_pyarray(py))
    }

    /// Every tensor that went from one rank to another, by the rank and slot that took it: a structured array of
    /// source and source_slot (the rank that made it, and its slot there), rank and slot (that took it), kind, stage
    /// and microbatch of the action that made it, start (when it was made) and end (when it arrived, under the P2P
    /// semantics that were simulated). A measured timeline does not know arrivals: there end is the start of the slot
    /// that took the tensor. What a rank hands to itself is not in it.
    #[getter]
    fn transfers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<TransferRecord>>> {
        let transfers = py.detach(|| self.0.transfers())?;
        let records: Vec<_> = transfers.into_iter().map(TransferRecord::from).collect();
        Ok(records.into_pyarray(py))
    }

    /// The timeline as a trace file in JSON, the trace events of Chrome that chrome://tracing and ui.perfetto.dev open:
    /// str. A process for each rank, and in it a thread of its slots and one or more of tensors on their way to it; an
    /// arrow from the slot that made a tensor to the one that took it; for each slot its actions and why the rank was
    /// idle before it; a counter of the bytes held where the costs have bytes, else of the activations held.
    ///
    /// `unit` is how many seconds one unit of the timeline's time is; by default 1 where it was measured and 1e-6 where
    /// it was predicted, so that one unit of the costs shows as a microsecond. Times are rounded to nanoseconds. The
    /// same timeline gives the same text. UsageError for a unit that is not a finite number above 0, and for times that
    /// are not from 0 to 2**63 nanoseconds. The format: "Trace Event Format", Google, 2016.
    #[pyo3(signature = (*, unit = None))]
    fn to_chrome_json(&self, py: Python<'_>, unit: Option<f64>) -> PyResult<String> {
        Ok(py.detach(|| chrome::write(&self.0, unit))?)
    }

    /// What `to_chrome_json` gives as a trace file of Perfetto (.pftrace), which ui.perfetto.dev and Perfetto's
    /// trace processor open: bytes, in less than half of the space. A track for each rank, and below it those of its
    /// slots, of tensors on their way to it, and of what it holds. `unit` and errors are the same. The format:
    /// perfetto_trace.proto, perfetto.dev.
    #[pyo3(signature = (*, unit = None))]
    fn to_perfetto<'py>(&self, py: Python<'py>, unit: Option<f64>) -> PyResult<Bound<'py, PyBytes>> {
        let trace = py.detach(|| perfetto::write(&self.0, unit))?;
        Ok(PyBytes::new(py, &trace))
    }

    /// What each rank does after its last slot: a structured array of start, exchanged (when gradients have been
    /// exchanged with the rank that holds the same stages) and end (of the optimizer), one row a rank; None where
    /// the costs have neither.
    #[getter]
    fn closing<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<ClosingRecord>>> {
        let last = |rank| self.0.times_of(rank).last().map_or(0.0, |time| time.end);
        let rows = self.0.closing().iter().enumerate();
        let rows: Vec<_> = rows.map(|(rank, &closing)| ClosingRecord::new(last(rank), closing)).collect();
        (!rows.is_empty()).then(|| rows.into_pyarray(py))
    }

    /// The timeline as text, one line a rank, at most about `width` columns. Capitals stand for the stage
    /// that a rank began with, small letters for its others; a pair shows as `F7:b3`.
    #[pyo3(signature = (width = 120))]
    fn grid(&self, width: usize) -> String {
        grid::grid(&self.0, width)
    }

    /// Shows the timeline, and others below it on the same axis: a `View`, which a notebook draws where it is the last
    /// value of a cell (a canvas to zoom and to point at, where anywidget is installed, else an SVG), and which
    /// prints as a grid of text. Options are those of `View`: causes, critical_path, memory (on unless turned off),
    /// fit, theme and width.
    #[pyo3(signature = (*others, **options))]
    fn show<'py>(
        slf: &Bound<'py, Self>,
        others: &Bound<'py, PyTuple>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        picture::show(slf.as_any(), others, options, true)
    }

    /// Writes a file of the kind that the suffix of `path` says: a picture (.svg, .html to zoom, and with matplotlib
    /// .png, .pdf), of this timeline and `others` below it on the same axis, or a trace of this alone (.json for
    /// chrome://tracing, .pftrace for Perfetto). Options: of pictures causes, critical_path, memory, fit (booleans),
    /// theme ("auto", "light", "dark") and width (pixels); of .png also dpi; of traces unit (the seconds that a
    /// unit of a predicted timeline stands for). UsageError for an unknown suffix or option, OSError where the file
    /// cannot be written, ModuleNotFoundError without matplotlib.
    #[pyo3(signature = (path, *others, **options))]
    fn save(
        slf: &Bound<'_, Self>,
        path: &Bound<'_, PyAny>,
        others: &Bound<'_, PyTuple>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        picture::save(slf.as_any(), path, others, options)
    }

    #[pyo3(signature = (include = None, exclude = None))]
    fn _repr_mimebundle_<'py>(
        slf: &Bound<'py, Self>,
        include: Option<&Bound<'py, PyAny>>,
        exclude: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let view = picture::show(slf.as_any(), &PyTuple::empty(slf.py()), None, true)?;
        view.call_method1("_repr_mimebundle_", (include, exclude))
    }

    fn __repr__(&self) -> String {
        format!(
            "<Timeline {} ranks, makespan {}, bubble_ratio {:.4}>",
            self.0.ranks(),
            self.0.makespan(),
            self.0.bubble_ratio()
        )
    }

    fn __str__(&self) -> String {
        self.grid(120)
    }
}
