//! Communicators: how ranks find each other, and how they leave. What they send: `launch.rs`.

use std::collections::{HashMap, VecDeque};

use crate::codes::{
    NCCL_IN_PROGRESS, NCCL_INTERNAL, NCCL_INVALID_ARGUMENT, NCCL_INVALID_USAGE, NCCL_REMOTE, Res,
};
use crate::launch::{self, Launch, Order};
use crate::lock::Held;
use crate::message::{self, Channel, Delivery, Departure};
use crate::run::Task;
use crate::stream::Phase;
use crate::world::World;

pub type UniqueId = [u8; 128];

/// Work that belongs to no stream.
pub enum Job {
    /// All ranks have come.
    Ready(usize),
    /// What a group of non-blocking communicators asked for.
    Launch(Vec<Order>),
    Finalize(u64),
    Depart(Departure),
    Deliver(Delivery),
}

/// The communicators that share one unique id.
pub struct Clique {
    size: usize,
    members: Vec<Option<u64>>,
    arrived: usize,
    /// Messages of each (source rank, destination rank), in order.
    pub channels: HashMap<(usize, usize), Channel>,
}

pub struct Comm {
    pub clique: usize,
    pub rank: usize,
    pub device: usize,
    pub blocking: bool,
    /// What `ncclCommGetAsyncError` says.
    pub state: i32,
    /// Launches that have not ended, in the order of their calls: one at a time.
    pub launches: VecDeque<u64>,
    /// Virtual end of the latest launch.
    pub end: f64,
    /// Its arrival is withheld, as a test asked.
    held_back: bool,
    finalizing: bool,
}

#[derive(Default)]
pub struct Comms {
    known: HashMap<UniqueId, Option<usize>>,
    pub cliques: Vec<Clique>,
    pub comms: HashMap<u64, Comm>,
    pub launches: HashMap<u64, Launch>,
    pub next_launch: u64,
}

impl Comms {
    pub fn new_id(&mut self) -> UniqueId {
        let mut id = [0; 128];
        id[..8].copy_from_slice(&(self.known.len() as u64 + 1).to_le_bytes());
        id[8..16].copy_from_slice(b"fakenccl");
        self.known.insert(id, None);
        id
    }

    pub fn get(&self, handle: u64) -> Res<&Comm> {
        self.comms.get(&handle).ok_or(NCCL_INVALID_ARGUMENT)
    }

    pub fn size(&self, comm: &Comm) -> usize {
        self.cliques[comm.clique].size
    }

    fn clique(&mut self, id: &UniqueId, size: usize) -> Res<usize> {
        let known = self.known.get_mut(id).ok_or(NCCL_INVALID_ARGUMENT)?;
        if let Some(clique) = *known {
            return if self.cliques[clique].size == size { Ok(clique) } else { Err(NCCL_INVALID_ARGUMENT) };
        }
        let clique = Clique {
            size,
            members: vec![None; size],
            arrived: 0,
            channels: HashMap::new(),
        };
        self.cliques.push(clique);
        *known = Some(self.cliques.len() - 1);
        Ok(self.cliques.len() - 1)
    }
}

/// A rank comes to its communicator, which is ready once all have come and a worker has seen it.
pub fn join(w: &mut World, id: &UniqueId, size: i32, rank: i32, device: usize, blocking: bool) -> Res<u64> {
    let size = usize::try_from(size).ok().filter(|&n| n > 0).ok_or(NCCL_INVALID_ARGUMENT)?;
    let rank = usize::try_from(rank).ok().filter(|&r| r < size).ok_or(NCCL_INVALID_ARGUMENT)?;
    let clique = w.comms.clique(id, size)?;
    if w.comms.cliques[clique].members[rank].is_some() {
        return Err(NCCL_INVALID_USAGE);
    }
    let handle = w.handle();
    let held_back = w.faults.hangs("init");
    let comm = Comm {
        clique,
        rank,
        device,
        blocking,
        state: NCCL_IN_PROGRESS,
        launches: VecDeque::new(),
        end: 0.0,
        held_back,
        finalizing: false,
    };
    w.comms.comms.insert(handle, comm);
    w.comms.cliques[clique].members[rank] = Some(handle);
    if !held_back {
        arrive(w, clique);
    }
    Ok(handle)
}

fn arrive(w: &mut World, clique: usize) {
    let found = &mut w.comms.cliques[clique];
    found.arrived += 1;
    if found.arrived == found.size {
        w.add_task(Task::Job(Job::Ready(clique)));
    }
}

/// Two ranks on one device are refused, as by NCCL.
fn ready(w: &mut World, clique: usize) {
    let members: Vec<u64> = w.comms.cliques[clique].members.iter().copied().flatten().collect();
    let mut devices: Vec<usize> = members.iter().filter_map(|m| Some(w.comms.comms.get(m)?.device)).collect();
    devices.sort_unstable();
    let twice = devices.windows(2).any(|pair| pair[0] == pair[1]);
    for member in members {
        if let Some(comm) = w.comms.comms.get_mut(&member) {
            comm.state = if twice { NCCL_INVALID_USAGE } else { 0 };
        }
    }
}

