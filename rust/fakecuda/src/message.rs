//! How a send meets its receive, and how the bytes move. When launches begin and end: `launch.rs`.

use std::collections::VecDeque;

use crate::clock::Clock;
use crate::comm::Job;
use crate::effect::Effect;
use crate::launch::{Begun, Part, end_part};
use crate::lock::Held;
use crate::memory::{Touch, Toucher};
use crate::run::Task;
use crate::world::World;

#[derive(Default)]
pub struct Channel {
    sends: VecDeque<Posted>,
    receives: VecDeque<Posted>,
}

struct Posted {
    launch: u64,
    at: u64,
    len: u64,
    clock: Clock,
    start: f64,
    fine: bool,
    message: Message,
}

enum Message {
    /// In the sender's memory, until the receiver has come.
    InPlace,
    /// Being copied out.
    Leaving,
    Sent(Vec<u8>),
}

/// A buffered send's bytes on their way out.
pub struct Departure {
    clique: usize,
    key: (usize, usize),
    launch: u64,
    at: u64,
    len: u64,
}

/// A matched message.
pub struct Delivery {
    from: Posted,
    to: Posted,
    end: f64,
}

impl Channel {
    /// Takes back what an aborted launch has posted. What a buffered send has copied out has left.
    pub fn cancel(&mut self, launch: u64) {
        self.sends.retain(|send| send.launch != launch || matches!(send.message, Message::Sent(_)));
        self.receives.retain(|receive| receive.launch != launch);
    }
}

/// One part of a launch that has begun. A send reads its memory from now on.
pub fn post(w: &mut World, clique: usize, key: (usize, usize), part: &Part, begun: &Begun) {
    let Begun { id, component, device, ref clock, start } = *begun;
    let toucher = Toucher { kind: "send", component, clock, device: Some(device) };
    let fine = !part.sends || w.memory.touch(&toucher, Touch::read(part.at, part.len));
    let buffered = w.settings.buffered;
    let message = if buffered { Message::Leaving } else { Message::InPlace };
    let posted = Posted {
        launch: id,
        at: part.at,
        len: part.len,
        clock: clock.clone(),
        start,
        fine,
        message,
    };
    let channel = w.comms.cliques[clique].channels.entry(key).or_default();
    if !part.sends {
        channel.receives.push_back(posted);
        return;
    }
    channel.sends.push_back(posted);
    if buffered {
        let len = if fine { part.len } else { 0 };
        w.add_task(Task::Job(Job::Depart(Departure { clique, key, launch: id, at: part.at, len })));
    }
}

/// Pairs what both sides have posted, in order.
pub fn match_up(w: &mut World, clique: usize, key: (usize, usize)) {
    loop {
        let Some(channel) = w.comms.cliques[clique].channels.get_mut(&key) else { return };
        let leaving = channel.sends.front().is_none_or(|send| matches!(send.message, Message::Leaving));
        if leaving || channel.receives.is_empty() {
            return;
        }
        let (Some(from), Some(to)) = (channel.sends.pop_front(), channel.receives.pop_front()) else {
            return;
        };
        pair(w, from, to);
    }
}

fn pair(w: &mut World, from: Posted, mut to: Posted) {
    if from.len != to.len {
        let text = format!("size mismatch: a send of {} bytes meets a receive of {}", from.len, to.len);
        w.memory.findings.note(text);
    }
    let Some(launch) = w.comms.launches.get(&to.launch) else { return };
    let stream = &w.streams[launch.streams[0]];
    let (component, device) = (stream.component, Some(stream.device));
    let mut clock = to.clock.clone();
    clock.join(&from.clock);
    let toucher = Toucher { kind: "recv", component, clock: &clock, device };
    to.fine = w.memory.touch(&toucher, Touch::write(to.at, to.len)) && from.fine;
    let hop = w.settings.hop;
    let end = match from.message {
        Message::InPlace => from.start.max(to.start) + hop,
        _ => to.start.max(from.start + hop),
    };
    to.clock = clock;
    w.add_task(Task::Job(Job::Deliver(Delivery { from, to, end })));
}

/// A buffered send ends at its own start: its bytes are out.
pub fn depart(w: &mut Held, departure: Departure) {
    let Departure { clique, key, launch, at, len } = departure;
    let mut bytes = vec![0u8; len as usize];
    let to = bytes.as_mut_ptr() as u64;
    if !w.outside(false, || Effect::Copy { to, from: at, len }.run()) {
        return;
    }
    let channel = w.comms.cliques[clique].channels.entry(key).or_default();
    let leaving = |send: &&mut Posted| {
        send.launch == launch && send.at == at && matches!(send.message, Message::Leaving)
    };
    let Some(send) = channel.sends.iter_mut().find(leaving) else { return };
    send.message = Message::Sent(bytes);
    let (start, clock) = (send.start, send.clock.clone());
    end_part(w, launch, start, &clock);
    match_up(w, clique, key);
}

/// The bytes arrive. With a rendezvous both ends know of each other after it; a buffered sender has gone on.
pub fn deliver(w: &mut Held, delivery: Delivery) {
    let Delivery { from, to, end } = delivery;
    let source = match &from.message {
        Message::Sent(bytes) => bytes.as_ptr() as u64,
        _ => from.at,
    };
    let len = if to.fine { from.len.min(to.len) } else { 0 };
    if !w.outside(false, || Effect::Copy { to: to.at, from: source, len }.run()) {
        return;
    }
    if matches!(from.message, Message::InPlace) {
        end_part(w, from.launch, end, &to.clock);
    }
    end_part(w, to.launch, end, &to.clock);
}
