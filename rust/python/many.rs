//! `simulate_many` and `jitter`: long calls that release the GIL, can be interrupted, and report how far they are.

use std::time::{Duration, Instant};

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use super::costs::PyCosts;
use super::errors::{self, UsageError, count, index, positive};
use super::records::find_numpy;
use super::schedule::PySchedule;
use crate::costs::Costs;
use crate::error::Error;
use crate::simulate::{self, Noise, Summary, Wish};

/// The makespan, span and bubble ratio of a schedule under each of many costs, over all cores.
///
/// `costs` is a list of Costs. `p2p` and `depth` are as `Schedule.verify` has them; `threads` is how many to use (as
/// many as there are cores, if left out); `progress(done, total)` is called now and then in this thread, and at the
/// end. Ctrl-C stops it. A structured array of makespan, span and bubble_ratio, one row for each of the costs.
#[pyfunction]
#[pyo3(signature = (schedule, costs, *, p2p = "eager", depth = None, threads = None, progress = None))]
pub fn simulate_many<'py>(
    py: Python<'py>,
    schedule: &PySchedule,
    costs: Vec<PyRef<'py, PyCosts>>,
    p2p: &str,
    depth: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'py, PyAny>>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<Summary>>> {
    find_numpy(py)?;
    let network = schedule.network(py, errors::p2p(p2p, depth)?)?;
    let verified = schedule.verified(py)?;
    let threads = checked_threads(threads)?;
    let costs: Vec<Costs> = costs.iter().map(|costs| costs.0.clone()).collect();
    let found = watched(py, progress, costs.len(), |watch| {
        simulate::simulate_many(verified, &network, &costs, threads, watch)
    })?;
    Ok(found.into_pyarray(py))
}

/// The makespans (float64, one a run) of `n` simulations in which each slot takes its price times a random factor of
/// its own: log-normal, with mean 1 and standard deviation `sigma`.
///
/// Hops, the exchange of gradients and the optimizer take what they cost. `slow_rank` makes all that one rank computes,
/// its optimizer too, take `slowdown` times as long. Equal seeds give equal numbers, the
/// n-th the same whatever `n` and `threads`. `p2p`, `depth`, `threads` and `progress` are as in `simulate_many`;
/// Ctrl-C stops it. UsageError for a sigma or slowdown that is negative, infinite or NaN, a sigma above 100, and more than
/// ten million runs.
#[pyfunction]
#[pyo3(signature = (
    schedule, costs = None, sigma = 0.1, n = None, seed = None, *, slow_rank = None, slowdown = None, p2p = "eager",
    depth = None, threads = None, progress = None
))]
#[expect(clippy::too_many_arguments, reason = "they are the keywords that users type")]
pub fn jitter<'py>(
    py: Python<'py>,
    schedule: &PySchedule,
    costs: Option<&PyCosts>,
    sigma: f64,
    n: Option<&Bound<'py, PyAny>>,
    seed: Option<&Bound<'py, PyAny>>,
    slow_rank: Option<&Bound<'py, PyAny>>,
    slowdown: Option<f64>,
    p2p: &str,
    depth: Option<&Bound<'py, PyAny>>,
    threads: Option<&Bound<'py, PyAny>>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    find_numpy(py)?;
    let network = schedule.network(py, errors::p2p(p2p, depth)?)?;
    let verified = schedule.verified(py)?;
    let threads = checked_threads(threads)?;
    let runs = n.map_or(Ok(1000), |n| count("n", n))?;
    if runs > MOST_RUNS {
        return Err(UsageError::new_err(format!(
            "n is {runs}; at most {MOST_RUNS} runs are held at once: call again with another seed for more"
        )));
    }
    let seed = seed.map_or(Ok(0), checked_seed)?;
    not_negative("sigma", sigma)?;
    if sigma > MOST_SIGMA {
        return Err(UsageError::new_err(format!("sigma is {sigma:?}; it is at most {MOST_SIGMA}")));
    }
    let slow = match (slow_rank, slowdown) {
        (Some(rank), Some(factor)) => {
            not_negative("slowdown", factor)?;
            Some((index(("slow_rank", "ranks"), rank, verified.shape().ranks())?, factor))
        }
        (None, None) => None,
        _ => {
            return Err(UsageError::new_err(
                "slow_rank and slowdown belong together: which rank, and how slow",
            ));
        }
    };
    let costs = costs.map(|costs| costs.0.clone()).unwrap_or_default();
    let noise = Noise { sigma, seed, slow };
    let found = watched(py, progress, runs, |watch| {
        simulate::jitter(verified, &network, &costs, noise, runs, threads, watch)
    })?;
    Ok(found.into_pyarray(py))
}

/// Of one call of `jitter`; a typing error should not fill the memory.
const MOST_RUNS: usize = 10_000_000;
/// Beyond this, factors of mean 1 are nearly all nearly 0, and the rest more than a float holds.
const MOST_SIGMA: f64 = 100.0;

fn not_negative(name: &str, number: f64) -> PyResult<()> {
    if number.is_finite() && number >= 0.0 {
        return Ok(());
    }
    Err(UsageError::new_err(format!("{name} is {number:?}; it is a finite number that is not negative")))
}

fn checked_seed(seed: &Bound<'_, PyAny>) -> PyResult<u64> {
    seed.extract().map_err(|_| match seed.repr() {
        Ok(shown) => UsageError::new_err(format!("seed is {shown}; it is a whole number from 0 to 2⁶⁴ - 1")),
        Err(error) => error,
    })
}

fn checked_threads(threads: Option<&Bound<'_, PyAny>>) -> PyResult<Option<usize>> {
    threads.map(|threads| positive("threads", threads, 1024)).transpose()
}

/// Runs a sweep without the GIL. Ctrl-C, or an exception of `progress`, stops it and is raised.
pub fn watched<R: Send>(
    py: Python<'_>,
    progress: Option<Bound<'_, PyAny>>,
    total: usize,
    sweep: impl FnOnce(&mut (dyn FnMut(usize) -> Wish + Send)) -> Result<Option<R>, Error> + Send,
) -> PyResult<R> {
    const BETWEEN_REPORTS: Duration = Duration::from_millis(100);
    let progress = progress.map(Bound::unbind);
    let report = |py: Python<'_>, done: usize| match &progress {
        Some(progress) => progress.call1(py, (done, total)).map(drop),
        None => Ok(()),
    };
    let mut raised: Option<PyErr> = None;
    let mut last = Instant::now();
    let mut watch = |done: usize| {
        let seen = Python::attach(|py| {
            py.check_signals()?;
            if last.elapsed() < BETWEEN_REPORTS || done == total {
                return Ok(()); // The end is reported below.
            }
            last = Instant::now();
            report(py, done)
        });
        match seen {
            Ok(()) => Wish::GoOn,
            Err(error) => {
                raised.get_or_insert(error);
                Wish::Stop
            }
        }
    };
    let found = py.detach(|| sweep(&mut watch));
    if let Some(error) = raised {
        return Err(error);
    }
    let found = found?.ok_or_else(|| UsageError::new_err("the sweep was stopped"))?;
    report(py, total)?;
    Ok(found)
}
