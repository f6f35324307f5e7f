//! Devices, streams, events and memory of the CUDA driver, each let go of when it is dropped.
//!
//! Nothing here waits for a device. Results are taken as plain integers: a newer driver's codes are no values of
//! the enum that a binding knows.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys;

use super::error::DeviceError;
use super::libcuda;

/// The functions used, by the names under which libcuda exports them.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        #[allow(non_snake_case)]
        struct Functions { $($name: unsafe extern "C" fn($($argument),*) -> c_int),* }

        impl Functions {
            fn load() -> Result<Functions, DeviceError> {
                let library = libcuda::library()?;
                // SAFETY: the types are those of cuda.h; that all are there, library() has seen.
                Ok(Functions { $($name: *unsafe { library.get(stringify!($name)) }
                    .map_err(|_| libcuda::missing(vec![stringify!($name)]))?),* })
            }
        }
    };
}

functions! {
    cuDeviceGet(*mut sys::CUdevice, c_int);
    cuDevicePrimaryCtxRetain(*mut sys::CUcontext, sys::CUdevice);
    cuDevicePrimaryCtxRelease_v2(sys::CUdevice);
    cuCtxPushCurrent_v2(sys::CUcontext);
    cuCtxPopCurrent_v2(*mut sys::CUcontext);
    cuCtxGetStreamPriorityRange(*mut c_int, *mut c_int);
    cuStreamCreateWithPriority(*mut sys::CUstream, c_uint, c_int);
    cuStreamDestroy_v2(sys::CUstream);
    cuStreamWaitEvent(sys::CUstream, sys::CUevent, c_uint);
    cuEventCreate(*mut sys::CUevent, c_uint);
    cuEventDestroy_v2(sys::CUevent);
    cuEventRecord(sys::CUevent, sys::CUstream);
    cuEventQuery(sys::CUevent);
    cuEventElapsedTime(*mut f32, sys::CUevent, sys::CUevent);
    cuMemPoolCreate(*mut sys::CUmemoryPool, *const sys::CUmemPoolProps);
    cuMemPoolDestroy(sys::CUmemoryPool);
    cuMemPoolSetAttribute(sys::CUmemoryPool, c_uint, *mut c_void);
    cuMemAllocFromPoolAsync(*mut sys::CUdeviceptr, usize, sys::CUmemoryPool, sys::CUstream);
    cuMemFreeAsync(sys::CUdeviceptr, sys::CUstream);
    cuMemcpyDtoDAsync_v2(sys::CUdeviceptr, sys::CUdeviceptr, usize, sys::CUstream);
}

const NOT_READY: c_int = 600;

macro_rules! call {
    ($name:ident($($argument:expr),*)) => {
        // SAFETY: handles are those of live objects of this file, and out-pointers are of their type.
        check(stringify!($name), unsafe { (functions()?.$name)($($argument),*) })
    };
}

fn functions() -> Result<&'static Functions, DeviceError> {
    static LOADED: OnceLock<Result<Functions, DeviceError>> = OnceLock::new();
    LOADED.get_or_init(Functions::load).as_ref().map_err(Clone::clone)
}

fn check(call: &'static str, code: c_int) -> Result<(), DeviceError> {
    if code == 0 { Ok(()) } else { Err(libcuda::refusal(call, code)) }
}

/// One GPU: its primary context, which torch and CuPy use too, and a pool of memory of its own.
#[derive(Debug)]
pub struct Device {
    ordinal: i32,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    pool: sys::CUmemoryPool,
    priority: c_int,
}

// SAFETY: the driver's handles may be used from any thread in which their context is current.
unsafe impl Send for Device {}
unsafe impl Sync for Device {}

impl Device {
    pub fn open(ordinal: i32) -> Result<Arc<Device>, DeviceError> {
        libcuda::ready()?;
        let mut handle = 0;
        call!(cuDeviceGet(&mut handle, ordinal))?;
        let mut context = std::ptr::null_mut();
        call!(cuDevicePrimaryCtxRetain(&mut context, handle))?;
        // From here on dropping it lets go of what was taken.
        let mut device = Device {
            ordinal,
            handle,
            context,
            pool: std::ptr::null_mut(),
            priority: 0,
        };
        let entered = device.enter()?;
        let (mut least, mut greatest) = (0, 0);
        call!(cuCtxGetStreamPriorityRange(&mut least, &mut greatest))?;
        drop(entered);
        device.priority = greatest;
        device.pool = device.make_pool()?;
        Ok(Arc::new(device))
    }

    /// Memory that is freed stays with the pool: a step takes about as much as the one before.
    fn make_pool(&self) -> Result<sys::CUmemoryPool, DeviceError> {
        let _entered = self.enter()?;
        // SAFETY: plain numbers and null pointers, for which zero is a value.
        let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
        properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        properties.location.id = self.handle;
        let mut pool = std::ptr::null_mut();
        call!(cuMemPoolCreate(&mut pool, &properties))?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as c_uint;
        let mut everything = u64::MAX;
        let set = call!(cuMemPoolSetAttribute(pool, threshold, (&raw mut everything).cast()));
        if let Err(error) = set {
            let _ = call!(cuMemPoolDestroy(pool));
            return Err(error);
        }
        Ok(pool)
    }

