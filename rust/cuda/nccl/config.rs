//! How a communicator is started: `ncclConfig_t` as NCCL 2.17 has it.
//!
//! NCCL copies as many bytes as the smaller of its own struct and `size`, and takes the fields that `version`
//! had: a newer NCCL leaves its own defaults in the fields that are not here, and 2.14 to 2.16 read `blocking`
//! alone. So one layout serves every NCCL from 2.14.

use std::ffi::{c_char, c_int, c_uint};

use crate::cuda::error::DeviceError;

/// What a communicator may take of a device. `None` is NCCL's own choice.
///
/// Each operation under way runs on one CTA (an SM's worth of threads) per channel. NCCL takes up to 32 of
/// them, and for each peer and channel buffers of `NCCL_BUFFSIZE` (4 MiB unless that variable says otherwise)
/// when that peer is first sent to or received from. Fewer CTAs leave more of the device to compute, and take
/// less memory. NCCL before 2.17 ignores both numbers; its variables `NCCL_MIN_CTAS` and `NCCL_MAX_CTAS` win.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    pub min_ctas: Option<u32>,
    pub max_ctas: Option<u32>,
}

const MAGIC: c_uint = 0xcafe_beef;
const VERSION: c_uint = 21_700;
/// `NCCL_CONFIG_UNDEF_INT`: NCCL chooses.
const UNDEFINED: c_int = c_int::MIN;

#[repr(C)]
pub struct RawConfig {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
}

impl Config {
    /// The struct for a communicator whose calls never wait for another rank.
    pub(super) fn raw(&self) -> Result<RawConfig, DeviceError> {
        let (min_ctas, max_ctas) = (ctas("min_ctas", self.min_ctas)?, ctas("max_ctas", self.max_ctas)?);
        if min_ctas > max_ctas && max_ctas != UNDEFINED {
            let words = format!("min_ctas is {min_ctas} and max_ctas {max_ctas}; the first is the smaller");
            return Err(DeviceError::Usage(words));
        }
        Ok(RawConfig {
            size: size_of::<RawConfig>(),
            magic: MAGIC,
            version: VERSION,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas,
            max_ctas,
            net_name: std::ptr::null(),
        })
    }
}

fn ctas(name: &str, number: Option<u32>) -> Result<c_int, DeviceError> {
    match number {
        None => Ok(UNDEFINED),
        Some(number @ 1..=1024) => Ok(number as c_int),
        Some(number) => Err(DeviceError::Usage(format!("{name} is {number}; it is from 1 to 1024"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_2_17() {
        assert_eq!(size_of::<RawConfig>(), 40);
        assert_eq!(std::mem::offset_of!(RawConfig, blocking), 16);
        assert_eq!(std::mem::offset_of!(RawConfig, net_name), 32);
    }

    #[test]
    fn numbers_are_checked() {
        assert!(Config::default().raw().is_ok());
        assert!(Config { min_ctas: Some(1), max_ctas: Some(4) }.raw().is_ok());
        assert!(Config { min_ctas: Some(5), max_ctas: Some(4) }.raw().is_err());
        assert!(Config { min_ctas: None, max_ctas: Some(0) }.raw().is_err());
    }
}
