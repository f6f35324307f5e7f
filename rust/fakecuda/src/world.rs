//! Everything there is, behind one lock (`lock.rs`). Operations' effects run outside it.

use std::collections::HashMap;

use crate::clock::Clock;
use crate::codes::{INVALID_HANDLE, Res};
use crate::comm::Comms;
use crate::faults::Faults;
use crate::host::{self, Host};
use crate::lock::HOSTS;
use crate::memory::Memory;
use crate::random::Random;
use crate::run::Task;
use crate::stream::{Op, Phase, Record, Stream, Work};

/// Handles are numbers that nothing maps to memory, and are never given twice, not even after a reset.
const FIRST_HANDLE: u64 = 0x0F00_0000_0000;

pub struct Settings {
    pub buffered: bool,
    pub jitter_us: u64,
    pub hop: f64,
    pub copy: f64,
    pub hosts: HostOrder,
    pub query_advances: bool,
    pub background: bool,
    pub capacity: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum HostOrder {
    /// Each thread knows what it has waited for itself.
    Apart,
    /// Every thread knows what any has waited or successfully asked for.
    Shared,
    /// Waits are shared, the answers to queries are the asking thread's alone.
    WaitsShared,
}

#[derive(Default, Clone)]
pub struct Device {
    pub retained: i64,
    /// The error that every later call returns.
    pub sticky: Option<i32>,
}

pub struct Event {
    pub device: usize,
    pub timed: bool,
    pub latest: Option<Record>,
}

pub enum Object {
    Stream(usize),
    Event(Event),
    Pool(usize),
}

/// The threads that run streams. Outlives every reset.
#[derive(Default)]
pub struct Crew {
    pub workers: usize,
    pub idle: usize,
    /// In a callback of the user's, which may take any time.
    pub calling: usize,
    /// Outside the lock, at memory.
    pub busy: usize,
    pub hosts_waiting: usize,
}

pub struct World {
    pub epoch: u64,
    pub initialized: bool,
    pub crew: Crew,
    next_handle: u64,
    pub devices: Vec<Device>,
    pub streams: Vec<Stream>,
    pub objects: HashMap<u64, Object>,
    /// The default streams: per device, and per device and thread.
    pub defaults: HashMap<(usize, Option<u64>), usize>,
    pub memory: Memory,
    pub settings: Settings,
    pub ready: Vec<Task>,
    pub hosts: HashMap<u64, Host>,
    /// What all host threads know.
    pub shared: Clock,
    pub comms: Comms,
    pub faults: Faults,
    pub calls: HashMap<&'static str, u64>,
    pub host_waits: u64,
    pub panics: Vec<String>,
    pub end: f64,
    pub random: Random,
}

impl World {
    pub fn new(devices: usize, seed: u64) -> Self {
        Self {
            epoch: 0,
            initialized: false,
            crew: Crew::default(),
            next_handle: FIRST_HANDLE,
            devices: vec![Device::default(); devices],
            streams: Vec::new(),
            objects: HashMap::new(),
            defaults: HashMap::new(),
            memory: Memory::default(),
            settings: Settings {
                buffered: false,
                jitter_us: 20,
                hop: 0.0,
                copy: 0.0,
                hosts: HostOrder::Shared,
                query_advances: false,
                background: true,
                capacity: u64::MAX,
            },
            ready: Vec::new(),
            hosts: HashMap::new(),
            shared: Clock::default(),
            comms: Comms::default(),
            faults: Faults::default(),
            calls: HashMap::new(),
            host_waits: 0,
            panics: Vec::new(),
            end: 0.0,
            random: Random::new(seed),
        }
    }

    pub fn handle(&mut self) -> u64 {
        self.next_handle += 64;
        self.next_handle
    }

    pub fn component(&mut self, name: String) -> usize {
        self.memory.names.push(name);
        self.memory.names.len() - 1
    }

