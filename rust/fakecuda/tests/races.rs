//! What counts as ordered, and that what is not is found even when it ran in a good order.

mod common;

use common::*;

/// A writes, then B copies; `ordered` by an event. In real time A always comes first.
fn copy_after_kernel(ordered: bool) {
    let (a, b) = (stream("A"), stream("B"));
    let (p, q) = (doubles(1), doubles(1));
    set(a, p, 3.0, 1.0);
    settle();
    if ordered {
        order(a, b);
    }
    assert_eq!(cuMemcpyDtoDAsync_v2(q, p, 8, b), 0);
    settle();
    assert_eq!(cuCtxSynchronize(), 0);
    assert_eq!(value(q), 3.0);
}

#[test]
fn a_copy_that_nothing_orders_is_found_although_it_came_last() {
    let _one = fresh(1, RENDEZVOUS, 0);
    copy_after_kernel(false);
    assert_eq!(fake_race_count(), 1);
    let report = report();
    let text =
        "nothing orders kernel 2 of A (writes) and copy 1 of B (reads): both touch allocation 0 (device 0)";
    assert!(report.contains(text), "{report}");
}

#[test]
fn an_event_orders() {
    let _one = fresh(1, RENDEZVOUS, 20);
    copy_after_kernel(true);
    assert_eq!(fake_race_count(), 0, "{}", report());
}

#[test]
fn a_writer_does_not_meet_an_ordered_reader_but_a_reader_that_nothing_orders() {
    let _one = fresh(1, RENDEZVOUS, 0);
    let (a, b, c) = (stream("A"), stream("B"), stream("C"));
    let p = doubles(1);
    set(a, p, 1.0, 0.0);
    order(a, b);
    order(a, c);
    assert_eq!(touch(b, p, false, 0.0), 0);
    assert_eq!(touch(c, p, false, 0.0), 0);
    order(b, a);
    settle();
    assert_eq!(fake_race_count(), 0);
    assert_eq!(touch(a, p, true, 0.0), 0);
    settle();
    assert_eq!(fake_race_count(), 1);
    assert!(report().contains("kernel 1 of C (reads) and kernel 3 of A (writes)"), "{}", report());
}

#[test]
fn an_ordered_reader_does_not_hide_the_writer() {
    let _one = fresh(1, RENDEZVOUS, 0);
    let (a, b, c) = (stream("A"), stream("B"), stream("C"));
    let p = doubles(1);
    assert_eq!(touch(a, p, true, 0.0), 0);
    order(a, b);
    assert_eq!(touch(b, p, false, 0.0), 0);
    settle();
    assert_eq!(touch(c, p, false, 0.0), 0);
    settle();
    assert_eq!(fake_race_count(), 1);
}

#[test]
fn order_passes_through_a_third_stream() {
    let _one = fresh(1, RENDEZVOUS, 20);
    let streams: Vec<u64> = (0..10).map(|i| stream(&i.to_string())).collect();
    let p = doubles(1);
    set(streams[0], p, 0.0, 1.0);
    for i in 1..300 {
        order(streams[(i - 1) % 10], streams[i % 10]);
        assert_eq!(fake_axpb(streams[i % 10], p, p, 1, 1.0, 1.0, 1.0), 0);
    }
    assert_eq!(cuStreamSynchronize(streams[9]), 0);
    assert_eq!(value(p), 299.0);
    assert_eq!((fake_race_count(), fake_time()), (0, 300.0));
}

#[test]
fn a_wait_takes_the_record_of_its_own_moment() {
    let _one = fresh(1, RENDEZVOUS, 0);
    let (a, b, e) = (stream("A"), stream("B"), event());
    let (p, q) = (doubles(1), doubles(1));
    assert_eq!(touch(a, p, true, 0.0), 0);
    assert_eq!(cuEventRecord(e, a), 0);
    assert_eq!(cuStreamWaitEvent(b, e, 0), 0);
    assert_eq!(touch(a, q, true, 0.0), 0);
    assert_eq!(cuEventRecord(e, a), 0);
    settle();
    assert_eq!(touch(b, p, false, 0.0), 0);
    settle();
    assert_eq!(fake_race_count(), 0);
    assert_eq!(touch(b, q, false, 0.0), 0);
    settle();
    assert_eq!(fake_race_count(), 1);
}

#[test]
fn an_event_never_recorded_orders_nothing() {
    let _one = fresh(1, RENDEZVOUS, 0);
    let (a, b, e) = (stream("A"), stream("B"), event());
    let p = doubles(1);
    assert_eq!(cuStreamWaitEvent(b, e, 0), 0);
    assert_eq!(cuEventQuery(e), 0);
    assert_eq!(touch(a, p, true, 0.0), 0);
    settle();
    assert_eq!(touch(b, p, true, 0.0), 0);
    settle();
    assert_eq!(fake_race_count(), 1);
}

