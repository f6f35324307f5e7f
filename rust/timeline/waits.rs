//! Why a rank was idle: every gap between its slots, cut at the times when what it waited for changed.
//!
//! Of a gap before a slot, the time until all that it takes had been made elsewhere is that of the *dependency* that
//! was made last; the time from there on until all of it could have come is the *hop*; what is left is what
//! eager P2P would not have waited for, so a *partner* of a rendezvous or a commit. A measured timeline does not
//! know what a hop takes: what is left after a dependency counts as the hop, and a gap before a slot that had all
//! it needs as *overhead*.

use super::{Time, Timeline};
use crate::costs::Hops;
use crate::error::Error;
use crate::network::{Network, Node};
use crate::schedule::{Action, Rank};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Before the rank's first slot.
    WarmUp,
    Dependency,
    Hop,
    Partner,
    Overhead,
    /// Gradients are exchanged with the rank that holds the same stages.
    Exchange,
    /// After all that the rank does.
    CoolDown,
}

pub const CAUSES: [Cause; 7] = [
    Cause::WarmUp,
    Cause::Dependency,
    Cause::Hop,
    Cause::Partner,
    Cause::Overhead,
    Cause::Exchange,
    Cause::CoolDown,
];

impl Cause {
    pub fn name(self) -> &'static str {
        match self {
            Cause::WarmUp => "warm_up",
            Cause::Dependency => "dependency",
            Cause::Hop => "hop",
            Cause::Partner => "partner",
            Cause::Overhead => "overhead",
            Cause::Exchange => "exchange",
            Cause::CoolDown => "cool_down",
        }
    }

    /// For a person.
    pub fn words(self) -> &'static str {
        match self {
            Cause::WarmUp => "warm-up",
            Cause::Dependency => "dependency",
            Cause::Hop => "hop",
            Cause::Partner => "partner",
            Cause::Overhead => "overhead",
            Cause::Exchange => "exchange of gradients",
            Cause::CoolDown => "cool-down",
        }
    }
}

/// Time in which a rank was idle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wait {
    pub rank: Rank,
    /// The slot that came after; of what comes after the last slot, the number of slots.
    pub slot: usize,
    pub cause: Cause,
    /// The action that was waited for, of a dependency or a hop.
    pub action: Option<Action>,
    pub time: Time,
}

impl Timeline {
    /// All idle time, by rank and time; of each rank it adds up to [`Timeline::idle`].
    pub fn waits(&self) -> Result<Vec<Wait>, Error> {
        let mut waits: Vec<Vec<Wait>> = self.warm_ups();
        let gaps = Gaps {
            timeline: self,
            network: self.verified().network(),
            hops: self.hops()?,
        };
        for node in gaps.network.nodes() {
            gaps.before(node, &mut waits[node.rank()]);
        }
        for (rank, waits) in waits.iter_mut().enumerate() {
            self.close(rank, waits);
        }
        Ok(waits.into_iter().flatten().collect())
    }

    /// The sum of the waits by cause, in the order of [`CAUSES`], and rank.
    pub fn idle_by_cause(&self) -> Result<[Vec<f64>; CAUSES.len()], Error> {
        let mut sums = CAUSES.map(|_| vec![0.0; self.ranks()]);
        for wait in self.waits()? {
            sums[wait.cause as usize][wait.rank] += wait.time.duration();
        }
        Ok(sums)
    }

    fn warm_ups(&self) -> Vec<Vec<Wait>> {
        let (start, end) = (self.start(), self.end());
        let warm_up = |rank| {
            let first = self.times_of(rank).first().map_or(end, |time| time.start);
            wait(rank, 0, Cause::WarmUp, None, start, first).into_iter().collect()
        };
        (0..self.ranks()).map(warm_up).collect()
    }

    fn close(&self, rank: Rank, waits: &mut Vec<Wait>) {
        let (Some(last), Some(done)) = (self.times_of(rank).last(), self.end_of(rank)) else { return };
        let after = self.times_of(rank).len();
        let exchanged = self.closing.get(rank).map_or(last.end, |closing| closing.exchanged);
        waits.extend(wait(rank, after, Cause::Exchange, None, last.end, exchanged));
        waits.extend(wait(rank, after, Cause::CoolDown, None, done, self.end()));
    }
}

fn wait(rank: Rank, slot: usize, cause: Cause, action: Option<Action>, start: f64, end: f64) -> Option<Wait> {
    (end > start).then_some(Wait { rank, slot, cause, action, time: Time { start, end } })
}

struct Gaps<'a> {
    timeline: &'a Timeline,
    network: &'a Network,
    /// `None` where they are not known.
    hops: Option<Hops>,
}

/// The last time at which something came, and the action that made it; when the rank was free if nothing did since.
type Last = (f64, Option<Action>);

impl Gaps<'_> {
    /// The gap between a slot and the one before it on its rank.
    fn before(&self, node: &Node, waits: &mut Vec<Wait>) {
        let (rank, Some(slot)) = (node.rank(), node.index()) else { return };
        let times = self.timeline.times_of(rank);
        let Some(before) = slot.checked_sub(1) else { return };
        let (free, start) = (times[before].end, times[slot].start);
        if start <= free {
            return;
        }
        let (made, there) = self.comings(node, slot, free);
        let mut push = |cause, action, from: f64, to: f64| {
            waits.extend(wait(rank, slot, cause, action, from.min(start), to.min(start)));
        };
        push(Cause::Dependency, made.1, free, made.0);
        match self.hops {
            Some(_) => {
                push(Cause::Hop, there.1, made.0, there.0);
                push(Cause::Partner, None, there.0, start);
            }
            None if made.1.is_some() => push(Cause::Hop, made.1, made.0, start),
            None => push(Cause::Overhead, None, free, start),
        }
    }

    /// When all that a slot takes from other ranks had been made, and when it could be there.
    fn comings(&self, node: &Node, slot: usize, free: f64) -> (Last, Last) {
        let (mut made, mut there): (Last, Last) = ((free, None), (free, None));
        let rank = node.rank();
        let takers = self.timeline.verified().schedule().rows()[rank][slot].actions();
        for (taker, input) in takers.zip(&node.inputs[1..]) {
            let Some(maker) = input.node().map(|node| &self.network.nodes()[node]) else { continue };
            let Some(end) = maker.index().map(|slot| self.timeline.times_of(maker.rank())[slot].end) else {
                continue;
            };
            let hop = self.hops.as_ref().map_or(0.0, |hops| hops.between(maker.rank(), rank));
            if end > made.0 {
                made = (end, self.maker(taker, maker));
            }
            if end + hop > there.0 {
                there = (end + hop, self.maker(taker, maker));
            }
        }
        (made, there)
    }

    /// The action that makes what `taker` takes from another rank.
    fn maker(&self, taker: Action, maker: &Node) -> Option<Action> {
        let tensor = self.timeline.shape().input(taker)?;
        self.timeline.maker(tensor, maker.rank(), maker.index()?)
    }
}
