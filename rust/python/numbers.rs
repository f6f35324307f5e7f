//! Numbers, sequences and tables of them, from Python and back.

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyIterator, PyMemoryView, PyString};

use super::errors::UsageError;
use crate::costs::{Numbers, Table};

/// No sequence is read that is longer: there are no more stages than this, and a `range` may be longer than the
/// memory.
const MOST: usize = 1 << 16;

pub fn one_number(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let refused = |_| match value.repr() {
        Ok(shown) => UsageError::new_err(format!("{name} is {shown}; it is a number")),
        Err(error) => error,
    };
    value.extract().map_err(refused)
}

/// What a sequence holds; `None` for what is none. A set is none: it has no order. Nor is an iterator: it has no
/// length, and may have no end.
pub fn items<'py>(value: &Bound<'py, PyAny>) -> Option<Bound<'py, PyIterator>> {
    let is_text = value.is_instance_of::<PyString>() || value.is_instance_of::<PyBytes>();
    let is_bytes = value.is_instance_of::<PyByteArray>() || value.is_instance_of::<PyMemoryView>();
    if is_text || is_bytes || value.is_instance_of::<PyDict>() || !value.hasattr("__getitem__").ok()? {
        return None;
    }
    value.len().ok()?;
    value.try_iter().ok()
}

/// The same of a sequence that is not longer than any that makes sense.
pub fn some_items<'py>(value: &Bound<'py, PyAny>) -> Option<Bound<'py, PyIterator>> {
    items(value).filter(|_| value.len().is_ok_and(|length| length <= MOST))
}

/// The numbers of a sequence (list, tuple, numpy array, ...); `None` for all else.
fn sequence(value: &Bound<'_, PyAny>) -> Option<Vec<f64>> {
    some_items(value)?.map(|item| item?.extract::<f64>()).collect::<PyResult<Vec<f64>>>().ok()
}

/// A number, or a sequence of numbers; `None` for all else.
pub fn one_or_each(value: &Bound<'_, PyAny>) -> Option<Numbers> {
    match value.extract::<f64>() {
        Ok(number) => Some(Numbers::One(number)),
        Err(_) => sequence(value).map(Numbers::Each),
    }
}

/// A number, or a sequence of one number for each of some things.
pub fn numbers(name: &str, thing: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Numbers>> {
    let Some(value) = value else { return Ok(None) };
    match one_or_each(value) {
        Some(numbers) => Ok(Some(numbers)),
        None => Err(UsageError::new_err(format!(
            "{name} is {}; a cost is a number, or a sequence of one number a {thing}",
            value.repr()?
        ))),
    }
}

/// A number, or a square of them: a sequence of rows.
pub fn table(name: &str, thing: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Table>> {
    let Some(value) = value else { return Ok(None) };
    if let Ok(number) = value.extract::<f64>() {
        return Ok(Some(Table::One(number)));
    }
    let row = |row: PyResult<Bound<'_, PyAny>>| sequence(&row.ok()?);
    let rows = some_items(value).and_then(|rows| rows.map(row).collect::<Option<Vec<Vec<f64>>>>());
    match rows {
        Some(rows) if !rows.is_empty() && rows.iter().all(|row| row.len() == rows.len()) => {
            Ok(Some(Table::Each { size: rows.len(), cells: rows.concat() }))
        }
        _ => Err(UsageError::new_err(format!(
            "{name} is {}; it is a number, or a table of one row and one column a {thing}",
            value.repr()?
        ))),
    }
}

/// F, I and W.
pub fn three(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<[f64; 3]>> {
    let Some(value) = value else { return Ok(None) };
    match sequence(value).map(<[f64; 3]>::try_from) {
        Some(Ok(three)) => Ok(Some(three)),
        _ => Err(UsageError::new_err(format!(
            "{name} is {}; it is three numbers: for forward, backward_input and backward_weight",
            value.repr()?
        ))),
    }
}

pub fn given<'py>(py: Python<'py>, cost: &Numbers) -> PyResult<Bound<'py, PyAny>> {
    match cost {
        Numbers::One(cost) => Ok(cost.into_pyobject(py)?.into_any()),
        Numbers::Each(costs) => costs.into_pyobject(py),
    }
}

pub fn given_table<'py>(py: Python<'py>, table: &Table) -> PyResult<Bound<'py, PyAny>> {
    match table {
        Table::One(cost) => Ok(cost.into_pyobject(py)?.into_any()),
        Table::Each { size, cells } => cells.chunks(*size).collect::<Vec<_>>().into_pyobject(py),
    }
}
