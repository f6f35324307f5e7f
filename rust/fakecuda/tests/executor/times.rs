//! The times of the software device's virtual clock are those that the simulator predicts: the overlap is real.

use std::time::Duration;

use dualpipe::costs::{Costs, Numbers, Table};
use dualpipe::execute::device::Order;
use dualpipe::execute::device::nccl::Sharing;
use dualpipe::generate::names;
use dualpipe::lower::{P2p, lower};
use dualpipe::simulate::simulate_network;
use dualpipe::verify::Verified;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::fake::{Fake, Mode};
use crate::ranks::{Job, Over};
use crate::{is_long, verified};

/// Whole milliseconds, which an event's single-precision time holds exactly.
fn milliseconds(random: &mut StdRng, least: u32, most: u32) -> f64 {
    f64::from(random.random_range(least..=most)) / 1e3
}

/// Random costs by stage; the hop is left at 0.
pub fn costs(verified: &Verified, seed: u64) -> Costs {
    let mut random = StdRng::seed_from_u64(seed);
    let stages = verified.shape().stages();
    let mut by_stage = || Numbers::Each((0..stages).map(|_| milliseconds(&mut random, 5, 30)).collect());
    Costs {
        forward: by_stage(),
        backward_input: by_stage(),
        backward_weight: by_stage(),
        ..Costs::default()
    }
}

/// Runs over NCCL, and compares each slot's start and end.
pub fn assert_predicted(verified: &Verified, p2p: P2p, costs: &Costs, mode: Mode, left_out: Option<Order>) {
    let program = lower(verified, p2p).unwrap();
    let predicted = simulate_network(verified, program.network().into(), costs).unwrap();
    let ranks = program.rows().len();
    let fake = Fake::take(ranks, 11, mode, 5);
    if let Some(order) = left_out {
        fake.leave_out(order);
    }
    let hop = match &costs.p2p {
        Table::One(hop) => *hop,
        _ => unreachable!("these tests have one hop"),
    };
    let job = Job {
        fake: &fake,
        program: &program,
        over: Over::Nccl(Sharing::Edge),
        costs: costs.clone(),
        hop,
        timeout: Duration::from_secs(60),
    };
    for (rank, done) in job.run().into_iter().enumerate() {
        let records = done.unwrap().records;
        // An event's time is a 32-bit float of milliseconds.
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * predicted.makespan();
        for (record, time) in records.iter().zip(predicted.times_of(rank)) {
            assert!(
                close(record.start, time.start) && close(record.end, time.end),
                "{} {p2p:?}, rank {rank}, slot {}, {}: {} to {}, predicted {} to {}",
                verified.schedule().name(),
                record.index,
                record.slot,
                record.start,
                record.end,
                time.start,
                time.end
            );
        }
    }
}

/// Every family at a few sizes, with random costs and hops.
fn assert_all_predicted(p2p: P2p, mode: Mode) {
    for seed in 0..if is_long() { 20 } else { 2 } {
        for family in names() {
            for ranks in [2, 3, 4] {
                let Some(verified) = verified(family, ranks) else { continue };
                let mut costs = costs(&verified, seed);
                costs.p2p = Table::One(f64::from(seed as u32 % 4) / 1e3);
                assert_predicted(&verified, p2p, &costs, mode, None);
            }
        }
    }
}

#[test]
fn an_eager_step_takes_what_the_simulator_says() {
    assert_all_predicted(P2p::Eager, Mode::Buffered);
}

#[test]
fn a_batched_step_takes_what_the_simulator_says() {
    assert_all_predicted(P2p::Batched, Mode::Rendezvous);
}
