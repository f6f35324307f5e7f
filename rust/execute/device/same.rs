//! The transport between ranks on one device, as threads of one process: copies on a stream for each edge.
//!
//! A copy is queued by whoever comes second, the receive that was posted or the send; so a thread may wait for
//! another thread to have queued its work, but never for the device.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Coming, Control, Flight, Order, check_dense, order, room};
use crate::array::Parcel;
use crate::cuda::DeviceError;
use crate::cuda::driver::{Device, Event, Stream};
use crate::execute::device::step::DevicePort;
use crate::execute::{Patience, Stopped, Transport};
use crate::schedule::{Rank, Slot, Tensor};

/// How long a thread that waits for another one goes without looking whether a rank has failed.
const LOOK: Duration = Duration::from_millis(5);

/// What the ranks of a device share.
pub struct SameDevice {
    device: Arc<Device>,
    edges: Mutex<HashMap<(Rank, Rank), Edge>>,
    bell: Condvar,
}

struct Edge {
    stream: Arc<Stream>,
    /// In a commit a receive begins after an event.
    posted: VecDeque<(Tensor, Option<Arc<Event>>)>,
    /// With where the sender's compute had come to, and its stream.
    offered: VecDeque<(Tensor, Parcel, Event, Arc<Stream>)>,
    coming: HashMap<Tensor, Coming>,
    flight: Flight,
}

impl SameDevice {
    pub fn new(device: Arc<Device>) -> Self {
        SameDevice { device, edges: Mutex::default(), bell: Condvar::new() }
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub fn port<'a, C: Control>(&'a self, rank: Rank, compute: &Arc<Stream>, control: C) -> Port<'a, C> {
        Port {
            shared: self,
            rank,
            compute: compute.clone(),
            control,
            commit: None,
            error: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Rank, Rank), Edge>> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes an edge, and queues the copies that have become possible.
    fn change(&self, edge: (Rank, Rank), change: impl FnOnce(&mut Edge)) -> Result<(), DeviceError> {
        let mut edges = self.lock();
        let edge = match edges.entry(edge) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(Edge::new(&self.device)?),
        };
        change(edge);
        let mut bin = Vec::new();
        let queued = edge.queue(&mut bin);
        drop(edges);
        drop(bin);
        self.bell.notify_all();
        queued
    }
}

impl Edge {
    fn new(device: &Arc<Device>) -> Result<Edge, DeviceError> {
        let stream = Stream::new(device)?;
        Ok(Edge {
            flight: Flight::new(stream.clone()),
            stream,
            posted: VecDeque::new(),
            offered: VecDeque::new(),
            coming: HashMap::new(),
        })
    }

    /// `bin`: see [`Flight::release`].
    fn queue(&mut self, bin: &mut Vec<Parcel>) -> Result<(), DeviceError> {
        self.flight.release(bin)?;
        while !self.posted.is_empty()
            && let Some((tensor, parcel, made, compute)) = self.offered.pop_front()
            && let Some((expected, begin)) = self.posted.pop_front()
        {
            assert_eq!(tensor, expected, "a channel carries its sender's order");
            self.flight.keep(tensor, parcel, &compute);
            let coming = self.copy(self.flight.parcel(tensor), &made, begin.as_deref())?;
            self.flight.note(tensor, coming.received.clone());
            self.coming.insert(tensor, coming);
        }
        Ok(())
    }

    /// Queues the copy of a parcel, after both ends have come to it.
    fn copy(&self, parcel: &Parcel, made: &Event, begin: Option<&Event>) -> Result<Coming, DeviceError> {
        order(Order::SendAfterCompute, &self.stream, made)?;
        if let Some(begin) = begin {
            order(Order::ReceiveAfterCompute, &self.stream, begin)?;
        }
        let form = parcel.form();
        let memory = room(&form, &self.stream)?;
        for (source, memory) in parcel.arrays.iter().flatten().zip(memory.iter().flatten()) {
            let bytes = source.layout.bytes().expect("checked where it was made");
            if bytes > 0 {
                // SAFETY: the memory is of that size, and the parcel is kept until the copy is complete.
                unsafe { self.stream.copy(memory.pointer(), source.data, bytes)? };
            }
        }
        let received = Arc::new(self.stream.record()?);
        Ok(Coming { form, memory, received })
    }
}

