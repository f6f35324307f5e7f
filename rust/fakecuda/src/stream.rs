//! Streams, what is queued on them, and the records of events. Not how it runs: `run.rs`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Clock;
use crate::effect::Effect;
use crate::memory::Touch;

/// One `cuEventRecord`. A wait keeps the record that was the event's latest when the wait was called.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<RecordState>>);

#[derive(Default)]
pub struct RecordState {
    /// What lies before it, and its virtual time, once it has run.
    pub done: Option<(Clock, f64)>,
    /// Streams that stand at a wait for it.
    pub waiters: Vec<usize>,
}

impl Record {
    /// Never contended: whoever asks holds the lock of the whole device.
    pub fn state(&self) -> MutexGuard<'_, RecordState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn done(&self) -> Option<(Clock, f64)> {
        self.state().done.clone()
    }
}

pub enum Work {
    /// A kernel, copy, fill, host function, allocation or free: touches memory, takes time, does something.
    Act {
        kind: &'static str,
        touches: Vec<Touch>,
        duration: f64,
        effect: Effect,
    },
    Record(Record),
    Wait(Record),
    /// One stream's part in a launch of a communicator.
    Launch(u64),
}

pub struct Op {
    pub work: Work,
    /// What the enqueuing host thread knew, and its virtual time.
    pub clock: Clock,
    pub at: f64,
    /// Never completes, as a test asked.
    pub hangs: bool,
    /// Fails with this error, as a test asked.
    pub fails: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Nothing queued.
    Idle,
    /// Among the tasks that a worker may take.
    Ready,
    /// A worker is at it.
    Running,
    /// Its first operation cannot run yet.
    Parked,
    /// In a launch that has not ended.
    Launched(u64),
}

pub struct Stream {
    pub device: usize,
    pub component: usize,
    pub phase: Phase,
    pub queue: VecDeque<Op>,
    pub clock: Clock,
    pub time: f64,
}

impl Stream {
    pub fn new(device: usize, component: usize) -> Self {
        let queue = VecDeque::new();
        Self {
            device,
            component,
            phase: Phase::Idle,
            queue,
            clock: Clock::default(),
            time: 0.0,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }
}
