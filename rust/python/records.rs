//! The records of timelines and layouts as numpy structured arrays.

use numpy::{Element, PyArrayDescr};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use crate::overlap::Laid;
use crate::simulate::Summary;
use crate::timeline::{Closing, Held, Span, Transfer, Wait};

/// Finds numpy, before any heavy work. The binding finds it at the first array by itself, but takes a Ctrl-C that is
/// pending then for a failure, and panics.
pub fn find_numpy(py: Python<'_>) -> PyResult<()> {
    py.import("numpy")?;
    py.check_signals()?;
    numpy::dtype::<f64>(py);
    Ok(())
}

/// A record of a numpy array: the name, numpy type and offset of each field.
trait Record: Copy + Send + Sync {
    fn fields() -> Vec<(&'static str, &'static str, usize)>;
    fn dtype() -> &'static PyOnceLock<Py<PyArrayDescr>>;
}

fn descr<T: Record>(py: Python<'_>) -> Bound<'_, PyArrayDescr> {
    let make = || {
        let fields = T::fields();
        let spec = PyDict::new(py);
        spec.set_item("names", fields.iter().map(|field| field.0).collect::<Vec<_>>())?;
        spec.set_item("formats", fields.iter().map(|field| field.1).collect::<Vec<_>>())?;
        spec.set_item("offsets", fields.iter().map(|field| field.2).collect::<Vec<_>>())?;
        spec.set_item("itemsize", size_of::<T>())?;
        PyArrayDescr::new(py, spec).map(Bound::unbind)
    };
    let dtype = T::dtype().get_or_try_init(py, make);
    dtype.expect("numpy makes a dtype of these fields").bind(py).clone()
}

/// Gives a `repr(C)` struct of plain data its fields in numpy.
macro_rules! record {
    ($type:ty { $($field:ident: $format:literal as $name:literal),* $(,)? }) => {
        impl Record for $type {
            fn fields() -> Vec<(&'static str, &'static str, usize)> {
                vec![$(($name, $format, std::mem::offset_of!($type, $field))),*]
            }

            fn dtype() -> &'static PyOnceLock<Py<PyArrayDescr>> {
                static DTYPE: PyOnceLock<Py<PyArrayDescr>> = PyOnceLock::new();
                &DTYPE
            }
        }

        // SAFETY: the numpy record has the names, types and offsets of the struct, which is `repr(C)`; all its
        // fields are plain data, and an array of `char` is what numpy's UCS-4 string of that width holds.
        unsafe impl Element for $type {
            const IS_COPY: bool = true;

            fn get_dtype(py: Python<'_>) -> Bound<'_, PyArrayDescr> {
                descr::<$type>(py)
            }

            fn clone_ref(&self, _py: Python<'_>) -> Self {
                *self
            }
        }
    };
}

record!(Span {
    rank: "u4" as "rank",
    slot: "u4" as "slot",
    kind: "U1" as "kind",
    stage: "u4" as "stage",
    microbatch: "u4" as "microbatch",
    start: "f8" as "start",
    end: "f8" as "end",
});

record!(Held {
    time: "f8" as "time",
    activation: "f8" as "activation",
    weight_grad: "f8" as "weight_grad",
    received: "f8" as "received",
});

record!(Summary {
    makespan: "f8" as "makespan",
    span: "f8" as "span",
    bubble_ratio: "f8" as "bubble_ratio",
});

/// [`Wait`] as numpy has it; where there is no action, `kind` is an empty string.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct WaitRecord {
    rank: u32,
    slot: u32,
    cause: [char; 10],
    kind: char,
    stage: u32,
    microbatch: u32,
    reserved: u32,
    start: f64,
    end: f64,
}

record!(WaitRecord {
    rank: "u4" as "rank",
    slot: "u4" as "slot",
    cause: "U10" as "cause",
    kind: "U1" as "kind",
    stage: "u4" as "stage",
    microbatch: "u4" as "microbatch",
    start: "f8" as "start",
    end: "f8" as "end",
});

impl From<Wait> for WaitRecord {
    fn from(wait: Wait) -> Self {
        let action = wait.action;
        WaitRecord {
            rank: wait.rank as u32,
            slot: wait.slot as u32,
            cause: fixed(wait.cause.name()),
            kind: action.map_or('\0', |action| action.kind.letter()),
            stage: action.map_or(0, |action| action.stage.into()),
            microbatch: action.map_or(0, |action| action.microbatch),
            reserved: 0,
            start: wait.time.start,
            end: wait.time.end,
        }
    }
}

/// [`Transfer`] as numpy has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TransferRecord {
    source: u32,
    source_slot: u32,
    rank: u32,
    slot: u32,
    kind: char,
    stage: u32,
    microbatch: u32,
    reserved: u32,
    start: f64,
    end: f64,
}

record!(TransferRecord {
    source: "u4" as "source",
    source_slot: "u4" as "source_slot",
    rank: "u4" as "rank",
    slot: "u4" as "slot",
    kind: "U1" as "kind",
    stage: "u4" as "stage",
    microbatch: "u4" as "microbatch",
    start: "f8" as "start",
    end: "f8" as "end",
});

impl From<Transfer> for TransferRecord {
    fn from(transfer: Transfer) -> Self {
        TransferRecord {
            source: transfer.source as u32,
            source_slot: transfer.source_slot as u32,
            rank: transfer.rank as u32,
            slot: transfer.slot as u32,
            kind: transfer.action.kind.letter(),
            stage: transfer.action.stage.into(),
            microbatch: transfer.action.microbatch,
            reserved: 0,
            start: transfer.time.start,
            end: transfer.time.end,
        }
    }
}

/// [`Laid`] as numpy has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct LaidRecord {
    stream: [char; 13],
    layer: u32,
    component: [char; 9],
    kind: char,
    start: f64,
    end: f64,
}

record!(LaidRecord {
    stream: "U13" as "stream",
    layer: "u4" as "layer",
    component: "U9" as "component",
    kind: "U1" as "kind",
    start: "f8" as "start",
    end: "f8" as "end",
});

impl From<&Laid> for LaidRecord {
    fn from(laid: &Laid) -> Self {
        LaidRecord {
            stream: fixed(laid.part.stream().name()),
            layer: laid.layer,
            component: fixed(laid.part.component().name()),
            kind: laid.part.kind().letter(),
            start: laid.start,
            end: laid.end,
        }
    }
}

/// numpy's strings are UCS-4 of a fixed width, filled up with zeros.
fn fixed<const N: usize>(text: &str) -> [char; N] {
    let mut letters = text.chars();
    [(); N].map(|()| letters.next().unwrap_or('\0'))
}

/// [`Closing`] as numpy has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ClosingRecord {
    start: f64,
    exchanged: f64,
    end: f64,
}

record!(ClosingRecord {
    start: "f8" as "start",
    exchanged: "f8" as "exchanged",
    end: "f8" as "end",
});

impl ClosingRecord {
    pub fn new(start: f64, closing: Closing) -> Self {
        ClosingRecord { start, exchanged: closing.exchanged, end: closing.end }
    }
}
