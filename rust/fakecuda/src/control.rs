//! What a test says to the library and asks of it: `fake_*`. Not part of CUDA, never counted, never failing.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use crate::codes::{INVALID_HANDLE, INVALID_VALUE, Res};
use crate::comm;
use crate::effect::{Callback, Effect};
use crate::entry::{control, text};
use crate::lock::{Held, WORK};
use crate::memory::Touch;
use crate::report;
use crate::stream::Work;
use crate::world::{HostOrder, Object, World};

/// Longest that a reset waits for callbacks; after it their memory is left to them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Forgets everything. `mode` 0: sends and receives meet; 1: sends are buffered.
#[unsafe(no_mangle)]
pub extern "C" fn fake_reset(devices: u64, seed: u64, mode: c_int, jitter_us: u64) {
    control((), |w| {
        w.epoch += 1;
        w.ready.clear();
        w.tell_hosts();
        w.wait_at_most(PATIENCE, |w| w.crew.busy == 0);
        w.reset(devices.min(1024) as usize, seed);
        w.settings.buffered = mode == 1;
        w.settings.jitter_us = jitter_us;
        WORK.notify_all();
    });
}

#[unsafe(no_mangle)]
pub extern "C" fn fake_set_hop(seconds: f64) {
    control((), |w| w.settings.hop = seconds);
}

#[unsafe(no_mangle)]
pub extern "C" fn fake_set_copy(seconds: f64) {
    control((), |w| w.settings.copy = seconds);
}

/// 0, 1 (at first) or 2: `host.rs` says what they mean.
#[unsafe(no_mangle)]
pub extern "C" fn fake_set_hosts_ordered(mode: c_int) {
    control((), |w| {
        w.settings.hosts = match mode {
            0 => HostOrder::Apart,
            2 => HostOrder::WaitsShared,
            _ => HostOrder::Shared,
        };
    });
}

/// Whether a successful query moves the host's virtual time like a wait (at first: no).
#[unsafe(no_mangle)]
pub extern "C" fn fake_set_query_advances(on: c_int) {
    control((), |w| w.settings.query_advances = on != 0);
}

/// Whether groups of non-blocking communicators are launched later by a worker (at first: yes, as by NCCL).
#[unsafe(no_mangle)]
pub extern "C" fn fake_set_background_launch(on: c_int) {
    control((), |w| w.settings.background = on != 0);
}

/// Bytes that may live at once, over all devices together.
#[unsafe(no_mangle)]
pub extern "C" fn fake_set_capacity(bytes: u64) {
    control((), |w| w.settings.capacity = bytes);
}

