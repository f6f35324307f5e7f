//! The interpreter of one rank's instructions: a loop over [`Instruction`], on a thread of its own
//! ([`run`]) or with all ranks in turn on one thread ([`run_interleaved`]).

use std::collections::HashMap;
use std::time::Instant;

use cpu_time::ThreadTime;

use super::{Drain, Failure, Patience, Record, Stopped, Transport, Values, Worker};
use crate::lower::{Instruction, Side, Transfer};
use crate::schedule::{Action, Kind, Rank, Shape, Slot, Tensor};

/// One rank in the middle of its step.
pub struct Interpreter<'a, W: Worker, T> {
    shape: &'a Shape,
    instructions: std::slice::Iter<'a, Instruction>,
    worker: W,
    transport: T,
    /// What has come or was made here and has not been used yet.
    here: HashMap<Tensor, W::Value>,
    /// Whether the next instruction is a commit that has been started.
    started: bool,
    clock: Instant,
    records: Vec<Record>,
}

/// How far [`Interpreter::advance`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// The next instruction waits for a tensor; `moved` tells whether any was carried out before.
    Waiting {
        moved: bool,
    },
}

impl<'a, W, T> Interpreter<'a, W, T>
where
    W: Worker,
    T: Transport<Value = W::Value>,
{
    /// `clock` is the time from which records count, the same for all ranks of a group.
    pub fn new(
        shape: &'a Shape,
        instructions: &'a [Instruction],
        worker: W,
        transport: T,
        clock: Instant,
    ) -> Self {
        Interpreter {
            shape,
            instructions: instructions.iter(),
            worker,
            transport,
            here: HashMap::new(),
            started: false,
            clock,
            records: Vec::with_capacity(instructions.len()),
        }
    }

    /// Carries out instructions to the end, or with [`Patience::Look`] to the first that would wait.
    pub fn advance(&mut self, patience: Patience) -> Result<Progress, Failure<W::Error>> {
        let mut moved = false;
        while let Some(instruction) = self.instructions.as_slice().first() {
            let done = match instruction {
                &Instruction::Post { from, tensor } => {
                    self.transport.post(from, tensor)?;
                    true
                }
                &Instruction::Wait { from, tensor } => self.wait(from, tensor, patience)?,
                &Instruction::Compute { index, slot } => {
                    self.compute(index, slot)?;
                    true
                }
                &Instruction::Send { to, tensor } => {
                    self.send(to, tensor)?;
                    true
                }
                Instruction::Commit(transfers) => {
                    moved |= !self.started; // Its sends may be all that another rank waits for.
                    self.commit(transfers, patience)?
                }
            };
            if !done {
                return Ok(Progress::Waiting { moved });
            }
            self.instructions.next();
            moved = true;
        }
        Ok(Progress::Done)
    }

    /// Whether the tensor is here.
    fn wait(&mut self, from: Rank, tensor: Tensor, patience: Patience) -> Result<bool, Stopped> {
        let value = self.transport.wait(from, tensor, patience)?;
        let came = value.is_some();
        self.here.extend(value.map(|value| (tensor, value)));
        Ok(came)
    }

    fn send(&mut self, to: Rank, tensor: Tensor) -> Result<(), Stopped> {
        let value = self.here.remove(&tensor);
        let value = value.expect("lowering places a send after the slot that makes its tensor");
        self.transport.send(to, tensor, value)
    }

    /// Starts all transfers once; whether all are done.
    fn commit(&mut self, transfers: &[Transfer], patience: Patience) -> Result<bool, Stopped> {
        if !self.started {
            self.started = true;
            self.transport.begin();
            for &Transfer { side, tensor, peer } in transfers {
                match side {
                    Side::Receive => self.transport.post(peer, tensor)?,
                    Side::Send => self.send(peer, tensor)?,
                }
            }
            self.transport.commit()?;
        }
        for &Transfer { side, tensor, peer } in transfers {
            let done = match side {
                Side::Receive => self.here.contains_key(&tensor) || self.wait(peer, tensor, patience)?,
                Side::Send => self.transport.sent(peer, tensor, patience)?,
            };
            if !done {
                return Ok(false);
            }
        }
        self.started = false;
        Ok(true)
    }

    fn compute(&mut self, index: usize, slot: Slot) -> Result<(), Failure<W::Error>> {
        self.transport.enter(index, slot)?;
        let inputs =
            each(slot, |action| self.shape.input(action).and_then(|tensor| self.here.remove(&tensor)));
        let (wall, cpu) = (Instant::now(), ThreadTime::now());
        let outputs = self.worker.compute(slot, inputs);
        self.records.push(Record {
            index,
            slot,
            start: wall.duration_since(self.clock).as_secs_f64(),
            end: self.clock.elapsed().as_secs_f64(),
            cpu: cpu.elapsed().as_secs_f64(),
        });
        let outputs = outputs.map_err(|error| Failure::Worker { index, slot, error })?;
        for (action, value) in slot.actions().zip(outputs) {
            let Some(tensor) = action.tensor().filter(|&tensor| is_taken(self.shape, tensor)) else {
                continue;
            };
            let value = value.ok_or(Failure::NothingMade { index, slot, tensor })?;
            self.here.insert(tensor, value);
        }
        Ok(())
    }

    pub fn into_records(self) -> Vec<Record> {
        self.records
    }

    /// The worker, the transport and the records so far.
    pub fn into_parts(self) -> (W, T, Vec<Record>) {
        (self.worker, self.transport, self.records)
    }

    pub fn transport(&self) -> &T {
        &self.transport
    }

    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }
}

