//! Many independent jobs over all cores, watched by the thread that asked for them.
//!
//! The pool lives as long as the sweep: one for the whole process would be without its threads in a forked child,
//! and hang there.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rayon::prelude::*;

use crate::error::Error;

/// How often the watcher is asked.
const LOOK: Duration = Duration::from_millis(50);

/// What the watcher wants, told how many jobs are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    GoOn,
    Stop,
}

/// The results of `job` for 0..count, in order, on so many threads (as many as there are cores, where none are
/// given); `None` where the watcher wished to stop.
pub fn sweep<T: Send>(
    count: usize,
    threads: Option<usize>,
    mut watch: impl FnMut(usize) -> Wish,
    job: impl Fn(usize) -> Result<T, Error> + Sync,
) -> Result<Option<Vec<T>>, Error> {
    let (done, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let threads = threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool =
        pool.map_err(|error| Error::Format(format!("{threads} threads cannot be started: {error}")))?;
    let one = |index| {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        let result = job(index);
        done.fetch_add(1, Ordering::Relaxed);
        Some(result)
    };
    let watcher = thread::current();
    let results: Option<Vec<_>> = thread::scope(|scope| {
        let all = scope.spawn(|| {
            let results = pool.install(|| (0..count).into_par_iter().map(one).collect());
            watcher.unpark();
            results
        });
        while !all.is_finished() {
            thread::park_timeout(LOOK);
            if watch(done.load(Ordering::Relaxed)) == Wish::Stop {
                stop.store(true, Ordering::Relaxed);
            }
        }
        all.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    results.map(|results| results.into_iter().collect()).transpose()
}
