//! Ranks as threads that run a program on the software device, with kernels whose results show what they were
//! given; and the same computed serially.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dlpark::ffi::{DLDataType, DLDataTypeCode, DLDevice, DLDeviceType};
use dualpipe::array::{Array, Layout, Parcel};
use dualpipe::costs::{Costs, Prices};
use dualpipe::cuda::DeviceError;
use dualpipe::cuda::driver::{Device, Memory, Stream};
use dualpipe::cuda::nccl::{Config, UniqueId};
use dualpipe::execute::device::board::Board;
use dualpipe::execute::device::nccl::{Channels, Sharing};
use dualpipe::execute::device::same::SameDevice;
use dualpipe::execute::device::step::{Broken, DevicePort, Runner};
use dualpipe::execute::{Failure, Patience, Record, Values, Worker};
use dualpipe::lower::Program;
use dualpipe::schedule::{Action, Kind, Microbatch, Rank, Shape, Slot, Stage};

use crate::fake::{Fake, Range};

const WIDTH: usize = 4;
const BYTES: u64 = 8 * WIDTH as u64;

/// Over what the ranks send to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Same,
    Nccl(Sharing),
}

/// Why a rank ended early.
pub type Fault = Broken<DeviceError>;

/// What a rank's step brought: its times, and the sum for each stage.
pub struct Done {
    pub records: Vec<Record>,
    pub sums: HashMap<Stage, Vec<f64>>,
}

/// `y = 2 x + stage + 1`, and backward `3 g + x`; the sum of a stage is that of `g x`. In the last stage `g` is `y`.
struct Kernels<'a> {
    fake: &'a Fake,
    compute: Arc<Stream>,
    shape: Shape,
    prices: &'a Prices,
    /// Input and gradient of what is between its forward and the end of its backward.
    kept: HashMap<(Stage, Microbatch), Kept>,
    sums: HashMap<Stage, Memory>,
}

#[derive(Default)]
struct Kept {
    input: Option<Buffer>,
    gradient: Option<Buffer>,
}

/// Memory that another rank sent, or our own.
enum Buffer {
    Own(Memory),
    Sent(Arc<Array>),
}

impl Buffer {
    fn range(&self) -> Range {
        let pointer = match self {
            Buffer::Own(memory) => memory.pointer(),
            Buffer::Sent(array) => array.data,
        };
        Range { pointer, bytes: BYTES }
    }
}

fn values<'a>(range: Range) -> &'a mut [f64] {
    // SAFETY: the software device's memory is the host's; a kernel touches what it has declared, while it lives.
    unsafe { std::slice::from_raw_parts_mut(range.pointer as *mut f64, WIDTH) }
}

pub fn input(microbatch: Microbatch) -> [f64; WIDTH] {
    std::array::from_fn(|index| 0.25 * (1 + index) as f64 + f64::from(microbatch))
}