    pub fn new_stream(&mut self, device: usize, name: &str) -> usize {
        let component = self.component(format!("{name} (device {device})"));
        self.streams.push(Stream::new(device, component));
        self.streams.len() - 1
    }

    /// The stream behind a handle; the default streams are streams of the current context like others, and
    /// nothing synchronises them with the others: stricter than CUDA's legacy stream, which finds more races.
    pub fn stream(&mut self, handle: u64, device: usize) -> Res<usize> {
        let thread = match handle {
            0 | 1 => None,
            2 => Some(host::thread()),
            _ => {
                let found = self.objects.get(&handle);
                return if let Some(Object::Stream(s)) = found { Ok(*s) } else { Err(INVALID_HANDLE) };
            }
        };
        if let Some(&s) = self.defaults.get(&(device, thread)) {
            return Ok(s);
        }
        let name = if thread.is_some() { "per-thread default stream" } else { "default stream" };
        let s = self.new_stream(device, name);
        self.defaults.insert((device, thread), s);
        Ok(s)
    }

    pub fn event(&mut self, handle: u64) -> Res<&mut Event> {
        match self.objects.get_mut(&handle) {
            Some(Object::Event(event)) => Ok(event),
            _ => Err(INVALID_HANDLE),
        }
    }

    /// Queues work that the calling host thread asked for.
    pub fn enqueue(&mut self, s: usize, work: Work) {
        let (clock, at) = self.stamp();
        let (mut hangs, mut fails) = (false, None);
        if let Work::Act { kind, .. } = &work {
            hangs = self.faults.hangs(kind);
            fails = if *kind == "kernel" { self.faults.take("launch") } else { None };
        }
        self.push(s, Op { work, clock, at, hangs, fails });
    }

    pub fn push(&mut self, s: usize, op: Op) {
        self.streams[s].queue.push_back(op);
        if self.streams[s].is_idle() {
            self.make_ready(s);
        }
    }

    /// A record after all that is queued now.
    pub fn record(&mut self, s: usize) -> Record {
        let record = Record::default();
        self.enqueue(s, Work::Record(record.clone()));
        record
    }

    pub fn make_ready(&mut self, s: usize) {
        self.streams[s].phase = Phase::Ready;
        self.add_task(Task::Stream(s));
    }

    pub fn wake(&mut self, s: usize) {
        if self.streams[s].phase == Phase::Parked {
            self.make_ready(s);
        }
    }

    pub fn add_task(&mut self, task: Task) {
        self.ready.push(task);
        self.muster();
    }

    /// The stream's first operation is over.
    pub fn finish(&mut self, s: usize) {
        let stream = &mut self.streams[s];
        self.end = self.end.max(stream.time);
        if stream.queue.is_empty() {
            stream.phase = Phase::Idle;
        } else {
            self.make_ready(s);
        }
        self.tell_hosts();
    }

    pub fn tell_hosts(&self) {
        if self.crew.hosts_waiting > 0 {
            HOSTS.notify_all();
        }
    }

    /// Nothing moves, and nothing will unless a host thread does something.
    pub fn is_quiet(&self) -> bool {
        self.ready.is_empty() && self.crew.busy == 0
    }

    pub fn is_settled(&self) -> bool {
        self.is_quiet() && self.streams.iter().all(Stream::is_idle)
    }

    /// Forgets all but the crew and what a process does once.
    pub fn reset(&mut self, devices: usize, seed: u64) {
        let fresh = Self::new(devices, seed);
        let mut memory = Memory::default();
        std::mem::swap(&mut memory.arena, &mut self.memory.arena);
        memory.arena.reset(self.crew.busy > 0);
        let (epoch, initialized, next_handle) = (self.epoch, self.initialized, self.next_handle);
        let crew = std::mem::take(&mut self.crew);
        *self = Self { epoch, initialized, crew, next_handle, memory, ..fresh };
    }
}
