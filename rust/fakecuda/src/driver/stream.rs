//! Streams: made, destroyed, asked, waited for; host functions on them.
#![allow(non_snake_case)]

use std::ffi::{c_int, c_uint, c_void};

use crate::codes::{INVALID_HANDLE, INVALID_VALUE, NOT_READY, Res};
use crate::effect::{Callback, Effect};
use crate::entry::{call, put};
use crate::lock::Held;
use crate::stream::{Record, Work};
use crate::world::Object;

fn create(w: &mut Held, to: *mut u64, flags: c_uint) -> Res {
    let device = w.context()?;
    if flags > 1 || to.is_null() {
        return Err(INVALID_VALUE);
    }
    let name = format!("stream {}", w.streams.len());
    let s = w.new_stream(device, &name);
    let handle = w.handle();
    w.objects.insert(handle, Object::Stream(s));
    put(to, handle)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(stream: *mut u64, flags: c_uint) -> c_int {
    call("cuStreamCreate", |w| create(w, stream, flags))
}

/// Priorities are accepted and change nothing.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreateWithPriority(stream: *mut u64, flags: c_uint, _priority: c_int) -> c_int {
    call("cuStreamCreateWithPriority", |w| create(w, stream, flags))
}

/// What is queued still runs.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: u64) -> c_int {
    call("cuStreamDestroy_v2", |w| {
        let device = w.current()?;
        if !matches!(w.objects.get(&stream), Some(Object::Stream(_))) {
            return Err(INVALID_HANDLE);
        }
        w.objects.remove(&stream);
        w.sound(device)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, flags: c_uint) -> c_int {
    call("cuStreamWaitEvent", |w| {
        let device = w.context()?;
        let s = w.stream(stream, device)?;
        if flags > 1 {
            return Err(INVALID_VALUE);
        }
        // The latest record at this moment; without any there is nothing to wait for, as on CUDA.
        if let Some(record) = w.event(event)?.latest.clone() {
            w.enqueue(s, Work::Wait(record));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: u64) -> c_int {
    call("cuStreamSynchronize", |w| {
        let device = w.context()?;
        let s = w.stream(stream, device)?;
        w.host_waits += 1;
        wait_for_stream(w, s)?;
        w.sound(device)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(stream: u64) -> c_int {
    call("cuStreamQuery", |w| {
        let device = w.context()?;
        let s = w.stream(stream, device)?;
        if !w.streams[s].is_idle() {
            return Err(NOT_READY);
        }
        let (clock, time) = (w.streams[s].clock.clone(), w.streams[s].time);
        w.host_was_told(&clock, time);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchHostFunc(stream: u64, function: Option<Callback>, argument: *mut c_void) -> c_int {
    call("cuLaunchHostFunc", |w| {
        let device = w.context()?;
        let s = w.stream(stream, device)?;
        let function = function.ok_or(INVALID_VALUE)?;
        let effect = Effect::Call { function, argument: argument as usize };
        w.enqueue(s, Work::Act { kind: "host", touches: Vec::new(), duration: 0.0, effect });
        Ok(())
    })
}

/// Blocks the host thread until a record is reached, which it then knows of. Its error, if the device of the
/// record breaks, is for the caller to find.
pub fn wait_for(w: &mut Held, record: &Record) -> Res {
    w.wait_until(|_| record.state().done.is_some())?;
    if let Some((clock, time)) = record.done() {
        w.host_waited(&clock, time);
    }
    Ok(())
}

pub fn wait_for_stream(w: &mut Held, s: usize) -> Res {
    let record = w.record(s);
    wait_for(w, &record)
}

/// Waits for all of a device's streams, also for destroyed ones whose work still runs.
pub fn wait_for_device(w: &mut Held, device: usize) -> Res {
    w.host_waits += 1;
    let streams: Vec<usize> = (0..w.streams.len()).filter(|&s| w.streams[s].device == device).collect();
    let records: Vec<Record> = streams.into_iter().map(|s| w.record(s)).collect();
    for record in records {
        wait_for(w, &record)?;
    }
    w.sound(device)
}
