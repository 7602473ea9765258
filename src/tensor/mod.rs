//! Tensors on either side, the tape, and what an op is.

mod expr;
mod op;
mod program;
mod tape;
mod view;

use std::cell::{Ref, RefCell, RefMut};
use std::rc::Rc;

pub use expr::Expr;
#[cfg(test)]
pub(crate) use op::seen;
pub use op::{Back, Cost, Grad, Keep, Op, Pullback, apply, compute, split_with};
pub(crate) use op::{Incoming, record};
pub use program::Program;
pub use tape::Tape;
pub(crate) use tape::{Alias, Kind, Node, Part};
pub use view::{Axis, View, Viewed};

use crate::error::Result;
use crate::gpu::{Buf, Gpu, Reading};
use crate::host::Array;
use crate::shape::Shape;
use tape::Var;

/// Where tensors live: on a GPU in f32, or on the host in f64. The same model code runs on both.
#[derive(Clone)]
pub enum Device {
    /// A GPU through wgpu.
    Gpu(Gpu),
    /// The host twin.
    Host,
}

impl Device {
    /// A tensor of these values.
    #[track_caller]
    pub fn tensor(&self, shape: impl Into<Shape>, data: &[f32]) -> Tensor {
        let shape = shape.into();
        assert_eq!(shape.len(), data.len(), "{} values for shape {shape}", data.len());
        let data = match self {
            Self::Gpu(gpu) => Data::Gpu(gpu.upload(data)),
            Self::Host => return Tensor::on_host(Array::from_f32(shape, data)),
        };
        Tensor { shape, data, var: None }
    }

    /// A tensor of f32 values in the little-endian bytes of a file, in parts that follow each other: on a GPU without
    /// a copy in between, whatever their alignment.
    #[track_caller]
    pub fn tensor_of_bytes(&self, shape: impl Into<Shape>, parts: &[&[u8]]) -> Tensor {
        let shape = shape.into();
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        assert_eq!(4 * shape.len(), bytes, "bytes for shape {shape}");
        match self {
            Self::Gpu(gpu) if cfg!(target_endian = "little") => {
                Tensor::on_gpu(shape, gpu.upload_bytes(parts))
            }
            _ => {
                let values = parts.iter().flat_map(|part| part.as_chunks().0);
                self.tensor(shape, &values.map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>())
            }
        }
    }

    /// A tensor filled with one value.
    pub fn full(&self, shape: impl Into<Shape>, value: f32) -> Tensor {
        let shape = shape.into();
        self.tensor(shape, &vec![value; shape.len()])
    }

    /// A scalar.
    pub fn scalar(&self, value: f32) -> Tensor {
        self.full([], value)
    }

    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Gpu(gpu) => Some(gpu),
            Self::Host => None,
        }
    }
}

/// Where a tensor's values are: on either side they begin somewhere in memory that tensors share.
#[derive(Clone)]
enum Data {
    Gpu(Buf),
    Host { memory: Rc<RefCell<Vec<f64>>>, start: usize },
}

/// A shape and its values, contiguous, and its place on a tape if gradients are wanted. Cheap to clone: clones share
/// their memory, so that they see what [`crate::ops::write`] and [`crate::ops::adam`] change, which nothing else does.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    data: Data,
    var: Option<Var>,
}

impl Tensor {
    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        match &self.data {
            Data::Gpu(buf) => Device::Gpu(buf.gpu().expect("a tensor never outlives its device")),
            Data::Host { .. } => Device::Host,
        }
    }

    /// The values in f32, copied back from the GPU.
    ///
    /// # Errors
    /// What went wrong on the device since it was last asked.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        self.begin_read()?.finish()
    }

    /// Begins to copy the values back in f32, as they are now; the device goes on meanwhile.
    ///
    /// # Errors
    /// As [`Tensor::to_vec`].
    pub fn begin_read(&self) -> Result<Reading> {
        match &self.data {
            Data::Gpu(buf) => self.device().gpu().expect("a Gpu buffer has a Gpu").begin_read(buf),
            Data::Host { .. } => Ok(Reading::of(self.to_f64()?.into_iter().map(|v| v as f32).collect())),
        }
    }

    /// The values in f64: exact from the host twin, widened from the GPU.
    ///
    /// # Errors
    /// As [`Tensor::to_vec`].
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        match self.values() {
            Some(values) => Ok(values.to_vec()),
            None => Ok(self.to_vec()?.into_iter().map(f64::from).collect()),
        }
    }

    /// The only value.
    ///
    /// # Errors
    /// As [`Tensor::to_vec`].
    #[track_caller]
    pub fn item(&self) -> Result<f64> {
        assert_eq!(self.len(), 1, "item of shape {}", self.shape);
        Ok(self.to_f64()?[0])
    }

    /// The same values without a place on the tape.
    pub fn detach(&self) -> Self {
        Self { var: None, ..self.clone() }
    }

    /// Whether gradients flow to it.
    pub fn is_tracked(&self) -> bool {
        self.var.is_some()
    }

    /// The GPU buffer of its values, for kernels outside the tape.
    pub(crate) fn buf(&self) -> Option<&Buf> {
        match &self.data {
            Data::Gpu(buf) => Some(buf),
            Data::Host { .. } => None,
        }
    }

    /// The host's values.
    pub(crate) fn values(&self) -> Option<Ref<'_, [f64]>> {
        match &self.data {
            Data::Host { memory, start } => {
                Some(Ref::map(memory.borrow(), |all| &all[*start..start + self.len()]))
            }
            Data::Gpu(_) => None,
        }
    }

    /// The host's values, to change in place.
    pub(crate) fn values_mut(&self) -> Option<RefMut<'_, [f64]>> {
        match &self.data {
            Data::Host { memory, start } => {
                Some(RefMut::map(memory.borrow_mut(), |all| &mut all[*start..start + self.len()]))
            }
            Data::Gpu(_) => None,
        }
    }

    /// The values from `start` on under a shape of their own, untracked, in the same memory; `None` where the adapter
    /// cannot bind them there.
    pub(crate) fn alias(&self, start: usize, shape: Shape) -> Option<Self> {
        let data = match &self.data {
            Data::Gpu(buf) if shape.len() == buf.len() => Data::Gpu(buf.clone()),
            Data::Gpu(buf) => Data::Gpu(buf.part(start, shape.len())?),
            Data::Host { memory, start: own } => {
                assert!(start + shape.len() <= self.len(), "{shape} from {start} of shape {}", self.shape);
                Data::Host { memory: memory.clone(), start: own + start }
            }
        };
        Some(Self { shape, data, var: None })
    }

    pub(crate) fn on_host(array: Array) -> Self {
        let Array { shape, data } = array;
        Self { shape, data: Data::Host { memory: Rc::new(RefCell::new(data)), start: 0 }, var: None }
    }

    pub(crate) fn on_gpu(shape: Shape, buf: Buf) -> Self {
        Self { shape, data: Data::Gpu(buf), var: None }
    }

    pub(crate) fn var(&self) -> Option<&Var> {
        self.var.as_ref()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = if self.buf().is_some() { "gpu" } else { "host" };
        write!(f, "Tensor({}, {side})", self.shape)
    }
}
