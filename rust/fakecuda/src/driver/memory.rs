//! Pools, allocations, copies and fills.
#![allow(non_snake_case)]

use std::ffi::{c_int, c_void};

use crate::codes::{CONTEXT_IS_DESTROYED, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, OUT_OF_MEMORY, Res};
use crate::effect::{Effect, POISON};
use crate::entry::{call, put};
use crate::lock::Held;
use crate::memory::{Touch, Toucher};
use crate::stream::Work;
use crate::world::{Object, World};

/// The head of CUmemPoolProps.
#[repr(C)]
pub struct PoolProps {
    kind: c_int,
    handles: c_int,
    location_kind: c_int,
    location: c_int,
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolCreate(pool: *mut u64, props: *const PoolProps) -> c_int {
    call("cuMemPoolCreate", |w| {
        // SAFETY: the caller's to point at properties.
        let props = unsafe { props.as_ref() }.ok_or(INVALID_VALUE)?;
        // Pinned memory of a device is the only kind there is.
        if props.kind != 1 || props.location_kind != 1 {
            return Err(INVALID_VALUE);
        }
        let device = usize::try_from(props.location).ok().filter(|&d| d < w.devices.len());
        let device = device.ok_or(INVALID_DEVICE)?;
        let handle = w.handle();
        put(pool, handle)?;
        w.objects.insert(handle, Object::Pool(device));
        Ok(())
    })
}

fn pool_device(w: &World, pool: u64) -> Res<usize> {
    match w.objects.get(&pool) {
        Some(Object::Pool(device)) => Ok(*device),
        _ => Err(INVALID_VALUE),
    }
}

/// What was allocated from it stays.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolDestroy(pool: u64) -> c_int {
    call("cuMemPoolDestroy", |w| {
        pool_device(w, pool)?;
        w.objects.remove(&pool);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolSetAttribute(pool: u64, attribute: c_int, value: *mut c_void) -> c_int {
    call("cuMemPoolSetAttribute", |w| {
        pool_device(w, pool)?;
        if (1..=8).contains(&attribute) && !value.is_null() { Ok(()) } else { Err(INVALID_VALUE) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolTrimTo(pool: u64, _keep: usize) -> c_int {
    call("cuMemPoolTrimTo", |w| pool_device(w, pool).map(|_| ()))
}

fn allocate(w: &mut World, len: usize, device: usize) -> Res<u64> {
    if len == 0 {
        return Err(INVALID_VALUE);
    }
    if (len as u64).saturating_add(w.memory.live_bytes) > w.settings.capacity {
        return Err(OUT_OF_MEMORY);
    }
    w.memory.allocate(len as u64, device).ok_or(OUT_OF_MEMORY)
}

fn poison(at: u64, len: u64) -> Effect {
    Effect::Fill { at, value: POISON, len }
}

/// An allocation or free at its place on a stream: a write of the whole.
fn enqueue_whole(w: &mut World, s: usize, kind: &'static str, at: u64, len: u64) {
    let touches = vec![Touch::write(at, len)];
    w.enqueue(s, Work::Act { kind, touches, duration: 0.0, effect: poison(at, len) });
}

/// `device`: the pool's; the current one without a pool.
fn allocate_async(w: &mut Held, to: *mut u64, len: usize, pool: Option<u64>, stream: u64) -> Res {
    let current = w.context()?;
    let s = w.stream(stream, current)?;
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    let device = pool.map_or(Ok(current), |pool| pool_device(w, pool))?;
    let at = allocate(w, len, device)?;
    enqueue_whole(w, s, "alloc", at, len as u64);
    put(to, at)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocFromPoolAsync(to: *mut u64, len: usize, pool: u64, stream: u64) -> c_int {
    call("cuMemAllocFromPoolAsync", |w| allocate_async(w, to, len, Some(pool), stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocAsync(to: *mut u64, len: usize, stream: u64) -> c_int {
    call("cuMemAllocAsync", |w| allocate_async(w, to, len, None, stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(at: u64, stream: u64) -> c_int {
    call("cuMemFreeAsync", |w| {
        let device = w.current()?;
        let s = w.stream(stream, device)?;
        let len = w.memory.mark_freed(at).ok_or(INVALID_VALUE)?;
        enqueue_whole(w, s, "free", at, len);
        w.sound(device)
    })
}

/// The host's own write of a whole allocation: done before the call returns.
fn whole_by_host(w: &mut World, kind: &'static str, at: u64, len: u64) {
    let (component, clock) = w.host_acts();
    w.memory.touch(&Toucher { kind, component, clock: &clock, device: None }, Touch::write(at, len));
    poison(at, len).run();
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc_v2(to: *mut u64, len: usize) -> c_int {
    call("cuMemAlloc_v2", |w| {
        let device = w.context()?;
        if to.is_null() {
            return Err(INVALID_VALUE);
        }
        let at = allocate(w, len, device)?;
        whole_by_host(w, "alloc", at, len as u64);
        put(to, at)
    })
}

/// Waits for the whole device first.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(at: u64) -> c_int {
    call("cuMemFree_v2", |w| {
        let device = w.current()?;
        if at == 0 {
            return Ok(());
        }
        let len = w.memory.mark_freed(at).ok_or(INVALID_VALUE)?;
        let waited = super::stream::wait_for_device(w, device);
        if waited == Err(CONTEXT_IS_DESTROYED) {
            return waited; // all was reset, and the address may be another's
        }
        whole_by_host(w, "free", at, len);
        waited
    })
}

/// One of the two ends may be the host's: memory that is not ours.
fn copy(w: &mut Held, to: u64, from: u64, len: usize, stream: u64, duration: f64) -> Res<usize> {
    let device = w.context()?;
    let s = w.stream(stream, device)?;
    if len == 0 {
        return Ok(s);
    }
    if to == 0 || from == 0 {
        return Err(INVALID_VALUE);
    }
    let len = len as u64;
    let touches = vec![Touch::read(from, len), Touch::write(to, len)];
    w.enqueue(
        s,
        Work::Act {
            kind: "copy",
            touches,
            duration,
            effect: Effect::Copy { to, from, len },
        },
    );
    Ok(s)
}

/// A device's end must be one: CUDA says INVALID_VALUE at the call.
fn ours(w: &World, at: u64) -> Res {
    w.context()?;
    if w.memory.arena.contains(at) { Ok(()) } else { Err(INVALID_VALUE) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: u64) -> c_int {
    call("cuMemcpyDtoDAsync_v2", |w| {
        let duration = w.settings.copy;
        ours(w, to)?;
        ours(w, from)?;
        copy(w, to, from, len, stream, duration).map(|_| ())
    })
}

/// The host's memory is read when the copy runs, as from pinned memory: the caller keeps it until then.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: u64) -> c_int {
    call("cuMemcpyHtoDAsync_v2", |w| {
        ours(w, to)?;
        copy(w, to, from as u64, len, stream, 0.0).map(|_| ())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: u64) -> c_int {
    call("cuMemcpyDtoHAsync_v2", |w| {
        ours(w, from)?;
        copy(w, to as u64, from, len, stream, 0.0).map(|_| ())
    })
}

/// On the default stream, and the host waits for it.
fn copy_and_wait(w: &mut Held, to: u64, from: u64, len: usize) -> Res {
    let s = copy(w, to, from, len, 0, 0.0)?;
    w.host_waits += 1;
    super::stream::wait_for_stream(w, s)?;
    w.context().map(|_| ())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, len: usize) -> c_int {
    call("cuMemcpyHtoD_v2", |w| {
        ours(w, to)?;
        copy_and_wait(w, to, from as u64, len)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, len: usize) -> c_int {
    call("cuMemcpyDtoH_v2", |w| {
        ours(w, from)?;
        copy_and_wait(w, to as u64, from, len)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(at: u64, value: u8, len: usize, stream: u64) -> c_int {
    call("cuMemsetD8Async", |w| {
        let device = w.context()?;
        let s = w.stream(stream, device)?;
        ours(w, at)?;
        if w.streams[s].device != device {
            return Err(INVALID_HANDLE);
        }
        let len = len as u64;
        let touches = vec![Touch::write(at, len)];
        let effect = Effect::Fill { at, value, len };
        w.enqueue(s, Work::Act { kind: "memset", touches, duration: 0.0, effect });
        Ok(())
    })
}
