//! Programs run with plain numbers, no Python: that every action gets what it needs, on threads and
//! interleaved, and that a failure reaches every rank.

use std::sync::Arc;
use std::time::Instant;

use super::interpreter::{Interpreter, RankFailure, run, run_interleaved};
use super::local::{Absence, Hub};
use super::{Failure, Record, Values, Worker};
use crate::generate::find;
use crate::lower::{P2p, Program, lower};
use crate::schedule::{Action, Kind, Shape, Slot, Tensor};
use crate::verify::verify;

/// A tensor is its own name, so that a worker can tell whether it was given the right one.
struct Checking {
    shape: Shape,
    fails_at: Option<Slot>,
}

impl Worker for Checking {
    type Value = Tensor;
    type Error = &'static str;

    fn compute(&mut self, slot: Slot, inputs: Values<Tensor>) -> Result<Values<Tensor>, &'static str> {
        if self.fails_at == Some(slot) {
            return Err("told to");
        }
        let mut outputs = [None, None];
        for (index, action) in slot.actions().enumerate() {
            assert_eq!(inputs[index], self.shape.input(action), "{action} got another tensor");
            outputs[index] = action.tensor();
        }
        Ok(outputs)
    }
}

fn program(family: &str, ranks: usize, microbatches: usize) -> Program {
    let schedule = find(family).unwrap().generate(ranks, microbatches, None).unwrap();
    lower(&verify(schedule).unwrap(), P2p::Eager).unwrap()
}

type TestHub = Hub<Tensor, &'static str, usize>;

fn interpreter<'a>(
    program: &'a Program,
    hub: &'a TestHub,
    rank: usize,
    fails_at: Option<Slot>,
) -> Interpreter<'a, Checking, super::local::Port<'a, Tensor, &'static str, usize>> {
    let worker = Checking { shape: *program.shape(), fails_at };
    Interpreter::new(program.shape(), &program.rows()[rank], worker, hub.port(rank), Instant::now())
}

fn slots(records: &[Record]) -> Vec<Slot> {
    records.iter().map(|record| record.slot).collect()
}

const SIZES: [(&str, usize, usize); 6] = [
    ("gpipe", 3, 5),
    ("1f1b", 4, 6),
    ("dualpipe", 2, 4),
    ("dualpipe", 6, 14),
    ("dualpipev", 1, 3),
    ("dualpipev", 4, 9),
];

#[test]
fn threads_and_turns_run_every_slot_in_order() {
    for (family, ranks, microbatches) in SIZES {
        let schedule = find(family).unwrap().generate(ranks, microbatches, None).unwrap();
        let program = program(family, ranks, microbatches);
        let hub = TestHub::new(ranks);
        let in_turn = (0..ranks).map(|rank| interpreter(&program, &hub, rank, None)).collect();
        let in_turn = run_interleaved(in_turn).unwrap_or_else(|_| panic!("{family}"));
        let threads: Vec<Vec<Record>> = std::thread::scope(|scope| {
            let run_rank = |rank| run(interpreter(&program, &hub, rank, None)).expect(family);
            let handles: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || run_rank(rank))).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        });
        for rank in 0..ranks {
            assert_eq!(slots(&in_turn[rank]), schedule.rows()[rank]);
            assert_eq!(slots(&threads[rank]), schedule.rows()[rank]);
        }
    }
}

#[test]
fn a_failure_stops_every_rank() {
    let program = program("dualpipev", 3, 6);
    let failing = Slot::One(Action::new(2, Kind::F, 1));
    let hub = TestHub::new(3);
    let ended: Vec<_> = std::thread::scope(|scope| {
        let run_rank = |rank| {
            let ended = run(interpreter(&program, &hub, rank, Some(failing)));
            if let Err(Failure::Worker { .. }) = ended {
                hub.fail(rank);
            }
            ended.map(|_| ())
        };
        let handles: Vec<_> = (0..3).map(|rank| scope.spawn(move || run_rank(rank))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    assert!(matches!(ended[0], Err(Failure::Stopped)));
    assert!(matches!(ended[1], Err(Failure::Stopped)));
    assert!(matches!(ended[2], Err(Failure::Worker { slot, error: "told to", .. }) if slot == failing));

    let fresh = TestHub::new(3);
    let ranks = (0..3).map(|rank| interpreter(&program, &fresh, rank, Some(failing))).collect();
    assert!(matches!(run_interleaved(ranks), Err(RankFailure { rank: 2, failure: Failure::Worker { .. } })));
}

#[test]
fn a_meeting_hands_round_cards_and_clears_the_table() {
    let hub = Arc::new(TestHub::new(2));
    let other = hub.clone();
    let there = std::thread::spawn(move || {
        let first = other.meet(1, "b").unwrap();
        other.fail(7);
        let second = other.meet(1, "d").unwrap();
        (first.cards.clone(), first.fault.is_none(), second.cards.clone(), second.fault.as_deref().copied())
    });
    assert_eq!(hub.meet(0, "a").unwrap().cards, ["a", "b"]);
    assert_eq!(hub.meet(0, "c").unwrap().cards, ["c", "d"]);
    let (first, no_fault, second, fault) = there.join().unwrap();
    assert_eq!((first, no_fault, second, fault), (vec!["a", "b"], true, vec!["c", "d"], Some(7)));
}

#[test]
fn who_waits_for_a_rank_that_is_gone_is_told() {
    let hub = TestHub::new(2);
    hub.leave(1, "has returned".to_string());
    let absence = hub.meet(0, "a").err();
    assert_eq!(absence, Some(Absence { rank: 1, reason: "has returned".to_string() }));
}
