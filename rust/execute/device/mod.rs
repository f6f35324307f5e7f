//! Steps on a GPU: the interpreter's thread only queues work, and events order it.
//!
//! A rank computes on one stream, the caller's. Each end of a directed edge has a stream of its own, so that
//! neither compute nor another edge waits for a transfer. What orders them is listed in [`Order`], and nothing
//! else does. The thread itself waits for the device once, at the end of the step ([`step`]).
//!
//! [`nccl`]: ranks on devices of their own. [`same`]: ranks on one device, as threads of one process, whose
//! transfers are copies; NCCL refuses two ranks on a device. Both carry a [`Parcel`].

pub mod board;
pub mod nccl;
pub mod same;
pub mod step;

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Patience, Stopped};
use crate::array::{Array, Form, Layout, Parcel};
use crate::cuda::DeviceError;
use crate::cuda::driver::{Event, Memory, Stream};
use crate::schedule::{Rank, Slot, Tensor};

/// What is ordered, and why. Each has a test that takes it away and sees the software device report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// A transfer begins after the slot that made its tensor: or it sends what is not there yet.
    SendAfterCompute,
    /// What computes next begins after the receive: or it reads what has not come yet.
    ComputeAfterReceive,
    /// Under batched P2P a receive begins with its commit, after what was computed before: not for the data's sake,
    /// but because those are the semantics that were asked for, and predicted.
    ReceiveAfterCompute,
    /// Under batched P2P what computes next begins after the sends of the commit, too, for the same reason.
    ComputeAfterSend,
    /// A tensor is kept until its transfer is complete: or its memory is another's while it is sent.
    ReleaseAfterSend,
    /// The same in a step that has failed, where nobody waits to see it complete: in the order of the stream on which
    /// the memory is used again.
    ReleaseAfterFailure,
}

/// The orderings left out, for the tests that show what each is for.
#[cfg(feature = "mutants")]
pub static LEFT_OUT: std::sync::Mutex<Option<Order>> = std::sync::Mutex::new(None);

#[cfg(feature = "mutants")]
fn is_left_out(order: Order) -> bool {
    *LEFT_OUT.lock().expect("no test panics holding it") == Some(order)
}

#[cfg(not(feature = "mutants"))]
const fn is_left_out(_: Order) -> bool {
    false
}

/// Has a stream wait for an event, for the reason given.
fn order(order: Order, stream: &Stream, event: &Event) -> Result<(), DeviceError> {
    if is_left_out(order) { Ok(()) } else { stream.wait(event) }
}

/// What ranks tell each other beside the device.
pub trait Control {
    /// Whether another rank has failed.
    fn failed(&self) -> bool;

    /// The rank comes to a slot; whether it is to go on.
    fn enter(&mut self, _index: usize, _slot: Slot) -> bool {
        !self.failed()
    }

    /// Tells a rank what a tensor looks like that will be sent to it.
    fn announce(&mut self, to: Rank, tensor: Tensor, form: &Form);

    /// What a rank has announced; `Ok(None)` where it has not, and `patience` does not allow to wait.
    fn announced(&mut self, from: Rank, tensor: Tensor, patience: Patience) -> Result<Option<Form>, Stopped>;
}

/// Tensors under way on one edge, in order, which nobody may write to or free.
struct Flight {
    /// The edge's own.
    stream: Arc<Stream>,
    leaving: VecDeque<Leaving>,
}

struct Leaving {
    tensor: Tensor,
    /// Kept until the transfer is complete.
    parcel: Parcel,
    /// The stream in whose order its memory is used again: the one on which it was computed.
    compute: Arc<Stream>,
    /// Complete once the transfer is; none while it is being queued.
    sent: Option<Arc<Event>>,
}

impl Flight {
    fn new(stream: Arc<Stream>) -> Flight {
        Flight { stream, leaving: VecDeque::new() }
    }

    /// Keeps a parcel that is about to be sent: whatever fails from here on, it is not dropped too early.
    fn keep(&mut self, tensor: Tensor, parcel: Parcel, compute: &Arc<Stream>) {
        self.leaving.push_back(Leaving { tensor, parcel, compute: compute.clone(), sent: None });
    }

