//! The workers: a few threads that take a ready stream at random, and run its first operation. A stream that
//! stands at a wait holds no thread, so that streams are as independent as if each had its own.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::comm::{self, Job};
use crate::entry;
use crate::launch;
use crate::lock::{Held, WORK};
use crate::memory::Toucher;
use crate::stream::{Op, Phase, Record, Work};
use crate::world::World;

pub enum Task {
    Stream(usize),
    Job(Job),
}

/// Workers that are not in a callback. More would only wait for the lock.
const HANDS: usize = 3;
const MOST: usize = 1024;

impl World {
    /// Someone must come for a new task.
    pub fn muster(&mut self) {
        if self.crew.idle > 0 {
            WORK.notify_one();
        } else if self.crew.workers - self.crew.calling < HANDS && self.crew.workers < MOST {
            self.crew.workers += 1;
            let name = format!("fakecuda-{}", self.crew.workers);
            if std::thread::Builder::new().name(name).spawn(work).is_err() {
                self.crew.workers -= 1;
            }
        }
    }

    fn take(&mut self) -> Option<Task> {
        let at = self.random.below(self.ready.len());
        (!self.ready.is_empty()).then(|| self.ready.swap_remove(at))
    }

    /// After this all of the device's calls fail, and what is queued on it ends without effect.
    pub fn break_device(&mut self, device: usize, code: i32) {
        self.devices[device].sticky = Some(code);
        comm::cancel_device(self, device);
        for s in 0..self.streams.len() {
            if self.streams[s].device == device {
                self.wake(s);
            }
        }
        self.tell_hosts();
    }
}

fn work() {
    let mut w = Held::lock();
    loop {
        let Some(task) = w.take() else {
            w.tell_hosts();
            w.crew.idle += 1;
            w.wait(&WORK);
            w.crew.idle -= 1;
            continue;
        };
        let done = catch_unwind(AssertUnwindSafe(|| match task {
            Task::Stream(s) => step(&mut w, s),
            Task::Job(job) => comm::work_off(&mut w, job),
        }));
        if let Err(panic) = done {
            w.regain();
            let text = entry::panic_text(&*panic);
            w.panics.push(format!("worker: {text}"));
        }
    }
}

fn step(w: &mut Held, s: usize) {
    let Some(op) = w.streams[s].queue.pop_front() else {
        w.streams[s].phase = Phase::Idle;
        return;
    };
    let broken = w.devices[w.streams[s].device].sticky.is_some();
    if op.hangs && !broken {
        park(w, s, op);
        return;
    }
    w.streams[s].phase = Phase::Running;
    let stream = &mut w.streams[s];
    match &op.work {
        Work::Wait(record) if !broken => {
            let Some((clock, time)) = record.done() else {
                record.state().waiters.push(s);
                park(w, s, op);
                return;
            };
            stream.clock.join(&clock);
            stream.time = stream.time.max(time);
            begin(w, s, &op);
            w.finish(s);
        }
        Work::Record(record) => {
            let record = record.clone();
            begin(w, s, &op);
            complete(w, s, &record);
            w.finish(s);
        }
        Work::Launch(id) if !broken => {
            let id = *id;
            begin(w, s, &op);
            launch::arrive(w, s, id);
        }
        Work::Act { .. } if !broken => act(w, s, op),
        _ => w.finish(s),
    }
}

fn park(w: &mut World, s: usize, op: Op) {
    w.streams[s].queue.push_front(op);
    w.streams[s].phase = Phase::Parked;
}

/// It comes after the host's call, and not before the host's time.
fn begin(w: &mut World, s: usize, op: &Op) {
    w.streams[s].clock.join(&op.clock);
    w.streams[s].time = w.streams[s].time.max(op.at);
}

fn complete(w: &mut World, s: usize, record: &Record) {
    let stream = &w.streams[s];
    let waiters = {
        let mut state = record.state();
        state.done = Some((stream.clock.clone(), stream.time));
        std::mem::take(&mut state.waiters)
    };
    for waiter in waiters {
        w.wake(waiter);
    }
}

fn act(w: &mut Held, s: usize, op: Op) {
    begin(w, s, &op);
    let Work::Act { kind, touches, duration, effect } = op.work else { return };
    let stream = &mut w.streams[s];
    let (component, device) = (stream.component, stream.device);
    stream.clock.tick(component);
    stream.time += duration;
    let clock = stream.clock.clone();
    if let Some(code) = op.fails {
        w.break_device(device, code);
        w.finish(s);
        return;
    }
    // Copies reach every device, kernels and fills their own alone. An allocation or free is no access.
    let device = matches!(kind, "kernel" | "memset").then_some(device);
    let fine = w.memory.touch_all(&Toucher { kind, component, clock: &clock, device }, &touches);
    drop(clock);
    let calls = effect.is_call();
    if !(fine || calls) || w.outside(calls, || effect.run()) {
        w.finish(s);
    }
}

impl Held {
    /// Runs an effect without the lock, after a delay. False: all was reset meanwhile.
    pub fn outside(&mut self, calls: bool, effect: impl FnOnce()) -> bool {
        let epoch = self.epoch;
        let jitter = self.settings.jitter_us;
        let delay = self.random.delay(jitter);
        self.crew.busy += 1;
        if calls {
            self.crew.calling += 1;
            if !self.ready.is_empty() {
                self.muster();
            }
        }
        self.unlocked(|| {
            delay.pass();
            effect();
        });
        self.crew.busy -= 1;
        self.crew.calling -= usize::from(calls);
        self.tell_hosts();
        self.epoch == epoch
    }
}
