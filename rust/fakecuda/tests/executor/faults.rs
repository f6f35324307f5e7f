//! Faults: every rank ends with an error within the deadline, nothing is left behind, and the next job works.

use std::time::{Duration, Instant};

use dualpipe::execute::device::nccl::Sharing;
use dualpipe::lower::{P2p, Program, lower};

use crate::fake::{Fake, Mode};
use crate::ranks::{Job, Over, assert_right};
use crate::{is_long, job, verified};

const RANKS: usize = 3;
/// What a step may take; the test's own limit is far above it.
const TIMEOUT: Duration = Duration::from_secs(2);

fn program() -> Program {
    lower(&verified("1f1b", RANKS).unwrap(), P2p::Eager).unwrap()
}

/// A job with a fault fails on all ranks, or is right; then one without a fault works.
fn check(over: Over, name: &str, fault: impl FnOnce(&Fake)) -> bool {
    let program = program();
    let fake = Fake::take(RANKS, 5, Mode::Rendezvous, 0);
    fault(&fake);
    let before = Instant::now();
    let answers = Job { timeout: TIMEOUT, ..job(&fake, &program, over) }.run();
    assert!(before.elapsed() < 20 * TIMEOUT, "{name}: it took {:?}", before.elapsed());
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    let words: Vec<String> =
        answers.iter().filter_map(|answer| answer.as_ref().err()).map(|fault| format!("{fault:?}")).collect();
    drop(answers);
    fake.release();
    fake.assert_balanced();
    assert_eq!(fake.races() + fake.violations(), 0, "{name}: {}", fake.report());
    drop(fake);
    let fake = Fake::take(RANKS, 6, Mode::Rendezvous, 0);
    let done: Vec<_> = job(&fake, &program, over).run().into_iter().map(Result::unwrap).collect();
    assert_right(&done, program.shape());
    println!("{name}: {failed} failed: {}", words.join(" | "));
    failed > 0
}

const CALLS: [(&str, i32); 17] = [
    ("cuDevicePrimaryCtxRetain", 2),
    ("cuCtxPushCurrent_v2", 201),
    ("cuCtxGetStreamPriorityRange", 201),
    ("cuStreamCreateWithPriority", 2),
    ("cuMemPoolCreate", 801),
    ("cuMemPoolSetAttribute", 801),
    ("cuMemAllocFromPoolAsync", 2),
    ("cuEventCreate", 2),
    ("cuEventRecord", 400),
    ("cuStreamWaitEvent", 700),
    ("cuEventQuery", 700),
    ("cuEventElapsedTime", 400),
    ("ncclGetUniqueId", 3),
    ("ncclCommInitRankConfig", 2),
    ("ncclCommGetAsyncError", 6),
    ("ncclSend", 1),
    ("ncclRecv", 1),
];

#[test]
fn an_error_code_from_any_call_fails_the_job_and_nothing_else() {
    let nths: &[u64] = if is_long() { &[1, 2, 3, 5, 8, 13, 21, 34, 55, 89] } else { &[1, 9] };
    let mut failed = 0;
    for (call, code) in CALLS {
        for &nth in nths {
            let over = Over::Nccl(Sharing::Edge);
            failed += usize::from(check(over, &format!("{call} {nth}"), |fake| fake.fault(call, nth, code)));
        }
        if !call.starts_with("nccl") {
            check(Over::Same, &format!("{call} on one device"), |fake| fake.fault(call, 7, code));
        }
    }
    assert!(failed >= CALLS.len(), "faults that show nowhere test nothing");
}

#[test]
fn a_kernel_that_fails_is_told_of() {
    for over in [Over::Same, Over::Nccl(Sharing::Edge)] {
        assert!(check(over, "kernel", |fake| fake.fault("launch", 9, 719)));
    }
}

#[test]
fn a_hang_ends_at_the_deadline() {
    for kind in ["send", "recv", "init"] {
        assert!(check(Over::Nccl(Sharing::Edge), kind, |fake| fake.hang(kind, 2)));
    }
    for kind in ["kernel", "copy"] {
        assert!(check(Over::Same, kind, |fake| fake.hang(kind, 5)));
    }
}

#[test]
fn a_dead_peer_is_noticed() {
    for tell in [false, true] {
        assert!(check(Over::Nccl(Sharing::Edge), "dead peer", |fake| fake.kill(1, tell)));
    }
}
