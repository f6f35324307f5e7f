//! Shared libraries: opening one, whether one is loaded already, and which file a loaded one is.
//!
//! Only what libloading leaves to each system; nothing here knows CUDA or NCCL.

use std::error::Error;
use std::ffi::OsStr;
use std::path::PathBuf;

use libloading::Library;

/// Opens a library by path or by name.
///
/// # Safety
/// The library's own start-up code runs; the caller answers for what the file is.
pub unsafe fn open(file: impl AsRef<OsStr>) -> Result<Library, String> {
    // SAFETY: the caller's promise.
    unsafe { Library::new(file.as_ref()) }.map_err(|error| why(&error))
}

/// The library of that name that this process has already loaded, without loading one.
#[cfg(unix)]
pub fn open_if_loaded(name: &str) -> Option<Library> {
    use libloading::os::unix;
    // SAFETY: RTLD_NOLOAD runs no start-up code: the library is there already, or is not opened.
    let library = unsafe { unix::Library::open(Some(name), unix::RTLD_LAZY | libc::RTLD_NOLOAD) };
    library.ok().map(Library::from)
}

#[cfg(not(unix))]
pub fn open_if_loaded(_name: &str) -> Option<Library> {
    None
}

/// The file that `symbol` of a loaded library is from.
#[cfg(unix)]
pub fn path_of(library: &Library, symbol: &str) -> Option<PathBuf> {
    use std::ffi::{CStr, c_void};
    use std::os::unix::ffi::OsStrExt;

    // SAFETY: the address is only looked up, never called or read through.
    let address = *unsafe { library.get::<*const c_void>(symbol) }.ok()?;
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr fills `info` or answers 0, and the name it gives lives as long as the library.
    let file = unsafe {
        if libc::dladdr(address, info.as_mut_ptr()) == 0 {
            return None;
        }
        let name = info.assume_init().dli_fname;
        if name.is_null() {
            return None;
        }
        PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes()))
    };
    // A name like "libcuda.so.1" stands for itself; a path is shown without its links.
    Some(file.canonicalize().unwrap_or(file))
}

#[cfg(not(unix))]
pub fn path_of(_library: &Library, _symbol: &str) -> Option<PathBuf> {
    None
}

/// The system's own words for why a library did not open; libloading keeps them in the source.
fn why(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_loaded_library_has_a_path() {
        let library = open_if_loaded("libc.so.6").expect("every process has the C library");
        assert!(path_of(&library, "printf").unwrap().to_string_lossy().contains("libc"));
    }

    #[test]
    fn a_missing_file_says_so() {
        assert!(open_if_loaded("libnothing.so.9").is_none());
        // SAFETY: there is no such file.
        let words = unsafe { open("/nowhere/libnothing.so") }.unwrap_err();
        assert!(words.contains("No such file"), "{words}");
    }
}