impl<W, T> Interpreter<'_, W, T>
where
    W: Worker,
    T: Transport<Value = W::Value> + Drain,
{
    /// After a failure carries out the rest of the instructions, from the one that failed, without computing.
    pub fn drain(&mut self) -> Result<(), Stopped> {
        self.here.clear();
        for instruction in self.instructions.by_ref() {
            match instruction {
                &Instruction::Post { from, tensor } => self.transport.post(from, tensor)?,
                &Instruction::Wait { from, tensor } => self.transport.discard(from, tensor)?,
                &Instruction::Send { to, tensor } => self.transport.send_nothing(to, tensor),
                Instruction::Compute { .. } => {}
                Instruction::Commit(transfers) => {
                    if !std::mem::take(&mut self.started) {
                        for &Transfer { side, tensor, peer } in transfers {
                            match side {
                                Side::Receive => self.transport.post(peer, tensor)?,
                                Side::Send => self.transport.send_nothing(peer, tensor),
                            }
                        }
                    }
                    let received = transfers.iter().filter(|transfer| transfer.side == Side::Receive);
                    for &Transfer { tensor, peer, .. } in received {
                        self.transport.discard(peer, tensor)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl<E> From<Stopped> for Failure<E> {
    fn from(_: Stopped) -> Self {
        Failure::Stopped
    }
}

/// Whether another stage takes a tensor: outputs of the last stage and gradients of the first go nowhere.
/// In inference nobody takes a gradient, and none is made.
fn is_taken(shape: &Shape, tensor: Tensor) -> bool {
    match tensor.kind {
        Kind::F => tensor.stage as usize + 1 < shape.stages(),
        _ => tensor.stage > 0,
    }
}

fn each<V>(slot: Slot, mut value: impl FnMut(Action) -> Option<V>) -> Values<V> {
    let mut actions = slot.actions();
    let mut next = || actions.next().and_then(&mut value);
    [next(), next()]
}

/// Runs one rank to its end on this thread.
pub fn run<W, T>(mut rank: Interpreter<'_, W, T>) -> Result<Vec<Record>, Failure<W::Error>>
where
    W: Worker,
    T: Transport<Value = W::Value>,
{
    rank.advance(Patience::Wait)?;
    Ok(rank.into_records())
}

/// Which of several ranks failed, and why.
#[derive(Debug)]
pub struct RankFailure<E> {
    pub rank: Rank,
    pub failure: Failure<E>,
}

/// Runs all ranks in turn on this thread, each as far as it can.
pub fn run_interleaved<W, T>(
    mut ranks: Vec<Interpreter<'_, W, T>>,
) -> Result<Vec<Vec<Record>>, RankFailure<W::Error>>
where
    W: Worker,
    T: Transport<Value = W::Value>,
{
    let mut done = vec![false; ranks.len()];
    while done.contains(&false) {
        let mut any_moved = false;
        for (index, rank) in ranks.iter_mut().enumerate() {
            if done[index] {
                continue;
            }
            let progress =
                rank.advance(Patience::Look).map_err(|failure| RankFailure { rank: index, failure })?;
            done[index] = progress == Progress::Done;
            any_moved |= progress != (Progress::Waiting { moved: false });
        }
        assert!(any_moved, "a verified program always has a rank that can go on");
    }
    Ok(ranks.into_iter().map(Interpreter::into_records).collect())
}
