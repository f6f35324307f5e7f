//! When each part runs on its stream: a simulation from event to event, between which nothing changes.
//!
//! Communication runs at its own speed. Computation is slowed down while a communication runs, since that holds
//! some of the processors; so how far a part has come is kept until its speed changes, and only then reckoned anew.
//! With a slowdown of 1 nothing ever is, and each end is exactly a start plus a time.

use super::Work;
use super::order::Orders;
use super::part::{Layer, Part, Stream};

/// One part of one layer, laid out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Laid {
    pub layer: u32,
    pub part: Part,
    pub start: f64,
    pub end: f64,
}

/// Parts by start, then computation before communication, then as they stand on their stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    parts: Vec<Laid>,
}

impl Layout {
    pub fn parts(&self) -> &[Laid] {
        &self.parts
    }

    /// From 0, where the first part starts, to the last end.
    pub fn duration(&self) -> f64 {
        self.parts.iter().map(|part| part.end).fold(0.0, f64::max)
    }

    /// How long a communication runs and no computation beside it.
    pub fn exposed(&self) -> f64 {
        let of = |stream| self.parts.iter().filter(move |laid| laid.part.stream() == stream);
        let mut computations = of(Stream::Computation).peekable();
        let mut exposed = 0.0;
        for communication in of(Stream::Communication) {
            let mut from = communication.start;
            while let Some(computation) = computations.peek().filter(|other| other.start < communication.end)
            {
                exposed += (computation.start - from).max(0.0);
                from = from.max(computation.end);
                if computation.end > communication.end {
                    break; // It may also lie beside the next communication.
                }
                computations.next();
            }
            exposed += (communication.end - from).max(0.0);
        }
        exposed
    }
}

/// Runs the work on two streams, each in its order, each part as soon as its stream is free and what it needs has
/// ended. Parts that the work lacks are waited for by none.
pub(super) fn lay(work: &Work, orders: &Orders, slowdown: f64) -> Layout {
    let mut computation = Queue::new(work, orders, Stream::Computation);
    let mut communication = Queue::new(work, orders, Stream::Communication);
    let mut left = left_of(work);
    let mut now = 0.0;
    loop {
        computation.start(now, &left);
        communication.start(now, &left);
        let pace = if communication.running.is_some() { slowdown } else { 1.0 };
        computation.set_pace(now, pace);
        let ends = [computation.end(), communication.end()].into_iter().flatten();
        let Some(next) = ends.reduce(f64::min) else { break };
        now = next;
        computation.finish(now, &mut left);
        communication.finish(now, &mut left);
    }
    debug_assert!(left.iter().flatten().all(|&left| !left), "checked orders get through");
    let mut parts = computation.done;
    parts.append(&mut communication.done);
    // The sort is stable: what starts at the same time stays in the order of its stream.
    parts.sort_by(|a, b| a.start.total_cmp(&b.start));
    Layout { parts }
}

/// Which parts have not ended, by step.
type Left = [bool; Part::COUNT];

fn left_of(work: &Work) -> Vec<Left> {
    (0..work.steps()).map(|step| Part::ALL.map(|part| work.find(step, part).is_some())).collect()
}

/// A part that has not started.
struct Job {
    step: usize,
    layer: u32,
    part: Part,
    time: f64,
}

impl Job {
    fn may_start(&self, left: &[Left]) -> bool {
        let (needed, layer) = self.part.needs();
        let step = match layer {
            Layer::Same => Some(self.step),
            Layer::Before => self.step.checked_sub(1),
        };
        step.is_none_or(|step| !left[step][needed as usize])
    }
}

/// A part that has started: at `since` it had `work` to do, and does it at `pace` times its own time.
struct Running {
    step: usize,
    layer: u32,
    part: Part,
    start: f64,
    since: f64,
    work: f64,
    pace: f64,
}

impl Running {
    fn end(&self) -> f64 {
        self.since + self.work * self.pace
    }
}

struct Queue {
    jobs: std::iter::Peekable<std::vec::IntoIter<Job>>,
    running: Option<Running>,
    done: Vec<Laid>,
}

impl Queue {
    fn new(work: &Work, orders: &Orders, stream: Stream) -> Self {
        let job = |step, part| {
            let (layer, time) = work.find(step, part)?;
            Some(Job { step, layer: layer as u32, part, time })
        };
        let of_step = |step| orders.of(stream).iter().filter_map(move |&part| job(step, part));
        let jobs: Vec<Job> = (0..work.steps()).flat_map(of_step).collect();
        let done = Vec::with_capacity(jobs.len());
        Queue { jobs: jobs.into_iter().peekable(), running: None, done }
    }

    fn start(&mut self, now: f64, left: &[Left]) {
        if self.running.is_some() {
            return;
        }
        let Some(job) = self.jobs.next_if(|job| job.may_start(left)) else { return };
        let Job { step, layer, part, time } = job;
        self.running = Some(Running {
            step,
            layer,
            part,
            start: now,
            since: now,
            work: time,
            pace: 1.0,
        });
    }

    fn set_pace(&mut self, now: f64, pace: f64) {
        if let Some(running) = self.running.as_mut().filter(|running| running.pace != pace) {
            running.work = (running.work - (now - running.since) / running.pace).max(0.0);
            running.since = now;
            running.pace = pace;
        }
    }

    fn end(&self) -> Option<f64> {
        self.running.as_ref().map(Running::end)
    }

    fn finish(&mut self, now: f64, left: &mut [Left]) {
        if let Some(running) = self.running.take_if(|running| running.end() <= now) {
            let Running { step, layer, part, start, .. } = running;
            left[step][part as usize] = false;
            self.done.push(Laid { layer, part, start, end: now });
        }
    }
}
