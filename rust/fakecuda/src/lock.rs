//! The one lock, and how threads wait under it. Not what it guards: `world.rs`.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::codes::{CONTEXT_IS_DESTROYED, Res};
use crate::world::World;

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::new(8, 1)));
/// Workers wait here for tasks.
pub static WORK: Condvar = Condvar::new();
/// Host threads wait here for anything to complete.
pub static HOSTS: Condvar = Condvar::new();

/// The lock, held. Can be let go for a while.
pub struct Held(Option<MutexGuard<'static, World>>);

impl Held {
    pub fn lock() -> Self {
        Self(Some(WORLD.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// After a panic, which may have come while it was let go.
    pub fn regain(&mut self) {
        if self.0.is_none() {
            *self = Self::lock();
        }
    }

    pub fn wait(&mut self, on: &Condvar) {
        let guard = self.0.take().map(|guard| on.wait(guard).unwrap_or_else(PoisonError::into_inner));
        self.0 = guard;
    }

    fn wait_timeout(&mut self, on: &Condvar, most: Duration) {
        let guard =
            self.0.take().map(|guard| on.wait_timeout(guard, most).unwrap_or_else(PoisonError::into_inner).0);
        self.0 = guard;
    }

    pub fn unlocked<T>(&mut self, body: impl FnOnce() -> T) -> T {
        self.0 = None;
        let value = body();
        *self = Self::lock();
        value
    }

    /// Blocks the host thread until `done`; an error if everything is reset meanwhile.
    pub fn wait_until(&mut self, mut done: impl FnMut(&World) -> bool) -> Res {
        let epoch = self.epoch;
        while !done(self) {
            self.crew.hosts_waiting += 1;
            self.wait(&HOSTS);
            self.crew.hosts_waiting -= 1;
            if self.epoch != epoch {
                return Err(CONTEXT_IS_DESTROYED);
            }
        }
        Ok(())
    }

    /// The same for at most so long; whether it is done.
    pub fn wait_at_most(&mut self, most: Duration, mut done: impl FnMut(&World) -> bool) -> bool {
        let until = Instant::now() + most;
        loop {
            if done(self) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.crew.hosts_waiting += 1;
            self.wait_timeout(&HOSTS, left);
            self.crew.hosts_waiting -= 1;
        }
    }
}

impl Deref for Held {
    type Target = World;

    fn deref(&self) -> &World {
        self.0.as_ref().expect("held except while it waits")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut World {
        self.0.as_mut().expect("held except while it waits")
    }
}
