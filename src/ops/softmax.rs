//! Softmax along an axis, scaled, and masked by lengths.

use super::registry::{Case, Values, case, sums};
use super::rows::{Rows, each_row};
use crate::gpu::{Buf, Gpu, Kernel, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};

const KERNEL: Kernel = Kernel { name: "softmax", text: include_str!("../../shaders/softmax.wgsl") };
const GRAD: Kernel = Kernel { name: "softmax_grad", text: include_str!("../../shaders/softmax_grad.wgsl") };
#[cfg(test)]
pub(super) const KERNELS: &[Kernel] = &[KERNEL, GRAD];

#[derive(Clone, Debug)]
struct Softmax {
    axis: usize,
    scale: f64,
    /// Outer rows that share a length; lengths repeat. 0 if not masked.
    every: usize,
}

impl Tensor {
    /// `softmax(scale * x)` along an axis.
    #[track_caller]
    pub fn softmax(&self, axis: isize, scale: f64) -> Self {
        let axis = self.shape().axis(axis);
        apply(Softmax { axis, scale, every: 0 }, &[self])
    }

    /// As [`Tensor::softmax`] over the first `lens[o / every % lens.len()]` places of the axis, where `o`
    /// counts the rows of the axes before it; the other places are 0.
    #[track_caller]
    pub fn softmax_to(&self, axis: isize, scale: f64, lens: &Self, every: usize) -> Self {
        let axis = self.shape().axis(axis);
        apply(Softmax { axis, scale, every }, &[self, lens])
    }
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let rows = Rows::of(shapes[0], self.axis);
        let lens = shapes.get(1).map_or(0, Shape::len);
        let rest = Words::default().sizes(&[self.every.max(1), lens]).floats(&[self.scale as f32]);
        // Unmasked rows bind their input twice.
        rows.dispatch(gpu, KERNEL, &[x[0], x[x.len() - 1]], &[y], rest);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let n = x[0].shape[self.axis];
        let mut y = Array::zeros(x[0].shape);
        each_row(x[0].shape, self.axis, |o, at| {
            let len = x.get(1).map_or(n, |l| l.data[o / self.every % l.data.len()] as usize).min(n);
            let scaled = |k: usize| self.scale * x[0].data[at(k)];
            let most = (0..len).map(scaled).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..len).map(|k| (scaled(k) - most).exp()).sum();
            for k in 0..len {
                y.data[at(k)] = (scaled(k) - most).exp() / sum;
            }
        });
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: 5.0 * n, bytes: 8.0 * n }
    }
}

impl Pullback for Softmax {
    fn keep(&self) -> Keep {
        Keep::OUTPUT
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let op = SoftmaxGrad { axis: self.axis, scale: self.scale };
        let mut grads = vec![Some(compute(op, &[back.y(), back.g()]).into())];
        grads.resize(back.inputs(), None);
        grads
    }
}

#[derive(Clone, Debug)]
struct SoftmaxGrad {
    axis: usize,
    scale: f64,
}

impl Op for SoftmaxGrad {
    fn name(&self) -> &'static str {
        "softmax_grad"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        Rows::of(shapes[0], self.axis).dispatch(
            gpu,
            GRAD,
            x,
            &[y],
            Words::default().floats(&[self.scale as f32]),
        );
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (s, g) = (&x[0].data, &x[1].data);
        let n = x[0].shape[self.axis];
        let mut y = Array::zeros(x[0].shape);
        each_row(x[0].shape, self.axis, |_, at| {
            let sum: f64 = (0..n).map(|k| s[at(k)] * g[at(k)]).sum();
            for k in 0..n {
                y.data[at(k)] = self.scale * s[at(k)] * (g[at(k)] - sum);
            }
        });
        y
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("softmax", "rows, in fours", &[&[5, 7, 32]], sums(32), |x| x[0].softmax(-1, 0.5)).bench(),
        case("softmax", "rows, odd", &[&[5, 37]], sums(37), |x| x[0].softmax(-1, 4.0)),
        case("softmax", "long rows", &[&[5, 260]], sums(260), |x| x[0].softmax(-1, 0.5)),
        case("softmax", "columns", &[&[3, 36, 8]], sums(36), |x| x[0].softmax(1, 9.0)),
        case("softmax", "large scores", &[&[9, 12]], sums(12), |x| x[0].softmax(-1, 1.0))
            .all(Values::Extreme),
        case("softmax", "to lengths", &[&[2, 5, 6, 12], &[5]], sums(12), |x| {
            x[0].softmax_to(-1, 4.0, &x[1].map(|l| l + 1.0), 6)
        })
        .with(1, Values::Whole(12)),
        case("softmax", "the longest rows", &[&[2, 43_688]], sums(43_688), |x| x[0].softmax(-1, 1.0)),
    ]
}
