//! What the interpreter itself costs the host, an action: `cargo bench --bench interpreter`.
//!
//! Every rank's row is run to its end, one after the other on this thread, by a worker that makes a number out of
//! nothing, and a transport on which all has come already, so that nothing is left but the interpreter. It is set
//! beside the clocks that it reads for each slot's record and nothing else, and beside the whole with the transport
//! between threads, all ranks in turn. The three take turns; medians.

use std::convert::Infallible;
use std::hint::black_box;
use std::time::Instant;

use _core::execute::interpreter::{Interpreter, run, run_interleaved};
use _core::execute::local::Hub;
use _core::execute::{Patience, Record, Stopped, Transport, Values, Worker};
use _core::generate::find;
use _core::lower::{Instruction, P2p, Program, lower};
use _core::schedule::{Rank, Slot, Tensor};
use _core::verify::verify;
use cpu_time::ThreadTime;

const FAMILIES: [&str; 3] = ["1f1b", "dualpipe", "zb-v"];
const SEMANTICS: [(&str, P2p); 2] = [("eager", P2p::Eager), ("batched", P2p::Batched)];
const RANKS: usize = 8;
const MICROBATCHES: usize = 64;
const WARM_UP: usize = 20;
const REPEATS: usize = 301;
const AIM_NS: f64 = 2000.0;

fn main() {
    println!(
        "A reading of the clock {:.0} ns, of the thread's CPU time {:.0} ns; a record takes two of each.",
        reading(Instant::now),
        reading(ThreadTime::now)
    );
    println!(
        "The interpreter alone, {RANKS} ranks x {MICROBATCHES} microbatches, one thread, medians of {REPEATS}; \
         ns (aim: under {AIM_NS} an action):"
    );
    println!(
        "| schedule | p2p | actions | instructions | an action | an instruction | of it, clocks | \
         an action, without them | \
         an action, with the local transport |"
    );
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for family in FAMILIES {
        for (name, p2p) in SEMANTICS {
            println!("| {family} | {name} | {} |", row(&program(family, p2p)).join(" | "));
        }
    }
}

/// Nanoseconds of one reading of a clock.
fn reading<T>(read: impl Fn() -> T) -> f64 {
    const READINGS: usize = 1000;
    let many = || (0..READINGS).for_each(|_| drop(black_box(read())));
    median((0..REPEATS).map(|_| timed(many)).collect()) / READINGS as f64
}

fn program(family: &str, p2p: P2p) -> Program {
    let schedule = find(family).unwrap().generate(RANKS, MICROBATCHES, None).unwrap();
    lower(&verify(schedule).unwrap(), p2p).unwrap()
}

fn row(program: &Program) -> Vec<String> {
    let instructions: usize = program.rows().iter().map(Vec::len).sum();
    let actions: usize = slots(program).map(|slot| slot.actions().count()).sum();
    let hub = Hub::new(RANKS);
    let mut times = [const { Vec::new() }; 3];
    for repeat in 0..WARM_UP + REPEATS {
        let turn = [timed(|| alone(program)), timed(|| clocks(program)), timed(|| between(program, &hub))];
        if repeat >= WARM_UP {
            times.iter_mut().zip(turn).for_each(|(times, time)| times.push(time));
        }
    }
    let share = median(times[0].iter().zip(&times[1]).map(|(alone, clocks)| clocks / alone).collect());
    let rest = median(times[0].iter().zip(&times[1]).map(|(alone, clocks)| alone - clocks).collect());
    let [alone, _, between] = times.map(median);
    vec![
        actions.to_string(),
        instructions.to_string(),
        format!("{:.0}", alone / actions as f64),
        format!("{:.0}", alone / instructions as f64),
        format!("{:.0}%", 100.0 * share),
        format!("{:.0}", rest / actions as f64),
        format!("{:.0}", between / actions as f64),
    ]
}

fn slots(program: &Program) -> impl Iterator<Item = Slot> {
    program.rows().iter().flatten().filter_map(|instruction| match instruction {
        Instruction::Compute { slot, .. } => Some(*slot),
        _ => None,
    })
}

/// The rows with nothing to wait for.
fn alone(program: &Program) {
    for row in program.rows() {
        let rank = Interpreter::new(program.shape(), row, Nothing, AllHere, Instant::now());
        black_box(run(rank).expect("nothing fails here"));
    }
}

/// What the rows' records take: the same clocks as [`Interpreter`] reads, as often, and the records kept.
fn clocks(program: &Program) {
    for row in program.rows() {
        let clock = Instant::now();
        let mut records = Vec::with_capacity(row.len());
        for instruction in row {
            let &Instruction::Compute { index, slot } = instruction else { continue };
            let (wall, cpu) = (Instant::now(), ThreadTime::now());
            records.push(Record {
                index,
                slot,
                start: wall.duration_since(clock).as_secs_f64(),
                end: clock.elapsed().as_secs_f64(),
                cpu: cpu.elapsed().as_secs_f64(),
            });
        }
        black_box(records);
    }
}

/// All rows in turn over the transport between threads.
fn between(program: &Program, hub: &Hub<u64, (), ()>) {
    let ranks = program.rows().iter().enumerate();
    let ranks = ranks
        .map(|(rank, row)| Interpreter::new(program.shape(), row, Nothing, hub.port(rank), hub.clock()))
        .collect();
    black_box(run_interleaved(ranks).expect("nothing fails here"));
}

/// Computes nothing.
struct Nothing;

impl Worker for Nothing {
    type Value = u64;
    type Error = Infallible;

    fn compute(&mut self, _: Slot, inputs: Values<u64>) -> Result<Values<u64>, Infallible> {
        black_box(inputs);
        Ok(black_box([Some(1), Some(2)]))
    }
}

/// Everything has come, and everything has left.
struct AllHere;

impl Transport for AllHere {
    type Value = u64;

    fn post(&mut self, _: Rank, _: Tensor) -> Result<(), Stopped> {
        Ok(())
    }

    fn send(&mut self, _: Rank, _: Tensor, value: u64) -> Result<(), Stopped> {
        black_box(value);
        Ok(())
    }

    fn sent(&mut self, _: Rank, _: Tensor, _: Patience) -> Result<bool, Stopped> {
        Ok(true)
    }

    fn wait(&mut self, _: Rank, _: Tensor, _: Patience) -> Result<Option<u64>, Stopped> {
        Ok(black_box(Some(1)))
    }

    fn enter(&mut self, _: usize, _: Slot) -> Result<(), Stopped> {
        Ok(())
    }
}

/// Nanoseconds.
fn timed(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64() * 1e9
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
