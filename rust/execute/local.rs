//! The transport between threads of one process: a tensor is handed over as it is, without a copy.
//!
//! A [`Hub`] is what the ranks of a group share: the channels, and a meeting point at which all
//! ranks agree on what comes next. A step begins and ends with a meeting, so that a step that fails
//! on one rank fails on every rank, no rank is still in a step while another is out of it, and the
//! channels are empty when the next one begins.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Patience, Stopped, Transport};
use crate::schedule::{Rank, Slot, Tensor};

/// What the ranks of a group share. `V` is what travels, `C` what a rank lays on the table at a
/// meeting, `F` what a rank says when it fails.
pub struct Hub<V, C, F> {
    size: usize,
    clock: Instant,
    state: Mutex<State<V, C, F>>,
    /// One a rank, rung when something has changed that the rank may wait for.
    bells: Vec<Condvar>,
}

struct State<V, C, F> {
    /// By (from, to): what is under way, in the sender's order.
    channels: HashMap<(Rank, Rank), VecDeque<(Tensor, V)>>,
    /// The first failure of this step.
    fault: Option<Arc<F>>,
    table: Vec<Option<C>>,
    /// Meetings held so far.
    meetings: u64,
    /// What the last meeting brought, until every rank has taken it: a failure holds on to much.
    outcome: Option<Arc<Outcome<C, F>>>,
    taken: usize,
    /// Why a rank will come to no further meeting.
    gone: Vec<Option<Absence>>,
}

/// What a meeting brought: a card of each rank, and the first failure since the meeting before.
pub struct Outcome<C, F> {
    pub cards: Vec<C>,
    pub fault: Option<Arc<F>>,
}

/// A rank has left the group for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absence {
    pub rank: Rank,
    pub reason: String,
}

