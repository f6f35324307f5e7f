//! One large reserved range of addresses, given out upwards and never twice until it is reset, so that an
//! address says whether it is the device's. Not who owns which part: that is `memory.rs`.

use std::ffi::{c_int, c_void};

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        len: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
}

const READ_WRITE: c_int = 3;
#[cfg(target_os = "linux")]
const PRIVATE_ANONYMOUS_NORESERVE: c_int = 0x2 | 0x20 | 0x4000;
#[cfg(not(target_os = "linux"))]
const PRIVATE_ANONYMOUS_NORESERVE: c_int = 0x2 | 0x1000 | 0x40;
const DONT_NEED: c_int = 4;

/// As cuMemAlloc aligns.
const ALIGN: u64 = 512;
/// Between two allocations, so that running over an end hits nobody.
const GAP: u64 = 512;

#[derive(Default)]
pub struct Arena {
    base: u64,
    size: u64,
    used: u64,
}

impl Arena {
    /// The largest of a few sizes that this system reserves; pages come with their first touch.
    fn reserve(&mut self) {
        for bits in [38, 36, 34, 32, 30] {
            let len = 1usize << bits;
            // SAFETY: a fresh anonymous mapping anywhere disturbs nothing.
            let at =
                unsafe { mmap(std::ptr::null_mut(), len, READ_WRITE, PRIVATE_ANONYMOUS_NORESERVE, -1, 0) };
            if at as isize != -1 {
                (self.base, self.size) = (at as u64, len as u64);
                return;
            }
        }
    }

    pub fn take(&mut self, len: u64) -> Option<u64> {
        if self.size == 0 {
            self.reserve();
        }
        let step = len.checked_add(GAP)?.checked_next_multiple_of(ALIGN)?;
        if step > self.size - self.used {
            return None;
        }
        let at = self.base + self.used;
        self.used += step;
        Some(at)
    }

    pub fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.base) < self.size
    }

    /// Gives the pages back and starts again at the first address. `in_use`: someone may still touch the
    /// pages, so that a new range is reserved and the old one left to them.
    pub fn reset(&mut self, in_use: bool) {
        if in_use {
            *self = Self::default();
        } else if self.used > 0 {
            // SAFETY: our own mapping, of which nobody holds an address any more.
            unsafe { madvise(self.base as *mut c_void, self.used as usize, DONT_NEED) };
            self.used = 0;
        }
    }
}
