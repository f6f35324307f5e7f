//! `Timeline`: numpy views of the spans, without a copy.

use numpy::ndarray::aview1;
use numpy::{Element, IntoPyArray, PyArray1, PyArrayDescr, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use crate::formats::grid;
use crate::timeline::{Span, Timeline};

/// When every action started and ended: predicted by `Schedule.simulate`, or measured by a pipeline's step.
///
/// Predicted times are in the unit of the costs, measured ones in seconds. `print` shows it as a grid.
#[pyclass(frozen, name = "Timeline", module = "dualpipe_rs")]
pub struct PyTimeline(Timeline);

impl PyTimeline {
    pub fn new(timeline: Timeline) -> Self {
        PyTimeline(timeline)
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

    /// Last end minus first start over all ranks.
    #[getter]
    fn makespan(&self) -> f64 {
        self.0.makespan()
    }

    /// The longest single rank's own last end minus its first start (what ZB-H2, ZB-V, V-Half and V-Min
    /// papers report).
    #[getter]
    fn span(&self) -> f64 {
        self.0.span()
    }

    /// 1 - sum(busy) / (ranks x makespan). (Others divide the idle time by the ideal time.)
    #[getter]
    fn bubble_ratio(&self) -> f64 {
        self.0.bubble_ratio()
    }

    /// The time of each rank's slots: float64 of shape (ranks,). A pair counts once.
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
        PyTimeline::view(this, this.get().0.spans())
    }

    /// Of a measured timeline: the CPU time of the rank's own thread in each row's slot, in seconds, without a
    /// copy (torch's intra-op threads are not counted); None for a predicted one.
    #[getter]
    fn cpu_time<'py>(this: &Bound<'py, Self>) -> Option<Bound<'py, PyArray1<f64>>> {
        this.get().0.cpu().map(|cpu| PyTimeline::view(this, cpu))
    }

    /// The timeline as text, one line a rank, at most about `width` columns. Capitals stand for the stage
    /// that a rank began with, small letters for its others; a pair shows as `F7:b3`.
    #[pyo3(signature = (width = 120))]
    fn grid(&self, width: usize) -> String {
        grid::grid(&self.0, width)
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

// SAFETY: the numpy record below has the names, types and offsets of `Span`, which is `repr(C)`; all
// its fields are plain data, and a `char` is what numpy's one-character UCS-4 string holds.
unsafe impl Element for Span {
    const IS_COPY: bool = true;

    fn get_dtype(py: Python<'_>) -> Bound<'_, PyArrayDescr> {
        static DTYPE: PyOnceLock<Py<PyArrayDescr>> = PyOnceLock::new();
        let dtype = DTYPE.get_or_try_init(py, || span_dtype(py).map(Bound::unbind));
        dtype.expect("numpy makes a dtype of these fields").bind(py).clone()
    }

    fn clone_ref(&self, _py: Python<'_>) -> Self {
        *self
    }
}

fn span_dtype(py: Python<'_>) -> PyResult<Bound<'_, PyArrayDescr>> {
    use std::mem::offset_of;
    let fields = [
        ("rank", "u4", offset_of!(Span, rank)),
        ("slot", "u4", offset_of!(Span, slot)),
        ("kind", "U1", offset_of!(Span, kind)),
        ("stage", "u4", offset_of!(Span, stage)),
        ("microbatch", "u4", offset_of!(Span, microbatch)),
        ("start", "f8", offset_of!(Span, start)),
        ("end", "f8", offset_of!(Span, end)),
    ];
    let spec = PyDict::new(py);
    spec.set_item("names", fields.map(|field| field.0))?;
    spec.set_item("formats", fields.map(|field| field.1))?;
    spec.set_item("offsets", fields.map(|field| field.2))?;
    spec.set_item("itemsize", size_of::<Span>())?;
    PyArrayDescr::new(py, spec)
}
