//! A tensor of any library, as DLPack describes it: the one file that knows dlpark.
//!
//! Nothing is copied and no element is looked at. What travels between stages is a [`Parcel`] of these.

use std::fmt;
use std::sync::Arc;

use dlpark::allocation::dynamic::Allocation;
use dlpark::ffi::{DLDataType, DLDataTypeCode, DLDevice, DLDeviceType};
use dlpark::{DlpackFlags, Managed, ManagedTensorBase};

/// Type, shape and strides, these in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub dtype: DLDataType,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

impl Layout {
    /// Bytes of the elements, without what lies between them. `None` if no machine has as many.
    pub fn bytes(&self) -> Option<usize> {
        let bits = usize::from(self.dtype.bits).checked_mul(usize::from(self.dtype.lanes))?;
        let elements = self
            .shape
            .iter()
            .try_fold(1_usize, |product, &size| product.checked_mul(usize::try_from(size).ok()?))?;
        Some(elements.checked_mul(bits)?.div_ceil(8))
    }

    /// Whether its elements lie side by side, in whatever order of dimensions.
    pub fn is_dense(&self) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let sizes = self.shape.iter().zip(&self.strides).filter(|(size, _)| **size != 1);
        let mut dimensions: Vec<(i64, i64)> = sizes.map(|(&size, &stride)| (stride, size)).collect();
        dimensions.sort_unstable();
        let mut expected = 1;
        dimensions.iter().all(|&(stride, size)| {
            let fits = stride == expected;
            expected = stride.saturating_mul(size);
            fits
        })
    }
}

impl fmt::Display for Layout {
    /// Such as `float32[4, 8]`, and the strides where they are not those of a compact array.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", TypeName(self.dtype), self.shape)?;
        let compact = dlpark::tensor::compact_strides(&self.shape);
        if compact.is_ok_and(|compact| compact == self.strides) {
            return Ok(());
        }
        write!(f, " with strides {:?}", self.strides)
    }
}

struct TypeName(DLDataType);

impl fmt::Display for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DLDataType { code, bits, lanes } = self.0;
        match code.0 {
            0 => write!(f, "int{bits}")?,
            1 => write!(f, "uint{bits}")?,
            2 => write!(f, "float{bits}")?,
            4 => write!(f, "bfloat{bits}")?,
            5 => write!(f, "complex{bits}")?,
            6 => f.write_str("bool")?,
            7..=14 => f.write_str("float8")?,
            code => write!(f, "type {code} of {bits} bits")?,
        }
        if lanes == 1 { Ok(()) } else { write!(f, "x{lanes}") }
    }
}

/// A device as people write it.
pub struct DeviceName(pub DLDevice);

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.device_type {
            DLDeviceType::CPU => f.write_str("cpu"),
            DLDeviceType::CUDA => write!(f, "cuda:{}", self.0.device_id),
            other => write!(f, "device {} of DLPack's type {}", self.0.device_id, other.0),
        }
    }
}

/// An array, which keeps the memory it points to.
pub struct Array {
    pub layout: Layout,
    pub device: DLDevice,
    pub read_only: bool,
    /// Where its first element is.
    pub data: u64,
    /// Kept for what its drop does.
    _owner: Box<dyn std::any::Any + Send + Sync>,
}

impl Array {
    /// # Safety
    /// `data` is the first of the layout's elements, in memory of the device that `owner` keeps.
    pub unsafe fn new<Owner: Send + Sync + 'static>(
        layout: Layout,
        device: DLDevice,
        read_only: bool,
        data: u64,
        owner: Owner,
    ) -> Array {
        Array { layout, device, read_only, data, _owner: Box::new(owner) }
    }

    /// A header of DLPack's, legacy or versioned, that keeps the array until its deleter is called.
    pub fn header<M: ManagedTensorBase>(self: Arc<Self>) -> Result<Managed<M>, dlpark::allocation::Error> {
        let dimensions = self.layout.shape.len();
        let mut allocation = Allocation::<M>::allocate(2 * dimensions)?;
        let metadata = allocation.extra_mut();
        metadata[..dimensions].copy_from_slice(&self.layout.shape);
        metadata[dimensions..].copy_from_slice(&self.layout.strides);
        let (shape, (data, device, dtype, flags)) =
            (metadata.as_mut_ptr(), (self.data, self.device, self.layout.dtype, self.flags()));
        let mut initialized = allocation.initialize(self, dimensions)?;
        initialized.set_data(data as *mut _).set_device(device).set_dtype(dtype);
        initialized.set_flags(flags).expect("it doesn't say that it is a copy");
        let tensor = initialized.tensor_mut();
        tensor.shape = shape;
        // SAFETY: both halves lie in the allocation, which lives as long as the header.
        tensor.strides = unsafe { shape.add(dimensions) };
        // SAFETY: the array keeps data and metadata, and the flags are its own.
        Ok(unsafe { initialized.finish() })
    }

    pub fn flags(&self) -> DlpackFlags {
        if self.read_only { DlpackFlags::READ_ONLY } else { DlpackFlags::empty() }
    }
}

