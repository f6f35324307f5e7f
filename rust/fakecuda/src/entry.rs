//! What every exported function begins and ends with: it is counted, it fails if a test asked for that, and
//! no panic leaves it.

use std::any::Any;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::codes::{
    INVALID_VALUE, NCCL_INTERNAL, NCCL_INVALID_USAGE, NOT_PERMITTED, NOT_READY, Res, UNKNOWN,
};
use crate::host;
use crate::lock::Held;

/// Runs an exported function of either library.
pub fn call(name: &'static str, body: impl FnOnce(&mut Held) -> Res) -> i32 {
    let nccl = name.starts_with("nccl");
    guarded(name, if nccl { NCCL_INTERNAL } else { UNKNOWN }, || {
        if host::in_callback() {
            return if nccl { NCCL_INVALID_USAGE } else { NOT_PERMITTED };
        }
        let mut w = Held::lock();
        *w.calls.entry(name).or_default() += 1;
        let fault = w.faults.take(name);
        let code = fault.map_or_else(|| body(&mut w), Err).err().unwrap_or(0);
        if !nccl && code == NOT_READY {
            // Whoever asks in a circle would keep the lock from the worker that has the answer.
            w.unlocked(std::thread::yield_now);
        }
        code
    })
}

/// Runs a control function: not counted, never made to fail.
pub fn control<T>(otherwise: T, body: impl FnOnce(&mut Held) -> T) -> T {
    guarded("control", otherwise, || body(&mut Held::lock()))
}

fn guarded<T>(name: &str, otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic_text(&*panic);
        Held::lock().panics.push(format!("{name}: {text}"));
        otherwise
    })
}

pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without text".into())
}

/// Writes an answer where the caller wants it.
pub fn put<T>(to: *mut T, value: T) -> Res {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and the caller's to point at a T, as with the real library.
    unsafe { to.write(value) };
    Ok(())
}

/// A text that the caller passed.
pub fn text(from: *const c_char) -> Option<String> {
    // SAFETY: the caller's to end with NUL.
    (!from.is_null()).then(|| unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned())
}