    pub fn ordinal(&self) -> i32 {
        self.ordinal
    }

    /// Makes its context this thread's current one until what is returned is dropped.
    pub fn enter(&self) -> Result<Entered, DeviceError> {
        call!(cuCtxPushCurrent_v2(self.context))?;
        Ok(Entered(()))
    }

    /// For destructors, which nobody calls again: tries twice, and lets them go on in any case.
    fn enter_to_destroy(&self) -> Option<Entered> {
        self.enter().or_else(|_| self.enter()).ok()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A destructor has nobody to tell: what fails here has failed before, where it was reported.
        if !self.pool.is_null() {
            let _entered = self.enter_to_destroy();
            let _ = (|| call!(cuMemPoolDestroy(self.pool)))();
        }
        let _ = (|| call!(cuDevicePrimaryCtxRelease_v2(self.handle)))();
    }
}

/// While it lives a device's context is current in this thread.
pub struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        let _ = (|| call!(cuCtxPopCurrent_v2(&mut context)))();
    }
}

/// A queue of work on a device: one of our own, or the caller's, borrowed.
#[derive(Debug)]
pub struct Stream {
    device: Arc<Device>,
    raw: sys::CUstream,
    owned: bool,
}

// SAFETY: as for Device.
unsafe impl Send for Stream {}
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of high priority that doesn't wait for the legacy default stream, nor that for it.
    pub fn new(device: &Arc<Device>) -> Result<Arc<Stream>, DeviceError> {
        let _entered = device.enter()?;
        let non_blocking = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        let mut raw = std::ptr::null_mut();
        call!(cuStreamCreateWithPriority(&mut raw, non_blocking, device.priority))?;
        Ok(Arc::new(Stream { device: device.clone(), raw, owned: true }))
    }

    /// The caller's stream, by its handle (0 or 1: the legacy default stream; 2: the thread's own).
    ///
    /// # Safety
    /// It is a stream of this device, and outlives what is returned and all memory that was handed out for it.
    pub unsafe fn borrowed(device: &Arc<Device>, handle: u64) -> Arc<Stream> {
        Arc::new(Stream {
            device: device.clone(),
            raw: handle as sys::CUstream,
            owned: false,
        })
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub fn raw(&self) -> *mut c_void {
        self.raw.cast()
    }

    /// An event that is complete once all that was given to this stream so far is.
    pub fn record(&self) -> Result<Event, DeviceError> {
        let _entered = self.device.enter()?;
        let mut raw = std::ptr::null_mut();
        call!(cuEventCreate(&mut raw, 0))?;
        let event = Event { device: self.device.clone(), raw };
        call!(cuEventRecord(raw, self.raw))?;
        Ok(event)
    }

    /// What is given to this stream from now on begins after the event.
    pub fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        let _entered = self.device.enter()?;
        call!(cuStreamWaitEvent(self.raw, event.raw, 0))
    }

    /// Copies within the device.
    ///
    /// # Safety
    /// Both ends are that long, and stay so until an event after this is complete.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        let _entered = self.device.enter()?;
        call!(cuMemcpyDtoDAsync_v2(to, from, bytes, self.raw))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned {
            let _entered = self.device.enter_to_destroy();
            let _ = (|| call!(cuStreamDestroy_v2(self.raw)))();
        }
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub struct Event {
    device: Arc<Device>,
    raw: sys::CUevent,
}

// SAFETY: as for Device.
unsafe impl Send for Event {}
unsafe impl Sync for Event {}

impl Event {
    /// Whether the work before it is done. Errors of that work come out here.
    pub fn is_complete(&self) -> Result<bool, DeviceError> {
        let _entered = self.device.enter()?;
        // SAFETY: the event lives.
        match unsafe { (functions()?.cuEventQuery)(self.raw) } {
            NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Seconds from another event to this one; both are complete.
    pub fn seconds_since(&self, earlier: &Event) -> Result<f64, DeviceError> {
        let _entered = self.device.enter()?;
        let mut milliseconds = 0.0;
        call!(cuEventElapsedTime(&mut milliseconds, earlier.raw, self.raw))?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _entered = self.device.enter_to_destroy();
        let _ = (|| call!(cuEventDestroy_v2(self.raw)))();
    }
}

/// Memory of a device's pool, freed in the order of a stream: after all that was given to it before.
#[derive(Debug)]
pub struct Memory {
    pointer: u64,
    home: Arc<Stream>,
}

impl Memory {
    /// Good for what is given to `stream` from now on, and for what waits for it. No bytes are no memory.
    pub fn new(stream: &Arc<Stream>, bytes: usize) -> Result<Memory, DeviceError> {
        let _entered = stream.device.enter()?;
        let mut pointer = 0;
        if bytes > 0 {
            call!(cuMemAllocFromPoolAsync(&mut pointer, bytes, stream.device.pool, stream.raw))?;
        }
        Ok(Memory { pointer, home: stream.clone() })
    }

    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// From now on it is `stream` that uses it, and after which it is freed.
    pub fn moved_to(mut self, stream: &Arc<Stream>) -> Memory {
        self.home = stream.clone();
        self
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.pointer != 0 {
            let _entered = self.home.device.enter_to_destroy();
            let _ = (|| call!(cuMemFreeAsync(self.pointer, self.home.raw)))();
        }
    }
}
