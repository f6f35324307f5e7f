//! Random programs of kernels, records and waits, against a slow oracle: which operations a path orders, and
//! the longest path to each.

mod common;

use common::*;

const STREAMS: usize = 4;
const STEPS: usize = 40;
const DOUBLES: u64 = 6;

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A kernel, as the oracle sees it: the bytes it touches, and who comes before it.
struct Kernel {
    first: u64,
    end: u64,
    write: bool,
    before: Vec<bool>,
    ends_at: f64,
}

/// What lies before a point: which kernels, and the time.
#[derive(Clone, Default)]
struct Point {
    before: Vec<bool>,
    time: f64,
}

impl Point {
    fn join(&mut self, other: &Self) {
        self.before.resize(self.before.len().max(other.before.len()), false);
        self.before.iter_mut().zip(&other.before).for_each(|(mine, theirs)| *mine |= theirs);
        self.time = self.time.max(other.time);
    }

    fn add(&mut self, kernel: usize, duration: f64) {
        self.before.resize(self.before.len().max(kernel + 1), false);
        self.before[kernel] = true;
        self.time += duration;
    }
}

/// Queues a random program; its kernels, for the oracle.
fn program(dice: &mut Dice, at: u64) -> Vec<Kernel> {
    let streams: Vec<u64> = (0..STREAMS).map(|i| stream(&i.to_string())).collect();
    let events: Vec<u64> = (0..3).map(|_| event()).collect();
    let mut points = vec![Point::default(); STREAMS];
    let mut records = vec![Point::default(); events.len()];
    let mut kernels: Vec<Kernel> = Vec::new();
    // Few of them write, or none of the programs would be free of races.
    let writes_of_ten = dice.below(4);
    for _ in 0..STEPS {
        let (s, e) = (dice.below(STREAMS as u64) as usize, dice.below(events.len() as u64) as usize);
        match dice.below(10) {
            0..4 => {
                assert_eq!(cuEventRecord(events[e], streams[s]), 0);
                records[e] = points[s].clone();
            }
            4..8 => {
                assert_eq!(cuStreamWaitEvent(streams[s], events[e], 0), 0);
                points[s].join(&records[e]);
            }
            _ => {
                let first = dice.below(DOUBLES);
                let end = (first + 1 + dice.below(2)).min(DOUBLES);
                let write = dice.below(10) < writes_of_ten;
                let duration = dice.below(5) as f64;
                let range = Range { ptr: at + 8 * first, len: 8 * (end - first) };
                let (reads, writes) = (u64::from(!write), u64::from(write));
                let nothing = std::ptr::null_mut();
                assert_eq!(
                    fake_launch(streams[s], &range, reads, &range, writes, duration, None, nothing),
                    0
                );
                let before = points[s].before.clone();
                points[s].add(kernels.len(), duration);
                kernels.push(Kernel { first, end, write, before, ends_at: points[s].time });
            }
        }
    }
    kernels
}

/// Kernels come in the order of their calls, so that only the earlier of two can come before the other.
fn has_race(kernels: &[Kernel]) -> bool {
    let conflict = |a: &Kernel, b: &Kernel| (a.write || b.write) && a.first < b.end && b.first < a.end;
    let pairs = (0..kernels.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
    pairs.into_iter().any(|(i, j)| {
        conflict(&kernels[i], &kernels[j]) && !kernels[j].before.get(i).copied().unwrap_or(false)
    })
}

#[test]
fn races_and_times_agree_with_a_slow_oracle() {
    let mut with_races = 0;
    for seed in 0..400 {
        let _one = fresh(1, RENDEZVOUS, [0, 20][seed as usize % 2]);
        let kernels = program(&mut Dice(seed), doubles(DOUBLES as usize));
        settle();
        assert_eq!(fake_race_count() > 0, has_race(&kernels), "seed {seed}: {}", report());
        assert_eq!(fake_time(), kernels.iter().fold(0.0, |latest, kernel| kernel.ends_at.max(latest)));
        with_races += u64::from(fake_race_count() > 0);
    }
    assert!((50..350).contains(&with_races), "a test of both: {with_races}");
}
