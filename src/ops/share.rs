//! Results that share their input's memory: reshape, and an entry of the leading axis.

use std::rc::Rc;

use super::materialize;
use crate::gpu::{Buf, Gpu};
use crate::host::Array;
use crate::shape::Shape;
use crate::tensor::{Back, Grad, Keep, Op, Tensor, Viewed, record};

/// Only the gradient of a shared result needs an op.
#[derive(Clone, Copy, Debug)]
enum Share {
    Reshape,
    Select(usize),
}

impl Tensor {
    /// The same values under another shape, without a copy on the GPU.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(self.len(), shape.len(), "reshape {} to {shape}", self.shape());
        if shape == self.shape() {
            return self.clone();
        }
        let y = match (self.buf(), self.array()) {
            (Some(buf), _) => Self::on_gpu(shape, buf.clone()),
            (_, Some(array)) => Self::on_host(Array::new(shape, array.data.clone())),
            (None, None) => unreachable!("a tensor is on one side"),
        };
        record(Rc::new(Share::Reshape), &[self], vec![y]).remove(0)
    }

    /// Entry `i` of the leading axis, without a copy where the adapter's alignment allows.
    #[track_caller]
    pub fn select(&self, i: usize) -> Self {
        assert!(i < self.shape()[0], "entry {i} of shape {}", self.shape());
        let shape = self.shape().without(0);
        match self.shared(i * shape.len(), shape) {
            Some(y) => record(Rc::new(Share::Select(i)), &[self], vec![y]).remove(0),
            None => materialize(Viewed::from(self).slice(0, i, 1).squeeze(0)),
        }
    }

    /// The values from `start` on under a shape of their own, untracked; without a copy where the adapter's
    /// alignment allows.
    #[track_caller]
    pub(super) fn section(&self, start: usize, shape: Shape) -> Self {
        self.shared(start, shape).unwrap_or_else(|| {
            let flat = self.detach().reshape([self.len()]);
            materialize(Viewed::from(&flat).slice(0, start, shape.len())).reshape(shape)
        })
    }

    fn shared(&self, start: usize, shape: Shape) -> Option<Self> {
        let n = shape.len();
        match (self.buf(), self.array()) {
            (Some(buf), _) => buf.part(start, n).map(|part| Self::on_gpu(shape, part)),
            (_, array) => array.map(|a| Self::on_host(Array::new(shape, a.data[start..start + n].to_vec()))),
        }
    }
}

impl Op for Share {
    fn name(&self) -> &'static str {
        "share"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, _: &Gpu, _: &[&Buf], _: &Buf, _: &[Shape]) {
        unreachable!("the result shares its input's memory")
    }

    fn host(&self, _: &[&Array]) -> Array {
        unreachable!("the result shares its input's memory")
    }

    fn keep(&self) -> Keep {
        Keep::NOTHING
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let shape = back.shape(0);
        vec![Some(match self {
            Self::Reshape => back.g().reshape(shape).into(),
            Self::Select(i) => {
                let after = shape[0] - i - 1;
                Viewed::from(back.g()).repeat(0, 1).pad(0, *i, after).into()
            }
        })]
    }
}