#[test]
fn an_allocation_is_ready_on_its_own_stream_alone() {
    let _one = fresh(1, RENDEZVOUS, 0);
    let (a, b) = (stream("A"), stream("B"));
    let mut p = 0;
    assert_eq!(cuMemAllocAsync(&mut p, 8, a), 0);
    settle();
    assert_eq!(touch(b, p, true, 0.0), 0);
    settle();
    assert!(report().contains("alloc 1 of A (writes) and kernel 1 of B (writes)"), "{}", report());
}

#[test]
fn freed_memory_is_poison_and_its_use_is_found() {
    let _one = fresh(1, RENDEZVOUS, 20);
    let (a, b) = (stream("A"), stream("B"));
    let (p, q) = (doubles(1), doubles(1));
    set(a, p, 5.0, 0.0);
    assert_eq!(cuMemFreeAsync(p, a), 0);
    order(a, b);
    assert_eq!(cuMemcpyDtoDAsync_v2(q, p, 8, b), 0);
    assert_eq!(cuStreamSynchronize(b), 0);
    assert_eq!(value(q).to_bits(), 0xCBCB_CBCB_CBCB_CBCB);
    assert_eq!((fake_race_count(), fake_violation_count()), (0, 1));
    assert!(report().contains("use after free: copy 1 of B reads 8 bytes"), "{}", report());
    assert_eq!(cuMemFreeAsync(p, a), 1, "freed twice");
}

#[test]
fn a_free_that_nothing_orders_is_a_race_whoever_comes_first() {
    for user_first in [true, false] {
        let _one = fresh(1, RENDEZVOUS, 0);
        let (a, b) = (stream("A"), stream("B"));
        let p = doubles(1);
        let user = || assert_eq!(touch(b, p, false, 0.0), 0);
        let free = || assert_eq!(cuMemFreeAsync(p, a), 0);
        let steps: [&dyn Fn(); 2] = if user_first { [&user, &free] } else { [&free, &user] };
        for step in steps {
            step();
            settle();
        }
        assert_eq!((fake_race_count(), fake_violation_count()), (1, 0), "{}", report());
    }
}

#[test]
fn what_no_allocation_holds_is_found() {
    let _one = fresh(2, RENDEZVOUS, 0);
    let a = stream("A");
    let p = doubles(2);
    assert_eq!(fake_axpb(a, p, p, 3, 1.0, 0.0, 0.0), 0);
    settle();
    assert_eq!(fake_violation_count(), 2, "one read, one write: {}", report());
    assert_eq!(touch(a, p + 16, false, 0.0), 0);
    settle();
    assert_eq!(fake_violation_count(), 3);
    on(1);
    assert_eq!(touch(stream("other device"), p, false, 0.0), 0);
    settle();
    assert_eq!(fake_violation_count(), 4);
    assert!(report().contains("foreign access"), "{}", report());
    let mine = [0f64; 4];
    assert_eq!(touch(stream("reads host memory"), mine.as_ptr() as u64, false, 0.0), 0);
    settle();
    assert_eq!(fake_violation_count(), 4);
}

#[test]
fn a_host_that_waited_has_ordered() {
    for waits in [true, false] {
        let _one = fresh(1, RENDEZVOUS, 0);
        let (a, b) = (stream("A"), stream("B"));
        let p = doubles(1);
        assert_eq!(touch(a, p, true, 0.0), 0);
        settle();
        if waits {
            assert_eq!(cuStreamSynchronize(a), 0);
        }
        assert_eq!(touch(b, p, true, 0.0), 0);
        settle();
        assert_eq!(fake_race_count(), u64::from(!waits));
    }
}

/// Another thread asks for an event; whether this one may then rely on the answer.
fn another_thread(mode: i32, ask: fn(u64) -> i32) -> u64 {
    let _one = fresh(1, RENDEZVOUS, 0);
    fake_set_hosts_ordered(mode);
    let (a, b, e) = (stream("A"), stream("B"), event());
    let mut p = 0;
    assert_eq!(cuMemAllocAsync(&mut p, 8, a), 0);
    assert_eq!(cuEventRecord(e, a), 0);
    settle();
    let asked = std::thread::spawn(move || {
        on(0);
        ask(e)
    });
    assert_eq!(asked.join().unwrap(), 0);
    assert_eq!(touch(b, p, true, 0.0), 0);
    settle();
    fake_race_count()
}

#[test]
fn whether_host_threads_share_what_they_know_can_be_chosen() {
    let found = |ask: fn(u64) -> i32| [0, 1, 2].map(|mode| another_thread(mode, ask));
    assert_eq!(found(cuEventSynchronize), [1, 0, 0]);
    assert_eq!(found(cuEventQuery), [1, 0, 1]);
}

#[test]
fn the_same_pair_is_told_once_and_counted_each_time() {
    let _one = fresh(1, RENDEZVOUS, 0);
    let (a, b) = (stream("A"), stream("B"));
    for _ in 0..5 {
        let p = doubles(1);
        assert_eq!(touch(a, p, true, 0.0), 0);
        settle();
        assert_eq!(touch(b, p, false, 0.0), 0);
        settle();
    }
    let report = report();
    assert_eq!((fake_race_count(), report.matches("nothing orders").count()), (5, 1));
    assert!(report.contains("\"count\":5"), "{report}");
}
