//! Results that share their input's memory: reshape, and what a view reads in order.

use std::rc::Rc;

use super::materialize;
use crate::gpu::{Buf, Gpu};
use crate::host::Array;
use crate::shape::Shape;
use crate::tensor::{Back, Grad, Holds, Keep, Op, Tensor, View, Viewed, apply, record};

/// Only the gradient of a shared result needs an op.
#[derive(Clone, Debug)]
enum Share {
    Reshape,
    Section(View),
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
        materialize(Viewed::from(self).slice(0, i, 1).squeeze(0))
    }

    /// The values from `start` on under a shape of their own, untracked; without a copy where the adapter's
    /// alignment allows.
    #[track_caller]
    pub(crate) fn section(&self, start: usize, shape: Shape) -> Self {
        self.shared(start, shape).unwrap_or_else(|| {
            let flat = self.detach().reshape([self.len()]);
            materialize(Viewed::from(&flat).slice(0, start, shape.len())).reshape(shape)
        })
    }

    /// What a view reads, in the memory of its source where it reads neighbours in order and the adapter's alignment
    /// allows.
    pub(super) fn in_place(x: &Viewed) -> Option<Self> {
        if x.view.is_identity() {
            return Some(x.tensor.clone());
        }
        let y = x.tensor.shared(x.view.section()?, x.shape())?;
        Some(record(Rc::new(Share::Section(x.view.clone())), &[&x.tensor], vec![y]).remove(0))
    }

    fn shared(&self, start: usize, shape: Shape) -> Option<Self> {
        let n = shape.len();
        match (self.buf(), self.array()) {
            (Some(buf), _) => buf.part(start, n).map(|part| Self::on_gpu(shape, part)),
            (_, array) => array.map(|a| Self::on_host(Array::new(shape, a.data[start..start + n].to_vec()))),
        }
    }
}

/// Tensors of one shape as the entries of a leading axis; without a copy where they lie behind each other.
#[track_caller]
pub fn stack(parts: &[&Tensor]) -> Tensor {
    let whole = || {
        let (first, rest) = parts.split_first()?;
        rest.iter().try_fold(first.buf()?.clone(), |all, part| all.joined(part.buf()?))
    };
    match whole() {
        Some(buf) => {
            let y = Tensor::on_gpu(Stack.shape(&parts.iter().map(|t| t.shape()).collect::<Vec<_>>()), buf);
            record(Rc::new(Stack), parts, vec![y]).remove(0)
        }
        None => apply(Stack, parts),
    }
}

#[derive(Clone, Debug)]
struct Stack;

impl Op for Stack {
    fn name(&self) -> &'static str {
        "stack"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        assert!(x.iter().all(|s| *s == x[0]), "stack: {x:?}");
        Shape::new(&[&[x.len()], x[0].dims()].concat())
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, _: &[Shape]) {
        for (i, part) in x.iter().enumerate() {
            super::write::launch(gpu, y, i * part.len(), part);
        }
    }

    fn host(&self, x: &[&Array]) -> Array {
        let shape = self.shape(&x.iter().map(|x| x.shape).collect::<Vec<_>>());
        Array::new(shape, x.iter().flat_map(|x| &x.data).copied().collect())
    }

    fn keep(&self) -> Keep {
        Keep::NOTHING
    }

    fn holds(&self) -> Option<Holds> {
        Some(Holds::Stacked)
    }

    fn grad(&self, _: &Back) -> Vec<Option<Grad>> {
        unreachable!("its gradient is handed on")
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

    fn holds(&self) -> Option<Holds> {
        matches!(self, Self::Reshape).then_some(Holds::Reshaped)
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let Self::Section(view) = self else { unreachable!("its gradient is handed on") };
        let (_, view) = view.adjoint();
        vec![Some(Viewed { tensor: back.g().reshape(view.source), view }.into())]
    }
}
