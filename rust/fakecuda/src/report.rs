//! The report: what was found, what is alive, what was called.

use crate::json;
use crate::world::{Object, World};

pub fn live(w: &World) -> [(&'static str, u64); 7] {
    let count = |which: fn(&Object) -> bool| w.objects.values().filter(|object| which(object)).count() as u64;
    [
        ("streams", count(|object| matches!(object, Object::Stream(_)))),
        ("events", count(|object| matches!(object, Object::Event(_)))),
        ("allocations", w.memory.live),
        ("bytes", w.memory.live_bytes),
        ("pools", count(|object| matches!(object, Object::Pool(_)))),
        ("comms", w.comms.comms.len() as u64),
        ("contexts", w.devices.iter().map(|device| device.retained.unsigned_abs()).sum()),
    ]
}

fn object<'a>(entries: impl Iterator<Item = (&'a str, u64)>) -> String {
    let inner: Vec<String> = entries.map(|(name, count)| format!("{}:{count}", json::text(name))).collect();
    format!("{{{}}}", inner.join(","))
}

pub fn json(w: &World) -> String {
    let mut calls: Vec<(&str, u64)> = w.calls.iter().map(|(&name, &count)| (name, count)).collect();
    calls.sort_unstable();
    let findings = &w.memory.findings;
    format!(
        "{{\"races\":{},\"race_count\":{},\"violations\":{},\"violation_count\":{},\"live\":{},\
         \"host_waits\":{},\"calls\":{},\"panics\":{},\"time\":{:?},\"settled\":{}}}",
        findings.races_json(),
        findings.race_count,
        findings.violations_json(),
        findings.violation_count,
        object(live(w).into_iter()),
        w.host_waits,
        object(calls.into_iter()),
        json::array(w.panics.iter().map(|text| json::text(text))),
        w.end,
        w.is_settled()
    )
}
