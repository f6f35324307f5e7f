//! The error numbers of both libraries, with their names. Not their meaning: that is where they are returned.

/// Success, or the number that an exported function returns.
pub type Res<T = ()> = Result<T, i32>;

pub const INVALID_VALUE: i32 = 1;
pub const OUT_OF_MEMORY: i32 = 2;
pub const NOT_INITIALIZED: i32 = 3;
pub const INVALID_DEVICE: i32 = 101;
pub const INVALID_CONTEXT: i32 = 201;
pub const INVALID_HANDLE: i32 = 400;
pub const NOT_READY: i32 = 600;
pub const CONTEXT_IS_DESTROYED: i32 = 709;
pub const NOT_PERMITTED: i32 = 800;
pub const UNKNOWN: i32 = 999;

pub const NCCL_UNHANDLED_CUDA: i32 = 1;
pub const NCCL_INTERNAL: i32 = 3;
pub const NCCL_INVALID_ARGUMENT: i32 = 4;
pub const NCCL_INVALID_USAGE: i32 = 5;
pub const NCCL_REMOTE: i32 = 6;
pub const NCCL_IN_PROGRESS: i32 = 7;

/// (number, name, sentence), each ended by NUL as C wants it.
const CUDA: [(i32, &str, &str); 21] = [
    (0, "CUDA_SUCCESS\0", "no error\0"),
    (1, "CUDA_ERROR_INVALID_VALUE\0", "invalid argument\0"),
    (2, "CUDA_ERROR_OUT_OF_MEMORY\0", "out of memory\0"),
    (3, "CUDA_ERROR_NOT_INITIALIZED\0", "initialization error\0"),
    (4, "CUDA_ERROR_DEINITIALIZED\0", "driver shutting down\0"),
    (100, "CUDA_ERROR_NO_DEVICE\0", "no CUDA-capable device is detected\0"),
    (101, "CUDA_ERROR_INVALID_DEVICE\0", "invalid device ordinal\0"),
    (201, "CUDA_ERROR_INVALID_CONTEXT\0", "invalid device context\0"),
    (214, "CUDA_ERROR_ECC_UNCORRECTABLE\0", "uncorrectable ECC error encountered\0"),
    (304, "CUDA_ERROR_OPERATING_SYSTEM\0", "OS call failed or operation not supported on this OS\0"),
    (400, "CUDA_ERROR_INVALID_HANDLE\0", "invalid resource handle\0"),
    (401, "CUDA_ERROR_ILLEGAL_STATE\0", "the operation cannot be performed in the present state\0"),
    (500, "CUDA_ERROR_NOT_FOUND\0", "named symbol not found\0"),
    (600, "CUDA_ERROR_NOT_READY\0", "device not ready\0"),
    (700, "CUDA_ERROR_ILLEGAL_ADDRESS\0", "an illegal memory access was encountered\0"),
    (702, "CUDA_ERROR_LAUNCH_TIMEOUT\0", "the launch timed out and was terminated\0"),
    (709, "CUDA_ERROR_CONTEXT_IS_DESTROYED\0", "context is destroyed\0"),
    (719, "CUDA_ERROR_LAUNCH_FAILED\0", "unspecified launch failure\0"),
    (800, "CUDA_ERROR_NOT_PERMITTED\0", "operation not permitted\0"),
    (801, "CUDA_ERROR_NOT_SUPPORTED\0", "operation not supported\0"),
    (999, "CUDA_ERROR_UNKNOWN\0", "unknown error\0"),
];

const NCCL: [&str; 8] = [
    "no error\0",
    "unhandled cuda error\0",
    "unhandled system error\0",
    "internal error\0",
    "invalid argument\0",
    "invalid usage\0",
    "remote process exited or there was a network error\0",
    "NCCL operation in progress\0",
];

pub fn cuda(code: i32) -> Option<(&'static str, &'static str)> {
    CUDA.iter().find(|entry| entry.0 == code).map(|entry| (entry.1, entry.2))
}

pub fn nccl(code: i32) -> &'static str {
    usize::try_from(code).ok().and_then(|i| NCCL.get(i)).unwrap_or(&"unknown result code\0")
}
