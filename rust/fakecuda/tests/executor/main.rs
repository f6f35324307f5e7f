//! The CUDA executor on the software device: right values, no race, no leak and no host wait for every family; each
//! ordering's purpose; faults; and its times, which are the simulator's.
//!
//! `LONG=1` runs 200 seeds in the place of a few.

mod fake;
mod faults;
mod orders;
mod ranks;
mod times;

use std::time::Duration;

use dualpipe::costs::Costs;
use dualpipe::execute::device::nccl::Sharing;
use dualpipe::generate::{find, names};
use dualpipe::lower::{P2p, Program, lower};
use dualpipe::verify::{Verified, verify};

use fake::{Fake, Mode};
use ranks::{Job, Over, assert_right};

/// The semantics, over what, and how NCCL's sends and receives meet.
const WAYS: [(P2p, Over, Mode); 7] = [
    (P2p::Eager, Over::Same, Mode::Rendezvous),
    (P2p::Batched, Over::Same, Mode::Rendezvous),
    (P2p::Eager, Over::Nccl(Sharing::Edge), Mode::Rendezvous),
    (P2p::Eager, Over::Nccl(Sharing::Edge), Mode::Buffered),
    (P2p::Rendezvous { depth: 2 }, Over::Nccl(Sharing::Edge), Mode::Rendezvous),
    (P2p::Batched, Over::Nccl(Sharing::Edge), Mode::Rendezvous),
    (P2p::Batched, Over::Nccl(Sharing::Pair), Mode::Rendezvous),
];

/// The family's order for so many ranks, and about twice as many microbatches, if it takes any such.
fn verified(family: &str, ranks: usize) -> Option<Verified> {
    let family = find(family).unwrap();
    let schedule =
        (2 * ranks..4 * ranks).find_map(|microbatches| family.generate(ranks, microbatches, None).ok());
    schedule.map(|schedule| verify(schedule).unwrap())
}

fn job<'a>(fake: &'a Fake, program: &'a Program, over: Over) -> Job<'a> {
    Job {
        fake,
        program,
        over,
        costs: Costs::default(),
        hop: 0.25,
        timeout: Duration::from_secs(60),
    }
}

fn check(verified: &Verified, (p2p, over, mode): (P2p, Over, Mode), seed: u64) {
    let program = lower(verified, p2p).unwrap();
    let ranks = program.rows().len();
    let fake = Fake::take(ranks, seed, mode, 20);
    let name = || format!("{} {ranks} {p2p:?} {over:?} {mode:?} seed {seed}", verified.schedule().name());
    let done = job(&fake, &program, over).run().into_iter();
    let done: Vec<_> =
        done.map(|rank| rank.unwrap_or_else(|fault| panic!("{}: {fault:?}", name()))).collect();
    assert_right(&done, program.shape());
    drop(done);
    assert_eq!(fake.races() + fake.violations(), 0, "{}: {}", name(), fake.report());
    assert_eq!(fake.host_waits(), 0, "{}", name());
    fake.assert_balanced();
}

fn is_long() -> bool {
    std::env::var("LONG").is_ok_and(|value| value == "1")
}

/// Every family, 2 to 8 ranks: a seed decides the rest, so that all ways have their turn.
#[test]
fn every_family_is_right_and_ordered() {
    let seeds = if is_long() { 200 } else { 1 };
    let mut turn = 0;
    for seed in 0..seeds {
        for family in names() {
            for ranks in 2..=8 {
                let Some(verified) = verified(family, ranks) else { continue };
                check(&verified, WAYS[turn % WAYS.len()], seed);
                turn += 1;
            }
        }
    }
}

/// Every family in every way, at one size.
#[test]
fn every_way_is_right_and_ordered() {
    for family in names() {
        for way in WAYS {
            let verified = verified(family, 4).or_else(|| verified(family, 3)).unwrap();
            check(&verified, way, 7);
        }
    }
}
