//! What of CUDA is here: driver, devices, NCCL, and what to do about what is not. Fails never.

use std::ffi::{c_char, c_int};

use super::error::DeviceError;
use super::libcuda;
use super::nccl::library;

mod report;

/// Everything that was found, and what was not, with the reason.
#[derive(Debug, Clone)]
pub struct Diagnosis {
    pub driver: DriverFound,
    pub devices: Vec<DeviceFound>,
    pub nccl: NcclFound,
    /// What to install or to look at, a sentence each; empty if nothing is missing.
    pub advice: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct DriverFound {
    pub path: Option<String>,
    /// The CUDA version that it supports, such as (12, 4).
    pub version: Option<(i32, i32)>,
    /// Why it is not usable.
    pub error: Option<DeviceError>,
}

#[derive(Debug, Clone)]
pub struct DeviceFound {
    pub index: i32,
    pub name: String,
    /// Such as (9, 0).
    pub compute_capability: (i32, i32),
    /// Whether memory can be allocated in a stream's order (`cudaMallocAsync`).
    pub memory_pools: bool,
    pub uuid: String,
}

#[derive(Debug, Clone)]
pub struct NcclFound {
    pub path: Option<String>,
    pub version: Option<(i32, i32, i32)>,
    /// Why it is not usable.
    pub error: Option<DeviceError>,
}

/// Whether the driver is usable and has a device.
pub fn is_available() -> bool {
    device_count().is_ok_and(|count| count > 0)
}

/// Looks at everything. Loads NCCL if it is found.
pub fn diagnose() -> Diagnosis {
    let (devices, trouble) = match all_devices() {
        Ok(devices) => (devices, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let path = libcuda::path().map(|path| path.display().to_string());
    let driver = DriverFound { path, version: driver_version(), error: trouble };
    let nccl = nccl_found();
    let advice = report::advice(&driver, &devices, &nccl);
    Diagnosis { driver, devices, nccl, advice }
}

fn nccl_found() -> NcclFound {
    match library::nccl() {
        Ok(nccl) => NcclFound {
            path: nccl.path.as_ref().map(|path| path.display().to_string()),
            version: Some((nccl.version.major, nccl.version.minor, nccl.version.patch)),
            error: None,
        },
        Err(error) => NcclFound { path: None, version: None, error: Some(error) },
    }
}

type One = unsafe extern "C" fn(*mut c_int) -> c_int;

/// Known without a device: `cuDriverGetVersion` needs no `cuInit`.
fn driver_version() -> Option<(i32, i32)> {
    let mut code = 0;
    // SAFETY: it writes one number.
    libcuda::invoke("cuDriverGetVersion", |function: One| unsafe { function(&mut code) }).ok()?;
    Some((code / 1000, code % 1000 / 10))
}

fn device_count() -> Result<i32, DeviceError> {
    libcuda::ready()?;
    let mut count = 0;
    // SAFETY: it writes one number.
    libcuda::invoke("cuDeviceGetCount", |function: One| unsafe { function(&mut count) })?;
    Ok(count)
}

fn all_devices() -> Result<Vec<DeviceFound>, DeviceError> {
    (0..device_count()?).map(device).collect()
}

fn device(index: i32) -> Result<DeviceFound, DeviceError> {
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    const MEMORY_POOLS: c_int = 115;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    type Uuid = unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int;

    let (mut device, mut name, mut uuid) = (0, [0u8; 256], [0u8; 16]);
    let length = name.len() as c_int - 1; // the last byte stays 0
    // SAFETY: each writes what it is handed the address of, no more than the length that it is told.
    unsafe {
        libcuda::invoke("cuDeviceGet", |function: Get| function(&mut device, index))?;
        libcuda::invoke("cuDeviceGetName", |function: Name| {
            function(name.as_mut_ptr().cast(), length, device)
        })?;
        libcuda::invoke("cuDeviceGetUuid", |function: Uuid| function(&mut uuid, device))?;
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(DeviceFound {
        index,
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        compute_capability: (attribute(MAJOR, device)?, attribute(MINOR, device)?),
        memory_pools: attribute(MEMORY_POOLS, device)? != 0,
        uuid: uuid_words(uuid),
    })
}

fn attribute(attribute: c_int, device: c_int) -> Result<i32, DeviceError> {
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    let mut value = 0;
    // SAFETY: it writes one number.
    libcuda::invoke("cuDeviceGetAttribute", |function: Attribute| unsafe {
        function(&mut value, attribute, device)
    })?;
    Ok(value)
}

/// As `nvidia-smi -L` and `CUDA_VISIBLE_DEVICES` write it.
fn uuid_words(bytes: [u8; 16]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    format!("GPU-{}", parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_its_dashes() {
        let bytes = std::array::from_fn(|index| index as u8);
        assert_eq!(uuid_words(bytes), "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f");
    }

    #[test]
    fn it_fails_never() {
        let diagnosis = diagnose();
        assert_eq!(is_available(), !diagnosis.devices.is_empty());
        assert!(is_available() || !diagnosis.advice.is_empty());
        assert!(diagnosis.to_string().contains("NCCL"));
    }
}
