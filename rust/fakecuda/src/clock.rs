//! Vector clocks: which operations are known to lie before a point. Not virtual time, which is a number beside it.

use std::sync::Arc;

/// For each component (a stream or a host thread) how many of its operations come before this point.
/// Copies are cheap: most points of a stream share one vector with the record or operation beside them.
#[derive(Clone, Default)]
pub struct Clock(Arc<Vec<u32>>);

impl Clock {
    pub fn get(&self, component: usize) -> u32 {
        self.0.get(component).copied().unwrap_or(0)
    }

    /// One more operation of `component`; its number within it.
    pub fn tick(&mut self, component: usize) -> u32 {
        let counts = Arc::make_mut(&mut self.0);
        if counts.len() <= component {
            counts.resize(component + 1, 0);
        }
        counts[component] += 1;
        counts[component]
    }

    /// From here on, all that `other` knows lies before this point too.
    pub fn join(&mut self, other: &Self) {
        if Arc::ptr_eq(&self.0, &other.0) || other.is_within(self) {
            return;
        }
        let counts = Arc::make_mut(&mut self.0);
        if counts.len() < other.0.len() {
            counts.resize(other.0.len(), 0);
        }
        for (mine, &theirs) in counts.iter_mut().zip(other.0.iter()) {
            *mine = (*mine).max(theirs);
        }
    }

    fn is_within(&self, other: &Self) -> bool {
        self.0.iter().enumerate().all(|(i, &count)| count <= other.get(i))
    }
}
