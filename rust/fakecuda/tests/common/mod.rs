//! The library as a program would see it: opened at run time, called by name. One test at a time, since there
//! is one library in a process.
#![allow(dead_code, non_snake_case, clippy::too_many_arguments)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::Library;

pub const RENDEZVOUS: i32 = 0;
pub const BUFFERED: i32 = 1;
pub const IN_PROGRESS: i32 = 7;
/// Only a broken library waits so long.
const LONG: f64 = 60.0;

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let mut folder: PathBuf = std::env::current_exe().unwrap();
        folder.pop(); // target/<profile>/deps, where the library is built for tests
        // SAFETY: its initialisers do nothing.
        unsafe { Library::new(folder.join("libfakecuda.so")) }.unwrap()
    })
}

macro_rules! api {
    ($($name:ident($($arg:ident: $type:ty),*) -> $ret:ty;)*) => {$(
        pub fn $name($($arg: $type),*) -> $ret {
            type Function = extern "C" fn($($type),*) -> $ret;
            static FUNCTION: OnceLock<Function> = OnceLock::new();
            // SAFETY: the type is the one the library defines.
            let function = FUNCTION.get_or_init(|| unsafe { *library().get(stringify!($name)).unwrap() });
            function($($arg),*)
        }
    )*};
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Id(pub [u8; 128]);

#[repr(C)]
pub struct Config {
    pub size: usize,
    pub magic: u32,
    pub version: u32,
    pub blocking: i32,
    pub rest: [i32; 11],
}

#[repr(C)]
pub struct Range {
    pub ptr: u64,
    pub len: u64,
}

pub type Callback = extern "C" fn(*mut c_void);

api! {
    cuInit(flags: u32) -> i32;
    cuDeviceGetCount(count: &mut i32) -> i32;
    cuDevicePrimaryCtxRetain(context: &mut u64, device: i32) -> i32;
    cuDevicePrimaryCtxRelease_v2(device: i32) -> i32;
    cuCtxSetCurrent(context: u64) -> i32;
    cuCtxSynchronize() -> i32;
    cuStreamCreate(stream: &mut u64, flags: u32) -> i32;
    cuStreamDestroy_v2(stream: u64) -> i32;
    cuStreamWaitEvent(stream: u64, event: u64, flags: u32) -> i32;
    cuStreamSynchronize(stream: u64) -> i32;
    cuStreamQuery(stream: u64) -> i32;
    cuEventCreate(event: &mut u64, flags: u32) -> i32;
    cuEventDestroy_v2(event: u64) -> i32;
    cuEventRecord(event: u64, stream: u64) -> i32;
    cuEventQuery(event: u64) -> i32;
    cuEventSynchronize(event: u64) -> i32;
    cuEventElapsedTime(ms: &mut f32, start: u64, end: u64) -> i32;
    cuMemAllocAsync(at: &mut u64, len: usize, stream: u64) -> i32;
    cuMemFreeAsync(at: u64, stream: u64) -> i32;
    cuMemAlloc_v2(at: &mut u64, len: usize) -> i32;
    cuMemFree_v2(at: u64) -> i32;
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: u64) -> i32;
    cuMemcpyHtoD_v2(to: u64, from: *const c_void, len: usize) -> i32;
    cuMemcpyDtoH_v2(to: *mut c_void, from: u64, len: usize) -> i32;
    cuLaunchHostFunc(stream: u64, function: Callback, argument: *mut c_void) -> i32;
    ncclGetUniqueId(id: &mut Id) -> i32;
    ncclCommInitRank(comm: &mut u64, size: i32, id: Id, rank: i32) -> i32;
    ncclCommInitRankConfig(comm: &mut u64, size: i32, id: Id, rank: i32, config: &Config) -> i32;
    ncclCommGetAsyncError(comm: u64, state: &mut i32) -> i32;
    ncclCommFinalize(comm: u64) -> i32;
    ncclCommDestroy(comm: u64) -> i32;
    ncclCommAbort(comm: u64) -> i32;
    ncclSend(from: u64, count: usize, datatype: i32, peer: i32, comm: u64, stream: u64) -> i32;
    ncclRecv(to: u64, count: usize, datatype: i32, peer: i32, comm: u64, stream: u64) -> i32;
    ncclGroupStart() -> i32;
    ncclGroupEnd() -> i32;
    fake_reset(devices: u64, seed: u64, mode: i32, jitter_us: u64) -> ();
    fake_set_hop(seconds: f64) -> ();
    fake_set_copy(seconds: f64) -> ();
    fake_set_hosts_ordered(mode: i32) -> ();
    fake_set_background_launch(on: i32) -> ();
    fake_set_capacity(bytes: u64) -> ();
    fake_label(handle: u64, label: *const c_char) -> i32;
    fake_launch(stream: u64, reads: *const Range, n: u64, writes: *const Range, m: u64, duration: f64,
                function: Option<Callback>, argument: *mut c_void) -> i32;
    fake_axpb(stream: u64, to: u64, from: u64, count: u64, a: f64, b: f64, duration: f64) -> i32;
    fake_fault(call: *const c_char, nth: u64, code: i32) -> ();
    fake_hang(kind: *const c_char, nth: u64) -> ();
    fake_release() -> ();
    fake_dead_peer(device: i32, tell: i32) -> ();
    fake_settle(seconds: f64) -> i32;
    fake_quiesce(seconds: f64) -> i32;
    fake_report() -> *const c_char;
    fake_count(call: *const c_char) -> u64;
    fake_live(what: *const c_char) -> u64;
    fake_race_count() -> u64;
    fake_violation_count() -> u64;
    fake_host_waits() -> u64;
    fake_time() -> f64;
}

