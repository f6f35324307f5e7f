//! Errors, hangs, dead peers, resets, and what is left alive.

mod common;

use std::ffi::c_void;

use common::*;

#[test]
fn the_nth_call_fails_once() {
    let _one = fresh(1, RENDEZVOUS, 0);
    fault("cuEventCreate", 2, 2);
    let mut e = 0;
    let codes: Vec<i32> = (0..3).map(|_| cuEventCreate(&mut e, 0)).collect();
    assert_eq!(codes, [0, 2, 0]);
    fault("*", 2, 999);
    assert_eq!(cuEventQuery(e), 0);
    assert_eq!(cuEventDestroy_v2(e), 0, "destructors are left out");
    assert_eq!(cuEventCreate(&mut e, 0), 999);
    assert_eq!(cuEventCreate(&mut e, 0), 0);
}

#[test]
fn a_failed_kernel_breaks_its_device_and_only_that() {
    let _one = fresh(2, RENDEZVOUS, 20);
    let (a, b, p) = (stream("A"), stream("B"), doubles(1));
    set(a, p, 1.0, 0.0);
    assert_eq!(cuCtxSynchronize(), 0);
    hang("kernel", 1);
    fault("launch", 2, 719);
    assert_eq!(touch(a, p, true, 0.0), 0);
    assert_eq!(touch(a, p, true, 0.0), 0);
    order(a, b);
    assert_eq!(fake_axpb(b, p, p, 1, 0.0, 2.0, 0.0), 0);
    assert!(stuck());
    fake_release();
    assert_eq!(cuStreamSynchronize(b), 719);
    assert_eq!(touch(b, p, false, 0.0), 719);
    assert_eq!(cuStreamQuery(a), 719);
    assert_eq!((cuStreamDestroy_v2(a), cuStreamDestroy_v2(a)), (719, 400));
    on(1);
    let (c, q) = (stream("C"), doubles(1));
    set(c, q, 4.0, 0.0);
    assert_eq!(cuStreamSynchronize(c), 0);
    assert_eq!(value(q), 4.0);
}

#[test]
fn a_broken_device_lets_its_own_messages_go_but_not_its_peers() {
    let _one = fresh(2, RENDEZVOUS, 20);
    let comms = comms(&[0, 1], true);
    on(1);
    let (b, q) = (stream("B"), doubles(1));
    assert_eq!(recv(q, 0, comms[1], b), 0);
    on(0);
    let (a, c, p) = (stream("A"), stream("C"), doubles(1));
    assert_eq!(recv(p, 1, comms[0], a), 0);
    assert!(stuck());
    fault("launch", 1, 700);
    assert_eq!(touch(c, p + 8, true, 0.0), 0);
    assert_eq!(cuStreamSynchronize(a), 700);
    assert!(stuck(), "the peer still waits");
    assert_eq!(ncclCommAbort(comms[1]), 0);
    assert!(!stuck());
}

#[test]
fn what_hangs_can_be_released() {
    let _one = fresh(1, RENDEZVOUS, 20);
    let (a, b, p) = (stream("A"), stream("B"), doubles(2));
    hang("kernel", 2);
    for _ in 0..3 {
        assert_eq!(fake_axpb(a, p, p, 1, 0.0, 5.0, 1.0), 0);
    }
    order(a, b);
    assert_eq!(touch(b, p, false, 1.0), 0);
    assert!(stuck());
    assert_eq!((cuStreamQuery(a), cuStreamQuery(b), fake_time()), (600, 600, 1.0));
    fake_release();
    assert_eq!(cuStreamSynchronize(b), 0);
    assert_eq!((value(p), fake_time()), (5.0, 4.0));
}

#[test]
fn a_hanging_send_or_dead_device_holds_its_peer() {
    for dead in [false, true] {
        let _one = fresh(2, BUFFERED, 20);
        let comms = comms(&[0, 1], true);
        if dead {
            fake_dead_peer(0, 1);
        } else {
            hang("send", 1);
        }
        on(0);
        let (a, p) = (stream("A"), doubles(1));
        on(1);
        let (b, q) = (stream("B"), doubles(1));
        assert_eq!(send(p, 1, comms[0], a), 0);
        if dead {
            assert_eq!((state(comms[0]), state(comms[1])), (0, 6));
            assert_eq!(recv(q, 0, comms[1], b), 6);
        } else {
            assert_eq!(recv(q, 0, comms[1], b), 0);
            assert!(stuck());
            fake_release();
            settle();
        }
        assert_eq!(ncclCommAbort(comms[0]), 0);
        settle();
    }
}

