//! Launches: what one group asks of one communicator. How the messages in it pass: `message.rs`. A launch holds all its streams until all its messages have passed, and the next
//! launch of that communicator begins after it, on whatever stream, as in NCCL.

use crate::clock::Clock;
use crate::codes::{NCCL_IN_PROGRESS, Res};
use crate::comm::let_go;
use crate::memory::Touch;
use crate::message;
use crate::stream::{Op, Phase, Work};
use crate::world::World;

/// One `ncclSend` or `ncclRecv`.
#[derive(Clone, Copy)]
pub struct Part {
    pub sends: bool,
    pub peer: usize,
    pub at: u64,
    pub len: u64,
    pub hangs: bool,
}

/// What a group asks of one communicator, and what its caller knew.
pub struct Order {
    pub comm: u64,
    pub parts: Vec<Part>,
    pub streams: Vec<usize>,
    pub clock: Clock,
    pub at: f64,
}

pub struct Launch {
    pub comm: u64,
    parts: Vec<Part>,
    pub streams: Vec<usize>,
    arrived: usize,
    active: bool,
    pub hangs: bool,
    clock: Clock,
    start: f64,
    pending: usize,
    end: f64,
    /// What is known to lie before its end.
    after: Clock,
}

/// What a launch that has begun tells its messages.
pub struct Begun {
    pub id: u64,
    pub component: usize,
    pub device: usize,
    pub clock: Clock,
    pub start: f64,
}

/// Puts a launch on its streams.
pub fn queue(w: &mut World, order: Order) -> Res {
    let id = w.comms.next_launch;
    let Some(comm) = w.comms.comms.get_mut(&order.comm) else { return Ok(()) };
    comm.launches.push_back(id);
    w.comms.next_launch += 1;
    let launch = Launch {
        comm: order.comm,
        hangs: order.parts.iter().any(|part| part.hangs),
        pending: order.parts.len(),
        parts: order.parts,
        streams: order.streams.clone(),
        arrived: 0,
        active: false,
        clock: Clock::default(),
        start: 0.0,
        end: 0.0,
        after: Clock::default(),
    };
    w.comms.launches.insert(id, launch);
    for s in order.streams {
        let op = Op {
            work: Work::Launch(id),
            clock: order.clock.clone(),
            at: order.at,
            hangs: false,
            fails: None,
        };
        w.push(s, op);
    }
    Ok(())
}

/// The same, by a worker, for a non-blocking communicator: only now does it say success.
pub fn queue_late(w: &mut World, order: Order) {
    if let Some(comm) = w.comms.comms.get_mut(&order.comm)
        && comm.state == NCCL_IN_PROGRESS
    {
        comm.state = 0;
    }
    let _ = queue(w, order);
}

/// A stream has come to its part in a launch.
pub fn arrive(w: &mut World, s: usize, id: u64) {
    let Some(launch) = w.comms.launches.get_mut(&id) else {
        w.finish(s); // aborted
        return;
    };
    let stream = &mut w.streams[s];
    stream.phase = Phase::Launched(id);
    launch.arrived += 1;
    launch.clock.join(&stream.clock);
    launch.start = launch.start.max(stream.time);
    let comm = launch.comm;
    activate(w, comm);
}

/// Begins the communicator's first launch, if all its streams are there.
pub fn activate(w: &mut World, handle: u64) {
    let Some(comm) = w.comms.comms.get(&handle) else { return };
    let (clique, rank, device, free) = (comm.clique, comm.rank, comm.device, comm.end);
    let Some(&id) = comm.launches.front() else { return };
    let Some(launch) = w.comms.launches.get_mut(&id) else { return };
    if launch.active || launch.hangs || launch.arrived < launch.streams.len() || w.faults.is_dead(device) {
        return;
    }
    launch.active = true;
    // That launches follow each other takes time, but is no order to rely on for memory: only streams are.
    launch.start = launch.start.max(free);
    let first = &mut w.streams[launch.streams[0]];
    let component = first.component;
    first.clock.tick(component);
    launch.clock.join(&first.clock);
    launch.after = launch.clock.clone();
    let (clock, start, parts) = (launch.clock.clone(), launch.start, launch.parts.clone());
    check_within(w, &parts, component);
    let begun = Begun { id, component, device, clock, start };
    let key = |part: &Part| if part.sends { (rank, part.peer) } else { (part.peer, rank) };
    for part in &parts {
        message::post(w, clique, key(part), part, &begun);
    }
    for part in &parts {
        message::match_up(w, clique, key(part));
    }
}

/// The parts of one group pass together, so that nothing orders them.
fn check_within(w: &mut World, parts: &[Part], component: usize) {
    let touch = |part: &Part| Touch { at: part.at, len: part.len, write: !part.sends };
    for (i, one) in parts.iter().enumerate() {
        if parts[..i].iter().any(|other| touch(one).conflicts(&touch(other))) {
            let stream = w.memory.names[component].clone();
            w.memory.findings.note(format!(
                "overlap in a group: two sends or receives of one group on {stream} touch {:#x}",
                one.at
            ));
        }
    }
}

/// One message has passed; with the last one its launch ends, and the next may begin.
pub fn end_part(w: &mut World, id: u64, end: f64, after: &Clock) {
    let Some(launch) = w.comms.launches.get_mut(&id) else { return };
    launch.pending -= 1;
    launch.end = launch.end.max(end);
    launch.after.join(after);
    if launch.pending > 0 {
        return;
    }
    let Some(launch) = w.comms.launches.remove(&id) else { return };
    let handle = launch.comm;
    if let Some(comm) = w.comms.comms.get_mut(&handle) {
        comm.end = comm.end.max(launch.end);
        comm.launches.retain(|&other| other != id);
    }
    let_go(w, &launch.streams, id, |stream| {
        stream.clock.join(&launch.after);
        stream.time = stream.time.max(launch.end);
    });
    crate::comm::finalized(w, handle);
    activate(w, handle);
}

/// Ends a launch without moving data.
pub fn cancel(w: &mut World, id: u64) {
    let Some(launch) = w.comms.launches.remove(&id) else { return };
    for clique in &mut w.comms.cliques {
        for channel in clique.channels.values_mut() {
            channel.cancel(id);
        }
    }
    let_go(w, &launch.streams, id, |_| ());
}
