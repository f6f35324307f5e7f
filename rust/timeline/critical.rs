//! What decides the end of a step: the critical path, and how much later each slot could end without the step
//! ending later (its slack).
//!
//! Both walk the network that the timeline was simulated on. A measured one has no such network and no known hops:
//! there it is the verifier's, and what a slot waited for last is taken to have caused all of its delay.

use super::{Origin, Timeline};
use crate::costs::Hops;
use crate::error::Error;
use crate::network::{Input, Network, Node};
use crate::schedule::Rank;

/// A network with the times of its nodes.
pub(super) struct Timed<'a> {
    timeline: &'a Timeline,
    pub network: &'a Network,
    pub hops: Option<Hops>,
    starts: Vec<f64>,
    pub ends: Vec<f64>,
    /// The node of each rank's last slot.
    lasts: Vec<Option<usize>>,
}

impl Timeline {
    /// The slots, by rank and index, of a longest chain from the first start to the last end, in order. Each starts
    /// when the one before it ends, or a hop later.
    pub fn critical_path(&self) -> Result<Vec<(Rank, usize)>, Error> {
        let timed = Timed::new(self)?;
        let mut path = Vec::new();
        let mut next = timed.last();
        while let Some(number) = next {
            let node = &timed.network.nodes()[number];
            path.extend(node.index().map(|index| (node.rank(), index)));
            next = timed.deciding(node).map(|(from, _)| from);
        }
        path.reverse();
        Ok(path)
    }

    /// How much later each slot could end without the step ending later, by rank and slot.
    pub fn slack(&self) -> Result<Vec<f64>, Error> {
        let timed = Timed::new(self)?;
        let late = timed.late_ends();
        let mut slack = vec![0.0; self.times.len()];
        for (number, node) in timed.network.nodes().iter().enumerate() {
            if let Some(index) = node.index() {
                // Rounding can leave a little less than nothing.
                slack[self.firsts[node.rank()] + index] = (late[number] - timed.ends[number]).max(0.0);
            }
        }
        Ok(slack)
    }
}

impl<'a> Timed<'a> {
    pub fn new(timeline: &'a Timeline) -> Result<Self, Error> {
        let network = match &timeline.origin {
            Origin::Predicted { network, .. } => network,
            Origin::Measured { .. } => timeline.verified.network(),
        };
        let nodes = network.nodes().len();
        let mut timed = Timed {
            timeline,
            network,
            hops: timeline.hops()?,
            starts: Vec::with_capacity(nodes),
            ends: Vec::with_capacity(nodes),
            lasts: vec![None; timeline.ranks()],
        };
        for (number, node) in network.nodes().iter().enumerate() {
            let (start, end) = match node.index() {
                Some(index) => {
                    timed.lasts[node.rank()] = Some(number);
                    let time = timeline.times_of(node.rank())[index];
                    (time.start, time.end)
                }
                None => {
                    let at = timed.deciding(node).map_or(0.0, |(_, time)| time);
                    (at, at)
                }
            };
            timed.starts.push(start);
            timed.ends.push(end);
        }
        Ok(timed)
    }

    /// The inputs of a node, and when each lets it start.
    fn inputs(&self, node: &Node) -> impl Iterator<Item = (usize, f64)> {
        let to = node.rank();
        node.inputs.into_iter().filter_map(move |input| Some((input.node()?, self.lets(input, to)?)))
    }

    /// When an input lets a rank go on: at the end of its node, or a hop later, as far as hops are known.
    pub fn lets(&self, input: Input, to: Rank) -> Option<f64> {
        let from = input.node()?;
        let hops = self.hops.as_ref().filter(|_| input.is_hop());
        let hop = hops.map_or(0.0, |hops| hops.between(self.network.nodes()[from].rank(), to));
        Some(self.ends[from] + hop)
    }

    /// The input that lets a node start last; of several, the first, which is the rank's own.
    fn deciding(&self, node: &Node) -> Option<(usize, f64)> {
        self.inputs(node).reduce(|latest, input| if input.1 > latest.1 { input } else { latest })
    }

    /// The slot after which the step ends.
    fn last(&self) -> Option<usize> {
        let timeline = self.timeline;
        let ends = (0..timeline.ranks()).filter_map(|rank| Some((rank, timeline.end_of(rank)?)));
        let (rank, _) = ends.reduce(|latest, rank| if rank.1 > latest.1 { rank } else { latest })?;
        match self.mirror(rank) {
            Some(mirror) if self.last_end(mirror) > self.last_end(rank) => self.lasts[mirror],
            _ => self.lasts[rank],
        }
    }

    fn last_end(&self, rank: Rank) -> f64 {
        self.timeline.times_of(rank).last().map_or(0.0, |time| time.end)
    }

    /// With which rank gradients are exchanged at the end.
    fn mirror(&self, rank: Rank) -> Option<Rank> {
        let exchanges = |closing: &super::Closing| closing.exchanged > self.last_end(rank);
        let mirror = self.timeline.ranks() - 1 - rank;
        self.timeline.closing.get(rank).filter(|c| exchanges(c)).map(|_| mirror)
    }

    /// When each node must have ended for the step to end in time.
    fn late_ends(&self) -> Vec<f64> {
        let nodes = self.network.nodes();
        let mut late = vec![f64::INFINITY; nodes.len()];
        for rank in 0..self.timeline.ranks() {
            let Some(last) = self.lasts[rank] else { continue };
            let both = [Some(rank), self.mirror(rank)].into_iter().flatten();
            late[last] = both.map(|rank| self.latest(rank)).fold(f64::INFINITY, f64::min);
        }
        for (number, node) in nodes.iter().enumerate().rev() {
            let start = late[number] - (self.ends[number] - self.starts[number]);
            let decides = self.deciding(node).map(|(from, _)| from);
            for (from, lets) in self.inputs(node) {
                let mut lag = lets - self.ends[from];
                if self.hops.is_none() && decides == Some(from) {
                    lag = self.starts[number] - self.ends[from];
                }
                late[from] = late[from].min(start - lag);
            }
        }
        late
    }

    /// When a rank's last slot must have ended.
    fn latest(&self, rank: Rank) -> f64 {
        let closing = self.timeline.closing.get(rank);
        let after = closing.map_or(0.0, |closing| {
            let both_ended = self.mirror(rank).map_or(0.0, |mirror| self.last_end(mirror));
            closing.end - both_ended.max(self.last_end(rank))
        });
        self.timeline.end() - after
    }
}