impl Kernels<'_> {
    fn launch(
        &self,
        reads: &[Range],
        write: Range,
        seconds: f64,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), DeviceError> {
        let _entered = self.compute.device().enter()?;
        let launched = self.fake.launch(self.compute.raw(), reads, &[write], seconds, work);
        launched.map_err(|code| DeviceError::Usage(format!("launch failed with {code}")))
    }

    fn forward(
        &mut self,
        f: Action,
        input_parcel: Option<Parcel>,
        seconds: f64,
    ) -> Result<Option<Parcel>, DeviceError> {
        let x = match input_parcel {
            Some(mut parcel) => Buffer::Sent(parcel.arrays.remove(0).expect("there is one array")),
            None => {
                let memory = Buffer::Own(Memory::new(&self.compute, BYTES as usize)?);
                let (range, microbatch) = (memory.range(), f.microbatch);
                self.launch(&[], range, 0.0, move || values(range).copy_from_slice(&input(microbatch)))?;
                memory
            }
        };
        let output = Memory::new(&self.compute, BYTES as usize)?;
        let (from, to) = (x.range(), Range { pointer: output.pointer(), bytes: BYTES });
        let bias = f64::from(f.stage + 1);
        self.launch(&[from], to, seconds, move || {
            for (y, x) in values(to).iter_mut().zip(values(from)) {
                *y = 2.0 * *x + bias;
            }
        })?;
        let kept = self.kept.entry((f.stage, f.microbatch)).or_default();
        kept.input = Some(x);
        if usize::from(f.stage) + 1 == self.shape.stages() {
            kept.gradient = Some(Buffer::Own(output));
            return Ok(None);
        }
        Ok(Some(self.parcel(output)))
    }

    fn backward_input(
        &mut self,
        b: Action,
        parcel: Option<Parcel>,
        seconds: f64,
    ) -> Result<Option<Parcel>, DeviceError> {
        let made = Memory::new(&self.compute, BYTES as usize)?;
        let kept = self.kept.get_mut(&(b.stage, b.microbatch)).expect("its forward was before");
        if let Some(mut parcel) = parcel {
            kept.gradient = Some(Buffer::Sent(parcel.arrays.remove(0).expect("there is one array")));
        }
        let x = kept.input.as_ref().expect("kept").range();
        let g = kept.gradient.as_ref().expect("kept").range();
        let to = Range { pointer: made.pointer(), bytes: BYTES };
        self.launch(&[x, g], to, seconds, move || {
            for ((out, x), g) in values(to).iter_mut().zip(values(x)).zip(values(g)) {
                *out = 3.0 * *g + *x;
            }
        })?;
        Ok((b.stage > 0).then(|| self.parcel(made)))
    }

    fn backward_weight(&mut self, w: Action, seconds: f64) -> Result<(), DeviceError> {
        let kept = self.kept.remove(&(w.stage, w.microbatch)).expect("its backward was before");
        let (x, g) = (kept.input.expect("kept"), kept.gradient.expect("kept"));
        if !self.sums.contains_key(&w.stage) {
            let memory = Memory::new(&self.compute, BYTES as usize)?;
            let range = Range { pointer: memory.pointer(), bytes: BYTES };
            self.launch(&[], range, 0.0, move || values(range).fill(0.0))?;
            self.sums.insert(w.stage, memory);
        }
        let to = Range { pointer: self.sums[&w.stage].pointer(), bytes: BYTES };
        let (x, g) = (x.range(), g.range());
        self.launch(&[x, g], to, seconds, move || {
            for ((sum, x), g) in values(to).iter_mut().zip(values(x)).zip(values(g)) {
                *sum += *x * *g;
            }
        })
    }

    fn one(
        &mut self,
        action: Action,
        parcel: Option<Parcel>,
        seconds: f64,
    ) -> Result<Option<Parcel>, DeviceError> {
        match action.kind {
            Kind::F => self.forward(action, parcel, seconds),
            Kind::I => self.backward_input(action, parcel, seconds),
            Kind::W => self.backward_weight(action, seconds).map(|()| None),
            Kind::B => {
                let made = self.backward_input(action, parcel, seconds)?;
                self.backward_weight(action, 0.0)?;
                Ok(made)
            }
        }
    }

    fn parcel(&self, memory: Memory) -> Parcel {
        let dtype = DLDataType { code: DLDataTypeCode::FLOAT, bits: 64, lanes: 1 };
        let layout = Layout { dtype, shape: vec![WIDTH as i64], strides: vec![1] };
        let device = DLDevice {
            device_type: DLDeviceType::CUDA,
            device_id: self.compute.device().ordinal(),
        };
        // SAFETY: the memory is as long as the layout says, on this device.
        let array = unsafe { Array::new(layout, device, false, memory.pointer(), memory) };
        Parcel {
            arrays: vec![Some(Arc::new(array))],
            single: true,
            requires_grad: 0,
        }
    }
}