/// Blocks until a communicator's state is known; a failed one is gone.
pub fn wait_ready(w: &mut Held, handle: u64) -> Res {
    w.wait_until(|w| w.comms.comms.get(&handle).is_none_or(|comm| comm.state != NCCL_IN_PROGRESS))
        .map_err(|_| NCCL_INTERNAL)?;
    let state = w.comms.get(handle)?.state;
    if state != 0 {
        w.comms.comms.remove(&handle);
        return Err(state);
    }
    Ok(())
}

pub fn state(w: &World, handle: u64) -> Res<i32> {
    let comm = w.comms.get(handle)?;
    let lost = w.comms.cliques[comm.clique].members.iter().flatten().any(|member| {
        let device = w.comms.comms.get(member).map(|comm| comm.device);
        w.faults.dead.iter().any(|&(dead, told)| told && Some(dead) == device && dead != comm.device)
    });
    Ok(if lost { NCCL_REMOTE } else { comm.state })
}

/// A communicator that can be asked for something: as NCCL, not before the previous answer was success.
pub fn usable(w: &World, handle: u64) -> Res<&Comm> {
    match state(w, handle)? {
        0 => w.comms.get(handle),
        NCCL_IN_PROGRESS => Err(NCCL_INVALID_ARGUMENT),
        code => Err(code),
    }
}

pub fn finalize(w: &mut Held, handle: u64) -> Res {
    if usable(w, handle)?.blocking {
        return drain(w, handle);
    }
    if let Some(comm) = w.comms.comms.get_mut(&handle) {
        comm.state = NCCL_IN_PROGRESS;
        comm.finalizing = true;
    }
    w.add_task(Task::Job(Job::Finalize(handle)));
    Err(NCCL_IN_PROGRESS)
}

fn drain(w: &mut Held, handle: u64) -> Res {
    w.wait_until(|w| w.comms.comms.get(&handle).is_none_or(|comm| comm.launches.is_empty()))
        .map_err(|_| NCCL_INTERNAL)
}

/// A finalising communicator is done once nothing of it is under way.
pub fn finalized(w: &mut World, handle: u64) {
    if let Some(comm) = w.comms.comms.get_mut(&handle)
        && comm.finalizing
        && comm.launches.is_empty()
    {
        (comm.state, comm.finalizing) = (0, false);
    }
}

pub fn destroy(w: &mut Held, handle: u64) -> Res {
    if w.comms.get(handle)?.state == NCCL_IN_PROGRESS {
        return Err(NCCL_INVALID_ARGUMENT);
    }
    drain(w, handle)?;
    w.comms.comms.remove(&handle);
    Ok(())
}

/// Whatever is queued or under way ends, without moving data; the handle is gone.
pub fn abort(w: &mut World, handle: u64) -> Res {
    let comm = w.comms.comms.remove(&handle).ok_or(NCCL_INVALID_ARGUMENT)?;
    for id in comm.launches {
        launch::cancel(w, id);
    }
    w.tell_hosts();
    Ok(())
}

/// The same for what a broken device takes part in, except that handles stay.
pub fn cancel_device(w: &mut World, device: usize) {
    let handles: Vec<u64> =
        w.comms.comms.iter().filter(|(_, comm)| comm.device == device).map(|(&handle, _)| handle).collect();
    for handle in handles {
        let launches = w.comms.comms.get_mut(&handle).map(|comm| std::mem::take(&mut comm.launches));
        launches.into_iter().flatten().for_each(|id| launch::cancel(w, id));
    }
}

/// `fake_release`: what was made to hang goes on.
pub fn release(w: &mut World) {
    let held: Vec<u64> =
        w.comms.comms.iter().filter(|(_, comm)| comm.held_back).map(|(&handle, _)| handle).collect();
    for handle in held {
        if let Some(comm) = w.comms.comms.get_mut(&handle) {
            comm.held_back = false;
            let clique = comm.clique;
            arrive(w, clique);
        }
    }
    let hanging: Vec<u64> = w.comms.launches.keys().copied().collect();
    for id in hanging {
        if let Some(found) = w.comms.launches.get_mut(&id) {
            found.hangs = false;
            let comm = found.comm;
            launch::activate(w, comm);
        }
    }
}

pub fn work_off(w: &mut Held, job: Job) {
    match job {
        Job::Depart(departure) => message::depart(w, departure),
        Job::Deliver(delivery) => message::deliver(w, delivery),
        Job::Ready(clique) => {
            if w.outside(false, || ()) {
                ready(w, clique);
            }
        }
        Job::Finalize(handle) => {
            if w.outside(false, || ()) {
                finalized(w, handle);
            }
        }
        Job::Launch(orders) => {
            if w.outside(false, || ()) {
                orders.into_iter().for_each(|order| launch::queue_late(w, order));
            }
        }
    }
    w.tell_hosts();
}

/// The streams that stand in a launch go on.
pub fn let_go(
    w: &mut World,
    streams: &[usize],
    launch: u64,
    mut with: impl FnMut(&mut crate::stream::Stream),
) {
    for &s in streams {
        if w.streams[s].phase == Phase::Launched(launch) {
            with(&mut w.streams[s]);
            w.finish(s);
        }
    }
}