/// What one stage hands to another: arrays, some of which may be missing.
#[derive(Default)]
pub struct Parcel {
    pub arrays: Vec<Option<Arc<Array>>>,
    /// Whether the one array stands by itself rather than in a tuple.
    pub single: bool,
    /// Whether each is to collect a gradient, as torch has it: a bit for each of the first 64.
    pub requires_grad: u64,
}

/// What a parcel looks like: all that a receiver needs to know before it comes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Form {
    pub layouts: Vec<Option<Layout>>,
    pub single: bool,
    pub requires_grad: u64,
}

impl Parcel {
    pub fn form(&self) -> Form {
        let layout = |array: &Option<Arc<Array>>| array.as_ref().map(|array| array.layout.clone());
        Form {
            layouts: self.arrays.iter().map(layout).collect(),
            single: self.single,
            requires_grad: self.requires_grad,
        }
    }
}

impl Form {
    /// As whole numbers, for another process; [`Form::from_numbers`] reads them.
    pub fn to_numbers(&self) -> Vec<i64> {
        let mut numbers = vec![self.single.into(), self.requires_grad.cast_signed()];
        for layout in &self.layouts {
            let Some(Layout { dtype, shape, strides }) = layout else {
                numbers.push(-1);
                continue;
            };
            numbers.extend([shape.len() as i64, dtype.code.0.into(), dtype.bits.into(), dtype.lanes.into()]);
            numbers.extend(shape.iter().chain(strides));
        }
        numbers
    }

    /// `None` for numbers that say nothing.
    pub fn from_numbers(numbers: &[i64]) -> Option<Form> {
        let mut rest = numbers.iter().copied();
        let (single, requires_grad) = (rest.next()? != 0, rest.next()?.cast_unsigned());
        let mut layouts = Vec::new();
        while let Some(dimensions) = rest.next() {
            layouts.push(match dimensions {
                -1 => None,
                _ => Some(Layout::from_numbers(usize::try_from(dimensions).ok()?, &mut rest)?),
            });
        }
        (!single || layouts.len() == 1).then_some(Form { layouts, single, requires_grad })
    }
}

impl Layout {
    fn from_numbers(dimensions: usize, numbers: &mut impl Iterator<Item = i64>) -> Option<Layout> {
        let code = DLDataTypeCode(numbers.next()?.try_into().ok()?);
        let (bits, lanes) = (numbers.next()?.try_into().ok()?, numbers.next()?.try_into().ok()?);
        let shape: Vec<i64> = numbers.take(dimensions).collect();
        let strides: Vec<i64> = numbers.take(dimensions).collect();
        let layout = Layout { dtype: DLDataType { code, bits, lanes }, shape, strides };
        let is_whole = layout.strides.len() == dimensions && layout.bytes().is_some();
        is_whole.then_some(layout)
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |layout: &Option<Layout>| layout.as_ref().map_or("None".to_string(), Layout::to_string);
        let words: Vec<String> = self.layouts.iter().map(word).collect();
        if self.single { f.write_str(&words[0]) } else { write!(f, "({})", words.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bits: u8, shape: &[i64], strides: &[i64]) -> Layout {
        let dtype = DLDataType { code: DLDataTypeCode::FLOAT, bits, lanes: 1 };
        Layout { dtype, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    #[test]
    fn dense_is_without_gaps_in_any_order() {
        let cases: [(&[i64], &[i64], bool); 8] = [
            (&[2, 3], &[3, 1], true),
            (&[2, 3], &[1, 2], true),
            (&[2, 3], &[6, 2], false),
            (&[2, 3], &[0, 1], false),
            (&[3], &[-1], false),
            (&[0, 3], &[7, 7], true),
            (&[1, 3], &[99, 1], true),
            (&[], &[], true),
        ];
        for (shape, strides, dense) in cases {
            assert_eq!(layout(64, shape, strides).is_dense(), dense, "{shape:?} {strides:?}");
        }
    }

    #[test]
    fn bytes_are_counted_and_not_overflowed() {
        assert_eq!(layout(64, &[2, 3], &[3, 1]).bytes(), Some(48));
        assert_eq!(layout(4, &[3], &[1]).bytes(), Some(2));
        assert_eq!(layout(64, &[i64::MAX, 3], &[3, 1]).bytes(), None);
        assert_eq!(layout(64, &[-1], &[1]).bytes(), None);
    }

    #[test]
    fn a_form_goes_through_numbers() {
        let layouts = vec![Some(layout(16, &[2, 3], &[1, 2])), None, Some(layout(64, &[], &[]))];
        let form = Form { layouts, single: false, requires_grad: u64::MAX };
        let numbers = form.to_numbers();
        assert_eq!(Form::from_numbers(&numbers), Some(form));
        for end in [0, 1, 4, 5, 8] {
            assert_eq!(Form::from_numbers(&numbers[..end]), None, "{end}");
        }
    }
}
