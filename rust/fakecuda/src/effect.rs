//! What an operation really does to memory, carried out by a worker without any lock: two operations that
//! nothing orders really meet. Not whether it is allowed to: `memory.rs`.

use std::ffi::c_void;

use crate::host;

/// What fresh and freed memory holds: as an f64, -7e+54.
pub const POISON: u8 = 0xCB;

pub type Callback = extern "C" fn(*mut c_void);

#[derive(Clone, Copy)]
pub enum Effect {
    Nothing,
    Fill {
        at: u64,
        value: u8,
        len: u64,
    },
    Copy {
        to: u64,
        from: u64,
        len: u64,
    },
    Axpb {
        to: u64,
        from: u64,
        count: u64,
        a: f64,
        b: f64,
    },
    /// `argument` is a pointer that is the caller's to keep alive.
    Call {
        function: Callback,
        argument: usize,
    },
}

impl Effect {
    pub fn is_call(&self) -> bool {
        matches!(self, Self::Call { .. })
    }

    /// Carries it out. The addresses lie in allocations that are never unmapped, or in host memory that the
    /// caller vouches for, as with the real library.
    pub fn run(self) {
        match self {
            Self::Nothing => {}
            // SAFETY: see above.
            Self::Fill { at, value, len } => unsafe {
                std::ptr::write_bytes(at as *mut u8, value, len as usize)
            },
            // SAFETY: see above; `copy` allows an overlap.
            Self::Copy { to, from, len } => unsafe {
                std::ptr::copy(from as *const u8, to as *mut u8, len as usize);
            },
            Self::Axpb { to, from, count, a, b } => {
                axpb(to as *mut f64, from as *const f64, count as usize, a, b)
            }
            Self::Call { function, argument } => host::within_callback(|| function(argument as *mut c_void)),
        }
    }
}

fn axpb(to: *mut f64, from: *const f64, count: usize, a: f64, b: f64) {
    for i in 0..count {
        // SAFETY: see `Effect::run`. Volatile, since another stream may touch the same bytes, which is what is
        // to be found.
        unsafe { to.add(i).write_volatile(a * from.add(i).read_volatile() + b) };
    }
}
