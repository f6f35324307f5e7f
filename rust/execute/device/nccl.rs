//! The transport between devices: NCCL's sends and receives, each edge on a stream of its own.
//!
//! NCCL carries out what is queued on one communicator in the order of the calls, on whatever streams. A receive
//! queued early on a communicator that serves both directions would hold back the sends that its peer waits for;
//! so each directed edge has a communicator of its own, and only under batched P2P, where all transfers of a
//! commit go together as a group, may a pair of ranks share one ([`Sharing`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Coming, Control, Flight, Order, check_dense, in_words, order, room};
use crate::array::{Form, Parcel};
use crate::cuda::DeviceError;
use crate::cuda::driver::{Device, Memory, Stream};
use crate::cuda::nccl::{Communicator, Config, Group, Progress, UniqueId};
use crate::execute::device::step::DevicePort;
use crate::execute::{Patience, Stopped, Transport};
use crate::lower::{Instruction, Program, Side};
use crate::schedule::{Rank, Slot, Tensor};

/// Which edges have a communicator in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// None: one for each directed edge.
    Edge,
    /// The two directions between two ranks. For programs whose transfers all stand in commits.
    Pair,
}

impl Sharing {
    /// The ranks of the communicator of an edge, in their order in it.
    pub fn members(self, (from, to): (Rank, Rank)) -> (Rank, Rank) {
        match self {
            Sharing::Edge => (from, to),
            Sharing::Pair => (from.min(to), from.max(to)),
        }
    }

    /// The communicators that a program needs, by their ranks. The first of the two makes the id.
    pub fn communicators(self, program: &Program) -> BTreeSet<(Rank, Rank)> {
        let mut all = BTreeSet::new();
        for (rank, row) in program.rows().iter().enumerate() {
            for instruction in row {
                match instruction {
                    Instruction::Send { to, .. } => drop(all.insert(self.members((rank, *to)))),
                    Instruction::Commit(transfers) => {
                        let sends = transfers.iter().filter(|transfer| transfer.side == Side::Send);
                        all.extend(sends.map(|send| self.members((rank, send.peer))));
                    }
                    _ => {}
                }
            }
        }
        all
    }
}

/// A rank's communicators and their streams, from step to step.
pub struct Channels {
    rank: Rank,
    sharing: Sharing,
    links: BTreeMap<(Rank, Rank), Link>,
    /// What travels, once a step has shown it.
    forms: HashMap<Tensor, Form>,
}

struct Link {
    communicator: Communicator,
    stream: Arc<Stream>,
}

impl Channels {
    /// Begins to start a rank's communicators: those of `ids` that it is in. [`Channels::is_ready`] says when
    /// all have met. The device is the current one.
    pub fn start(
        rank: Rank,
        device: &Arc<Device>,
        sharing: Sharing,
        ids: &BTreeMap<(Rank, Rank), UniqueId>,
        config: &Config,
    ) -> Result<Channels, DeviceError> {
        let _entered = device.enter()?;
        let mut links = BTreeMap::new();
        for (&members, id) in ids.iter().filter(|((first, second), _)| [*first, *second].contains(&rank)) {
            let communicator = Communicator::start(id, 2, (members.1 == rank).into(), config)?;
            links.insert(members, Link { communicator, stream: Stream::new(device)? });
        }
        Ok(Channels { rank, sharing, links, forms: HashMap::new() })
    }

    pub fn is_ready(&self) -> Result<bool, DeviceError> {
        let mut all = self.links.values();
        all.try_fold(true, |ready, link| Ok(ready & (link.communicator.poll()? == Progress::Ready)))
    }

    /// Sends a byte over every edge, so that NCCL's connections stand before the first step: it makes them at
    /// the first transfer, and the call then waits for the peer's.
    pub fn warm_up(&self) -> Result<WarmUp, DeviceError> {
        let mut bytes = Vec::new();
        for (&(first, _), link) in &self.links {
            let memory = Memory::new(&link.stream, 2)?;
            let is_first = first == self.rank;
            let (mine, theirs, peer) = (memory.pointer(), memory.pointer() + 1, i32::from(is_first));
            let group = Group::start()?;
            // SAFETY: the memory has a byte for each, and is kept until the stream has come past.
            unsafe {
                if self.sharing == Sharing::Pair || is_first {
                    link.communicator.send(mine, 1, peer, link.stream.raw())?;
                }
                if self.sharing == Sharing::Pair || !is_first {
                    link.communicator.recv(theirs, 1, peer, link.stream.raw())?;
                }
            }
            group.end()?;
            bytes.push(memory);
        }
        Ok(WarmUp { _bytes: bytes, ends: Vec::new() })
    }

