//! All rules but deadlock: each action where, when and as often as it must be.

use super::{Place, Rule, Violation, Violations, maker};
use crate::schedule::{Action, Kind, Rank, Schedule, Shape, Slot, Stage, Tensor};

/// Adds every violation of a rule other than deadlock: what the cells tell one by one, in the order of
/// ranks and slots, then what is missing or mixed, then what is out of order.
pub(super) fn check(schedule: &Schedule, found: &mut Violations) {
    let mut census = Census::new(schedule.shape());
    for (rank, row) in schedule.rows().iter().enumerate() {
        for (index, slot) in row.iter().enumerate() {
            let here = Here { rank, index, slot: *slot };
            for action in slot.actions() {
                census.count(schedule.shape(), here, action, found);
            }
            check_pair(here, found);
        }
    }
    check_complete(schedule.shape(), &census, found);
    check_order(schedule, &census, found);
}

/// Whether every action that must be there is, once, on its rank, and every pair may fuse: all but the order.
pub(super) fn all_there(schedule: &Schedule) -> bool {
    const F: u8 = 1 << Kind::F as u8;
    const B: u8 = 1 << Kind::B as u8;
    const I_AND_W: u8 = 1 << Kind::I as u8 | 1 << Kind::W as u8;
    let shape = *schedule.shape();
    let mut seen = vec![0_u8; shape.stages() * shape.microbatches()];
    let mut is_new = |rank: Rank, action: Action| {
        if !shape.contains(action) || shape.rank_of(action.stage, action.microbatch) != rank {
            return false;
        }
        let seen = &mut seen[action.stage as usize * shape.microbatches() + action.microbatch as usize];
        let before = *seen;
        *seen |= 1 << action.kind as u8;
        *seen != before
    };
    for (rank, row) in schedule.rows().iter().enumerate() {
        for slot in row {
            let (first, second) = slot.parts();
            let fits = is_new(rank, first)
                && second.is_none_or(|second| is_new(rank, second) && wrong_pair(*slot).is_none());
            if !fits {
                return false;
            }
        }
    }
    match shape.forward_only() {
        true => seen.iter().all(|&seen| seen == F),
        false => seen.iter().all(|&seen| seen == F | B || seen == F | I_AND_W),
    }
}

/// Where a rank first holds more than `most` activations.
pub(super) fn over_memory(shape: &Shape, rank: Rank, row: &[Slot], most: usize) -> Option<Violation> {
    let mut held = 0;
    for (index, &slot) in row.iter().enumerate() {
        let forward = slot.actions().find(|action| action.kind == Kind::F);
        held += usize::from(forward.is_some());
        if let Some(action) = forward.filter(|_| held > most) {
            let what = format!("{action} makes {held} activations held at once, and {most} are allowed");
            return Some(Here { rank, index, slot }.violation(Rule::Memory, action, None, what));
        }
        held -= slot.actions().filter(|action| shape.ends_holding(action.kind)).count();
    }
    None
}

/// A cell while it is looked at.
#[derive(Clone, Copy)]
struct Here {
    rank: Rank,
    index: usize,
    slot: Slot,
}

impl Here {
    fn violation(self, rule: Rule, action: Action, needs: Option<Tensor>, what: String) -> Violation {
        let Here { rank, index, .. } = self;
        Violation {
            rule,
            rank,
            slot: Some(index),
            action,
            needs,
            message: format!("rank {rank}, slot {index}: {what}"),
        }
    }
}

/// Where each action first stood.
struct Census {
    microbatches: usize,
    /// By kind, stage and microbatch: the place, or `ABSENT`.
    places: [Vec<Place>; 4],
}

const ABSENT: Place = Place { rank: u32::MAX, slot: u32::MAX };

impl Census {
    fn new(shape: &Shape) -> Self {
        let cells = shape.stages() * shape.microbatches();
        let kinds = if shape.forward_only() { 1 } else { 4 };
        let table = |kind: usize| vec![ABSENT; if kind < kinds { cells } else { 0 }];
        Census {
            microbatches: shape.microbatches(),
            places: [table(0), table(1), table(2), table(3)],
        }
    }

    fn index(&self, action: Action) -> usize {
        action.stage as usize * self.microbatches + action.microbatch as usize
    }

    fn place(&self, action: Action) -> Option<Place> {
        let place = *self.places[action.kind as usize].get(self.index(action))?;
        (place != ABSENT).then_some(place)
    }

    /// The action that makes a tensor, and its place. Where both a B and an I stand (which is wrong), a W
    /// means its I, and all else the B.
    fn maker(&self, tensor: Tensor, by_i: bool) -> Option<(Action, Place)> {
        let stands = |action| self.place(action).map(|place| (action, place));
        stands(maker(tensor, by_i)).or_else(|| stands(maker(tensor, !by_i)))
    }