#[test]
fn a_rank_that_never_comes_leaves_the_others_in_progress() {
    let _one = fresh(2, RENDEZVOUS, 0);
    hang("init", 2);
    let comms = comms(&[0, 1], false);
    assert_eq!(fake_quiesce(60.0), 0);
    let mut state = 0;
    assert_eq!((ncclCommGetAsyncError(comms[0], &mut state), state), (0, IN_PROGRESS));
    assert_eq!(send(8, 1, comms[0], 0), 4, "not ready");
    assert_eq!(ncclCommDestroy(comms[0]), 4);
    assert_eq!((ncclCommAbort(comms[0]), ncclCommAbort(comms[1]), live("comms")), (0, 0, 0));
}

#[test]
fn a_reset_ends_what_hangs_and_who_waits_for_it() {
    let one = fresh(1, RENDEZVOUS, 20);
    let waiter = {
        let (a, p) = (stream("A"), doubles(1));
        hang("kernel", 1);
        assert_eq!(touch(a, p, true, 0.0), 0);
        let waiter = std::thread::spawn(move || {
            on(0);
            cuStreamSynchronize(a)
        });
        while fake_host_waits() == 0 {
            std::thread::yield_now();
        }
        assert!(stuck());
        (waiter, a, p)
    };
    drop(one);
    let _one = fresh(1, RENDEZVOUS, 20);
    assert_eq!(waiter.0.join().unwrap(), 709);
    assert_eq!(cuStreamQuery(waiter.1), 400, "handles of before are gone");
    let (a, p) = (stream("A"), doubles(1));
    assert_eq!(p, waiter.2, "addresses begin again");
    set(a, p, 6.0, 1.0);
    assert_eq!(cuStreamSynchronize(a), 0);
    assert_eq!((value(p), fake_time(), fake_violation_count()), (6.0, 1.0, 0));
}

#[test]
fn the_living_are_counted() {
    let _one = fresh(1, RENDEZVOUS, 20);
    let (a, e, p) = (stream("A"), event(), doubles(4));
    let mut q = 0;
    assert_eq!(cuMemAllocAsync(&mut q, 100, a), 0);
    let counts = || ["streams", "events", "allocations", "bytes", "contexts"].map(live);
    assert_eq!(counts(), [1, 1, 2, 132, 1]);
    assert_eq!(cuMemFreeAsync(q, a), 0);
    assert_eq!(cuStreamDestroy_v2(a), 0);
    assert_eq!(cuEventDestroy_v2(e), 0);
    assert_eq!(cuMemFree_v2(p), 0);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
    assert_eq!(counts(), [0; 5]);
    assert_eq!(fake_host_waits(), 1);
    assert_eq!(cuCtxSynchronize(), 709);
}

#[test]
fn memory_can_run_out() {
    let _one = fresh(1, RENDEZVOUS, 0);
    fake_set_capacity(100);
    let (mut p, a) = (0, stream("A"));
    assert_eq!(cuMemAllocAsync(&mut p, 101, a), 2);
    assert_eq!(cuMemAllocAsync(&mut p, 100, a), 0);
    assert_eq!(cuMemAllocAsync(&mut p, 1, a), 2);
    assert_eq!(cuMemFreeAsync(p, a), 0);
    assert_eq!(cuMemAllocAsync(&mut p, 1, a), 0);
}

#[test]
fn handles_and_contexts_are_checked() {
    let _one = fresh(2, RENDEZVOUS, 0);
    let (a, e, p) = (stream("A"), event(), doubles(1));
    assert_eq!(cuStreamSynchronize(e), 400, "an event is no stream");
    assert_eq!(cuEventRecord(a, a), 400);
    on(1);
    assert_eq!(touch(a, p, true, 0.0), 400, "another device's stream");
    assert_eq!(cuEventRecord(event(), a), 400, "another device's event");
    assert_eq!(cuEventRecord(e, a), 0);
    assert_eq!(cuStreamWaitEvent(stream("B"), e, 0), 0, "a wait crosses devices");
    assert_eq!(cuCtxSetCurrent(0), 0);
    assert_eq!((cuEventQuery(e), cuStreamCreate(&mut 0, 0), cuMemFree_v2(p)), (201, 201, 201));
    assert_eq!(cuCtxSetCurrent(1), 201);
}

extern "C" fn calls_back(answer: *mut c_void) {
    // SAFETY: the test keeps it until the stream is through.
    unsafe { *answer.cast::<i32>() = cuCtxSynchronize() };
}

#[test]
fn a_callback_runs_in_order_and_may_not_call_back() {
    let _one = fresh(1, RENDEZVOUS, 20);
    let a = stream("A");
    let mut answer = -1;
    assert_eq!(cuLaunchHostFunc(a, calls_back, (&raw mut answer).cast()), 0);
    assert_eq!(cuStreamSynchronize(a), 0);
    assert_eq!(answer, 800);
}