    /// Whether the bytes have come. Asked until they have.
    pub fn is_warm(&self, warm_up: &mut WarmUp) -> Result<bool, DeviceError> {
        if !self.is_ready()? {
            return Ok(false);
        }
        if warm_up.ends.is_empty() {
            for link in self.links.values() {
                warm_up.ends.push(link.stream.record()?);
            }
        }
        warm_up.ends.iter().try_fold(true, |all, end| Ok(all & end.is_complete()?))
    }

    /// A port for a step. `timeout` bounds how long NCCL may take to queue a transfer.
    pub fn port<'a, C: Control>(
        &'a mut self,
        compute: &Arc<Stream>,
        control: C,
        timeout: Duration,
    ) -> Port<'a, C> {
        Port {
            channels: self,
            compute: compute.clone(),
            control,
            timeout,
            deferred: HashMap::new(),
            coming: HashMap::new(),
            flight: BTreeMap::new(),
            seen: Vec::new(),
            gathered: None,
            error: None,
        }
    }

    /// Has all that is sent announced again: it may differ from what was sent before. All ranks do.
    pub fn forget(&mut self) {
        self.forms.clear();
    }

    fn cut(&mut self) {
        self.links.clear(); // A communicator that is dropped aborts.
    }

    /// Whether a failure has cut them off: others must be started.
    pub fn is_cut(&self) -> bool {
        self.links.is_empty()
    }

    /// Frees them, once they are finalised.
    pub fn destroy(self) -> Result<(), DeviceError> {
        self.links.into_values().try_for_each(|link| link.communicator.destroy())
    }

    /// Begins to end them in peace: all ranks do. [`Channels::is_ready`] says when it is time to destroy them.
    pub fn finalize(&mut self) -> Result<(), DeviceError> {
        self.links.values_mut().try_for_each(|link| link.communicator.finalize().map(drop))
    }
}

/// A first byte on every edge.
pub struct WarmUp {
    _bytes: Vec<Memory>,
    ends: Vec<crate::cuda::driver::Event>,
}

/// One rank's ends of the edges during a step.
pub struct Port<'a, C> {
    channels: &'a mut Channels,
    compute: Arc<Stream>,
    control: C,
    timeout: Duration,
    /// Receives, by the sender, that cannot be queued yet: nobody has said what will come.
    deferred: HashMap<Rank, VecDeque<Tensor>>,
    coming: HashMap<Tensor, Coming>,
    flight: BTreeMap<Rank, Flight>,
    seen: Vec<(Tensor, Form)>,
    /// The transfers of a commit, until all are known.
    gathered: Option<Gathered>,
    error: Option<DeviceError>,
}

#[derive(Default)]
struct Gathered {
    receives: Vec<(Rank, Tensor)>,
    sends: Vec<(Rank, Tensor, Parcel)>,
}

