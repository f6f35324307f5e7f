//! Schedule → [`Verified`], or every [`Violation`] with its place.
//!
//! Verified is a type: simulation, lowering and execution take nothing else, so that none of them
//! checks anything again. It carries the proof of freedom from deadlock, the [`Network`] of its slots in an order in
//! which everything that a slot waits for comes before it, and the simulator walks that.

use std::fmt;
use std::sync::Arc;

use crate::network::Network;
use crate::schedule::{Action, Kind, Rank, Schedule, Shape, Tensor};

mod circle;
mod deadlock;
mod rules;

pub(crate) use circle::shortest_circle;

/// After so many violations the rest is counted, not listed: a hostile text of a megabyte can break
/// a rule in each of its cells.
const MOST_LISTED: usize = 10_000;

/// A schedule that is complete, ordered and free of deadlock. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Verified {
    schedule: Arc<Schedule>,
    network: Arc<Network>,
}

impl Verified {
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    pub fn shape(&self) -> &Shape {
        self.schedule.shape()
    }

    /// Every slot once, each after all that it waits for under eager P2P; a rank's slots in the order of its row.
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }
}

/// A cell of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    pub rank: u32,
    pub slot: u32,
}

/// Which rule is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// An action of every stage and microbatch stands somewhere.
    Missing,
    /// It stands there once.
    Duplicate,
    /// A backward is either B, or I and W.
    Mixed,
    /// A stage is computed by the rank that holds it.
    WrongRank,
    /// Stages and microbatches are within the sizes.
    OutOfRange,
    /// A pair is an F, then a B of another microbatch.
    Pair,
    /// On one rank, what an action needs stands before it.
    Order,
    /// A schedule for inference holds no backward.
    ForwardOnly,
    /// No rank holds more activations than the caller allows.
    Memory,
    /// No ranks wait for each other in a circle.
    Deadlock,
}

impl Rule {
    pub fn name(self) -> &'static str {
        match self {
            Rule::Missing => "missing",
            Rule::Duplicate => "duplicate",
            Rule::Mixed => "mixed",
            Rule::WrongRank => "wrong_rank",
            Rule::OutOfRange => "out_of_range",
            Rule::Pair => "pair",
            Rule::Order => "order",
            Rule::ForwardOnly => "forward_only",
            Rule::Memory => "memory",
            Rule::Deadlock => "deadlock",
        }
    }
}

/// One broken rule and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    pub rule: Rule,
    pub rank: Rank,
    /// `None` for an action that stands nowhere.
    pub slot: Option<usize>,
    pub action: Action,
    /// What must come first, or is missing.
    pub needs: Option<Tensor>,
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Every rule that a schedule breaks; never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Violations {
    pub list: Vec<Violation>,
    /// How many more there are than `list` holds.
    pub unlisted: usize,
}

impl Violations {
    pub fn of(list: Vec<Violation>) -> Self {
        let mut found = Violations { list: Vec::new(), unlisted: 0 };
        list.into_iter().for_each(|violation| found.push(violation));
        found
    }

    fn push(&mut self, violation: Violation) {
        if self.list.len() < MOST_LISTED {
            self.list.push(violation);
        } else {
            self.unlisted += 1;
        }
    }

    /// All of it for a person: the first few violations, each with its row and the cell marked.
    pub fn report(&self, schedule: &Schedule) -> String {
        const SHOWN: usize = 8;
        let total = self.list.len() + self.unlisted;
        let rules = if total == 1 { "a rule" } else { "rules" };
        let mut text = format!("{} breaks {rules} ({total} in all):", schedule.describe());
        for violation in self.list.iter().take(SHOWN) {
            text += &format!("\n  {violation}");
            if let Some(slot) = violation.slot {
                text += &format!("\n    {}", marked_row(schedule, violation.rank, slot));
            }
        }
        if total > SHOWN {
            text += &format!("\n  and {} more", total - SHOWN);
        }
        text
    }
}

/// The cells around a slot with the slot marked: `rank 1: … 1F1 2F5 »1F2« 2B4 …`.
fn marked_row(schedule: &Schedule, rank: Rank, slot: usize) -> String {
    const AROUND: usize = 5;
    let row = &schedule.rows()[rank];
    let (start, end) = (slot.saturating_sub(AROUND), row.len().min(slot + AROUND + 1));
    let cells = (start..end).map(|index| match index == slot {
        true => format!("»{}«", row[index]),
        false => row[index].to_string(),
    });
    let cells: Vec<String> = cells.collect();
    let before = if start > 0 { "… " } else { "" };
    let after = if end < row.len() { " …" } else { "" };
    format!("rank {rank}: {before}{}{after}", cells.join(" "))
}

/// Checks every rule. A short proof first, that all is there and can run; where it fails, why is found out rule by
/// rule. Deadlock is looked for only where all else holds, since a missing or misplaced action makes ranks wait for
/// ever as a matter of course.
pub fn verify(schedule: impl Into<Arc<Schedule>>) -> Result<Verified, Box<Violations>> {
    let schedule = schedule.into();
    let stuck = match rules::all_there(&schedule).then(|| deadlock::network(&schedule)) {
        Some(Ok(network)) => return Ok(Verified { schedule, network: Arc::new(network) }),
        Some(Err(stuck)) => stuck,
        None => Vec::new(),
    };
    let mut found = Violations::of(Vec::new());
    rules::check(&schedule, &mut found);
    Err(Box::new(if found.list.is_empty() { Violations::of(stuck) } else { found }))
}

/// Checks that no rank holds more than `most` (stage, microbatch) at once, from its F to the end of its last
/// backward action (in inference, of its F): one violation a rank, where it first does.
pub fn check_memory(verified: &Verified, most: usize) -> Result<(), Box<Violations>> {
    let rows = verified.schedule().rows().iter().enumerate();
    let over = rows.filter_map(|(rank, row)| rules::over_memory(verified.shape(), rank, row, most));
    let over: Vec<Violation> = over.collect();
    if over.is_empty() { Ok(()) } else { Err(Box::new(Violations::of(over))) }
}

/// The action that stands for a tensor in words: of a gradient, the I or B that makes it.
fn maker(tensor: Tensor, by_i: bool) -> Action {
    match tensor.kind {
        Kind::B if by_i => Action { kind: Kind::I, ..tensor },
        _ => tensor,
    }
}
