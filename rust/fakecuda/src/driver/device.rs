//! Devices, their primary contexts, and the texts of errors.
#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_uint};

use crate::codes::{self, INVALID_CONTEXT, INVALID_DEVICE, INVALID_VALUE, NOT_INITIALIZED, Res};
use crate::entry::{call, put};
use crate::host::with_stack;
use crate::world::World;

/// Context handles say which device they are of, and stay the same for ever.
const FIRST_CONTEXT: u64 = 0x0E00_0000_0000;

fn handle_of(device: usize) -> u64 {
    FIRST_CONTEXT + 64 * (device as u64 + 1)
}

fn device_of(w: &World, context: u64) -> Res<usize> {
    (0..w.devices.len())
        .find(|&d| handle_of(d) == context && w.devices[d].retained > 0)
        .ok_or(INVALID_CONTEXT)
}

fn known(w: &World, device: c_int) -> Res<usize> {
    if !w.initialized {
        return Err(NOT_INITIALIZED);
    }
    usize::try_from(device).ok().filter(|&d| d < w.devices.len()).ok_or(INVALID_DEVICE)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> c_int {
    call("cuInit", |w| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        if w.devices.is_empty() {
            return Err(100);
        }
        w.initialized = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    call("cuDriverGetVersion", |_| put(version, 12090))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    call("cuDeviceGetCount", |w| {
        if !w.initialized {
            return Err(NOT_INITIALIZED);
        }
        put(count, w.devices.len() as c_int)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    call("cuDeviceGet", |w| put(device, known(w, ordinal)? as c_int))
}

fn put_text(to: *mut c_char, len: c_int, text: &str) -> Res {
    if to.is_null() || len <= 0 {
        return Err(INVALID_VALUE);
    }
    let kept = text.len().min(len as usize - 1);
    // SAFETY: the caller's buffer has room for `len` characters.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, kept);
        to.add(kept).write(0);
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> c_int {
    call("cuDeviceGetName", |w| put_text(name, len, &format!("Software device {}", known(w, device)?)))
}

fn uuid(w: &World, device: c_int) -> Res<[u8; 16]> {
    let mut id = *b"fakecuda device\0";
    id[15] = known(w, device)? as u8;
    Ok(id)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetUuid(to: *mut [u8; 16], device: c_int) -> c_int {
    call("cuDeviceGetUuid", |w| put(to, uuid(w, device)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetUuid_v2(to: *mut [u8; 16], device: c_int) -> c_int {
    call("cuDeviceGetUuid_v2", |w| put(to, uuid(w, device)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetPCIBusId(to: *mut c_char, len: c_int, device: c_int) -> c_int {
    call("cuDeviceGetPCIBusId", |w| put_text(to, len, &format!("0000:{:02X}:00.0", known(w, device)? + 1)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> c_int {
    call("cuDeviceGetAttribute", |w| {
        known(w, device)?;
        let answer = match attribute {
            16 => 132,     // multiprocessors
            75 => 9,       // compute capability, major
            41 | 115 => 1, // unified addressing; memory pools
            _ => 0,
        };
        put(value, answer)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRetain(context: *mut u64, device: c_int) -> c_int {
    call("cuDevicePrimaryCtxRetain", |w| {
        let device = known(w, device)?;
        put(context, handle_of(device))?;
        w.devices[device].retained += 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> c_int {
    call("cuDevicePrimaryCtxRelease_v2", |w| {
        let device = known(w, device)?;
        if w.devices[device].retained == 0 {
            return Err(INVALID_CONTEXT);
        }
        w.devices[device].retained -= 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPushCurrent_v2(context: u64) -> c_int {
    call("cuCtxPushCurrent_v2", |w| {
        let device = device_of(w, context)?;
        with_stack(w.epoch, |stack| stack.push(Some(device)));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPopCurrent_v2(context: *mut u64) -> c_int {
    call("cuCtxPopCurrent_v2", |w| {
        let popped = with_stack(w.epoch, Vec::pop).ok_or(INVALID_CONTEXT)?;
        // Null is allowed here: the caller does not want to know.
        let _ = put(context, popped.map_or(0, handle_of));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetCurrent(context: *mut u64) -> c_int {
    call("cuCtxGetCurrent", |w| {
        let top = with_stack(w.epoch, |stack| stack.last().copied().flatten());
        put(context, top.map_or(0, handle_of))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: u64) -> c_int {
    call("cuCtxSetCurrent", |w| {
        let device = if context == 0 { None } else { Some(device_of(w, context)?) };
        with_stack(w.epoch, |stack| {
            stack.pop();
            if device.is_some() {
                stack.push(device);
            }
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetDevice(device: *mut c_int) -> c_int {
    call("cuCtxGetDevice", |w| put(device, w.current()? as c_int))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> c_int {
    call("cuCtxSynchronize", |w| {
        let device = w.context()?;
        super::stream::wait_for_device(w, device)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> c_int {
    call("cuCtxGetStreamPriorityRange", |w| {
        w.context()?;
        // Either may be null.
        let _ = put(least, 0);
        let _ = put(greatest, -5);
        Ok(())
    })
}

fn error_text(
    code: c_int,
    to: *mut *const c_char,
    pick: fn((&'static str, &'static str)) -> &'static str,
) -> Res {
    let found = codes::cuda(code);
    put(to, found.map_or(std::ptr::null(), |texts| pick(texts).as_ptr().cast()))?;
    found.map(|_| ()).ok_or(INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(code: c_int, to: *mut *const c_char) -> c_int {
    call("cuGetErrorName", |_| error_text(code, to, |texts| texts.0))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(code: c_int, to: *mut *const c_char) -> c_int {
    call("cuGetErrorString", |_| error_text(code, to, |texts| texts.1))
}
