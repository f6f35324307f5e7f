//! What there is to see of one timeline: the rows of its ranks with their waits, its hops, what the ranks hold.
//!
//! Times count from the first start, so that panels of measured and of predicted steps begin at one place.

use crate::costs::{Costs, Numbers};
use crate::error::Error;
use crate::schedule::{Kind, Rank, Schedule, Slot, Stage};
use crate::timeline::{Closing, Origin, Time, Timeline, Transfer, Wait};
use crate::verify::Violations;

#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    pub title: String,
    pub unit: Unit,
    /// The last end.
    pub length: f64,
    /// One a rank.
    pub rows: Vec<Row>,
    pub hops: Vec<Hop>,
    pub held: Held,
    /// What is wrong, where it stands in a row.
    pub marks: Vec<Mark>,
    /// What is wrong and stands nowhere, such as an action that is missing.
    pub notes: Vec<String>,
}

/// What times are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// The unit of the costs that the timeline was predicted from.
    Costs,
    Seconds,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The stages that the rank holds, in the order of its modules.
    pub stages: Vec<Stage>,
    pub slots: Vec<(Slot, Time)>,
    /// Which of its slots are on the critical path.
    pub critical: Vec<bool>,
    pub waits: Vec<Wait>,
    /// What comes after the last slot.
    pub closing: Option<Closing>,
}

impl Row {
    /// Which of the rank's stages this is, and of how many.
    pub fn chunk(&self, stage: Stage) -> (usize, usize) {
        let chunk = self.stages.iter().position(|&own| own == stage);
        (chunk.unwrap_or(0), self.stages.len())
    }
}

/// A tensor's way from a slot of one rank to a slot of another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hop {
    pub from: (Rank, usize),
    pub to: (Rank, usize),
    pub time: Time,
}

/// What each rank holds over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// In bytes; else in (stage, microbatch) pairs.
    pub bytes: bool,
    /// By rank: from each time on, so much.
    pub levels: Vec<Vec<Level>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    pub time: f64,
    pub held: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    pub rank: Rank,
    pub slot: usize,
    pub message: String,
}

