//! The commit points of DeepSeek's DualPipe and DualPipeV (github.com/deepseek-ai/DualPipe): when their code starts
//! the sends and receives that have been queued, and waits for them.
//!
//! Before each slot it queues what the slot takes and commits; after it, it queues what the slot made. Three
//! exceptions keep transfers out of the way of compute: a forward's input is asked for one slot early (steps 2 and
//! 3), an output waits for the slot after it (step 2), and the middle rank gives nothing away while it turns the
//! first microbatch round (end of step 2, begin of step 4).

use std::collections::VecDeque;

use super::channels::Channels;
use super::{Instruction, Transfer};
use crate::generate;
use crate::schedule::{Action, Kind, Placement, Rank, Shape, Slot};
use crate::verify::Verified;

/// The instructions of every rank, if this is the order of DualPipe or DualPipeV.
pub(super) fn rows(verified: &Verified, channels: &Channels) -> Option<Vec<Vec<Instruction>>> {
    let shape = verified.shape();
    let family = match shape.placement() {
        Placement::Bidirectional => "dualpipe",
        Placement::V => "dualpipev",
        _ => return None,
    };
    let published = generate::find(family).ok()?.generate(shape.ranks(), shape.microbatches(), None).ok()?;
    if published.rows() != verified.schedule().rows() {
        return None;
    }
    let rows = verified.schedule().rows().iter().enumerate();
    Some(rows.map(|(rank, row)| Script::new(verified, channels, rank, row).run()).collect())
}

/// One rank's instructions under construction. Direction 0 is the rank's own, as in generate/dualpipe.rs.
struct Script<'a> {
    verified: &'a Verified,
    channels: &'a Channels,
    slots: std::iter::Enumerate<std::slice::Iter<'a, Slot>>,
    /// The forwards and backwards of each direction whose input has not been asked for.
    awaited: [[VecDeque<Action>; 2]; 2],
    queue: Vec<Transfer>,
    out: Vec<Instruction>,
    /// Ranks to the nearer end and to the middle, and microbatches a direction.
    h: usize,
    half: usize,
    k: usize,
}

const FORWARD: usize = 0;
const BACKWARD: usize = 1;

impl<'a> Script<'a> {
    fn new(verified: &'a Verified, channels: &'a Channels, rank: Rank, row: &'a [Slot]) -> Self {
        let shape = verified.shape();
        let (p, m) = (shape.ranks(), shape.microbatches());
        let (h, half, k) = match shape.placement() {
            Placement::Bidirectional => (rank.min(p - 1 - rank), p / 2, m / 2),
            _ => (rank, p, m),
        };
        let mut awaited: [[VecDeque<Action>; 2]; 2] = Default::default();
        for action in row.iter().flat_map(Slot::actions).filter(|action| action.kind != Kind::W) {
            let pass = if action.kind == Kind::F { FORWARD } else { BACKWARD };
            awaited[pass][direction(shape, action)].push_back(action);
        }
        Script {
            verified,
            channels,
            slots: row.iter().enumerate(),
            awaited,
            queue: Vec::new(),
            out: Vec::new(),
            h,
            half,
            k,
        }
    }

    /// The eight steps of generate/dualpipe.rs, with what is queued around each slot.
    fn run(mut self) -> Vec<Instruction> {
        let (h, to_middle) = (self.h, self.half - self.h - 1);
        let middle = to_middle == 0;
        // Step 1: nF0
        for _ in 0..2 * to_middle {
            self.forward(0);
        }
        // Step 2: nF0F1
        self.ask(FORWARD, 0);
        let mut kept = None;
        for n in 0..h + 1 {
            let own = self.compute();
            if middle {
                self.give(own);
            }
            self.ask(FORWARD, 0);
            self.ask(FORWARD, 1);
            let other = self.compute();
            if middle && n == h {
                kept = Some(other);
            } else {
                self.give(other);
            }
            if !middle {
                self.give(own);
            }
        }
        // Step 3: nI1W1F1
        for _ in 0..to_middle {
            self.backward(1);
            self.ask(FORWARD, 1);
            self.compute();
            let forward = self.compute();
            self.give(forward);
        }
        // Step 4 (the main step): n(F0&B1)(F1&B0)
        for n in 0..self.k - 2 * self.half + h + 1 {
            match kept.take() {
                Some(kept) => self.turn(kept),
                None => self.pair(0, 1, n > 0),
            }
            self.pair(1, 0, true);
        }
        // Step 5: nB1(F1&B0)
        for _ in 0..to_middle {
            self.backward(1);
            self.pair(1, 0, true);
        }
        // Step 6: nB1B0
        for _ in 0..h + 1 {
            self.backward(1);
            self.backward(0);
        }
        // Step 7: nWI0
        for _ in 0..to_middle {
            self.compute();
            self.backward(0);
        }
        // Step 8: nW
        for _ in 0..h + 1 {
            self.compute();
        }
        self.commit();
        self.out
    }

    fn forward(&mut self, direction: usize) {
        self.ask(FORWARD, direction);
        let slot = self.compute();
        self.give(slot);
    }

    fn backward(&mut self, direction: usize) {
        self.ask(BACKWARD, direction);
        let slot = self.compute();
        self.give(slot);
    }

    fn pair(&mut self, forward: usize, backward: usize, asks: bool) {
        if asks {
            self.ask(FORWARD, forward);
        }
        self.ask(BACKWARD, backward);
        let slot = self.compute();
        self.give(slot);
    }

    /// The middle rank's F0 and B1 before its first pair.
    fn turn(&mut self, kept: Slot) {
        let forward = self.compute();
        self.give(kept);
        self.ask(BACKWARD, 1);
        let backward = self.compute();
        self.give(forward);
        self.give(backward);
    }

    /// Queues the receive of what the next forward or backward of a direction takes from another rank.
    fn ask(&mut self, pass: usize, direction: usize) {
        let action = self.awaited[pass][direction].pop_front();
        let incoming = action.and_then(|action| self.channels.incoming(self.verified, action));
        self.queue.extend(incoming.map(Transfer::receive));
    }

    /// Queues the sends of what a slot made.
    fn give(&mut self, slot: Slot) {
        let made = slot.actions().filter_map(|action| self.channels.outgoing(self.verified, action));
        self.queue.extend(made.map(Transfer::send));
    }

    /// Commits, then computes the next slot.
    fn compute(&mut self) -> Slot {
        self.commit();
        let (index, &slot) = self.slots.next().expect("the row is the published one");
        self.out.push(Instruction::Compute { index, slot });
        slot
    }

    fn commit(&mut self) {
        if !self.queue.is_empty() {
            self.out.push(Instruction::Commit(std::mem::take(&mut self.queue)));
        }
    }
}

/// The lower half of the stages is on its way to the middle or the fold.
fn direction(shape: &Shape, action: Action) -> usize {
    usize::from(action.stage as usize >= shape.stages() / 2)
}