    fn count(&mut self, shape: &Shape, here: Here, action: Action, found: &mut Violations) {
        if !shape.contains(action) {
            let (stages, microbatches) = (shape.stages() - 1, shape.microbatches() - 1);
            let what = format!(
                "{action} is out of range: stages are 0 to {stages} and microbatches 0 to {microbatches}"
            );
            found.push(here.violation(Rule::OutOfRange, action, None, what));
            return;
        }
        if shape.forward_only() && action.kind != Kind::F {
            let what = format!("{action} is a backward in a forward-only schedule");
            found.push(here.violation(Rule::ForwardOnly, action, None, what));
            return;
        }
        let home = shape.rank_of(action.stage, action.microbatch);
        if home != here.rank {
            let what = format!("{action} belongs on rank {home}");
            found.push(here.violation(Rule::WrongRank, action, None, what));
        }
        match self.place(action) {
            Some(Place { rank, slot }) => {
                let what = format!("{action} stands a second time; the first is at rank {rank}, slot {slot}");
                found.push(here.violation(Rule::Duplicate, action, None, what));
            }
            None => {
                let index = self.index(action);
                self.places[action.kind as usize][index] =
                    Place { rank: here.rank as u32, slot: here.index as u32 };
            }
        }
    }
}

fn check_pair(here: Here, found: &mut Violations) {
    match wrong_pair(here.slot) {
        None => {}
        Some(WrongPair::Kinds(first)) => {
            let what = format!("{} does not fuse a forward (first) with a full backward", here.slot);
            found.push(here.violation(Rule::Pair, first, None, what));
        }
        Some(WrongPair::OneMicrobatch(first, second)) => {
            let what = format!(
                "{} fuses two actions of one microbatch, and its backward can only come after its forward",
                here.slot
            );
            found.push(here.violation(Rule::Pair, second, Some(first), what));
        }
    }
}

enum WrongPair {
    Kinds(Action),
    OneMicrobatch(Action, Action),
}

fn wrong_pair(slot: Slot) -> Option<WrongPair> {
    let Slot::Pair(first, second) = slot else { return None };
    if (first.kind, second.kind) != (Kind::F, Kind::B) {
        return Some(WrongPair::Kinds(first));
    }
    (first.microbatch == second.microbatch).then_some(WrongPair::OneMicrobatch(first, second))
}

fn check_complete(shape: &Shape, census: &Census, found: &mut Violations) {
    for stage in 0..shape.stages() as Stage {
        for microbatch in 0..shape.microbatches() as u32 {
            let at = |kind| census.place(Action::new(stage, kind, microbatch));
            let mut lacks = |kind| {
                found.push(missing(shape, Action::new(stage, kind, microbatch)));
            };
            if at(Kind::F).is_none() {
                lacks(Kind::F);
            }
            if shape.forward_only() {
                continue;
            }
            match (at(Kind::B), at(Kind::I), at(Kind::W)) {
                (Some(_), None, None) | (None, Some(_), Some(_)) => {}
                (None, None, None) => lacks(Kind::B),
                (None, Some(_), None) => lacks(Kind::W),
                (None, None, Some(_)) => lacks(Kind::I),
                (Some(place), ..) => found.push(mixed(place, Action::new(stage, Kind::B, microbatch))),
            }
        }
    }
}

fn missing(shape: &Shape, action: Action) -> Violation {
    let rank = shape.rank_of(action.stage, action.microbatch);
    Violation {
        rule: Rule::Missing,
        rank,
        slot: None,
        action,
        needs: None,
        message: format!("rank {rank}: {action} is missing"),
    }
}

fn mixed(Place { rank, slot }: Place, action: Action) -> Violation {
    Violation {
        rule: Rule::Mixed,
        rank: rank as Rank,
        slot: Some(slot as usize),
        action,
        needs: None,
        message: format!(
            "rank {rank}, slot {slot}: {action} is a full backward, and an I or W of the same stage \
             and microbatch stands beside it; a backward is either B, or I and W"
        ),
    }
}

/// On one rank, what an action needs stands in an earlier slot.
fn check_order(schedule: &Schedule, census: &Census, found: &mut Violations) {
    let shape = schedule.shape();
    for (rank, row) in schedule.rows().iter().enumerate() {
        for (index, slot) in row.iter().enumerate() {
            let here = Here { rank, index, slot: *slot };
            for action in slot.actions().filter(|&action| shape.contains(action)) {
                for needed in shape.dependencies(action) {
                    let maker = census.maker(needed, action.kind == Kind::W);
                    let later = |place: Place| place.rank == rank as u32 && place.slot >= index as u32;
                    if let Some((maker, place)) = maker.filter(|&(_, place)| later(place)) {
                        found.push(out_of_order(here, action, maker, place));
                    }
                }
            }
        }
    }
}

fn out_of_order(here: Here, action: Action, maker: Action, place: Place) -> Violation {
    let when = if place.slot as usize == here.index { "the same" } else { "a later" };
    let what = format!("{action} needs {maker}, which stands in {when} slot ({})", place.slot);
    here.violation(Rule::Order, action, Some(maker), what)
}
