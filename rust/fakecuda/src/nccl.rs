//! NCCL: exported functions under their real names and signatures. Groups: `group.rs`.
#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_void};

use crate::codes::{self, NCCL_IN_PROGRESS, NCCL_INVALID_ARGUMENT, NCCL_UNHANDLED_CUDA, Res};
use crate::comm::{self, UniqueId};
use crate::entry::{call, put};
use crate::group::{self, Asked};
use crate::lock::Held;

/// The head of ncclConfig_t.
#[repr(C)]
pub struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

const MAGIC: u32 = 0xCAFE_BEEF;

/// NCCL answers every wrong pointer so.
fn answer<T>(to: *mut T, value: T) -> Res {
    put(to, value).map_err(|_| NCCL_INVALID_ARGUMENT)
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    call("ncclGetVersion", |_| answer(version, 22709))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> c_int {
    call("ncclGetUniqueId", |w| answer(id, w.comms.new_id()))
}

/// Passed by value, as in C.
#[repr(C)]
pub struct IdByValue(UniqueId);

fn init(w: &mut Held, to: *mut u64, size: c_int, id: &UniqueId, rank: c_int, blocking: bool) -> Res {
    if to.is_null() {
        return Err(NCCL_INVALID_ARGUMENT);
    }
    let device = w.context().map_err(|_| NCCL_UNHANDLED_CUDA)?;
    let handle = comm::join(w, id, size, rank, device, blocking)?;
    answer(to, handle)?;
    let grouped = group::takes(w, handle);
    match (grouped, blocking) {
        (true, _) => Ok(()),
        (false, true) => comm::wait_ready(w, handle),
        (false, false) => Err(NCCL_IN_PROGRESS),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommInitRank(to: *mut u64, size: c_int, id: IdByValue, rank: c_int) -> c_int {
    call("ncclCommInitRank", |w| init(w, to, size, &id.0, rank, true))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommInitRankConfig(
    to: *mut u64,
    size: c_int,
    id: IdByValue,
    rank: c_int,
    config: *const Config,
) -> c_int {
    call("ncclCommInitRankConfig", |w| {
        // SAFETY: null, or the caller's to point at a configuration.
        let config = unsafe { config.as_ref() };
        if config.is_some_and(|config| config.magic != MAGIC || config.size < size_of::<Config>()) {
            return Err(NCCL_INVALID_ARGUMENT);
        }
        init(w, to, size, &id.0, rank, config.is_none_or(|config| config.blocking != 0))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommGetAsyncError(comm: u64, state: *mut c_int) -> c_int {
    call("ncclCommGetAsyncError", |w| {
        let now = comm::state(w, comm)?;
        if now == NCCL_IN_PROGRESS {
            // Whoever asks in a circle would keep the lock from the worker that has the answer.
            w.unlocked(std::thread::yield_now);
        }
        answer(state, now)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommFinalize(comm: u64) -> c_int {
    call("ncclCommFinalize", |w| comm::finalize(w, comm))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommDestroy(comm: u64) -> c_int {
    call("ncclCommDestroy", |w| comm::destroy(w, comm))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommAbort(comm: u64) -> c_int {
    call("ncclCommAbort", |w| comm::abort(w, comm))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: c_int) -> *const c_char {
    codes::nccl(code).as_ptr().cast()
}

/// Nothing more is known than the code says.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_comm: u64) -> *const c_char {
    c"".as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommCount(comm: u64, count: *mut c_int) -> c_int {
    call("ncclCommCount", |w| answer(count, w.comms.size(w.comms.get(comm)?) as c_int))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommUserRank(comm: u64, rank: *mut c_int) -> c_int {
    call("ncclCommUserRank", |w| answer(rank, w.comms.get(comm)?.rank as c_int))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclCommCuDevice(comm: u64, device: *mut c_int) -> c_int {
    call("ncclCommCuDevice", |w| answer(device, w.comms.get(comm)?.device as c_int))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclSend(
    from: *const c_void,
    count: usize,
    datatype: c_int,
    peer: c_int,
    comm: u64,
    stream: u64,
) -> c_int {
    let asked = Asked {
        sends: true,
        at: from as u64,
        count,
        datatype,
        peer,
        comm,
        stream,
    };
    call("ncclSend", |w| group::ask(w, &asked))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclRecv(
    to: *mut c_void,
    count: usize,
    datatype: c_int,
    peer: c_int,
    comm: u64,
    stream: u64,
) -> c_int {
    let asked = Asked {
        sends: false,
        at: to as u64,
        count,
        datatype,
        peer,
        comm,
        stream,
    };
    call("ncclRecv", |w| group::ask(w, &asked))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> c_int {
    call("ncclGroupStart", |w| {
        group::start(w);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupEnd() -> c_int {
    call("ncclGroupEnd", group::end)
}
