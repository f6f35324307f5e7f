//! Events: made, recorded, asked, waited for, and the time between two.
#![allow(non_snake_case)]

use std::ffi::{c_int, c_uint};

use crate::codes::{INVALID_HANDLE, INVALID_VALUE, NOT_READY, Res};
use crate::entry::{call, put};
use crate::lock::Held;
use crate::world::{Event, Object};

const DISABLE_TIMING: c_uint = 2;
/// Blocking sync, no timing, interprocess.
const ALL_FLAGS: c_uint = 7;

#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(event: *mut u64, flags: c_uint) -> c_int {
    call("cuEventCreate", |w| {
        let device = w.context()?;
        if flags & !ALL_FLAGS != 0 || event.is_null() {
            return Err(INVALID_VALUE);
        }
        let handle = w.handle();
        let made = Event { device, timed: flags & DISABLE_TIMING == 0, latest: None };
        w.objects.insert(handle, Object::Event(made));
        put(event, handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: u64) -> c_int {
    call("cuEventDestroy_v2", |w| {
        let device = w.current()?;
        w.event(event)?;
        w.objects.remove(&event);
        w.sound(device)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: u64, stream: u64) -> c_int {
    call("cuEventRecord", |w| {
        let current = w.context()?;
        let s = w.stream(stream, current)?;
        let device = w.streams[s].device;
        if w.event(event)?.device != device {
            return Err(INVALID_HANDLE);
        }
        let record = w.record(s);
        w.event(event)?.latest = Some(record);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: u64) -> c_int {
    call("cuEventQuery", |w| {
        w.context()?;
        let Some(record) = w.event(event)?.latest.clone() else { return Ok(()) };
        let (clock, time) = record.done().ok_or(NOT_READY)?;
        w.host_was_told(&clock, time);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: u64) -> c_int {
    call("cuEventSynchronize", |w| {
        let device = w.context()?;
        let latest = w.event(event)?.latest.clone();
        w.host_waits += 1;
        if let Some(record) = latest {
            super::stream::wait_for(w, &record)?;
        }
        w.sound(device)
    })
}

/// Milliseconds of virtual time.
fn elapsed(w: &mut Held, start: u64, end: u64) -> Res<f32> {
    w.context()?;
    let mut times = [0.0; 2];
    for (time, handle) in times.iter_mut().zip([start, end]) {
        let event = w.event(handle)?;
        let record = event.latest.clone().filter(|_| event.timed).ok_or(INVALID_HANDLE)?;
        *time = record.done().ok_or(NOT_READY)?.1;
    }
    if w.event(start)?.device != w.event(end)?.device {
        return Err(INVALID_HANDLE);
    }
    Ok(((times[1] - times[0]) * 1e3) as f32)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime(to: *mut f32, start: u64, end: u64) -> c_int {
    call("cuEventElapsedTime", |w| put(to, elapsed(w, start, end)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime_v2(to: *mut f32, start: u64, end: u64) -> c_int {
    call("cuEventElapsedTime_v2", |w| put(to, elapsed(w, start, end)?))
}
