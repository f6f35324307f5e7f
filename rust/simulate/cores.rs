//! Eager P2P on fewer cores than ranks: the slots that run at one time share the cores equally. So run ranks that are
//! threads or processes of one machine, but for the time slices of its operating system, which are infinitely thin
//! here.

use std::sync::Arc;

use super::finish;
use crate::costs::{Costs, Hops};
use crate::error::Error;
use crate::network::Network;
use crate::timeline::{Time, Timeline};
use crate::verify::Verified;

/// What the costs give where at most `cores` slots run at full speed at one time.
pub fn simulate_on_cores(verified: &Verified, costs: &Costs, cores: usize) -> Result<Timeline, Error> {
    let prices = costs.prices(verified.shape())?;
    let (rows, firsts) = (verified.schedule().rows(), verified.schedule().firsts());
    let network = verified.network();
    let place = |node: usize| {
        let node = network.nodes()[node];
        (node.rank(), node.index().expect("a verified schedule's network holds slots alone"))
    };
    let mut times = vec![Time::default(); verified.schedule().slots()];
    let mut machine = Machine::new(network, &prices.hops, rows.len());
    loop {
        machine.begin(|node| {
            let (rank, index) = place(node);
            prices.slot(rows[rank][index])
        });
        let Some(ended) = machine.pass(cores) else { break };
        for (node, time) in ended {
            let (rank, index) = place(node);
            times[firsts[rank] + index] = time;
        }
    }
    finish(verified, Arc::clone(network), costs, &prices, Some(cores), times)
}

/// What a rank is at; slots by their nodes.
#[derive(Debug, Clone, Copy)]
enum State {
    /// For what has not ended.
    Waits(usize),
    /// For a hop.
    Starts {
        node: usize,
        at: f64,
    },
    Runs {
        node: usize,
        since: f64,
        left: f64,
    },
    Done,
}

struct Machine<'a> {
    network: &'a Network,
    hops: &'a Hops,
    /// Each rank's nodes, the next one last.
    to_come: Vec<Vec<usize>>,
    states: Vec<State>,
    /// By node, once it has ended.
    ends: Vec<Option<f64>>,
    now: f64,
}

impl<'a> Machine<'a> {
    fn new(network: &'a Network, hops: &'a Hops, ranks: usize) -> Self {
        let mut to_come = vec![Vec::new(); ranks];
        for (number, node) in network.nodes().iter().enumerate().rev() {
            to_come[node.rank()].push(number);
        }
        let states = to_come.iter_mut().map(next).collect();
        let ends = vec![None; network.nodes().len()];
        Machine { network, hops, to_come, states, ends, now: 0.0 }
    }

    /// Starts all that can start now.
    fn begin(&mut self, price: impl Fn(usize) -> f64) {
        for rank in 0..self.states.len() {
            if let State::Waits(node) = self.states[rank]
                && let Some(at) = self.lets(node)
            {
                self.states[rank] = State::Starts { node, at };
            }
            if let State::Starts { node, at } = self.states[rank]
                && at <= self.now
            {
                self.states[rank] = State::Runs { node, since: self.now, left: price(node) };
            }
        }
    }

    /// When all that a slot waits for will be there, if all of it has ended.
    fn lets(&self, node: usize) -> Option<f64> {
        let nodes = self.network.nodes();
        let mut at = self.now;
        for input in nodes[node].inputs {
            let Some(from) = input.node() else { continue };
            let hop =
                if input.is_hop() { self.hops.between(nodes[from].rank(), nodes[node].rank()) } else { 0.0 };
            at = f64::max(at, self.ends[from]? + hop);
        }
        Some(at)
    }

    /// Lets time pass until something ends or starts; which slots ended, or `None` where all is done.
    fn pass(&mut self, cores: usize) -> Option<Vec<(usize, Time)>> {
        let running = self.states.iter().filter(|state| matches!(state, State::Runs { .. })).count();
        let speed = if running > cores { cores as f64 / running as f64 } else { 1.0 };
        let now = self.now;
        let happens = |state: &State| match *state {
            State::Starts { at, .. } => Some(at),
            State::Runs { left, .. } => Some(now + left / speed),
            State::Waits(_) | State::Done => None,
        };
        let until = self.states.iter().filter_map(happens).reduce(f64::min)?;
        let mut ended = Vec::new();
        for rank in 0..self.states.len() {
            let state = self.states[rank];
            let State::Runs { node, since, left } = state else { continue };
            if happens(&state).is_some_and(|end| end <= until) {
                self.ends[node] = Some(until);
                ended.push((node, Time { start: since, end: until }));
                self.states[rank] = next(&mut self.to_come[rank]);
            } else {
                let left = (left - (until - now) * speed).max(0.0);
                self.states[rank] = State::Runs { node, since, left };
            }
        }
        self.now = until;
        Some(ended)
    }
}

fn next(to_come: &mut Vec<usize>) -> State {
    to_come.pop().map_or(State::Done, State::Waits)
}