    fn parcel(&self, tensor: Tensor) -> &Parcel {
        &self.find(tensor).expect("it is kept since before it was sent").parcel
    }

    /// The event after which a tensor has been sent; none once it has been let go of.
    fn sent(&self, tensor: Tensor) -> Option<&Arc<Event>> {
        self.find(tensor)?.sent.as_ref()
    }

    fn find(&self, tensor: Tensor) -> Option<&Leaving> {
        self.leaving.iter().find(|leaving| leaving.tensor == tensor)
    }

    /// A tensor's transfer has been queued.
    fn note(&mut self, tensor: Tensor, sent: Arc<Event>) {
        let leaving = self.leaving.iter_mut().find(|leaving| leaving.tensor == tensor);
        let leaving = leaving.expect("it is kept since before it was sent");
        leaving.sent = Some(sent);
        if is_left_out(Order::ReleaseAfterSend) {
            leaving.parcel = Parcel::default();
        }
    }

    /// Gives up what has been sent; whether nothing is left.
    ///
    /// What is given up goes to `bin`, to be dropped where no lock is held: the deleter of another library's
    /// tensor may need Python's, and whoever holds that may be waiting for ours.
    fn release(&mut self, bin: &mut Vec<Parcel>) -> Result<bool, DeviceError> {
        while let Some(first) = self.leaving.front() {
            if !first.sent.as_ref().map_or(Ok(false), |sent| sent.is_complete())? {
                return Ok(false);
            }
            bin.extend(self.leaving.pop_front().map(|leaving| leaving.parcel));
        }
        Ok(true)
    }
}

impl Drop for Flight {
    /// After a failure: nobody waits for what is under way, and its memory must not be another's before.
    fn drop(&mut self) {
        let Some(last) = self.leaving.back() else { return };
        let Ok(end) = self.stream.record() else { return };
        let _ = order(Order::ReleaseAfterFailure, &last.compute, &end);
    }
}

/// A parcel whose memory is there and whose contents are on the way.
struct Coming {
    form: Form,
    /// For each array of the form.
    memory: Vec<Option<Memory>>,
    received: Arc<Event>,
}

impl Coming {
    /// The parcel, for what `compute` is given from now on; its memory is freed in that stream's order.
    fn arrived(self, compute: &Arc<Stream>) -> Result<Parcel, DeviceError> {
        order(Order::ComputeAfterReceive, compute, &self.received)?;
        let device = dlpark::ffi::DLDevice {
            device_type: dlpark::ffi::DLDeviceType::CUDA,
            device_id: compute.device().ordinal(),
        };
        let Form { layouts, single, requires_grad } = self.form;
        let one = |(layout, memory): (Option<Layout>, Option<Memory>)| {
            let (layout, memory) = layout.zip(memory)?;
            let memory = memory.moved_to(compute);
            // SAFETY: the memory was taken for this layout, on this device.
            Some(Arc::new(unsafe { Array::new(layout, device, false, memory.pointer(), memory) }))
        };
        let arrays = layouts.into_iter().zip(self.memory).map(one).collect();
        Ok(Parcel { arrays, single, requires_grad })
    }
}

/// Memory for each array of a form, in the order of `stream`.
fn room(form: &Form, stream: &Arc<Stream>) -> Result<Vec<Option<Memory>>, DeviceError> {
    let one = |layout: &Layout| Memory::new(stream, layout.bytes().expect("checked where it was made"));
    form.layouts.iter().map(|layout| layout.as_ref().map(one).transpose()).collect()
}

/// A transfer copies bytes as they lie, so there must be nothing between them.
fn check_dense(tensor: Tensor, parcel: &Parcel) -> Result<(), DeviceError> {
    match parcel.arrays.iter().flatten().find(|array| !array.layout.is_dense()) {
        None => Ok(()),
        Some(array) => Err(DeviceError::Usage(format!(
            "{} is {}, whose elements do not lie side by side; hand over a contiguous copy",
            tensor.made_in_words(),
            array.layout
        ))),
    }
}
