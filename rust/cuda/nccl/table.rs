//! NCCL's functions, resolved once, and its codes in words. Result codes are plain numbers: one that a newer
//! NCCL adds must be an error with a number, not a broken enum.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;

use libloading::Library;

use super::config::RawConfig;
use crate::cuda::error::{Answer, DeviceError};

pub const SUCCESS: c_int = 0;
pub const IN_PROGRESS: c_int = 7;
/// `ncclUint8`, as which every tensor travels.
pub const BYTES: c_int = 1;

/// `ncclComm_t`.
pub type RawCommunicator = *mut c_void;
/// `cudaStream_t`, which is the driver's `CUstream`.
pub type RawStream = *mut c_void;

/// `ncclUniqueId`, which C passes by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawId(pub [u8; 128]);

type Code = c_int;

/// The functions by NCCL's names, and `resolve`, which names every one that a library lacks.
macro_rules! functions {
    ($($field:ident = $name:literal: ($($argument:ty),*);)*) => {
        pub struct Table {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> Code,)*
            error_string: unsafe extern "C" fn(Code) -> *const c_char,
            /// Since NCCL 2.13, and only for words.
            last_error: Option<unsafe extern "C" fn(RawCommunicator) -> *const c_char>,
        }

        impl Table {
            pub fn resolve(library: &Library) -> Result<Table, Vec<&'static str>> {
                let mut missing = Vec::new();
                // SAFETY: the types are those of nccl.h since 2.14, where the youngest of them appeared.
                unsafe {
                    $(let $field = library.get(concat!($name, "\0").as_bytes());
                    if $field.is_err() { missing.push($name); })*
                    let error_string = library.get(b"ncclGetErrorString\0");
                    if error_string.is_err() { missing.push("ncclGetErrorString"); }
                    let last_error = library.get(b"ncclGetLastError\0").ok().map(|symbol| *symbol);
                    match ($($field,)* error_string) {
                        ($(Ok($field),)* Ok(error_string)) => {
                            Ok(Table { $($field: *$field,)* error_string: *error_string, last_error })
                        }
                        _ => Err(missing),
                    }
                }
            }
        }
    };
}

functions! {
    get_version = "ncclGetVersion": (*mut c_int);
    get_unique_id = "ncclGetUniqueId": (*mut RawId);
    init_rank = "ncclCommInitRankConfig": (*mut RawCommunicator, c_int, RawId, c_int, *mut RawConfig);
    finalize = "ncclCommFinalize": (RawCommunicator);
    destroy = "ncclCommDestroy": (RawCommunicator);
    abort = "ncclCommAbort": (RawCommunicator);
    async_error = "ncclCommGetAsyncError": (RawCommunicator, *mut c_int);
    count = "ncclCommCount": (RawCommunicator, *mut c_int);
    user_rank = "ncclCommUserRank": (RawCommunicator, *mut c_int);
    device = "ncclCommCuDevice": (RawCommunicator, *mut c_int);
    send = "ncclSend": (*const c_void, usize, c_int, c_int, RawCommunicator, RawStream);
    recv = "ncclRecv": (*mut c_void, usize, c_int, c_int, RawCommunicator, RawStream);
    group_start = "ncclGroupStart": ();
    group_end = "ncclGroupEnd": ();
}

impl Table {
    /// The error for a code that is neither success nor in progress.
    pub fn refusal(&self, call: &'static str, code: Code) -> DeviceError {
        // SAFETY: NCCL takes any number here, and its texts are static.
        let mut text = unsafe { text((self.error_string)(code)) }.unwrap_or_default();
        // SAFETY: its argument is unused, and may be null (NCCL's documentation of it).
        let last = self.last_error.and_then(|last| unsafe { text_of_last(last) });
        if let Some(last) = last.filter(|last| !last.is_empty()) {
            text = format!("{text}: {last}");
        }
        DeviceError::Nccl {
            call,
            answer: Answer { code, name: name(code).to_string(), text },
        }
    }

    pub fn version(&self) -> Result<Version, DeviceError> {
        let mut code = 0;
        // SAFETY: it writes one number.
        match unsafe { (self.get_version)(&mut code) } {
            SUCCESS => Ok(Version::from_code(code)),
            failure => Err(self.refusal("ncclGetVersion", failure)),
        }
    }
}

/// NCCL's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: i32,
    pub minor: i32,
    pub patch: i32,
}

impl Version {
    /// The first with `ncclCommInitRankConfig`, without which a start cannot be given a deadline.
    pub const LEAST: Version = Version { major: 2, minor: 14, patch: 0 };

    /// NCCL up to 2.8 wrote the minor version in one digit, later ones in two: 2708, but 21403.
    pub fn from_code(code: i32) -> Version {
        let major = if code < 10_000 { 1_000 } else { 10_000 };
        Version {
            major: code / major,
            minor: code % major / 100,
            patch: code % 100,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// `ncclResult_t` in nccl.h's names.
fn name(code: Code) -> &'static str {
    const NAMES: [&str; 9] = [
        "ncclSuccess",
        "ncclUnhandledCudaError",
        "ncclSystemError",
        "ncclInternalError",
        "ncclInvalidArgument",
        "ncclInvalidUsage",
        "ncclRemoteError",
        "ncclInProgress",
        "ncclTimeout",
    ];
    usize::try_from(code).ok().and_then(|index| NAMES.get(index)).copied().unwrap_or("an unknown code")
}

/// # Safety
/// A text of C, or null.
unsafe fn text(words: *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    (!words.is_null()).then(|| unsafe { CStr::from_ptr(words) }.to_string_lossy().trim().to_string())
}

/// # Safety
/// `last` is `ncclGetLastError`.
unsafe fn text_of_last(last: unsafe extern "C" fn(RawCommunicator) -> *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    unsafe { text(last(std::ptr::null_mut())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_both_codes() {
        assert_eq!(Version::from_code(2708).to_string(), "2.7.8");
        assert_eq!(Version::from_code(21403).to_string(), "2.14.3");
        assert_eq!(Version::from_code(23007).to_string(), "2.30.7");
        assert!(Version::from_code(2804) < Version::LEAST && Version::from_code(21400) >= Version::LEAST);
    }

    #[test]
    fn an_unknown_code_has_a_name() {
        assert_eq!((name(5), name(9), name(-1)), ("ncclInvalidUsage", "an unknown code", "an unknown code"));
    }
}
