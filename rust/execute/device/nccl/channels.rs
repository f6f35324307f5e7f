//! A rank's communicators: which there are, how they are started, and how they end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::Port;
use crate::array::Form;
use crate::cuda::DeviceError;
use crate::cuda::driver::{Device, Event, Memory, Stream};
use crate::cuda::nccl::{Communicator, Config, Group, Progress, UniqueId};
use crate::execute::device::Control;
use crate::lower::{Instruction, Program, Side};
use crate::schedule::{Rank, Tensor};

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
    pub(super) rank: Rank,
    pub(super) sharing: Sharing,
    pub(super) links: BTreeMap<(Rank, Rank), Link>,
    /// What travels, once a step has shown it.
    pub(super) forms: HashMap<Tensor, Form>,
    /// Room for receives that could not be queued to the end: NCCL may still be about to, until it is cut off.
    pub(super) stuck: Vec<Vec<Option<Memory>>>,
    first_bytes: Option<FirstBytes>,
}

pub(super) struct Link {
    pub communicator: Communicator,
    pub stream: Arc<Stream>,
}

impl Channels {
    /// Begins to start a rank's communicators: those of `ids` that it is in. [`Channels::is_open`] says when
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
        Ok(Channels {
            rank,
            sharing,
            links,
            forms: HashMap::new(),
            stuck: Vec::new(),
            first_bytes: None,
        })
    }

    pub fn is_ready(&self) -> Result<bool, DeviceError> {
        let mut all = self.links.values();
        all.try_fold(true, |ready, link| Ok(ready & (link.communicator.poll()? == Progress::Ready)))
    }

    /// Whether they stand, and a byte has come over every edge: NCCL makes its connections at the first transfer, and
    /// the call then waits for the peer's. Asked until it is so, before the first step.
    pub fn is_open(&mut self) -> Result<bool, DeviceError> {
        if !self.is_ready()? {
            return Ok(false);
        }
        let Some(first_bytes) = &mut self.first_bytes else {
            self.first_bytes = Some(FirstBytes::default());
            self.send_first_bytes()?;
            return Ok(false);
        };
        if first_bytes.ends.is_empty() {
            let ends = self.links.values().map(|link| link.stream.record());
            first_bytes.ends = ends.collect::<Result<_, DeviceError>>()?;
        }
        first_bytes.ends.iter().try_fold(true, |all, end| Ok(all & end.is_complete()?))
    }

    fn send_first_bytes(&mut self) -> Result<(), DeviceError> {
        for (&(first, _), link) in &self.links {
            let memory = Memory::new(&link.stream, 2)?;
            let is_first = first == self.rank;
            let (mine, theirs, peer) = (memory.pointer(), memory.pointer() + 1, i32::from(is_first));
            self.first_bytes.get_or_insert_default().memory.push(memory);
            let group = Group::start()?;
            // SAFETY: the memory has a byte for each, and is kept until the communicators go.
            unsafe {
                if self.sharing == Sharing::Pair || is_first {
                    link.communicator.send(mine, 1, peer, link.stream.raw())?;
                }
                if self.sharing == Sharing::Pair || !is_first {
                    link.communicator.recv(theirs, 1, peer, link.stream.raw())?;
                }
            }
            group.end()?;
        }
        Ok(())
    }

    /// A port for a step. `timeout` bounds how long NCCL may take to queue a transfer.
    pub fn port<'a, C: Control>(
        &'a mut self,
        compute: &Arc<Stream>,
        control: C,
        timeout: Duration,
    ) -> Port<'a, C> {
        Port::new(self, compute, control, timeout)
    }

    /// Has all that is sent announced again: it may differ from what was sent before. All ranks do.
    pub fn forget(&mut self) {
        self.forms.clear();
    }

    pub(super) fn cut(&mut self) {
        self.links.clear(); // A communicator that is dropped aborts.
        self.stuck.clear();
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
#[derive(Default)]
struct FirstBytes {
    memory: Vec<Memory>,
    ends: Vec<Event>,
}