impl Worker for Kernels<'_> {
    type Value = Parcel;
    type Error = DeviceError;

    fn compute(&mut self, slot: Slot, inputs: Values<Parcel>) -> Result<Values<Parcel>, DeviceError> {
        let mut seconds = self.prices.slot(slot);
        let mut outputs = [None, None];
        for ((action, input), output) in slot.actions().zip(inputs).zip(&mut outputs) {
            *output = self.one(action, input, seconds)?;
            seconds = 0.0; // A pair's second half is done when its first is.
        }
        Ok(outputs)
    }
}

/// What every rank's sums come to, stage by stage, computed serially.
pub fn serially(shape: &Shape) -> BTreeMap<Stage, Vec<f64>> {
    let mut sums: BTreeMap<Stage, Vec<f64>> = BTreeMap::new();
    for microbatch in 0..shape.microbatches() as Microbatch {
        let mut inputs = vec![input(microbatch).to_vec()];
        for stage in 0..shape.stages() {
            inputs.push(inputs[stage].iter().map(|x| 2.0 * x + (stage + 1) as f64).collect());
        }
        let mut g = inputs[shape.stages()].clone();
        for stage in (0..shape.stages()).rev() {
            let x = &inputs[stage];
            let sum = sums.entry(stage as Stage).or_insert_with(|| vec![0.0; WIDTH]);
            sum.iter_mut().zip(x).zip(&g).for_each(|((sum, x), g)| *sum += x * g);
            g = g.iter().zip(x).map(|(g, x)| 3.0 * g + x).collect();
        }
    }
    sums
}

/// Every stage's sum over its ranks is the serial one.
pub fn assert_right(done: &[Done], shape: &Shape) {
    for (stage, expected) in serially(shape) {
        let parts = done.iter().filter_map(|done| done.sums.get(&stage));
        let sum =
            parts.fold(vec![0.0; WIDTH], |sum, part| sum.iter().zip(part).map(|(a, b)| a + b).collect());
        for (sum, expected) in sum.iter().zip(expected) {
            assert!((sum - expected).abs() <= 1e-12 * expected.abs(), "stage {stage}: {sum}, not {expected}");
        }
    }
}

/// One job: what all its ranks share.
pub struct Job<'a> {
    pub fake: &'a Fake,
    pub program: &'a Program,
    pub over: Over,
    pub costs: Costs,
    pub hop: f64,
    pub timeout: Duration,
}

