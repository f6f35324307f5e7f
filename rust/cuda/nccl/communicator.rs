//! Communicators: started, used and ended without a call that waits for another rank.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;

use super::config::Config;
use super::library::{self, Nccl};
use super::table::{BYTES, IN_PROGRESS, RawCommunicator, RawId, RawStream, SUCCESS};
use crate::cuda::error::DeviceError;
use crate::cuda::libcuda;

/// What one rank makes and hands to all others, so that their communicators meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

impl UniqueId {
    /// Opens a port of this host, at which the ranks meet: the process that calls this stays until they have.
    pub fn new() -> Result<UniqueId, DeviceError> {
        let nccl = library::nccl()?;
        let mut id = RawId([0; 128]);
        // SAFETY: it writes 128 bytes.
        match unsafe { (nccl.table.get_unique_id)(&mut id) } {
            SUCCESS => Ok(UniqueId(id.0)),
            code => Err(nccl.table.refusal("ncclGetUniqueId", code)),
        }
    }
}

/// How far a call that does not wait has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Ready,
    /// Ask [`Communicator::poll`] until it is ready, before the next call.
    InProgress,
}

/// One rank's end of a set of ranks, on the device that was current where it was started.
///
/// May move to another thread, but is used by one at a time. Dropped, it aborts.
pub struct Communicator {
    raw: RawCommunicator,
    nccl: &'static Nccl,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time (so: not Sync).
unsafe impl Send for Communicator {}

impl Communicator {
    /// Begins to start rank `rank` of `size`; every rank does, and [`Self::poll`] says when all have.
    ///
    /// # Errors
    /// There is no NCCL, no device, or sizes that do not fit; what fails later is an error of `poll`.
    pub fn start(id: &UniqueId, size: i32, rank: i32, config: &Config) -> Result<Communicator, DeviceError> {
        if size < 1 || !(0..size).contains(&rank) {
            let words = format!("rank {rank} of {size}; a communicator has ranks 0 to its size - 1");
            return Err(DeviceError::Usage(words));
        }
        let mut config = config.raw()?;
        // NCCL without a driver complains of an old one; the driver's own check says what is wrong.
        libcuda::ready()?;
        let nccl = library::nccl()?;
        // Made first: if NCCL refuses after it has begun, the drop aborts what there is.
        let mut communicator = Communicator { raw: null_mut(), nccl };
        // SAFETY: NCCL copies the id and the config before it returns, and keeps its own memory otherwise.
        let code =
            unsafe { (nccl.table.init_rank)(&mut communicator.raw, size, RawId(id.0), rank, &mut config) };
        communicator.progress("ncclCommInitRankConfig", code)?;
        Ok(communicator)
    }

    /// Whether the last call has come to its end; or what went wrong, here or (where NCCL can see it) at a peer.
    pub fn poll(&self) -> Result<Progress, DeviceError> {
        let mut state = SUCCESS;
        // SAFETY: the communicator lives, and one number is written.
        match unsafe { (self.nccl.table.async_error)(self.raw, &mut state) } {
            SUCCESS => self.progress("ncclCommGetAsyncError", state),
            code => Err(self.nccl.table.refusal("ncclCommGetAsyncError", code)),
        }
    }

    /// Queues a send of `bytes` bytes from the device's memory on `stream`.
    ///
    /// # Safety
    /// `ptr` has `bytes` readable bytes, which live and do not change until the stream has come past this, and
    /// `stream` is one of the communicator's device.
    pub unsafe fn send(
        &self,
        ptr: u64,
        bytes: usize,
        peer: i32,
        stream: RawStream,
    ) -> Result<Progress, DeviceError> {
        let pointer = ptr as *const c_void;
        // SAFETY: the caller's promise.
        let code = unsafe { (self.nccl.table.send)(pointer, bytes, BYTES, peer, self.raw, stream) };
        self.progress("ncclSend", code)
    }

    /// Queues a receive of `bytes` bytes into the device's memory on `stream`.
    ///
    /// # Safety
    /// `ptr` has `bytes` writable bytes, which nothing else touches until the stream has come past this, and
    /// `stream` is one of the communicator's device.
    pub unsafe fn recv(
        &self,
        ptr: u64,
        bytes: usize,
        peer: i32,
        stream: RawStream,
    ) -> Result<Progress, DeviceError> {
        let pointer = ptr as *mut c_void;
        // SAFETY: the caller's promise.
        let code = unsafe { (self.nccl.table.recv)(pointer, bytes, BYTES, peer, self.raw, stream) };
        self.progress("ncclRecv", code)
    }

