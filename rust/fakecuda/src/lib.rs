//! A software libcuda and libnccl in one library, for tests alone: streams run on threads, values really move,
//! and whatever touches the same bytes without being ordered is reported, also when it came out right.
//!
//! Lay links named `libcuda.so`, `libcuda.so.1` and `libnccl.so.2` to the built `libfakecuda.so` into one folder
//! and open them: the same file is one instance. `control.rs` has what a test says and asks (`fake_*`).
//!
//! How a race is found: every stream and host thread is a component of vector clocks (`clock.rs`). An operation
//! comes after the one before it on its stream, after the records its stream has waited for, and after what the
//! calling host thread knew. Every access is compared with the earlier ones of the same bytes (`memory.rs`).
//! Nothing of this depends on when things ran, except the answers to queries (`host.rs`).
//!
//! | what | here | on hardware |
//! |---|---|---|
//! | streams | independent; ready ones are picked at random, with small delays | as many at once as there are queues |
//! | default streams | streams like others, which wait for nobody | the legacy one and blocking streams wait for each other |
//! | virtual time | what an operation was said to take, after its waits; no contention | operations share a device |
//! | kernels | run what they are given, touch what they say | nobody knows what they touch |
//! | launches of one communicator | one at a time, which is no order for memory | the same |
//! | sends | meet their receive, or are buffered without limit: a test should hold under both | buffered up to a size |
//! | a group | its parts pass together; a launch holds all its streams to its end | the same |
//! | non-blocking communicators | a group answers `ncclInProgress`, and a worker launches it | the same |
//! | collectives | none, only sends and receives | |
//! | allocations | own addresses for ever, poisoned when fresh and when freed | a pool gives freed memory out again |
//! | host memory | read and written when the copy runs, as if pinned; its ranges count too | pageable memory is staged |
//! | memory of another device | copies reach it; a kernel, fill or message is reported | as peer access allows |
//! | a failed kernel | breaks its device; what is queued there ends without effect | breaks the context likewise |
//! | current context | every call but those about devices, contexts and pools needs one | some calls do not |
//! | ranks | threads of one process | also processes |
//!
//! Reported as violations, beside races: use after free, access outside every allocation (not carried out),
//! access of another device's memory, messages of different sizes, parts of a group that overlap.
//!
//! A component is never used again before `fake_reset`, and no address either: reset between runs.

mod arena;
mod clock;
mod codes;
mod comm;
mod control;
mod driver;
mod effect;
mod entry;
mod faults;
mod findings;
mod group;
mod host;
mod json;
mod launch;
mod lock;
mod memory;
mod message;
mod nccl;
mod random;
mod report;
mod run;
mod stream;
mod world;
