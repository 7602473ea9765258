//! Results that alias their inputs: reshape, stack, and what a view reads in order.

use super::registry::{Case, POINT, case, sums};
use super::{Act, Expr, materialize};
use crate::gpu::{Buf, Gpu};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Alias, Kind, Op, Tensor, Viewed, compute, record};

impl Tensor {
    /// The same values under another shape, in the same memory.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(self.len(), shape.len(), "reshape {} to {shape}", self.shape());
        if shape == self.shape() {
            return self.clone();
        }
        let y = self.alias(0, shape).expect("it begins where this does");
        record("alias", Kind::Alias(Alias::Reshape), &[self], vec![y]).remove(0)
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
        self.alias(start, shape).unwrap_or_else(|| {
            let flat = self.detach().reshape([self.len()]);
            materialize(Viewed::from(&flat).slice(0, start, shape.len())).reshape(shape)
        })
    }

    /// What a view reads, in the memory of its source where it reads neighbours in order and the adapter's alignment
    /// allows.
    pub(super) fn aliased(x: &Viewed) -> Option<Self> {
        if x.view.is_identity() {
            return Some(x.tensor.clone());
        }
        let y = x.tensor.alias(x.view.section()?, x.shape())?;
        let kind = Kind::Alias(Alias::Section(x.view.clone()));
        Some(record("alias", kind, &[&x.tensor], vec![y]).remove(0))
    }
}

/// Tensors of one shape as the entries of a leading axis; without a copy where they follow each other in memory.
#[track_caller]
pub fn stack(parts: &[&Tensor]) -> Tensor {
    let whole = || {
        let (first, rest) = parts.split_first()?;
        rest.iter().try_fold(first.buf()?.clone(), |all, part| all.joined(part.buf()?))
    };
    let y = match whole() {
        Some(buf) => Tensor::on_gpu(Stack.shape(&parts.iter().map(|t| t.shape()).collect::<Vec<_>>()), buf),
        None => {
            let parts: Vec<Tensor> = parts.iter().map(|t| t.detach()).collect();
            compute(Stack, &parts.iter().collect::<Vec<_>>())
        }
    };
    record("stack", Kind::Alias(Alias::Stack), parts, vec![y]).remove(0)
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
            super::write::launch(gpu, y, i * part.len(), part, None);
        }
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let shape = self.shape(&x.iter().map(|x| x.shape).collect::<Vec<_>>());
        Array::new(shape, x.iter().flat_map(|x| x.data).copied().collect())
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("alias", "entries of the leading axis", &[&[3, 5, 64]], POINT, |x| {
            x[0].select(2).map2(&x[0].select(0), |a, b| a * b)
        }),
        case("alias", "under other shapes", &[&[3, 8], &[6, 4]], POINT, |x| {
            x[0].reshape([6, 4]).map2(&x[1].reshape([2, 12]).reshape([6, 4]), |a, b| a * b)
        }),
        case("stack", "of its entries", &[&[3, 64], &[3, 64]], POINT, |x| {
            let y = stack(&[&x[0], &x[1], &x[0]]);
            let z = y.map(Expr::tanh);
            z.select(1).map3(&y.select(0), &z.select(2), |a, b, c| a * b + c)
        }),
        case("stack", "of what is contiguous, summed over rows", &[&[2, 5, 7, 64]], sums(7), |x| {
            stack(&[&x[0].select(0), &x[0].select(1)]).sum(2).map(|s| s * s)
        }),
        case("stack", "under other shapes", &[&[6, 5], &[6, 5]], sums(12), |x| {
            let y = stack(&[&x[0].reshape([5, 6]), &x[1].reshape([5, 6])]).reshape([10, 6]);
            y.linear(&x[0].reshape([5, 6]), None, Act::None)
        }),
    ]
}