impl<V, C, F> Hub<V, C, F> {
    pub fn new(size: usize) -> Self {
        Hub {
            size,
            clock: Instant::now(),
            state: Mutex::new(State {
                channels: HashMap::new(),
                fault: None,
                table: (0..size).map(|_| None).collect(),
                meetings: 0,
                outcome: None,
                taken: 0,
                gone: vec![None; size],
            }),
            bells: (0..size).map(|_| Condvar::new()).collect(),
        }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// The time from which records count.
    pub fn clock(&self) -> Instant {
        self.clock
    }

    /// A thread that panicked holding the lock left nothing half done that matters: each change of
    /// the state is one assignment.
    fn lock(&self) -> MutexGuard<'_, State<V, C, F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep<'a>(&self, rank: Rank, guard: MutexGuard<'a, State<V, C, F>>) -> MutexGuard<'a, State<V, C, F>> {
        self.bells[rank].wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    fn ring_all(&self) {
        self.bells.iter().for_each(Condvar::notify_all);
    }

    /// Says that this step cannot succeed: every rank that waits, or comes to its next slot, stops.
    /// Only the first failure counts.
    pub fn fail(&self, fault: F) {
        self.lock().fault.get_or_insert_with(|| Arc::new(fault));
        self.ring_all();
    }

    /// Whether a rank has failed in this step.
    pub fn has_failed(&self) -> bool {
        self.lock().fault.is_some()
    }

    /// Says that a rank will come to no further meeting. Whoever waits for it is told.
    pub fn leave(&self, rank: Rank, reason: String) {
        self.lock().gone[rank].get_or_insert(Absence { rank, reason });
        self.ring_all();
    }

    /// Lays down a card and waits until every rank has; then all get all cards. The last one to come
    /// clears the channels and the failure, so that what follows begins anew.
    pub fn meet(&self, rank: Rank, card: C) -> Result<Arc<Outcome<C, F>>, Absence> {
        let mut state = self.lock();
        if let Some(own) = &state.gone[rank] {
            return Err(own.clone());
        }
        state.table[rank] = Some(card);
        let meeting = state.meetings;
        if state.table.iter().all(Option::is_some) {
            let left_over = state.conclude();
            let outcome = state.take_outcome();
            drop(state);
            self.ring_all();
            drop(left_over);
            return Ok(outcome);
        }
        while state.meetings == meeting {
            if let Some(absence) = state.absence() {
                state.table[rank] = None;
                return Err(absence);
            }
            state = self.sleep(rank, state);
        }
        Ok(state.take_outcome())
    }

    /// The end of the channels that `rank` holds.
    pub fn port(&self, rank: Rank) -> Port<'_, V, C, F> {
        Port {
            hub: self,
            rank,
            posted: HashMap::new(),
            early: HashMap::new(),
        }
    }
}

/// What was still under way when a meeting ended; dropped outside the lock.
type LeftOver<V> = HashMap<(Rank, Rank), VecDeque<(Tensor, V)>>;

impl<V, C, F> State<V, C, F> {
    fn conclude(&mut self) -> LeftOver<V> {
        let cards = self.table.iter_mut().map(|card| card.take().expect("all have come")).collect();
        let fault = self.fault.take();
        self.outcome = Some(Arc::new(Outcome { cards, fault }));
        self.taken = 0;
        self.meetings += 1;
        std::mem::take(&mut self.channels)
    }

    fn take_outcome(&mut self) -> Arc<Outcome<C, F>> {
        self.taken += 1;
        let is_last = self.taken == self.table.len();
        let outcome = if is_last { self.outcome.take() } else { self.outcome.clone() };
        outcome.expect("each rank takes what a meeting brought once, before it comes to the next")
    }

    /// A rank that is gone and has laid down no card.
    fn absence(&self) -> Option<Absence> {
        let ranks = self.gone.iter().zip(&self.table);
        ranks.filter(|(_, card)| card.is_none()).find_map(|(gone, _)| gone.clone())
    }
}

/// One rank's ends of the channels during one step.
pub struct Port<'a, V, C, F> {
    hub: &'a Hub<V, C, F>,
    rank: Rank,
    /// The receives posted on the channel from each rank whose tensors have not come yet.
    posted: HashMap<Rank, VecDeque<Tensor>>,
    /// What came before it was waited for.
    early: HashMap<Tensor, V>,
}

impl<V, C, F> Port<'_, V, C, F> {
    /// Takes what has come on a channel, up to the receives posted.
    fn receive(&mut self, from: Rank, state: &mut State<V, C, F>) {
        let Some(channel) = state.channels.get_mut(&(from, self.rank)) else { return };
        let posted = self.posted.entry(from).or_default();
        while let Some(expected) = posted.front() {
            let Some((tensor, value)) = channel.pop_front() else { break };
            assert_eq!(tensor, *expected, "a channel carries its sender's order");
            posted.pop_front();
            self.early.insert(tensor, value);
        }
    }
}

impl<V, C, F> Transport for Port<'_, V, C, F> {
    type Value = V;

    fn post(&mut self, from: Rank, tensor: Tensor) -> Result<(), Stopped> {
        self.posted.entry(from).or_default().push_back(tensor);
        Ok(())
    }

    fn send(&mut self, to: Rank, tensor: Tensor, value: V) -> Result<(), Stopped> {
        let mut state = self.hub.lock();
        state.channels.entry((self.rank, to)).or_default().push_back((tensor, value));
        drop(state);
        self.hub.bells[to].notify_all();
        Ok(())
    }

    fn wait(&mut self, from: Rank, tensor: Tensor, patience: Patience) -> Result<Option<V>, Stopped> {
        if let Some(value) = self.early.remove(&tensor) {
            return Ok(Some(value));
        }
        let hub = self.hub;
        let mut state = hub.lock();
        loop {
            if state.fault.is_some() {
                return Err(Stopped);
            }
            self.receive(from, &mut state);
            if let Some(value) = self.early.remove(&tensor) {
                return Ok(Some(value));
            }
            if patience == Patience::Look {
                return Ok(None);
            }
            state = hub.sleep(self.rank, state);
        }
    }

    /// A tensor handed over is there.
    fn sent(&mut self, _: Rank, _: Tensor, _: Patience) -> Result<bool, Stopped> {
        Ok(true)
    }

    fn enter(&mut self, _: usize, _: Slot) -> Result<(), Stopped> {
        if self.hub.has_failed() { Err(Stopped) } else { Ok(()) }
    }
}