impl Job<'_> {
    /// Runs one step, a thread a rank; what each rank answers.
    pub fn run(&self) -> Vec<Result<Done, Fault>> {
        let program = self.program;
        let ranks = program.rows().len();
        let ids = match self.over {
            Over::Same => Ok(BTreeMap::new()),
            Over::Nccl(sharing) => sharing
                .communicators(program)
                .into_iter()
                .map(|members| UniqueId::new().map(|id| (members, id)))
                .collect(),
        };
        let ids = match ids {
            Ok(ids) => ids,
            Err(error) => return vec![Err(Broken::Device(error))],
        };
        let shared = match self.over {
            Over::Same => match Device::open(0) {
                Ok(device) => Some(SameDevice::new(device)),
                Err(error) => return vec![Err(Broken::Device(error))],
            },
            Over::Nccl(_) => None,
        };
        let common = Common {
            board: Board::default(),
            failed: AtomicBool::new(false),
            arrived: Mutex::new(0),
            ids,
            shared,
        };
        std::thread::scope(|scope| {
            let rank = |rank| {
                let common = &common;
                scope.spawn(move || {
                    let answer = self.rank(rank, common);
                    if answer.is_err() {
                        common.failed.store(true, Ordering::SeqCst);
                    }
                    answer
                })
            };
            let threads: Vec<_> = (0..ranks).map(rank).collect();
            threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
        })
    }

    fn rank(&self, rank: Rank, common: &Common) -> Result<Done, Fault> {
        let device = match &common.shared {
            Some(shared) => shared.device().clone(),
            None => Device::open(rank as i32).map_err(Broken::Device)?,
        };
        let compute = Stream::new(&device).map_err(Broken::Device)?;
        let failed = || common.failed.load(Ordering::SeqCst);
        match (self.over, &common.shared) {
            (Over::Nccl(sharing), _) => {
                let mut channels = self.open(rank, &device, sharing, common)?;
                common.meet(self.program.rows().len(), || self.fake.set_hop(self.hop))?;
                let port = channels.port(&compute, common.board.seat(rank, failed), self.timeout);
                let done = self.step(rank, port, &compute)?;
                channels.finalize().map_err(Broken::Device)?;
                self.until(|| channels.is_ready(), common)?;
                channels.destroy().map_err(Broken::Device)?;
                Ok(done)
            }
            (Over::Same, Some(shared)) => {
                self.fake.set_hop(self.hop);
                let port = shared.port(rank, &compute, common.board.seat(rank, failed));
                self.step(rank, port, &compute)
            }
            (Over::Same, None) => unreachable!("it was made"),
        }
    }

    fn step(&self, rank: Rank, port: impl DevicePort, compute: &Arc<Stream>) -> Result<Done, Fault> {
        let shape = *self.program.shape();
        let prices = self.costs.prices(&shape).expect("costs fit");
        let worker = Kernels {
            fake: self.fake,
            compute: compute.clone(),
            shape,
            prices: &prices,
            kept: HashMap::new(),
            sums: HashMap::new(),
        };
        let mut runner = Runner::new(self.program, rank, worker, port, compute).map_err(Broken::Device)?;
        runner.queue(Patience::Wait)?;
        let (worker, mut waiting) = runner.split();
        let records = waiting.finish(self.timeout)?;
        let read = |(stage, memory): (&Stage, &Memory)| {
            (*stage, values(Range { pointer: memory.pointer(), bytes: BYTES }).to_vec())
        };
        Ok(Done { records, sums: worker.sums.iter().map(read).collect() })
    }

    fn open(
        &self,
        rank: Rank,
        device: &Arc<Device>,
        sharing: Sharing,
        common: &Common,
    ) -> Result<Channels, Fault> {
        let channels = Channels::start(rank, device, sharing, &common.ids, &Config::default());
        let mut channels = channels.map_err(Broken::Device)?;
        self.until(|| channels.is_open(), common)?;
        Ok(channels)
    }

    /// Asks until the answer is yes, another rank has failed, or time is up.
    fn until(
        &self,
        mut ready: impl FnMut() -> Result<bool, DeviceError>,
        common: &Common,
    ) -> Result<(), Fault> {
        let deadline = Instant::now() + self.timeout;
        while !ready().map_err(Broken::Device)? {
            if common.failed.load(Ordering::SeqCst) {
                return Err(Broken::Failure(Failure::Stopped));
            }
            if Instant::now() > deadline {
                let what = "starting communicators".to_string();
                return Err(Broken::Device(DeviceError::Deadline { what, limit: self.timeout }));
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

struct Common {
    board: Board,
    failed: AtomicBool,
    arrived: Mutex<usize>,
    ids: BTreeMap<(Rank, Rank), UniqueId>,
    shared: Option<SameDevice>,
}

impl Common {
    /// Waits for all ranks, or for one to have failed; the last to come does `last`.
    fn meet(&self, ranks: usize, last: impl FnOnce()) -> Result<(), Fault> {
        {
            let mut arrived = self.arrived.lock().expect("nobody panics");
            *arrived += 1;
            if *arrived == ranks {
                last();
            }
        }
        while *self.arrived.lock().expect("nobody panics") < ranks {
            if self.failed.load(Ordering::SeqCst) {
                return Err(Broken::Failure(Failure::Stopped));
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}
