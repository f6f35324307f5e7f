//! Virtual time: from the order of operations alone, whatever the threads do.

mod common;

use common::*;

/// Milliseconds from one event to another.
fn between(start: u64, end: u64) -> f32 {
    let mut ms = 0.0;
    assert_eq!(cuEventElapsedTime(&mut ms, start, end), 0);
    ms
}

fn record(stream: u64) -> u64 {
    let event = event();
    assert_eq!(cuEventRecord(event, stream), 0);
    event
}

#[test]
fn a_diamond_takes_its_longer_side() {
    for seed_like_jitter in [0, 5, 50] {
        let _one = fresh(1, RENDEZVOUS, seed_like_jitter);
        let (a, b, p) = (stream("A"), stream("B"), doubles(4));
        let start = record(a);
        assert_eq!(touch(a, p, true, 1.0), 0);
        order(a, b);
        assert_eq!(touch(a, p + 8, true, 2.0), 0);
        assert_eq!(touch(b, p + 16, true, 5.0), 0);
        order(b, a);
        assert_eq!(touch(a, p + 24, true, 1.0), 0);
        let end = record(a);
        settle();
        assert_eq!((between(start, end), fake_time()), (7000.0, 7.0));
    }
}

#[test]
fn a_host_that_waits_queues_later() {
    let _one = fresh(1, RENDEZVOUS, 20);
    let (a, b, p) = (stream("A"), stream("B"), doubles(2));
    assert_eq!(touch(a, p, true, 3.0), 0);
    assert_eq!(touch(b, p + 8, true, 1.0), 0);
    settle();
    assert_eq!(fake_time(), 3.0);
    assert_eq!(cuStreamQuery(a), 0, "which is no wait");
    assert_eq!(touch(b, p + 8, true, 1.0), 0);
    settle();
    assert_eq!(fake_time(), 3.0);
    assert_eq!(cuStreamSynchronize(a), 0);
    assert_eq!(touch(b, p + 8, true, 1.0), 0);
    settle();
    assert_eq!(fake_time(), 4.0);
    assert_eq!(fake_host_waits(), 1);
}

/// The sender is ready at 1, the receiver at `ready`; when each goes on, with a hop of 0.5.
fn hop(mode: i32, ready: f64) -> (f32, f32) {
    let _one = fresh(2, mode, 20);
    fake_set_hop(0.5);
    let comms = comms(&[0, 1], true);
    let mut ends = Vec::new();
    for (rank, wait) in [1.0, ready].into_iter().enumerate() {
        on(rank as i32);
        let (s, p) = (stream("p2p"), doubles(1));
        let start = record(s);
        assert_eq!(touch(s, p, true, wait), 0);
        let code = if rank == 0 { send(p, 1, comms[0], s) } else { recv(p, 0, comms[1], s) };
        assert_eq!(code, 0);
        ends.push((start, record(s)));
    }
    settle();
    (between(ends[0].0, ends[0].1), between(ends[1].0, ends[1].1))
}

#[test]
fn a_rendezvous_holds_both_and_a_buffered_send_nobody() {
    assert_eq!(hop(RENDEZVOUS, 4.0), (4500.0, 4500.0));
    assert_eq!(hop(RENDEZVOUS, 0.0), (1500.0, 1500.0));
    assert_eq!(hop(BUFFERED, 4.0), (1000.0, 4000.0));
    assert_eq!(hop(BUFFERED, 1.2), (1000.0, 1500.0));
}

#[test]
fn a_communicator_is_busy_until_its_launch_ends() {
    let _one = fresh(2, BUFFERED, 20);
    fake_set_hop(0.5);
    let comms = comms(&[0, 1], true);
    on(0);
    let (a, b, p) = (stream("receives"), stream("sends"), doubles(2));
    let start = record(b);
    assert_eq!(recv(p, 1, comms[0], a), 0);
    assert_eq!(send(p + 8, 1, comms[0], b), 0);
    let end = record(b);
    on(1);
    let (c, q) = (stream("late"), doubles(1));
    assert_eq!(touch(c, q, true, 3.0), 0);
    assert_eq!(send(q, 0, comms[1], c), 0);
    settle();
    on(0);
    assert_eq!(between(start, end), 3500.0);
}

#[test]
fn copies_take_what_they_are_said_to() {
    let _one = fresh(1, RENDEZVOUS, 0);
    fake_set_copy(0.25);
    let (a, p) = (stream("A"), doubles(2));
    assert_eq!(cuMemcpyDtoDAsync_v2(p, p + 8, 8, a), 0);
    settle();
    assert_eq!(fake_time(), 0.25);
}

#[test]
fn time_between_events_needs_two_complete_timed_ones() {
    let _one = fresh(1, RENDEZVOUS, 0);
    let (a, p) = (stream("A"), doubles(1));
    let mut untimed = 0;
    assert_eq!(cuEventCreate(&mut untimed, 2), 0);
    assert_eq!(cuEventRecord(untimed, a), 0);
    let start = record(a);
    settle();
    hang("kernel", 1);
    assert_eq!(touch(a, p, true, 1.0), 0);
    let end = record(a);
    let mut ms = 0.0;
    assert_eq!(cuEventElapsedTime(&mut ms, start, untimed), 400);
    assert_eq!(cuEventElapsedTime(&mut ms, start, event()), 400);
    assert_eq!(cuEventElapsedTime(&mut ms, start, end), 600);
    assert_eq!(cuEventQuery(end), 600);
    fake_release();
    settle();
    assert_eq!(between(start, end), 1000.0);
}
