//! NVIDIA's driver library: whether it is there, whole and willing. Checked before any other call, since
//! cudarc's functions panic where the library or a symbol is missing.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::driver::sys;
use libloading::Library;

use super::error::{Answer, DeviceError};
use super::loading;

/// Every function of the driver that is called anywhere in this package.
const SYMBOLS: [&str; 28] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetUuid",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxGetStreamPriorityRange",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventElapsedTime",
    "cuMemPoolCreate",
    "cuMemPoolDestroy",
    "cuMemPoolSetAttribute",
    "cuMemAllocFromPoolAsync",
    "cuMemFreeAsync",
    "cuMemcpyDtoDAsync_v2",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// The driver's library with every symbol that is used; found or not, the answer is kept.
///
/// A library that appears later is not seen: cudarc keeps the one it opened first, too.
pub fn library() -> Result<&'static Library, DeviceError> {
    static CHECKED: OnceLock<Result<&'static Library, DeviceError>> = OnceLock::new();
    CHECKED.get_or_init(whole).clone()
}

/// The driver's library with every symbol, and `cuInit` has succeeded.
///
/// A process that is forked after this cannot use CUDA (as after torch's first use of it); spawned ones can.
pub fn ready() -> Result<(), DeviceError> {
    // cuInit is cheap the second time, and may succeed later: a refusal is not kept.
    invoke("cuInit", |cu_init: unsafe extern "C" fn(c_uint) -> c_int| {
        // SAFETY: its only flag is 0.
        unsafe { cu_init(0) }
    })
}

/// The file of the driver's library, whether or not all symbols are in it.
pub fn path() -> Option<PathBuf> {
    present().and_then(|library| loading::path_of(library, "cuInit"))
}

/// Calls a function of the driver's library by its name, and turns its code into a result.
///
/// Codes stay numbers here: cudarc's enum of them must not be made from one that it does not know.
pub(super) fn invoke<F: Copy>(name: &'static str, call: impl FnOnce(F) -> c_int) -> Result<(), DeviceError> {
    let library = library()?;
    // SAFETY: the type is the one in cuda.h; each caller names it beside the function's name.
    let function = unsafe { library.get::<F>(name) };
    let function = *function.map_err(|_| missing(vec![name]))?;
    match call(function) {
        0 => Ok(()),
        code => Err(refusal(name, code)),
    }
}

/// A code other than 0 from a function of the driver, with the driver's words for it.
pub fn refusal(call: &'static str, code: i32) -> DeviceError {
    let name = words("cuGetErrorName", code).unwrap_or_else(|| "an unknown code".to_string());
    let text = words("cuGetErrorString", code).unwrap_or_default();
    DeviceError::Driver { call, answer: Answer { code, name, text } }
}

fn present() -> Option<&'static Library> {
    // SAFETY: opening NVIDIA's driver library runs its start-up code alone. `culib` panics where nothing
    // is found, so it is asked second.
    unsafe { sys::is_culib_present().then(|| sys::culib()) }
}

fn whole() -> Result<&'static Library, DeviceError> {
    let Some(library) = present() else {
        let looked = vec!["libcuda.so and libcuda.so.1 where the system's loader looks".to_string()];
        return Err(DeviceError::NotFound { library: "NVIDIA's driver library (libcuda)", looked });
    };
    // SAFETY: symbols are only looked up.
    let lacks = |name: &&str| unsafe { library.get::<*const ()>(*name) }.is_err();
    let symbols: Vec<&'static str> = SYMBOLS.into_iter().filter(|name| lacks(name)).collect();
    if symbols.is_empty() { Ok(library) } else { Err(missing(symbols)) }
}

pub(super) fn missing(symbols: Vec<&'static str>) -> DeviceError {
    let library = path().map_or_else(|| "libcuda".to_string(), |path| path.display().to_string());
    DeviceError::MissingSymbols { library, symbols }
}

/// What `cuGetErrorName` or `cuGetErrorString` says of a code.
fn words(function: &'static str, code: i32) -> Option<String> {
    type Words = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
    let library = library().ok()?;
    let mut text = std::ptr::null();
    // SAFETY: both have this type; they leave null, or a text that lives as long as the library.
    unsafe {
        let answer = library.get::<Words>(function).ok()?(code, &mut text);
        (answer == 0 && !text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_it_is_an_error_and_no_panic() {
        match ready() {
            Ok(()) | Err(DeviceError::Driver { .. } | DeviceError::MissingSymbols { .. }) => {}
            Err(error) => assert!(error.to_string().contains("libcuda.so.1"), "{error}"),
        }
    }

    #[test]
    fn an_unknown_code_has_words() {
        assert!(
            refusal("cuInit", 987_654).to_string().starts_with("cuInit failed: an unknown code (987654)")
        );
    }
}
