//! A diagnosis in words: the report, and what to do.

use std::fmt;

use super::{DeviceFound, Diagnosis, DriverFound, NcclFound};
use crate::cuda::error::DeviceError;
use crate::cuda::nccl::library::VARIABLE;

/// The driver's answer to `cuInit` where there is a driver and no device to be seen.
const NO_DEVICE: i32 = 100;
/// The toolkit's libcuda to link against, found in the place of the driver's.
const STUB: i32 = 34;

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnosis { driver, devices, nccl, advice } = self;
        let version = driver.version.map(|(major, minor)| format!("CUDA {major}.{minor}"));
        part(f, "driver", version, driver.path.as_deref(), driver.error.as_ref())?;
        for device in devices {
            writeln!(f, "{device}")?;
        }
        let version = nccl.version.map(|(major, minor, patch)| format!("{major}.{minor}.{patch}"));
        part(f, "NCCL", version, nccl.path.as_deref(), nccl.error.as_ref())?;
        let last = advice.len().saturating_sub(1);
        for (index, sentence) in advice.iter().enumerate() {
            write!(f, "{:9}{sentence}{}", "advice", if index < last { "\n" } else { "" })?;
        }
        if advice.is_empty() { write!(f, "{:9}nothing is missing", "advice") } else { Ok(()) }
    }
}

impl fmt::Display for DeviceFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceFound {
            index,
            name,
            compute_capability: (major, minor),
            memory_pools,
            uuid,
        } = self;
        let pools = if *memory_pools { "memory pools" } else { "no memory pools" };
        write!(f, "{:9}{index}: {name}, compute capability {major}.{minor}, {pools}, {uuid}", "device")
    }
}

fn part(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    version: Option<String>,
    path: Option<&str>,
    error: Option<&DeviceError>,
) -> fmt::Result {
    let found: Vec<String> = version.into_iter().chain(path.map(str::to_string)).collect();
    if !found.is_empty() {
        writeln!(f, "{name:9}{}", found.join(", "))?;
    }
    if let Some(error) = error {
        writeln!(f, "{name:9}not usable: {error}")?;
    }
    Ok(())
}

pub fn advice(driver: &DriverFound, devices: &[DeviceFound], nccl: &NcclFound) -> Vec<String> {
    let mut advice = Vec::new();
    let mut say = |sentence: String| advice.push(sentence);
    if let Some(sentence) = driver_advice(driver, devices) {
        say(format!("{sentence}; everything else of this package runs without a GPU"));
    }
    for device in devices.iter().filter(|device| !device.memory_pools) {
        let index = device.index;
        say(format!("device {index} has no memory pools (it is a virtual or an old one): use another"));
    }
    if let Some(sentence) = nccl.error.as_ref().and_then(|error| nccl_advice(error, driver.version)) {
        say(sentence);
    }
    advice
}

fn driver_advice(driver: &DriverFound, devices: &[DeviceFound]) -> Option<String> {
    match &driver.error {
        None if devices.is_empty() => Some("the driver sees no device".to_string()),
        None => None,
        Some(DeviceError::NotFound { .. }) => {
            Some("no NVIDIA driver: install one to use a GPU, in a container with --gpus all".to_string())
        }
        Some(DeviceError::MissingSymbols { .. }) => {
            Some("the driver is too old or not NVIDIA's: install one of CUDA 11.4 or later".to_string())
        }
        Some(DeviceError::Driver { answer, .. }) if answer.code == NO_DEVICE => {
            Some("the driver sees no device: look at nvidia-smi and CUDA_VISIBLE_DEVICES".to_string())
        }
        Some(DeviceError::Driver { answer, .. }) if answer.code == STUB => {
            Some("libcuda is the toolkit's stub: take its folder out of LD_LIBRARY_PATH".to_string())
        }
        Some(_) => Some("the driver does not work: look at what nvidia-smi says".to_string()),
    }
}

/// The package that fits the driver; with no driver, both.
fn nccl_advice(error: &DeviceError, driver: Option<(i32, i32)>) -> Option<String> {
    let package = match driver {
        Some((major @ ..=12, _)) => format!("nvidia-nccl-cu{}", major.max(11)),
        Some(_) => "nvidia-nccl-cu13".to_string(),
        None => "nvidia-nccl-cu12 (or nvidia-nccl-cu13, for CUDA 13)".to_string(),
    };
    match error {
        DeviceError::NotFound { looked, .. } if looked.iter().any(|place| place.contains(VARIABLE)) => {
            Some(format!("{VARIABLE} names no usable NCCL: unset it, or name libnccl.so.2 or its folder"))
        }
        DeviceError::NotFound { .. } => Some(format!("no NCCL: pip install {package}")),
        DeviceError::TooOld { .. } => Some(format!("NCCL is too old: pip install --upgrade {package}")),
        _ => Some(format!(
            "NCCL is not usable: pip install --upgrade {package}, or set {VARIABLE} to a whole one"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_driver() -> DriverFound {
        let error = Some(DeviceError::NotFound { library: "libcuda", looked: vec!["here".to_string()] });
        DriverFound { path: None, version: None, error }
    }

    #[test]
    fn nothing_here_is_told_in_words() {
        let error = Some(DeviceError::NotFound { library: "NCCL", looked: vec!["libnccl.so.2".to_string()] });
        let (driver, nccl) = (without_driver(), NcclFound { path: None, version: None, error });
        let advice = advice(&driver, &[], &nccl);
        assert!(advice[0].starts_with("no NVIDIA driver") && advice[0].ends_with("without a GPU"));
        assert_eq!(advice[1], "no NCCL: pip install nvidia-nccl-cu12 (or nvidia-nccl-cu13, for CUDA 13)");
        let report = Diagnosis { driver, devices: vec![], nccl, advice }.to_string();
        assert!(report.contains("driver   not usable: libcuda was not found; looked for here"), "{report}");
    }

    #[test]
    fn all_there_needs_no_advice() {
        let driver = DriverFound {
            path: Some("/x".to_string()),
            version: Some((12, 4)),
            error: None,
        };
        let nccl = NcclFound { path: None, version: Some((2, 20, 5)), error: None };
        let (name, uuid) = ("A".to_string(), "GPU-0".to_string());
        let device = DeviceFound {
            index: 0,
            name,
            compute_capability: (9, 0),
            memory_pools: true,
            uuid,
        };
        let advice = advice(&driver, std::slice::from_ref(&device), &nccl);
        assert!(advice.is_empty());
        let report = Diagnosis { driver, devices: vec![device], nccl, advice }.to_string();
        assert!(report.ends_with("nothing is missing"), "{report}");
    }

    #[test]
    fn the_package_fits_the_driver() {
        let error = DeviceError::NotFound { library: "NCCL", looked: vec![] };
        let words = |version| nccl_advice(&error, version).unwrap();
        assert_eq!(words(Some((12, 8))), "no NCCL: pip install nvidia-nccl-cu12");
        assert_eq!(words(Some((13, 1))), "no NCCL: pip install nvidia-nccl-cu13");
    }
}