impl<C: Control> Port<'_, C> {
    fn note<T>(&mut self, answer: Result<T, Broken>) -> Result<T, Stopped> {
        answer.map_err(|broken| {
            if let Broken::Device(error) = broken {
                self.error.get_or_insert(error);
            }
            Stopped
        })
    }

    fn link(&self, edge: (Rank, Rank)) -> Result<(&Link, i32), DeviceError> {
        let members = self.channels.sharing.members(edge);
        let peer = (members.0 == self.channels.rank).into();
        let cut = || DeviceError::Usage("the communicators were cut off by a failure before".to_string());
        self.channels.links.get(&members).map(|link| (link, peer)).ok_or_else(cut)
    }

    /// What will come: known from a step before, or announced.
    fn form(&mut self, from: Rank, tensor: Tensor, patience: Patience) -> Result<Option<Form>, Stopped> {
        if let Some(form) = self.channels.forms.get(&tensor) {
            return Ok(Some(form.clone()));
        }
        let form = self.control.announced(from, tensor, patience)?;
        self.seen.extend(form.clone().map(|form| (tensor, form)));
        Ok(form)
    }

    /// Queues the receives from a rank that can be, in their order.
    fn catch_up(&mut self, from: Rank) -> Result<(), Stopped> {
        while self.queue_first(from, Patience::Look)? {}
        Ok(())
    }

    /// Queues the first receive from a rank that is not queued yet, if it is known what will come.
    fn queue_first(&mut self, from: Rank, patience: Patience) -> Result<bool, Stopped> {
        let Some(&tensor) = self.deferred.get(&from).and_then(VecDeque::front) else { return Ok(false) };
        let Some(form) = self.form(from, tensor, patience)? else { return Ok(false) };
        let received = self.receive(from, tensor, &form);
        self.note(received)?;
        self.deferred.entry(from).or_default().pop_front();
        Ok(true)
    }

    fn receive(&mut self, from: Rank, tensor: Tensor, form: &Form) -> Result<(), Broken> {
        let memory = self.queue_receive(from, form)?;
        self.settle(from, self.channels.rank)?;
        self.note_receive(from, tensor, form, memory)
    }

    fn queue_receive(&self, from: Rank, form: &Form) -> Result<Room, DeviceError> {
        let (link, peer) = self.link((from, self.channels.rank))?;
        let room = room(form, &link.stream)?;
        for (layout, memory) in form.layouts.iter().flatten().zip(room.iter().flatten()) {
            let bytes = layout.bytes().expect("room() has asked");
            if bytes > 0 {
                // SAFETY: the memory is of that size, and is freed in this stream's order or one that waits for it.
                unsafe { link.communicator.recv(memory.pointer(), bytes, peer, link.stream.raw())? };
            }
        }
        Ok(room)
    }

    fn note_receive(&mut self, from: Rank, tensor: Tensor, form: &Form, memory: Room) -> Result<(), Broken> {
        let (link, _) = self.link((from, self.channels.rank))?;
        let received = Arc::new(link.stream.record()?);
        self.coming.insert(tensor, Coming { form: form.clone(), memory, received });
        Ok(())
    }

    /// Tells the receiver what comes, if this is the first time; it must be as it was before.
    fn declare(&mut self, to: Rank, tensor: Tensor, parcel: &Parcel) -> Result<(), DeviceError> {
        check_dense(tensor, parcel)?;
        let form = parcel.form();
        match self.channels.forms.get(&tensor) {
            None => {
                self.control.announce(to, tensor, &form);
                self.seen.push((tensor, form));
                Ok(())
            }
            Some(known) if *known == form => Ok(()),
            Some(known) => Err(DeviceError::Usage(format!(
                "{} is {form}, and was {known} in the step before; room for it was made ahead, so it must stay \
                 as it is",
                in_words(tensor)
            ))),
        }
    }

    fn queue_send(&self, to: Rank, parcel: &Parcel) -> Result<(), DeviceError> {
        let (link, peer) = self.link((self.channels.rank, to))?;
        order(Order::SendAfterCompute, &link.stream, &self.compute.record()?)?;
        for array in parcel.arrays.iter().flatten() {
            let bytes = array.layout.bytes().expect("checked where it was made");
            if bytes > 0 {
                // SAFETY: the parcel is kept until the event after this is complete.
                unsafe { link.communicator.send(array.data, bytes, peer, link.stream.raw())? };
            }
        }
        Ok(())
    }

    fn note_send(&mut self, to: Rank, tensor: Tensor, parcel: Parcel) -> Result<(), Broken> {
        let (link, _) = self.link((self.channels.rank, to))?;
        let sent = Arc::new(link.stream.record()?);
        self.flight.entry(to).or_default().add(tensor, sent, parcel);
        Ok(())
    }

    /// Lets go of what has been sent. Before sends rather than after: a commit waits for its own.
    fn release(&mut self) -> Result<bool, DeviceError> {
        let mut bin = Vec::new();
        self.flight.values_mut().try_fold(true, |done, flight| Ok(done & flight.release(&mut bin)?))
    }

    /// Waits until NCCL has queued what it was told: it hands that to a thread of its own, and an event recorded
    /// before would come too early.
    fn settle(&self, from: Rank, to: Rank) -> Result<(), Broken> {
        let deadline = Instant::now() + self.timeout;
        let (link, _) = self.link((from, to))?;
        while link.communicator.poll()? == Progress::InProgress {
            if self.control.failed() {
                return Err(Broken::Stopped);
            }
            if Instant::now() > deadline {
                let what = format!("queuing a transfer from rank {from} to rank {to}");
                return Err(DeviceError::Deadline { what, limit: self.timeout }.into());
            }
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn start_gathered(&mut self, gathered: Gathered) -> Result<(), Broken> {
        let own = self.channels.rank;
        self.release()?;
        for (to, tensor, parcel) in &gathered.sends {
            self.declare(*to, *tensor, parcel)?;
        }
        let mut forms = Vec::new();
        for &(from, tensor) in &gathered.receives {
            let form = self.form(from, tensor, Patience::Wait).map_err(|Stopped| Broken::Stopped)?;
            forms.push(form.expect("it was waited for"));
        }
        let begin = self.compute.record()?;
        let group = Group::start()?;
        let mut rooms = Vec::new();
        for (&(from, _), form) in gathered.receives.iter().zip(&forms) {
            order(Order::ReceiveAfterCompute, &self.link((from, own))?.0.stream, &begin)?;
            rooms.push(self.queue_receive(from, form)?);
        }
        for (to, _, parcel) in &gathered.sends {
            self.queue_send(*to, parcel)?;
        }
        group.end()?;
        for ((&(from, tensor), form), memory) in gathered.receives.iter().zip(&forms).zip(rooms) {
            self.settle(from, own)?;
            self.note_receive(from, tensor, form, memory)?;
        }
        for (to, tensor, parcel) in gathered.sends {
            self.settle(own, to)?;
            self.note_send(to, tensor, parcel)?;
        }
        Ok(())
    }
}

type Room = Vec<Option<Memory>>;

/// This rank's own failure, or another's.
enum Broken {
    Device(DeviceError),
    Stopped,
}

impl From<DeviceError> for Broken {
    fn from(error: DeviceError) -> Self {
        Broken::Device(error)
    }
}

impl<C: Control> Transport for Port<'_, C> {
    type Value = Parcel;

    fn post(&mut self, from: Rank, tensor: Tensor) -> Result<(), Stopped> {
        if let Some(gathered) = &mut self.gathered {
            gathered.receives.push((from, tensor));
            return Ok(());
        }
        self.deferred.entry(from).or_default().push_back(tensor);
        self.catch_up(from)
    }

    fn send(&mut self, to: Rank, tensor: Tensor, value: Parcel) -> Result<(), Stopped> {
        if let Some(gathered) = &mut self.gathered {
            gathered.sends.push((to, tensor, value));
            return Ok(());
        }
        let own = self.channels.rank;
        let sent = (|| {
            self.release()?;
            self.declare(to, tensor, &value)?;
            self.queue_send(to, &value)?;
            self.settle(own, to)?;
            self.note_send(to, tensor, value)
        })();
        self.note(sent)
    }

    fn begin(&mut self) {
        self.gathered = Some(Gathered::default());
    }

    fn commit(&mut self) -> Result<(), Stopped> {
        let gathered = self.gathered.take().unwrap_or_default();
        let started = self.start_gathered(gathered);
        self.note(started)
    }

    fn sent(&mut self, to: Rank, tensor: Tensor, _: Patience) -> Result<bool, Stopped> {
        let event = self.flight.get(&to).and_then(|flight| flight.of(tensor));
        let ordered = event.map_or(Ok(()), |event| order(Order::ComputeAfterSend, &self.compute, event));
        self.note(ordered.map_err(Broken::Device)).map(|()| true)
    }

    fn wait(&mut self, from: Rank, tensor: Tensor, patience: Patience) -> Result<Option<Parcel>, Stopped> {
        self.catch_up(from)?;
        while patience == Patience::Wait && !self.coming.contains_key(&tensor) {
            self.queue_first(from, Patience::Wait)?;
        }
        let Some(coming) = self.coming.remove(&tensor) else { return Ok(None) };
        let parcel = coming.arrived(&self.compute);
        self.note(parcel.map_err(Broken::Device)).map(Some)
    }

    fn enter(&mut self, index: usize, slot: Slot) -> Result<(), Stopped> {
        if self.error.is_none() && self.control.enter(index, slot) { Ok(()) } else { Err(Stopped) }
    }
}

impl<C: Control> DevicePort for Port<'_, C> {
    fn is_done(&mut self) -> Result<bool, DeviceError> {
        if !self.channels.is_ready()? {
            return Ok(false);
        }
        self.release()
    }

    fn stopped(&self) -> bool {
        self.control.failed()
    }

    fn take_error(&mut self) -> Option<DeviceError> {
        self.error.take()
    }

    fn succeed(&mut self) {
        self.channels.forms.extend(self.seen.drain(..));
    }

    fn give_up(&mut self) {
        self.channels.cut();
    }
}
