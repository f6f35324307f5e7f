//! Host threads: which context is current, what a thread knows, and what time it is for it.
//!
//! Which order between host threads counts? One thread may hand a buffer to another through a channel, which
//! is real order that cannot be seen from here. On a device that does not matter: a wait for an event takes
//! the order from the event's record, whoever called. It matters for what a thread learnt by waiting on the
//! host: A synchronises and tells B, B frees. So by default (`fake_set_hosts_ordered(1)`) whatever any thread
//! has waited for, or asked for and been told is complete, counts as known to all: no false report, at the
//! price of missing B's free when A told nobody. A program whose hosts never wait within a step loses
//! nothing. Where a watcher polls events, mode 2 keeps the answers to queries to the thread that asked, so
//! that the watcher's luck orders nothing for others. Mode 0 shares nothing.
//!
//! Virtual times are never shared: a thread's time is what it has waited for itself, or times would depend
//! on who ran first.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Clock;
use crate::codes::{CONTEXT_IS_DESTROYED, INVALID_CONTEXT, NOT_INITIALIZED, Res};
use crate::world::{HostOrder, World};

pub struct Host {
    pub component: usize,
    clock: Clock,
    time: f64,
}

static THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static THREAD: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
    /// The devices whose contexts were pushed, and the epoch they belong to.
    static STACK: RefCell<(u64, Vec<Option<usize>>)> = const { RefCell::new((0, Vec::new())) };
}

pub fn thread() -> u64 {
    THREAD.with(|&id| id)
}

/// CUDA allows no call of its own in a callback, which then gives an error.
pub fn in_callback() -> bool {
    IN_CALLBACK.get()
}

pub fn within_callback(body: impl FnOnce()) {
    IN_CALLBACK.set(true);
    body();
    IN_CALLBACK.set(false);
}

/// The stack of current contexts, forgotten with all else at a reset.
pub fn with_stack<T>(epoch: u64, body: impl FnOnce(&mut Vec<Option<usize>>) -> T) -> T {
    STACK.with_borrow_mut(|(of, stack)| {
        if *of != epoch {
            *of = epoch;
            stack.clear();
        }
        body(stack)
    })
}

impl World {
    /// The device whose context is current, even if it is broken.
    pub fn current(&self) -> Res<usize> {
        if !self.initialized {
            return Err(NOT_INITIALIZED);
        }
        let device =
            with_stack(self.epoch, |stack| stack.last().copied().flatten()).ok_or(INVALID_CONTEXT)?;
        match self.devices.get(device) {
            Some(found) if found.retained > 0 => Ok(device),
            _ => Err(CONTEXT_IS_DESTROYED),
        }
    }

    /// The device whose context is current; its error, if a kernel has broken it.
    pub fn context(&self) -> Res<usize> {
        let device = self.current()?;
        self.sound(device)?;
        Ok(device)
    }

    pub fn sound(&self, device: usize) -> Res {
        self.devices[device].sticky.map_or(Ok(()), Err)
    }

    fn host(&mut self) -> &mut Host {
        let id = thread();
        if !self.hosts.contains_key(&id) {
            let component = self.component(format!("host {}", self.hosts.len()));
            self.hosts.insert(id, Host { component, clock: Clock::default(), time: 0.0 });
        }
        self.hosts.get_mut(&id).expect("just put in")
    }

    /// What the calling thread knows, and its virtual time: an operation queued now comes after both.
    pub fn stamp(&mut self) -> (Clock, f64) {
        let shared = self.shared.clone();
        let host = self.host();
        host.clock.join(&shared);
        (host.clock.clone(), host.time)
    }

    /// The calling thread has waited for this.
    pub fn host_waited(&mut self, clock: &Clock, time: f64) {
        if self.settings.hosts != HostOrder::Apart {
            self.shared.join(clock);
        }
        let host = self.host();
        host.clock.join(clock);
        host.time = host.time.max(time);
    }

    /// The calling thread has asked, and was told that this is complete.
    pub fn host_was_told(&mut self, clock: &Clock, time: f64) {
        if self.settings.hosts == HostOrder::Shared {
            self.shared.join(clock);
        }
        let advances = self.settings.query_advances;
        let host = self.host();
        host.clock.join(clock);
        if advances {
            host.time = host.time.max(time);
        }
    }

    /// The calling thread does something to memory itself: its component, and the clock of that.
    pub fn host_acts(&mut self) -> (usize, Clock) {
        let shared = self.shared.clone();
        let host = self.host();
        host.clock.join(&shared);
        host.clock.tick(host.component);
        let (component, clock, time) = (host.component, host.clock.clone(), host.time);
        self.host_waited(&clock, time);
        (component, clock)
    }
}