/// A name for reports; `handle` is a stream or an allocation. 1: it is neither.
#[unsafe(no_mangle)]
pub extern "C" fn fake_label(handle: u64, label: *const c_char) -> c_int {
    control(1, |w| {
        let Some(label) = text(label) else { return 1 };
        if let Some(Object::Stream(s)) = w.objects.get(&handle) {
            let component = w.streams[*s].component;
            w.memory.names[component] = label;
        } else if let Some(alloc) = w.memory.allocs.get_mut(&handle) {
            alloc.label = Some(label);
        } else {
            // Events are in no report; their label is accepted for the caller's ease.
            return c_int::from(!w.objects.contains_key(&handle));
        }
        0
    })
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Range {
    ptr: u64,
    len: u64,
}

fn touches(ranges: *const Range, n: u64, write: bool) -> Vec<Touch> {
    if ranges.is_null() || n == 0 {
        return Vec::new();
    }
    // SAFETY: the caller's to point at `n` ranges.
    let ranges = unsafe { std::slice::from_raw_parts(ranges, n as usize) };
    ranges.iter().map(|range| Touch { at: range.ptr, len: range.len, write }).collect()
}

/// A launch obeys the rules of the driver: a context, a stream of its device, no broken context.
fn launch(w: &mut Held, stream: u64, touches: Vec<Touch>, duration: f64, effect: Effect) -> Res {
    let device = w.context()?;
    let s = w.stream(stream, device)?;
    if w.streams[s].device != device {
        return Err(INVALID_HANDLE);
    }
    if duration.is_nan() || duration < 0.0 {
        return Err(INVALID_VALUE);
    }
    w.enqueue(s, Work::Act { kind: "kernel", touches, duration, effect });
    Ok(())
}

fn code(result: Res) -> c_int {
    result.err().unwrap_or(0)
}

/// A kernel that takes `duration` virtual seconds, touches what it says, and calls `function` (or nothing).
#[unsafe(no_mangle)]
pub extern "C" fn fake_launch(
    stream: u64,
    reads: *const Range,
    num_reads: u64,
    writes: *const Range,
    num_writes: u64,
    duration: f64,
    function: Option<Callback>,
    argument: *mut c_void,
) -> c_int {
    let mut all = touches(reads, num_reads, false);
    all.extend(touches(writes, num_writes, true));
    let argument = argument as usize;
    let effect = function.map_or(Effect::Nothing, |function| Effect::Call { function, argument });
    control(999, |w| code(launch(w, stream, all, duration, effect)))
}

/// `to[i] = a * from[i] + b` over f64.
#[unsafe(no_mangle)]
pub extern "C" fn fake_axpb(
    stream: u64,
    to: u64,
    from: u64,
    count: u64,
    a: f64,
    b: f64,
    duration: f64,
) -> c_int {
    let len = count.saturating_mul(8);
    let touches = vec![Touch::read(from, len), Touch::write(to, len)];
    let effect = Effect::Axpb { to, from, count, a, b };
    control(999, |w| {
        if !to.is_multiple_of(8) || !from.is_multiple_of(8) || to == 0 || from == 0 {
            return INVALID_VALUE;
        }
        code(launch(w, stream, touches, duration, effect))
    })
}

/// The nth next call of this function returns `code`. "*": of any but a destructor. "launch": the nth next
/// kernel fails while it runs, after which its device is broken.
#[unsafe(no_mangle)]
pub extern "C" fn fake_fault(call: *const c_char, nth: u64, code: c_int) {
    control((), |w| w.faults.fault(text(call).unwrap_or_default(), nth, code));
}

/// The nth next operation of this kind never completes: kernel, copy, memset, host, send, recv or init.
#[unsafe(no_mangle)]
pub extern "C" fn fake_hang(kind: *const c_char, nth: u64) {
    control((), |w| w.faults.hang(text(kind).unwrap_or_default(), nth));
}

/// What hangs goes on.
#[unsafe(no_mangle)]
pub extern "C" fn fake_release() {
    control((), |w| {
        w.faults.stop_hangs();
        for s in 0..w.streams.len() {
            w.streams[s].queue.iter_mut().for_each(|op| op.hangs = false);
            w.wake(s);
        }
        comm::release(w);
    });
}

/// From now on nothing that this device sends or receives matches; `tell`: its peers' communicators say
/// ncclRemoteError.
#[unsafe(no_mangle)]
pub extern "C" fn fake_dead_peer(device: c_int, tell: c_int) {
    control((), |w| {
        if let Ok(device) = usize::try_from(device) {
            w.faults.dead.push((device, tell != 0));
        }
    });
}

/// Waits in real time until nothing is queued. 1: something still is.
#[unsafe(no_mangle)]
pub extern "C" fn fake_settle(seconds: f64) -> c_int {
    let most = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    control(1, |w| c_int::from(!w.wait_at_most(most, World::is_settled)))
}

/// Waits in real time until nothing moves any more. 0: all is done. 2: something is queued, but waits for what
/// only a host thread can still bring: if none will, that is a deadlock, found without a clock. 1: too long.
#[unsafe(no_mangle)]
pub extern "C" fn fake_quiesce(seconds: f64) -> c_int {
    let most = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    control(1, |w| match w.wait_at_most(most, World::is_quiet) {
        true if w.is_settled() => 0,
        true => 2,
        false => 1,
    })
}

thread_local! {
    static REPORT: RefCell<CString> = RefCell::default();
}

/// JSON. Each thread has its own, until its next call.
#[unsafe(no_mangle)]
pub extern "C" fn fake_report() -> *const c_char {
    let report = control(String::new(), |w| report::json(w));
    REPORT.with_borrow_mut(|kept| {
        *kept = CString::new(report).unwrap_or_default();
        kept.as_ptr()
    })
}

/// How often an exported function was called.
#[unsafe(no_mangle)]
pub extern "C" fn fake_count(call: *const c_char) -> u64 {
    let call = text(call).unwrap_or_default();
    control(0, |w| w.calls.get(call.as_str()).copied().unwrap_or(0))
}

/// How many of these are alive, by their name in the report.
#[unsafe(no_mangle)]
pub extern "C" fn fake_live(what: *const c_char) -> u64 {
    let what = text(what).unwrap_or_default();
    control(0, |w| report::live(w).iter().find(|entry| entry.0 == what).map_or(0, |entry| entry.1))
}

#[unsafe(no_mangle)]
pub extern "C" fn fake_race_count() -> u64 {
    control(0, |w| w.memory.findings.race_count)
}

#[unsafe(no_mangle)]
pub extern "C" fn fake_violation_count() -> u64 {
    control(0, |w| w.memory.findings.violation_count)
}

#[unsafe(no_mangle)]
pub extern "C" fn fake_host_waits() -> u64 {
    control(0, |w| w.host_waits)
}

/// The latest virtual end of anything.
#[unsafe(no_mangle)]
pub extern "C" fn fake_time() -> f64 {
    control(0.0, |w| w.end)
}
