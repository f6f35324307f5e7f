//! The rows of `Components.lay`: what numpy sees of a part that is laid out.

use numpy::{Element, PyArrayDescr};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::overlap::Laid;

/// A [`Laid`]. numpy's strings are UCS-4 of a fixed width, filled up with zeros.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Row {
    stream: [char; STREAM],
    layer: u32,
    component: [char; COMPONENT],
    kind: char,
    start: f64,
    end: f64,
}

const STREAM: usize = 13; // "communication"
const COMPONENT: usize = 9; // "attention"

impl Row {
    pub fn new(laid: &Laid) -> Self {
        Row {
            stream: fixed(laid.part.stream().name()),
            layer: laid.layer,
            component: fixed(laid.part.component().name()),
            kind: laid.part.kind().letter(),
            start: laid.start,
            end: laid.end,
        }
    }
}

fn fixed<const N: usize>(text: &str) -> [char; N] {
    let mut letters = text.chars();
    [(); N].map(|()| letters.next().unwrap_or('\0'))
}

// SAFETY: the numpy record below has the names, types and offsets of `Row`, which is `repr(C)` without padding; all
// its fields are plain data, and an array of `char` is what numpy's UCS-4 string of that width holds.
unsafe impl Element for Row {
    const IS_COPY: bool = true;

    fn get_dtype(py: Python<'_>) -> Bound<'_, PyArrayDescr> {
        static DTYPE: PyOnceLock<Py<PyArrayDescr>> = PyOnceLock::new();
        let dtype = DTYPE.get_or_try_init(py, || row_dtype(py).map(Bound::unbind));
        dtype.expect("numpy makes a dtype of these fields").bind(py).clone()
    }

    fn clone_ref(&self, _py: Python<'_>) -> Self {
        *self
    }
}

fn row_dtype(py: Python<'_>) -> PyResult<Bound<'_, PyArrayDescr>> {
    // Without padding, so that numpy's own packed layout is that of `Row`.
    const { assert!(size_of::<Row>() == 4 * (STREAM + 1 + COMPONENT + 1) + 16) };
    let fields = [
        ("stream", format!("U{STREAM}")),
        ("layer", "u4".to_string()),
        ("component", format!("U{COMPONENT}")),
        ("kind", "U1".to_string()),
        ("start", "f8".to_string()),
        ("end", "f8".to_string()),
    ];
    PyArrayDescr::new(py, fields.to_vec())
}