    pub fn size(&self) -> Result<i32, DeviceError> {
        self.number("ncclCommCount", self.nccl.table.count)
    }

    pub fn rank(&self) -> Result<i32, DeviceError> {
        self.number("ncclCommUserRank", self.nccl.table.user_rank)
    }

    /// The index of its device.
    pub fn device(&self) -> Result<i32, DeviceError> {
        self.number("ncclCommCuDevice", self.nccl.table.device)
    }

    /// Begins to end it: what is queued is carried out first. Poll until it is ready, then [`Self::destroy`].
    pub fn finalize(&mut self) -> Result<Progress, DeviceError> {
        // SAFETY: the communicator lives.
        let code = unsafe { (self.nccl.table.finalize)(self.raw) };
        self.progress("ncclCommFinalize", code)
    }

    /// Frees it. If it has not been finalised, NCCL does so here, and waits for the peers.
    pub fn destroy(mut self) -> Result<(), DeviceError> {
        let raw = std::mem::replace(&mut self.raw, null_mut());
        // SAFETY: the communicator lives, and is not used after this.
        let code = unsafe { (self.nccl.table.destroy)(raw) };
        self.progress("ncclCommDestroy", code).map(drop)
    }

    /// Frees it, and stops what it has under way on the device. Waits for no peer, only for this device to let go.
    pub fn abort(mut self) -> Result<(), DeviceError> {
        self.abort_once()
    }

    fn abort_once(&mut self) -> Result<(), DeviceError> {
        let raw = std::mem::replace(&mut self.raw, null_mut());
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: the communicator lives, and is not used after this.
        let code = unsafe { (self.nccl.table.abort)(raw) };
        self.progress("ncclCommAbort", code).map(drop)
    }

    fn progress(&self, call: &'static str, code: c_int) -> Result<Progress, DeviceError> {
        progress(self.nccl, call, code)
    }

    fn number(
        &self,
        call: &'static str,
        function: unsafe extern "C" fn(RawCommunicator, *mut c_int) -> c_int,
    ) -> Result<i32, DeviceError> {
        let mut number = 0;
        // SAFETY: the communicator lives, and one number is written.
        let code = unsafe { function(self.raw, &mut number) };
        self.progress(call, code).map(|_| number)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // What fails while ending has nobody left to be told.
        let _ = self.abort_once();
    }
}

/// Sends and receives that are to go together, so that none waits for another. Belongs to its thread.
pub struct Group {
    nccl: &'static Nccl,
    ended: bool,
    /// NCCL counts groups by thread.
    here: PhantomData<*mut ()>,
}

impl Group {
    pub fn start() -> Result<Group, DeviceError> {
        let nccl = library::nccl()?;
        // SAFETY: it only counts up.
        let code = unsafe { (nccl.table.group_start)() };
        progress(nccl, "ncclGroupStart", code)?;
        Ok(Group { nccl, ended: false, here: PhantomData })
    }

    /// Queues all of it. The communicators in it may be in progress after this.
    pub fn end(mut self) -> Result<Progress, DeviceError> {
        self.end_once()
    }

    fn end_once(&mut self) -> Result<Progress, DeviceError> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(Progress::Ready);
        }
        // SAFETY: this thread has a group under way.
        let code = unsafe { (self.nccl.table.group_end)() };
        progress(self.nccl, "ncclGroupEnd", code)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Left open it would hold back every later call of this thread.
        let _ = self.end_once();
    }
}

fn progress(nccl: &Nccl, call: &'static str, code: c_int) -> Result<Progress, DeviceError> {
    match code {
        SUCCESS => Ok(Progress::Ready),
        IN_PROGRESS => Ok(Progress::InProgress),
        code => Err(nccl.table.refusal(call, code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_outside_is_refused_before_nccl_is_looked_for() {
        let start = |size, rank| Communicator::start(&UniqueId([0; 128]), size, rank, &Config::default());
        for (size, rank) in [(0, 0), (2, 2), (2, -1)] {
            assert!(matches!(start(size, rank), Err(DeviceError::Usage(_))));
        }
    }

    #[test]
    fn it_goes_between_threads() {
        fn check<T: Send>() {}
        check::<Communicator>();
    }
}
