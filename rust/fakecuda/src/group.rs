//! Groups: what a thread asks of NCCL between a start and an end, checked and made into launches.

use std::cell::RefCell;
use std::ffi::c_int;

use crate::codes::{NCCL_IN_PROGRESS, NCCL_INVALID_ARGUMENT, NCCL_INVALID_USAGE, NCCL_UNHANDLED_CUDA, Res};
use crate::comm::{self, Job};
use crate::launch::{self, Order, Part};
use crate::lock::Held;
use crate::run::Task;

/// What was asked for between ncclGroupStart and ncclGroupEnd.
#[derive(Default)]
struct Group {
    epoch: u64,
    depth: usize,
    asked: Vec<(u64, usize, Part)>,
    joined: Vec<u64>,
    error: Option<i32>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::new(Group::default());
}

/// The thread's group, forgotten with all else at a reset.
fn group<T>(w: &Held, body: impl FnOnce(&mut Group) -> T) -> T {
    GROUP.with_borrow_mut(|group| {
        if group.epoch != w.epoch {
            *group = Group { epoch: w.epoch, ..Group::default() };
        }
        body(group)
    })
}

pub fn start(w: &Held) {
    group(w, |group| group.depth += 1);
}

pub fn end(w: &mut Held) -> Res {
    let depth = group(w, |group| {
        let depth = group.depth;
        group.depth = depth.saturating_sub(1);
        depth
    });
    match depth {
        0 => Err(NCCL_INVALID_USAGE),
        1 => end_group(w),
        _ => Ok(()),
    }
}

/// A communicator made within a group is waited for at the group's end; whether there is a group.
pub fn takes(w: &Held, handle: u64) -> bool {
    group(w, |group| {
        if group.depth > 0 {
            group.joined.push(handle);
        }
        group.depth > 0
    })
}

fn bytes_of(datatype: c_int) -> Option<u64> {
    match datatype {
        0 | 1 | 10 | 11 => Some(1),
        6 | 9 => Some(2),
        2 | 3 | 7 => Some(4),
        4 | 5 | 8 => Some(8),
        _ => None,
    }
}

/// One side of a message, as the caller gave it.
pub struct Asked {
    pub sends: bool,
    pub at: u64,
    pub count: usize,
    pub datatype: c_int,
    pub peer: c_int,
    pub comm: u64,
    pub stream: u64,
}

/// The communicator's stream, and what to do there; or why not.
fn checked(w: &mut Held, asked: &Asked) -> Res<(usize, Part)> {
    let comm = comm::usable(w, asked.comm)?;
    let (device, size) = (comm.device, w.comms.size(comm));
    let peer = usize::try_from(asked.peer).ok().filter(|&p| p < size).ok_or(NCCL_INVALID_ARGUMENT)?;
    let each = bytes_of(asked.datatype).ok_or(NCCL_INVALID_ARGUMENT)?;
    let len = each.checked_mul(asked.count as u64).ok_or(NCCL_INVALID_ARGUMENT)?;
    if asked.at == 0 && len > 0 {
        return Err(NCCL_INVALID_ARGUMENT);
    }
    w.sound(device).map_err(|_| NCCL_UNHANDLED_CUDA)?;
    let s = w.stream(asked.stream, device).map_err(|_| NCCL_UNHANDLED_CUDA)?;
    if w.streams[s].device != device {
        return Err(NCCL_UNHANDLED_CUDA);
    }
    let hangs = w.faults.hangs(if asked.sends { "send" } else { "recv" });
    Ok((s, Part { sends: asked.sends, peer, at: asked.at, len, hangs }))
}

/// Adds to the group; without one, it is a group of its own.
pub fn ask(w: &mut Held, asked: &Asked) -> Res {
    let found = checked(w, asked);
    let alone = group(w, |group| {
        match &found {
            Ok((s, part)) => group.asked.push((asked.comm, *s, *part)),
            Err(code) => group.error = Some(*code),
        }
        group.depth == 0
    });
    if alone { end_group(w) } else { found.map(|_| ()) }
}

/// One order for each communicator, with the streams it was asked for on.
fn orders(w: &mut Held, asked: Vec<(u64, usize, Part)>) -> Vec<Order> {
    let (clock, at) = w.stamp();
    let mut orders: Vec<Order> = Vec::new();
    for (comm, s, part) in asked {
        let known = orders.iter().position(|order| order.comm == comm);
        let i = known.unwrap_or_else(|| {
            orders.push(Order {
                comm,
                parts: Vec::new(),
                streams: Vec::new(),
                clock: clock.clone(),
                at,
            });
            orders.len() - 1
        });
        orders[i].parts.push(part);
        if !orders[i].streams.contains(&s) {
            orders[i].streams.push(s);
        }
    }
    orders
}

/// For non-blocking communicators NCCL launches on a thread of its own: until their state is success, nothing
/// that is put on the streams can be relied on to come after it.
fn end_group(w: &mut Held) -> Res {
    let (asked, joined, error) = group(w, |group| {
        (std::mem::take(&mut group.asked), std::mem::take(&mut group.joined), group.error.take())
    });
    error.map_or(Ok(()), Err)?;
    let blocking = |w: &Held, comm: u64| w.comms.get(comm).is_ok_and(|comm| comm.blocking);
    let mut all = asked.iter().map(|asked| asked.0).chain(joined.iter().copied());
    let any_blocking = all.clone().any(|comm| blocking(w, comm));
    if any_blocking && !all.all(|comm| blocking(w, comm)) {
        return Err(NCCL_INVALID_ARGUMENT);
    }
    let late = !any_blocking && w.settings.background;
    let orders = orders(w, asked);
    let waits = !joined.is_empty() && !any_blocking || !orders.is_empty() && late;
    if late {
        launch_late(w, orders);
    } else {
        orders.into_iter().try_for_each(|order| launch::queue(w, order))?;
    }
    for handle in joined {
        if any_blocking {
            comm::wait_ready(w, handle)?;
        }
    }
    if waits { Err(NCCL_IN_PROGRESS) } else { Ok(()) }
}

fn launch_late(w: &mut Held, orders: Vec<Order>) {
    for order in &orders {
        if let Some(comm) = w.comms.comms.get_mut(&order.comm) {
            comm.state = NCCL_IN_PROGRESS;
        }
    }
    if !orders.is_empty() {
        w.add_task(Task::Job(Job::Launch(orders)));
    }
}
