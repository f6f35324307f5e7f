//! Who owns which bytes, and who touched them without being ordered. Not the bytes' movement: `effect.rs`.

use std::collections::BTreeMap;

use crate::arena::Arena;
use crate::clock::Clock;
use crate::findings::{Findings, Place};

/// A part of memory that an operation reads or writes.
#[derive(Clone, Copy)]
pub struct Touch {
    pub at: u64,
    pub len: u64,
    pub write: bool,
}

impl Touch {
    pub fn read(at: u64, len: u64) -> Self {
        Self { at, len, write: false }
    }

    pub fn write(at: u64, len: u64) -> Self {
        Self { at, len, write: true }
    }

    pub fn conflicts(&self, other: &Self) -> bool {
        let apart = self.end() <= other.at || other.end() <= self.at;
        (self.write || other.write) && !apart
    }

    fn end(&self) -> u64 {
        self.at.saturating_add(self.len)
    }
}

/// An operation as its memory sees it.
pub struct Toucher<'a> {
    pub kind: &'static str,
    pub component: usize,
    pub clock: &'a Clock,
    /// The only device whose memory it can reach; None: every device's.
    pub device: Option<usize>,
}

/// A touch that a later one may still conflict with.
#[derive(Clone, Copy)]
pub struct Access {
    pub kind: &'static str,
    pub component: usize,
    pub number: u32,
    pub touch: Touch,
}

pub struct Alloc {
    pub len: u64,
    pub device: usize,
    pub ordinal: u64,
    pub label: Option<String>,
    /// Its free has been called, wherever on its stream that free stands.
    pub freed: bool,
    history: Vec<Access>,
}

/// More than a correct program leaves in one allocation; a racy one would grow without end.
const HISTORY_CAP: usize = 512;

#[derive(Default)]
pub struct Memory {
    pub arena: Arena,
    pub allocs: BTreeMap<u64, Alloc>,
    /// Touches of memory that is not ours.
    host: Vec<Access>,
    /// Labels of streams and host threads, by component.
    pub names: Vec<String>,
    pub findings: Findings,
    pub live: u64,
    pub live_bytes: u64,
    made: u64,
}

impl Memory {
    pub fn allocate(&mut self, len: u64, device: usize) -> Option<u64> {
        let base = self.arena.take(len)?;
        let ordinal = self.made;
        let alloc = Alloc {
            len,
            device,
            ordinal,
            label: None,
            freed: false,
            history: Vec::new(),
        };
        self.allocs.insert(base, alloc);
        self.made += 1;
        self.live += 1;
        self.live_bytes += len;
        Some(base)
    }

    /// Its length, when `base` is an allocation whose free nobody has called.
    pub fn mark_freed(&mut self, base: u64) -> Option<u64> {
        let alloc = self.allocs.get_mut(&base).filter(|alloc| !alloc.freed)?;
        alloc.freed = true;
        self.live -= 1;
        self.live_bytes -= alloc.len;
        Some(alloc.len)
    }

    /// Checks one touch against all that came before and keeps it. False: no allocation holds all of it, so
    /// that it must not be carried out.
    pub fn touch(&mut self, who: &Toucher, touch: Touch) -> bool {
        if touch.len == 0 {
            return true;
        }
        if !self.arena.contains(touch.at) {
            let place = Place { name: "host memory".into(), base: touch.at, len: touch.len };
            check(&mut self.host, who, touch, &place, &self.names, &mut self.findings);
            return true;
        }
        let found = self.allocs.range_mut(..=touch.at).next_back();
        let Some((&base, alloc)) = found.filter(|(base, alloc)| touch.at - **base < alloc.len) else {
            self.findings.violation("wild access", who, &touch, "no allocation", &self.names);
            return false;
        };
        let place = alloc.place(base);
        if who.device.is_some_and(|device| device != alloc.device) {
            self.findings.violation("foreign access", who, &touch, &place.name, &self.names);
        }
        check(&mut alloc.history, who, touch, &place, &self.names, &mut self.findings);
        let inside = touch.len <= alloc.len - (touch.at - base);
        if !inside {
            self.findings.violation("wild access", who, &touch, &place.name, &self.names);
        }
        inside
    }

    pub fn touch_all(&mut self, who: &Toucher, touches: &[Touch]) -> bool {
        let mut fine = true;
        for &touch in touches {
            fine &= self.touch(who, touch);
        }
        fine
    }
}

impl Alloc {
    fn place(&self, base: u64) -> Place {
        let plain = || format!("allocation {} (device {})", self.ordinal, self.device);
        Place {
            name: self.label.clone().unwrap_or_else(plain),
            base,
            len: self.len,
        }
    }
}

/// Compares a touch with a history, and takes it in. An earlier access that is ordered before this one and
/// lies within it can go: whoever conflicts with the earlier one and is not ordered with it conflicts with
/// this one, or comes before it.
fn check(
    history: &mut Vec<Access>,
    who: &Toucher,
    touch: Touch,
    place: &Place,
    names: &[String],
    findings: &mut Findings,
) {
    let number = who.clock.get(who.component);
    let new = Access { kind: who.kind, component: who.component, number, touch };
    history.retain(|old| {
        let ordered = who.clock.get(old.component) >= old.number;
        if old.touch.conflicts(&touch) {
            if !ordered {
                findings.race(old, &new, place, names);
            } else if old.kind == "free" {
                findings.violation("use after free", who, &touch, &place.name, names);
                return true;
            }
        }
        !(ordered && covers(&touch, &old.touch))
    });
    if history.len() >= HISTORY_CAP {
        history.remove(0);
    }
    history.push(new);
}

/// `new` says all that `old` said.
fn covers(new: &Touch, old: &Touch) -> bool {
    new.at <= old.at && old.end() <= new.end() && (new.write || !old.write)
}