/// One rank's ends of the edges during a step.
pub struct Port<'a, C> {
    shared: &'a SameDevice,
    rank: Rank,
    compute: Arc<Stream>,
    control: C,
    /// Where compute has come to when the commit under way begins.
    commit: Option<Arc<Event>>,
    error: Option<DeviceError>,
}

impl<C: Control> Port<'_, C> {
    fn note<T>(&mut self, answer: Result<T, DeviceError>) -> Result<T, Stopped> {
        answer.map_err(|error| {
            self.error.get_or_insert(error);
            Stopped
        })
    }

    /// Waits until `found` finds something in an edge, as long as patience and the other ranks allow.
    fn look<T>(
        &self,
        edge: (Rank, Rank),
        patience: Patience,
        mut found: impl FnMut(&mut Edge) -> Option<T>,
    ) -> Result<Option<T>, Stopped> {
        let mut edges = self.shared.lock();
        loop {
            if let Some(found) = edges.get_mut(&edge).and_then(&mut found) {
                return Ok(Some(found));
            }
            if self.control.failed() {
                return Err(Stopped);
            }
            if patience == Patience::Look {
                return Ok(None);
            }
            let waited = self.shared.bell.wait_timeout(edges, LOOK);
            edges = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<C: Control> Transport for Port<'_, C> {
    type Value = Parcel;

    fn post(&mut self, from: Rank, tensor: Tensor) -> Result<(), Stopped> {
        let begin = self.commit.clone();
        let changed = self.shared.change((from, self.rank), |edge| edge.posted.push_back((tensor, begin)));
        self.note(changed)
    }

    fn send(&mut self, to: Rank, tensor: Tensor, value: Parcel) -> Result<(), Stopped> {
        let made = check_dense(tensor, &value).and_then(|()| self.compute.record());
        let made = self.note(made)?;
        let compute = self.compute.clone();
        let changed = self
            .shared
            .change((self.rank, to), |edge| edge.offered.push_back((tensor, value, made, compute)));
        self.note(changed)
    }

    fn begin(&mut self) {
        match self.compute.record() {
            Ok(event) => self.commit = Some(Arc::new(event)),
            Err(error) => drop(self.error.get_or_insert(error)),
        }
    }

    fn commit(&mut self) -> Result<(), Stopped> {
        self.commit = None;
        if self.error.is_some() { Err(Stopped) } else { Ok(()) }
    }

    fn sent(&mut self, to: Rank, tensor: Tensor, patience: Patience) -> Result<bool, Stopped> {
        let queued = |edge: &mut Edge| {
            let waits = edge.offered.iter().any(|(offered, ..)| *offered == tensor);
            (!waits).then(|| edge.flight.sent(tensor).cloned())
        };
        match self.look((self.rank, to), patience, queued)? {
            None => Ok(false),
            Some(None) => Ok(true), // It has been sent long ago.
            Some(Some(event)) => {
                let ordered = order(Order::ComputeAfterSend, &self.compute, &event);
                self.note(ordered).map(|()| true)
            }
        }
    }

    fn wait(&mut self, from: Rank, tensor: Tensor, patience: Patience) -> Result<Option<Parcel>, Stopped> {
        let coming = self.look((from, self.rank), patience, |edge| edge.coming.remove(&tensor))?;
        let parcel = coming.map(|coming| coming.arrived(&self.compute)).transpose();
        self.note(parcel)
    }

    fn enter(&mut self, index: usize, slot: Slot) -> Result<(), Stopped> {
        if self.error.is_none() && self.control.enter(index, slot) { Ok(()) } else { Err(Stopped) }
    }
}

impl<C: Control> DevicePort for Port<'_, C> {
    fn is_done(&mut self) -> Result<bool, DeviceError> {
        let mut bin = Vec::new();
        let mut edges = self.shared.lock();
        let mut own = edges.iter_mut().filter(|((from, to), _)| *from == self.rank || *to == self.rank);
        let done = own.try_fold(true, |done, (_, edge)| Ok(done & edge.flight.release(&mut bin)?));
        drop(edges);
        done
    }

    fn stopped(&self) -> bool {
        self.control.failed()
    }

    fn take_error(&mut self) -> Option<DeviceError> {
        self.error.take()
    }

    /// There is nothing to cut off: a copy waits for nobody who is not on this device.
    fn give_up(&mut self) {}
}
