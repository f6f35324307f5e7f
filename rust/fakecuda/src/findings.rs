//! What went wrong, kept for the report: races and other violations. Not how they are found: `memory.rs`.

use std::collections::HashMap;

use crate::json;
use crate::memory::{Access, Touch, Toucher};

/// How many of each the report tells in full; all are counted.
const CAP: usize = 100;

/// Where two accesses met.
pub struct Place {
    pub name: String,
    pub base: u64,
    pub len: u64,
}

#[derive(Default)]
pub struct Findings {
    /// Keyed by what makes two of them the same to a reader: kinds and streams. With how often each was met.
    races: HashMap<String, usize>,
    told: Vec<(String, u64)>,
    pub race_count: u64,
    violations: Vec<String>,
    pub violation_count: u64,
}

impl Findings {
    pub fn race(&mut self, first: &Access, second: &Access, place: &Place, names: &[String]) {
        self.race_count += 1;
        let mut ends = [(first, role(first, names)), (second, role(second, names))];
        // The pair is the same whichever of the two happened to run first.
        ends.sort_by(|a, b| a.1.cmp(&b.1));
        let key = format!("{} | {}", ends[0].1, ends[1].1);
        if let Some(&at) = self.races.get(&key) {
            if let Some(told) = self.told.get_mut(at) {
                told.1 += 1;
            }
            return;
        }
        self.races.insert(key, self.told.len().min(CAP));
        if self.told.len() < CAP {
            self.told.push((tell(first, second, place, names), 1));
        }
    }

    pub fn violation(&mut self, what: &str, who: &Toucher, touch: &Touch, place: &str, names: &[String]) {
        let access = if touch.write { "writes" } else { "reads" };
        let number = who.clock.get(who.component);
        let stream = &names[who.component];
        self.note(format!(
            "{what}: {} {number} of {stream} {access} {} bytes at {:#x}, of {place}",
            who.kind, touch.len, touch.at
        ));
    }

    pub fn note(&mut self, text: String) {
        self.violation_count += 1;
        if self.violations.len() < CAP {
            self.violations.push(text);
        }
    }

    pub fn races_json(&self) -> String {
        json::array(self.told.iter().map(|(race, count)| format!("{{{race},\"count\":{count}}}")))
    }

    pub fn violations_json(&self) -> String {
        json::array(self.violations.iter().map(|text| json::text(text)))
    }
}

fn role(access: &Access, names: &[String]) -> String {
    format!("{} on {}", access.kind, names[access.component])
}

fn tell(first: &Access, second: &Access, place: &Place, names: &[String]) -> String {
    let text = format!(
        "nothing orders {} and {}: both touch {}",
        sentence(first, names),
        sentence(second, names),
        place.name
    );
    format!(
        "\"text\":{},\"first\":{},\"second\":{},\"allocation\":{{\"label\":{},\"address\":{},\"bytes\":{}}}",
        json::text(&text),
        end(first, place, names),
        end(second, place, names),
        json::text(&place.name),
        place.base,
        place.len
    )
}

fn sentence(access: &Access, names: &[String]) -> String {
    let does = if access.touch.write { "writes" } else { "reads" };
    format!("{} {} of {} ({does})", access.kind, access.number, names[access.component])
}

fn end(access: &Access, place: &Place, names: &[String]) -> String {
    format!(
        "{{\"kind\":{},\"stream\":{},\"ordinal\":{},\"access\":\"{}\",\"offset\":{},\"bytes\":{}}}",
        json::text(access.kind),
        json::text(&names[access.component]),
        access.number,
        if access.touch.write { "write" } else { "read" },
        access.touch.at.wrapping_sub(place.base),
        access.touch.len
    )
}
