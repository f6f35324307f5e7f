//! Sends and receives: values, order, groups, what deadlocks, what an abort ends.

mod common;

use common::*;

/// Two devices with a communicator, a stream and a double each.
struct Pair {
    comms: Vec<u64>,
    streams: Vec<u64>,
    at: Vec<u64>,
}

fn two(blocking: bool) -> Pair {
    let comms = comms(&[0, 1], blocking);
    assert_eq!((state(comms[0]), state(comms[1])), (0, 0));
    let (mut streams, mut at) = (Vec::new(), Vec::new());
    for device in 0..2 {
        on(device);
        streams.push(stream(&format!("rank {device}")));
        at.push(doubles(1));
    }
    on(0);
    Pair { comms, streams, at }
}

#[test]
fn a_message_arrives_and_orders_the_receiver() {
    for mode in [RENDEZVOUS, BUFFERED] {
        let _one = fresh(2, mode, 20);
        let Pair { comms, streams, at } = two(true);
        let both = [0f64]; // memory that either device reaches
        set(streams[0], at[0], 42.0, 1.0);
        assert_eq!(touch(streams[0], both.as_ptr() as u64, true, 0.0), 0);
        assert_eq!(send(at[0], 1, comms[0], streams[0]), 0);
        on(1);
        assert_eq!(recv(at[1], 0, comms[1], streams[1]), 0);
        assert_eq!(touch(streams[1], both.as_ptr() as u64, true, 0.0), 0);
        assert_eq!(fake_axpb(streams[1], at[1], at[1], 1, 2.0, 0.0, 0.0), 0);
        assert_eq!(cuStreamSynchronize(streams[1]), 0);
        assert_eq!(value(at[1]), 84.0);
        settle();
        assert_eq!((fake_race_count(), fake_violation_count()), (0, 0), "{}", report());
    }
}

#[test]
fn a_reader_that_does_not_wait_for_the_receive_is_found() {
    let _one = fresh(2, RENDEZVOUS, 0);
    let Pair { comms, streams, at } = two(true);
    assert_eq!(send(at[0], 1, comms[0], streams[0]), 0);
    assert_eq!(recv(at[1], 0, comms[1], streams[1]), 0);
    settle();
    on(1);
    assert_eq!(touch(stream("compute"), at[1], false, 0.0), 0);
    settle();
    assert_eq!(fake_race_count(), 1);
    assert!(report().contains("recv 1 of rank 1 (writes) and kernel 1 of compute (reads)"), "{}", report());
}

#[test]
fn only_a_rendezvous_tells_the_sender_that_the_receiver_had_come() {
    for mode in [RENDEZVOUS, BUFFERED] {
        let _one = fresh(2, mode, 0);
        let Pair { comms, streams, at } = two(true);
        on(1);
        let mine = [0f64];
        assert_eq!(touch(streams[1], mine.as_ptr() as u64, true, 0.0), 0);
        assert_eq!(recv(at[1], 0, comms[1], streams[1]), 0);
        on(0);
        assert_eq!(send(at[0], 1, comms[0], streams[0]), 0);
        settle();
        assert_eq!(touch(streams[0], mine.as_ptr() as u64, false, 0.0), 0);
        settle();
        assert_eq!(fake_race_count(), u64::from(mode == BUFFERED));
    }
}

#[test]
fn messages_of_a_pair_keep_their_order() {
    for mode in [RENDEZVOUS, BUFFERED] {
        let _one = fresh(2, mode, 20);
        let Pair { comms, streams, .. } = two(true);
        let n = 50;
        let from = doubles(n);
        on(1);
        let to = doubles(n);
        for i in 0..n as u64 {
            on(0);
            set(streams[0], from + 8 * i, i as f64, 0.0);
            assert_eq!(send(from + 8 * i, 1, comms[0], streams[0]), 0);
            on(1);
            assert_eq!(recv(to + 8 * i, 0, comms[1], streams[1]), 0);
        }
        assert_eq!(cuStreamSynchronize(streams[1]), 0);
        assert!((0..n as u64).all(|i| value(to + 8 * i) == i as f64));
        assert_eq!(fake_race_count(), 0);
    }
}

/// Both ranks send and receive, each on two streams of one communicator, receives first.
fn exchange(grouped: bool) {
    let Pair { comms, streams, at } = two(true);
    for device in 0..2 {
        on(device);
        let (other, to) = (stream("receives"), doubles(1));
        let (rank, peer) = (device as usize, 1 - device);
        if grouped {
            ncclGroupStart();
        }
        assert_eq!(recv(to, peer, comms[rank], other), 0);
        assert_eq!(send(at[rank], peer, comms[rank], streams[rank]), 0);
        if grouped {
            assert_eq!(ncclGroupEnd(), 0);
        }
    }
}

#[test]
fn one_communicator_runs_one_launch_at_a_time_so_that_early_receives_deadlock() {
    let _one = fresh(2, RENDEZVOUS, 20);
    exchange(false);
    assert!(stuck());
}

#[test]
fn the_parts_of_a_group_pass_together() {
    let _one = fresh(2, RENDEZVOUS, 20);
    exchange(true);
    assert!(!stuck());
}