/// A fresh library with device 0 current, for one test alone.
pub fn fresh(devices: u64, mode: i32, jitter_us: u64) -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    fake_reset(devices, 7, mode, jitter_us);
    assert_eq!(cuInit(0), 0);
    on(0);
    guard
}

/// Makes a device's context current.
pub fn on(device: i32) {
    let mut context = 0;
    assert_eq!(cuDevicePrimaryCtxRetain(&mut context, device), 0);
    assert_eq!(cuCtxSetCurrent(context), 0);
}

pub fn stream(label: &str) -> u64 {
    let mut stream = 0;
    assert_eq!(cuStreamCreate(&mut stream, 1), 0);
    let label = CString::new(label).unwrap();
    assert_eq!(fake_label(stream, label.as_ptr()), 0);
    stream
}

pub fn event() -> u64 {
    let mut event = 0;
    assert_eq!(cuEventCreate(&mut event, 0), 0);
    event
}

/// `count` doubles, of which everyone knows.
pub fn doubles(count: usize) -> u64 {
    let mut at = 0;
    assert_eq!(cuMemAlloc_v2(&mut at, 8 * count), 0);
    at
}

pub fn set(stream: u64, at: u64, value: f64, duration: f64) {
    assert_eq!(fake_axpb(stream, at, at, 1, 0.0, 0.0, 0.0), 0);
    assert_eq!(fake_axpb(stream, at, at, 1, 0.0, value, duration), 0);
}

/// A kernel that touches one double, and does nothing.
pub fn touch(stream: u64, at: u64, write: bool, duration: f64) -> i32 {
    let range = Range { ptr: at, len: 8 };
    let (reads, writes) = (u64::from(!write), u64::from(write));
    fake_launch(stream, &range, reads, &range, writes, duration, None, std::ptr::null_mut())
}

pub fn value(at: u64) -> f64 {
    let mut value = 0f64;
    assert_eq!(cuMemcpyDtoH_v2((&raw mut value).cast(), at, 8), 0);
    value
}

/// What is on `from` so far comes before what is put on `to` from now on.
pub fn order(from: u64, to: u64) {
    let event = event();
    assert_eq!(cuEventRecord(event, from), 0);
    assert_eq!(cuStreamWaitEvent(to, event, 0), 0);
    assert_eq!(cuEventDestroy_v2(event), 0);
}

pub fn settle() {
    assert_eq!(fake_settle(LONG), 0, "{}", report());
}

/// Whether something waits for ever.
pub fn stuck() -> bool {
    let state = fake_quiesce(LONG);
    assert_ne!(state, 1);
    state == 2
}

pub fn report() -> String {
    // SAFETY: the library keeps it until this thread's next call.
    unsafe { CStr::from_ptr(fake_report()) }.to_string_lossy().into_owned()
}

pub fn live(what: &str) -> u64 {
    let what = CString::new(what).unwrap();
    fake_live(what.as_ptr())
}

pub fn fault(call: &str, nth: u64, code: i32) {
    let call = CString::new(call).unwrap();
    fake_fault(call.as_ptr(), nth, code);
}

pub fn hang(kind: &str, nth: u64) {
    let kind = CString::new(kind).unwrap();
    fake_hang(kind.as_ptr(), nth);
}

pub fn unique_id() -> Id {
    let mut id = Id([0; 128]);
    assert_eq!(ncclGetUniqueId(&mut id), 0);
    id
}

/// One communicator for each of these devices, whose contexts are made current on the way.
pub fn comms(devices: &[i32], blocking: bool) -> Vec<u64> {
    let id = unique_id();
    let config = Config {
        size: size_of::<Config>(),
        magic: 0xCAFE_BEEF,
        version: 22709,
        blocking: i32::from(blocking),
        rest: [0; 11],
    };
    let mut all = vec![0; devices.len()];
    assert_eq!(ncclGroupStart(), 0);
    for (rank, &device) in devices.iter().enumerate() {
        on(device);
        let size = devices.len() as i32;
        assert_eq!(ncclCommInitRankConfig(&mut all[rank], size, id, rank as i32, &config), 0);
    }
    let code = ncclGroupEnd();
    assert_eq!(code, if blocking { 0 } else { IN_PROGRESS });
    all
}

/// What a communicator says once it says something.
pub fn state(comm: u64) -> i32 {
    loop {
        let mut state = 0;
        assert_eq!(ncclCommGetAsyncError(comm, &mut state), 0);
        if state != IN_PROGRESS {
            return state;
        }
        std::thread::yield_now();
    }
}

pub fn send(at: u64, peer: i32, comm: u64, stream: u64) -> i32 {
    ncclSend(at, 1, 8, peer, comm, stream)
}

pub fn recv(at: u64, peer: i32, comm: u64, stream: u64) -> i32 {
    ncclRecv(at, 1, 8, peer, comm, stream)
}
