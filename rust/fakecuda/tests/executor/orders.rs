//! Each ordering left out in turn: the race detector, or the clock, reports it. What none reports would be redundant.

use std::time::Duration;

use dualpipe::costs::{Costs, Table};
use dualpipe::execute::device::Order;
use dualpipe::execute::device::nccl::Sharing;
use dualpipe::lower::{P2p, lower};

use crate::fake::{Fake, Mode};
use crate::ranks::{Job, Over};
use crate::times::{assert_predicted, costs};
use crate::{job, verified};

/// Runs with an ordering left out; how many races there were.
fn races(left_out: Order, p2p: P2p, over: Over) -> u64 {
    let verified = verified("dualpipe", 4).unwrap();
    let program = lower(&verified, p2p).unwrap();
    let fake = Fake::take(4, 3, Mode::Rendezvous, 0);
    fake.leave_out(left_out);
    let job = Job {
        fake: &fake,
        program: &program,
        over,
        costs: Costs::default(),
        hop: 0.25,
        timeout: Duration::from_secs(60),
    };
    // What it computes is of no interest, nor whether an access went astray: only that it was noticed.
    drop(job.run());
    assert!(fake.settle());
    fake.races() + fake.violations()
}

#[test]
fn the_detector_reports_each_ordering_that_data_needs() {
    let orders = [Order::SendAfterCompute, Order::ComputeAfterReceive, Order::ReleaseAfterSend];
    for order in orders {
        for over in [Over::Same, Over::Nccl(Sharing::Edge)] {
            let found = races(order, P2p::Eager, over);
            println!("{order:?} left out over {over:?}: {found} reported");
            assert!(found > 0, "{order:?} left out over {over:?}, and nothing was reported");
        }
        let found = races(order, P2p::Batched, Over::Nccl(Sharing::Pair));
        assert!(found > 0, "{order:?} left out under batched P2P, and nothing was reported");
    }
}

/// In steps that fail, at one place after the other.
#[test]
fn the_detector_reports_what_a_failure_lets_go_of_too_early() {
    let verified = verified("dualpipe", 4).unwrap();
    let program = lower(&verified, P2p::Eager).unwrap();
    let found = |over, left_out: Option<Order>| -> u64 {
        let fails_at = |nth| {
            let fake = Fake::take(4, 3, Mode::Rendezvous, 0);
            if let Some(order) = left_out {
                fake.leave_out(order);
            }
            fake.fault("cuEventCreate", nth, 2);
            drop(
                Job {
                    timeout: Duration::from_secs(20),
                    ..job(&fake, &program, over)
                }
                .run(),
            );
            assert!(fake.settle());
            let found = fake.races() + fake.violations();
            assert!(found == 0 || left_out.is_some(), "{over:?}, the {nth}th: {}", fake.report());
            found
        };
        (10..130).step_by(12).map(fails_at).sum()
    };
    for over in [Over::Same, Over::Nccl(Sharing::Edge)] {
        let found_without = found(over, Some(Order::ReleaseAfterFailure));
        println!("ReleaseAfterFailure left out over {over:?}: {found_without} reported");
        assert!(found_without > 0, "{over:?}");
        found(over, None);
    }
}

/// What the semantics alone ask for is seen by the clock.
#[test]
fn the_clock_reports_each_ordering_that_batched_asks_for() {
    let verified = verified("1f1b", 4).unwrap();
    let costs = Costs { p2p: Table::One(0.003), ..costs(&verified, 1) };
    let differs = |left_out| {
        let run = || assert_predicted(&verified, P2p::Batched, &costs, Mode::Rendezvous, left_out);
        std::panic::catch_unwind(run).is_err()
    };
    assert!(!differs(None));
    for order in [Order::ComputeAfterSend, Order::ReceiveAfterCompute] {
        assert!(differs(Some(order)), "{order:?} left out, and the times did not show it");
    }
}