#[test]
fn a_group_that_overlaps_itself_is_found() {
    let _one = fresh(2, BUFFERED, 0);
    let Pair { comms, streams, at } = two(true);
    ncclGroupStart();
    assert_eq!(send(at[0], 1, comms[0], streams[0]), 0);
    assert_eq!(recv(at[0], 1, comms[0], streams[0]), 0);
    assert_eq!(ncclGroupEnd(), 0);
    assert!(stuck());
    assert!(report().contains("overlap in a group"), "{}", report());
}

#[test]
fn an_abort_ends_what_waits_without_moving_anything() {
    let _one = fresh(2, RENDEZVOUS, 20);
    let Pair { comms, streams, at } = two(true);
    set(streams[0], at[0], 9.0, 0.0);
    assert_eq!(recv(at[0], 1, comms[0], streams[0]), 0);
    assert_eq!(recv(at[0], 1, comms[0], streams[0]), 0);
    assert_eq!(fake_axpb(streams[0], at[0], at[0], 1, 1.0, 1.0, 0.0), 0);
    assert!(stuck());
    assert_eq!(ncclCommAbort(comms[0]), 0);
    settle();
    assert_eq!(cuStreamSynchronize(streams[0]), 0);
    assert_eq!(value(at[0]), 10.0);
    assert_eq!(live("comms"), 1);
    assert_eq!(send(at[0], 1, comms[0], streams[0]), 4, "the handle is gone");
}

#[test]
fn what_an_aborted_rank_had_offered_is_taken_back() {
    let _one = fresh(2, RENDEZVOUS, 0);
    let Pair { comms, streams, at } = two(true);
    assert_eq!(send(at[0], 1, comms[0], streams[0]), 0);
    assert!(stuck());
    assert_eq!(ncclCommAbort(comms[0]), 0);
    settle();
    assert_eq!(recv(at[1], 0, comms[1], streams[1]), 0);
    assert!(stuck());
}

#[test]
fn after_a_non_blocking_group_the_stream_may_still_be_empty() {
    let _one = fresh(2, BUFFERED, 0);
    let Pair { comms, streams, at } = two(false);
    assert_eq!(send(at[0], 1, comms[0], streams[0]), IN_PROGRESS);
    assert_eq!(state(comms[0]), 0);
    settle();
    assert_eq!(live("comms"), 2);
    assert_eq!(ncclCommFinalize(comms[0]), IN_PROGRESS);
    assert_eq!(state(comms[0]), 0);
    assert_eq!(ncclCommDestroy(comms[0]), 0);
    fake_set_background_launch(0);
    assert_eq!(recv(at[1], 0, comms[1], streams[1]), 0);
    settle();
}

#[test]
fn two_ranks_on_one_device_are_refused() {
    let _one = fresh(2, RENDEZVOUS, 20);
    let comms = comms(&[0, 0], false);
    assert_eq!((state(comms[0]), state(comms[1])), (5, 5));
    let id = unique_id();
    let rank = move |rank| {
        std::thread::spawn(move || {
            on(0);
            ncclCommInitRank(&mut 0, 2, id, rank)
        })
    };
    let (one, other) = (rank(0), rank(1));
    assert_eq!((one.join().unwrap(), other.join().unwrap()), (5, 5));
}

#[test]
fn ranks_as_threads_find_each_other() {
    let _one = fresh(4, RENDEZVOUS, 20);
    let id = unique_id();
    let ranks: Vec<_> = (0..4)
        .map(|rank| {
            std::thread::spawn(move || {
                on(rank);
                let mut comm = 0;
                assert_eq!(ncclCommInitRank(&mut comm, 4, id, rank), 0);
                let (s, p) = (stream(&format!("rank {rank}")), doubles(2));
                set(s, p, f64::from(rank), 0.0);
                ncclGroupStart();
                assert_eq!(send(p, (rank + 1) % 4, comm, s), 0);
                assert_eq!(recv(p + 8, (rank + 3) % 4, comm, s), 0);
                assert_eq!(ncclGroupEnd(), 0);
                assert_eq!(cuStreamSynchronize(s), 0);
                assert_eq!(value(p + 8), f64::from((rank + 3) % 4));
                assert_eq!(ncclCommFinalize(comm), 0);
                assert_eq!(ncclCommDestroy(comm), 0);
            })
        })
        .collect();
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
    assert_eq!((live("comms"), fake_race_count(), fake_violation_count()), (0, 0, 0));
}

#[test]
fn wrong_calls_are_refused() {
    let _one = fresh(2, RENDEZVOUS, 0);
    let Pair { comms, streams, at } = two(true);
    assert_eq!(send(at[0], 2, comms[0], streams[0]), 4, "no such peer");
    assert_eq!(ncclSend(at[0], 1, 99, 1, comms[0], streams[0]), 4, "no such type");
    assert_eq!(send(at[0], 1, 1234, streams[0]), 4, "no such communicator");
    assert_eq!(send(at[0], 1, comms[0], streams[1]), 1, "another device's stream");
    assert_eq!(ncclGroupEnd(), 5, "no group");
    ncclGroupStart();
    assert_eq!(send(at[0], 2, comms[0], streams[0]), 4);
    assert_eq!(send(at[0], 1, comms[0], streams[0]), 0);
    assert_eq!(ncclGroupEnd(), 4, "the group has failed as a whole");
    assert_eq!(fake_quiesce(1.0), 0, "nothing of it is on the stream");
}
