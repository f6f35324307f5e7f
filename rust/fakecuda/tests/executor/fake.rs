//! The software device of this process: found where cargo built it, one test at a time.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use dualpipe::execute::device::{LEFT_OUT, Order};
use libloading::Library;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Range {
    pub pointer: u64,
    pub bytes: u64,
}

/// How sends and receives meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Both ends are held until both are there, and then for a hop.
    Rendezvous = 0,
    /// A send holds nobody; what it carries is there a hop later.
    Buffered = 1,
}

static ONE: LazyLock<(Mutex<()>, Library)> = LazyLock::new(|| {
    let test = std::env::current_exe().expect("a test has a file");
    let folder = test.parent().expect("cargo runs tests in target/*/deps, where it builds the library, too");
    let file = folder.join("libfakecuda.so");
    // SAFETY: nothing reads the environment before the device is used for the first time.
    unsafe { std::env::set_var("DUALPIPE_NCCL_LIBRARY", &file) };
    // SAFETY: our own library.
    let library = unsafe { Library::new(&file) };
    (Mutex::new(()), library.unwrap_or_else(|error| panic!("{}: {error}", file.display())))
});

/// While it lives, the software device is this test's alone.
pub struct Fake(#[expect(dead_code, reason = "held for what its drop does")] MutexGuard<'static, ()>);

impl Drop for Fake {
    fn drop(&mut self) {
        *LEFT_OUT.lock().expect("nobody panics holding it") = None;
    }
}

/// Calls a function of the library by its C type.
macro_rules! fake {
    ($name:literal, fn($($type:ty),*) $(-> $answer:ty)?, $($value:expr),*) => {
        // SAFETY: the type is the one in rust/fakecuda/src/control.rs.
        unsafe {
            let function = ONE.1.get::<unsafe extern "C" fn($($type),*) $(-> $answer)?>($name);
            function.expect("it is exported")($($value),*)
        }
    };
}

impl Fake {
    pub fn take(devices: usize, seed: u64, mode: Mode, jitter_us: u64) -> Fake {
        let guard = ONE.0.lock().unwrap_or_else(PoisonError::into_inner);
        fake!("fake_reset", fn(u64, u64, c_int, u64), devices as u64, seed, mode as c_int, jitter_us);
        Fake(guard)
    }

    /// Has the executor leave out an ordering for as long as this lives.
    pub fn leave_out(&self, order: Order) {
        *LEFT_OUT.lock().expect("nobody panics holding it") = Some(order);
    }

    pub fn set_hop(&self, seconds: f64) {
        fake!("fake_set_hop", fn(f64), seconds);
    }

    /// A kernel that takes so many virtual seconds, touches what it says, and does `work`.
    pub fn launch(
        &self,
        stream: *mut c_void,
        reads: &[Range],
        writes: &[Range],
        seconds: f64,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), c_int> {
        unsafe extern "C" fn call(argument: *mut c_void) {
            // SAFETY: made by Box::into_raw below, and called once.
            let work = unsafe { Box::from_raw(argument.cast::<Box<dyn FnOnce()>>()) };
            work();
        }
        let work: Box<Box<dyn FnOnce()>> = Box::new(Box::new(work));
        type Launch = unsafe extern "C" fn(
            u64,
            *const Range,
            u64,
            *const Range,
            u64,
            f64,
            Option<unsafe extern "C" fn(*mut c_void)>,
            *mut c_void,
        ) -> c_int;
        // SAFETY: the type is the one in control.rs; both slices live during the call.
        let code = unsafe {
            ONE.1.get::<Launch>("fake_launch").expect("it is exported")(
                stream as u64,
                reads.as_ptr(),
                reads.len() as u64,
                writes.as_ptr(),
                writes.len() as u64,
                seconds,
                Some(call),
                Box::into_raw(work).cast(),
            )
        };
        if code == 0 { Ok(()) } else { Err(code) }
    }

    pub fn fault(&self, call: &str, nth: u64, code: c_int) {
        let call = CString::new(call).expect("a name");
        fake!("fake_fault", fn(*const c_char, u64, c_int), call.as_ptr(), nth, code);
    }

    pub fn hang(&self, kind: &str, nth: u64) {
        let kind = CString::new(kind).expect("a name");
        fake!("fake_hang", fn(*const c_char, u64), kind.as_ptr(), nth);
    }

    pub fn kill(&self, device: usize, tell: bool) {
        fake!("fake_dead_peer", fn(c_int, c_int), device as c_int, c_int::from(tell));
    }

    /// What hangs goes on.
    pub fn release(&self) {
        fake!("fake_release", fn(),);
    }

    pub fn settle(&self) -> bool {
        fake!("fake_settle", fn(f64) -> c_int, 20.0) == 0
    }

    pub fn races(&self) -> u64 {
        fake!("fake_race_count", fn() -> u64,)
    }

    pub fn violations(&self) -> u64 {
        fake!("fake_violation_count", fn() -> u64,)
    }

    pub fn host_waits(&self) -> u64 {
        fake!("fake_host_waits", fn() -> u64,)
    }

    pub fn live(&self, what: &str) -> u64 {
        let what = CString::new(what).expect("a name");
        fake!("fake_live", fn(*const c_char) -> u64, what.as_ptr())
    }

    pub fn report(&self) -> String {
        let text = fake!("fake_report", fn() -> *const c_char,);
        // SAFETY: it lives until this thread's next report.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    /// Nothing is left of what was taken.
    pub fn assert_balanced(&self) {
        assert!(self.settle(), "{}", self.report());
        for what in ["streams", "events", "allocations", "pools", "comms", "contexts"] {
            assert_eq!(self.live(what), 0, "{what} are left: {}", self.report());
        }
    }
}
