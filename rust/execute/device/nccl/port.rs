//! A rank's ends of the edges during a step: what is queued where, and in which order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channels::{Channels, Link};
use crate::array::{Form, Parcel};
use crate::cuda::DeviceError;
use crate::cuda::driver::{Event, Memory, Stream};
use crate::cuda::nccl::{Group, Progress};
use crate::execute::device::step::DevicePort;
use crate::execute::device::{Coming, Control, Flight, Order, check_dense, order, room};
use crate::execute::{Patience, Stopped, Transport};
use crate::schedule::{Rank, Slot, Tensor};

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

impl<'a, C: Control> Port<'a, C> {
    pub(super) fn new(
        channels: &'a mut Channels,
        compute: &Arc<Stream>,
        control: C,
        timeout: Duration,
    ) -> Self {
        Port {
            channels,
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
        let received = self.receive(from, tensor, form);
        self.note(received)?;
        self.deferred.entry(from).or_default().pop_front();
        Ok(true)
    }

    fn receive(&mut self, from: Rank, tensor: Tensor, form: Form) -> Result<(), Broken> {
        let room = room(&form, &self.link((from, self.channels.rank))?.0.stream)?;
        let queued = self.queue_receive(from, &form, &room).map_err(Broken::Device);
        match queued.and_then(|()| self.settle(from, self.channels.rank)) {
            Ok(()) => self.note_receive(from, tensor, form, room),
            Err(broken) => {
                self.channels.stuck.push(room);
                Err(broken)
            }
        }
    }

    fn queue_receive(&self, from: Rank, form: &Form, room: &Room) -> Result<(), DeviceError> {
        let (link, peer) = self.link((from, self.channels.rank))?;
        for (layout, memory) in form.layouts.iter().flatten().zip(room.iter().flatten()) {
            let bytes = layout.bytes().expect("room() has asked");
            if bytes > 0 {
                // SAFETY: the memory is of that size, and is freed in this stream's order or one that waits for it.
                unsafe { link.communicator.recv(memory.pointer(), bytes, peer, link.stream.raw())? };
            }
        }
        Ok(())
    }

    fn note_receive(&mut self, from: Rank, tensor: Tensor, form: Form, memory: Room) -> Result<(), Broken> {
        let (link, _) = self.link((from, self.channels.rank))?;
        let received = Arc::new(link.stream.record()?);
        self.coming.insert(tensor, Coming { form, memory, received });
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
                tensor.made_in_words()
            ))),
        }
    }

    /// Keeps a parcel from before it is sent on.
    fn keep(&mut self, to: Rank, tensor: Tensor, parcel: Parcel) -> Result<(), DeviceError> {
        let stream = self.link((self.channels.rank, to))?.0.stream.clone();
        let flight = self.flight.entry(to).or_insert_with(|| Flight::new(stream));
        flight.keep(tensor, parcel, &self.compute);
        Ok(())
    }

    /// `made`: where compute had come to once it had made the tensor.
    fn queue_send(&self, to: Rank, tensor: Tensor, made: &Event) -> Result<(), DeviceError> {
        let (link, peer) = self.link((self.channels.rank, to))?;
        order(Order::SendAfterCompute, &link.stream, made)?;
        for array in self.flight[&to].parcel(tensor).arrays.iter().flatten() {
            let bytes = array.layout.bytes().expect("checked where it was made");
            if bytes > 0 {
                // SAFETY: the parcel is kept until the event after this is complete.
                unsafe { link.communicator.send(array.data, bytes, peer, link.stream.raw())? };
            }
        }
        Ok(())
    }

    fn note_send(&mut self, to: Rank, tensor: Tensor) -> Result<(), Broken> {
        let (link, _) = self.link((self.channels.rank, to))?;
        let sent = Arc::new(link.stream.record()?);
        self.flight.entry(to).and_modify(|flight| flight.note(tensor, sent));
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
        let mut sends = Vec::new();
        for (to, tensor, parcel) in gathered.sends {
            self.keep(to, tensor, parcel)?;
            sends.push((to, tensor));
        }
        let mut rooms = Vec::new();
        for (&(from, _), form) in gathered.receives.iter().zip(&forms) {
            rooms.push(room(form, &self.link((from, own))?.0.stream)?);
        }
        if let Err(broken) = self.queue_group(&gathered.receives, &forms, &rooms, &sends) {
            self.channels.stuck.extend(rooms);
            return Err(broken);
        }
        for ((&(from, tensor), form), room) in gathered.receives.iter().zip(forms).zip(rooms) {
            self.note_receive(from, tensor, form, room)?;
        }
        for (to, tensor) in sends {
            self.note_send(to, tensor)?;
        }
        Ok(())
    }

    /// Queues the transfers of a commit as one group.
    fn queue_group(
        &self,
        receives: &[(Rank, Tensor)],
        forms: &[Form],
        rooms: &[Room],
        sends: &[(Rank, Tensor)],
    ) -> Result<(), Broken> {
        let own = self.channels.rank;
        let begin = self.compute.record()?;
        let group = Group::start()?;
        for ((&(from, _), form), room) in receives.iter().zip(forms).zip(rooms) {
            order(Order::ReceiveAfterCompute, &self.link((from, own))?.0.stream, &begin)?;
            self.queue_receive(from, form, room)?;
        }
        for &(to, tensor) in sends {
            self.queue_send(to, tensor, &begin)?;
        }
        group.end()?;
        receives.iter().try_for_each(|&(from, _)| self.settle(from, own))?;
        sends.iter().try_for_each(|&(to, _)| self.settle(own, to))
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
            self.keep(to, tensor, value)?;
            self.queue_send(to, tensor, &self.compute.record()?)?;
            self.settle(own, to)?;
            self.note_send(to, tensor)
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
        let event = self.flight.get(&to).and_then(|flight| flight.sent(tensor));
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