impl Panel {
    /// All there is to see of a timeline, predicted or measured.
    pub fn of_timeline(timeline: &Timeline) -> Result<Panel, Error> {
        let origin = timeline.start();
        let mut rows = rows_of(timeline, origin);
        for (rank, slot) in timeline.critical_path()? {
            rows[rank].critical[slot] = true;
        }
        for wait in timeline.waits()? {
            rows[wait.rank].waits.push(Wait { time: since(origin, wait.time), ..wait });
        }
        Ok(Panel {
            title: title(timeline),
            unit: if timeline.cpu().is_some() { Unit::Seconds } else { Unit::Costs },
            length: timeline.makespan(),
            rows,
            hops: timeline.transfers()?.iter().map(|transfer| hop(origin, transfer)).collect(),
            held: held(timeline, origin)?,
            marks: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// The rows of a schedule that breaks rules, one slot after the other, with what is wrong marked: there is no
    /// time at which its slots could run.
    pub fn of_broken(schedule: &Schedule, found: &Violations) -> Panel {
        let rows: Vec<Row> = (0..schedule.shape().ranks()).map(|rank| packed(schedule, rank)).collect();
        let (mut marks, mut notes) = (Vec::new(), Vec::new());
        for violation in &found.list {
            let message = violation.to_string();
            match violation.slot {
                Some(slot) => marks.push(Mark { rank: violation.rank, slot, message }),
                None => notes.push(message),
            }
        }
        if found.unlisted > 0 {
            notes.push(format!("and {} more", found.unlisted));
        }
        let last = |row: &Row| row.slots.last().map_or(0.0, |(_, time)| time.end);
        let broken = found.list.len() + found.unlisted;
        Panel {
            title: format!("{} · breaks rules ({broken} in all)", schedule.describe()),
            unit: Unit::Costs,
            length: rows.iter().map(last).fold(0.0, f64::max),
            held: Held { bytes: false, levels: vec![Vec::new(); rows.len()] },
            rows,
            hops: Vec::new(),
            marks,
            notes,
        }
    }

    /// Where each rank's slots are when those of all are counted, and their number.
    pub fn firsts(&self) -> Vec<usize> {
        let mut firsts = vec![0];
        firsts.extend(self.rows.iter().scan(0, |end, row| {
            *end += row.slots.len();
            Some(*end)
        }));
        firsts
    }

    /// Whether it is a schedule that breaks rules: its slots have no times.
    pub fn is_broken(&self) -> bool {
        !(self.marks.is_empty() && self.notes.is_empty())
    }

    /// The most that any rank holds.
    pub fn most_held(&self) -> f64 {
        self.held.levels.iter().flatten().map(|level| level.held).fold(0.0, f64::max)
    }
}

fn since(origin: f64, time: Time) -> Time {
    Time { start: time.start - origin, end: time.end - origin }
}

fn rows_of(timeline: &Timeline, origin: f64) -> Vec<Row> {
    let row = |rank: Rank| Row {
        stages: timeline.shape().stages_of(rank),
        slots: timeline.slots(rank).map(|(slot, time)| (slot, since(origin, time))).collect(),
        critical: vec![false; timeline.times_of(rank).len()],
        waits: Vec::new(),
        closing: timeline.closing().get(rank).map(|closing| Closing {
            exchanged: closing.exchanged - origin,
            end: closing.end - origin,
        }),
    };
    (0..timeline.ranks()).map(row).collect()
}

fn hop(origin: f64, transfer: &Transfer) -> Hop {
    Hop {
        from: (transfer.source, transfer.source_slot),
        to: (transfer.rank, transfer.slot),
        time: since(origin, transfer.time),
    }
}

/// Slots of unit costs, without regard to what they wait for.
fn packed(schedule: &Schedule, rank: Rank) -> Row {
    let slots = &schedule.rows()[rank];
    let length = |slot: &Slot| slot.actions().map(|action| units(action.kind)).sum::<f64>();
    let times = slots.iter().scan(0.0, |now, slot| {
        let start = *now;
        *now += length(slot);
        Some(Time { start, end: *now })
    });
    Row {
        stages: schedule.shape().stages_of(rank),
        slots: slots.iter().copied().zip(times).collect(),
        critical: vec![false; slots.len()],
        waits: Vec::new(),
        closing: None,
    }
}

/// What an action takes where F, I and W take one.
fn units(kind: Kind) -> f64 {
    if kind == Kind::B { 2.0 } else { 1.0 }
}

/// Bytes where the costs know any, else how many (stage, microbatch) a rank holds.
fn held(timeline: &Timeline, origin: f64) -> Result<Held, Error> {
    let known = match timeline.origin() {
        Origin::Predicted { .. } => Some(timeline.memory(None)?),
        Origin::Measured { .. } => None,
    };
    let known = known.filter(|memory| memory.iter().flatten().any(|level| level.total() > 0.0));
    let bytes = known.is_some();
    let memory = known.map_or_else(|| timeline.memory(Some(&one_each())), Ok)?;
    let levels = memory.into_iter().map(|levels| {
        levels.into_iter().map(|level| Level { time: level.time - origin, held: level.total() }).collect()
    });
    Ok(Held { bytes, levels: levels.collect() })
}

/// Costs by which memory counts each (stage, microbatch) as one.
fn one_each() -> Costs {
    Costs {
        activation_bytes: Numbers::One(1.0),
        weight_grad_bytes: Numbers::One(1.0),
        ..Costs::default()
    }
}

fn title(timeline: &Timeline) -> String {
    let schedule = timeline.verified().schedule();
    let shape = schedule.shape();
    let whence = if timeline.cpu().is_some() { "measured" } else { "predicted" };
    format!(
        "{}, {} ranks, {} microbatches · {whence} makespan {} · bubble {:.1} %",
        schedule.name(),
        shape.ranks(),
        shape.microbatches(),
        match timeline.cpu() {
            Some(_) => seconds(timeline.makespan()),
            None => short(timeline.makespan()),
        },
        100.0 * timeline.bubble_ratio(),
    )
}

/// A time in seconds, in words.
pub fn seconds(time: f64) -> String {
    let (factor, unit) = si(time);
    format!("{} {unit}", short(time * factor))
}

/// By what a time in seconds is multiplied to be a handy number, and of what.
pub fn si(time: f64) -> (f64, &'static str) {
    match time {
        t if t >= 1.0 || t <= 0.0 => (1.0, "s"),
        t if t >= 1e-3 => (1e3, "ms"),
        _ => (1e6, "µs"),
    }
}

/// A number in four digits, or all those before the point.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e9).contains(&size) {
        return format!("{value:.3e}");
    }
    let before = if size >= 1.0 { size.log10().floor() as usize + 1 } else { 1 };
    let text = format!("{value:.*}", 4_usize.saturating_sub(before));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}
