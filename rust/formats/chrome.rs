//! A timeline as Chrome's trace events in JSON, which chrome://tracing and ui.perfetto.dev open: a process a rank, a
//! thread a lane. Written as text without a tree of values: it may be hundreds of megabytes.
//!
//! Of slots that take no time at all, viewers of this format draw what starts with them around them, and may lead their
//! arrows to the neighbour: a complete event has no other place than its start and its length. In ../perfetto/ each has
//! its begin and its end.

use std::fmt::Display;
use std::io::Write;

use super::trace::{Category, Counters, Lane, Point, Slice, Trace, Value};
use crate::error::Error;
use crate::schedule::Rank;
use crate::timeline::Timeline;

/// The trace as one JSON object; `unit` as [`Trace::new`] has it.
pub fn write(timeline: &Timeline, unit: Option<f64>) -> Result<String, Error> {
    let trace = Trace::new(timeline, unit)?;
    let mut events = Events {
        text: Vec::with_capacity(trace.slices.len() * BYTES_A_SLICE),
        ranks: trace.ranks(),
    };
    events.put("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[");
    for rank in 0..trace.ranks() {
        events.named("process", rank, None, format_args!("rank {rank}"), rank);
    }
    for (rank, lane) in trace.lanes() {
        events.named("thread", rank, Some(lane), lane, lane.place());
    }
    trace.slices.iter().for_each(|slice| events.slice(slice));
    for (rank, points) in trace.counters.points.iter().enumerate() {
        points.iter().for_each(|point| events.counter(rank, &trace.counters, point));
    }
    events.put("\n]}\n");
    Ok(String::from_utf8(events.text).expect("only text was written"))
}

/// About what a slice and its flows take.
const BYTES_A_SLICE: usize = 400;

struct Events {
    /// Of UTF-8.
    text: Vec<u8>,
    ranks: usize,
}

impl Events {
    /// Opens an event on a line of its own. Viewers take process 0 for the idle one, and a thread with the number of
    /// its process for the first one, whatever its place: so processes count from 1, and threads after all of them.
    fn open(&mut self, phase: &str, rank: Rank, lane: Option<Lane>) {
        self.put(if self.text.ends_with(b"[") { "\n{\"ph\":\"" } else { ",\n{\"ph\":\"" });
        self.put(phase);
        self.put("\",\"pid\":");
        self.number(rank as u64 + 1);
        self.put(",\"tid\":");
        self.number(lane.map_or(0, |lane| self.ranks + lane.place()) as u64);
    }

    /// The name of a process or thread, and where it stands among the others.
    fn named(&mut self, what: &str, rank: Rank, lane: Option<Lane>, name: impl Display, place: usize) {
        self.open("M", rank, lane);
        self.write(format_args!(",\"name\":\"{what}_name\",\"args\":{{\"name\":\"{name}\"}}}}"));
        self.open("M", rank, lane);
        self.write(format_args!(",\"name\":\"{what}_sort_index\",\"args\":{{\"sort_index\":{place}}}}}"));
    }

    fn slice(&mut self, slice: &Slice) {
        self.open("X", slice.rank, Some(slice.lane));
        self.time("ts", slice.start);
        self.time("dur", slice.end - slice.start);
        self.label(slice);
        // A flow belongs to the slice in which its end lies, so one that leaves does so within the last nanosecond.
        let leaves = slice.end.saturating_sub(1).max(slice.start);
        slice.leaving.into_iter().flatten().for_each(|flow| self.flow("s", slice, leaves, flow));
        slice.coming.into_iter().flatten().for_each(|flow| self.flow("f", slice, slice.start, flow));
    }

    fn label(&mut self, slice: &Slice) {
        let category = slice.subject.category();
        self.put(",\"name\":\"");
        self.write(&slice.subject);
        self.put("\",\"cat\":\"");
        self.put(category.name());
        self.put("\",\"cname\":\"");
        self.put(colour(category));
        self.put("\",\"args\":{\"rank\":");
        self.number(slice.rank as u64);
        slice.subject.tell(|key, value| {
            self.put(",\"");
            self.put(key.name());
            self.put("\":");
            self.value(value);
        });
        self.put("}}");
    }

    fn flow(&mut self, phase: &str, slice: &Slice, time: u64, flow: u64) {
        self.open(phase, slice.rank, Some(slice.lane));
        self.time("ts", time);
        self.put(",\"id\":");
        self.number(flow);
        self.put(if phase == "f" { ",\"bp\":\"e\"" } else { "" });
        self.put(",\"name\":\"tensor\",\"cat\":\"transfer\"}");
    }

    fn counter(&mut self, rank: Rank, counters: &Counters, point: &Point) {
        self.open("C", rank, None);
        self.time("ts", point.time);
        self.write(format_args!(",\"name\":\"{}\",\"args\":{{", counters.counted.name()));
        if counters.parts.is_empty() {
            self.write(format_args!("\"total\":{}", point.total));
        }
        for (index, &(name, part)) in counters.parts.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            self.write(format_args!("{comma}\"{name}\":{}", point.parts[part]));
        }
        self.put("}}");
    }

    fn value(&mut self, value: Value) {
        match value {
            Value::Number(number) => self.number(number),
            Value::Length(nanoseconds) => self.microseconds(nanoseconds),
            Value::Action(action) => self.write(format_args!("\"{action}\"")),
            Value::Slot(slot) => self.write(format_args!("\"{slot}\"")),
        }
    }

    fn time(&mut self, name: &str, nanoseconds: u64) {
        self.put(",\"");
        self.put(name);
        self.put("\":");
        self.microseconds(nanoseconds);
    }

    /// With as many decimals as there are: a float would not hold all nanoseconds.
    fn microseconds(&mut self, nanoseconds: u64) {
        self.number(nanoseconds / 1000);
        let part = nanoseconds % 1000;
        let digits = [part / 100, part / 10 % 10, part % 10].map(|digit| b'0' + digit as u8);
        if let Some(last) = digits.iter().rposition(|&digit| digit != b'0') {
            self.text.push(b'.');
            self.text.extend_from_slice(&digits[..=last]);
        }
    }

    /// In a third of the time that formatting takes, and numbers are most of the text.
    fn number(&mut self, mut number: u64) {
        let mut digits = [0; 20];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.text.extend_from_slice(&digits[first..]);
    }

    fn put(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
    }

    fn write(&mut self, what: impl Display) {
        let _ = write!(self.text, "{what}"); // writing to a Vec cannot fail
    }
}

/// Of the viewer's own colours, by their names there: blue, orange, green, brown, and a strong blue for pairs.
fn colour(category: Category) -> &'static str {
    match category {
        Category::Forward => "thread_state_runnable",
        Category::BackwardInput => "thread_state_iowait",
        Category::BackwardWeight => "thread_state_running",
        Category::Backward => "thread_state_unknown",
        Category::Pair => "rail_response",
        Category::Transfer => "grey",
        Category::Exchange => "olive",
        Category::Optimizer => "rail_load",
    }
}
