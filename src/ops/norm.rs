//! Division by the L2 norm along an axis.

use super::Expr;
use super::registry::{Case, Values, case, sums};
use super::rows::{Rows, each_row};
use crate::gpu::{Buf, Gpu, Kernel, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};

const KERNEL: Kernel = Kernel { name: "l2norm", text: include_str!("../../shaders/l2norm.wgsl") };
const GRAD: Kernel = Kernel { name: "l2norm_grad", text: include_str!("../../shaders/l2norm_grad.wgsl") };
#[cfg(test)]
pub(super) const KERNELS: &[Kernel] = &[KERNEL, GRAD];

#[derive(Clone, Debug)]
struct Norm {
    axis: usize,
    eps: f64,
    /// Whether rows are divided by `|x| + eps`, as SCAN's `l2norm` does; else by `max(|x|, eps)`, as PyTorch's `normalize`.
    plus: bool,
}

impl Tensor {
    /// `x / max(|x|, eps)` along an axis.
    #[track_caller]
    pub fn l2norm(&self, axis: isize, eps: f64) -> Self {
        apply(Norm { axis: self.shape().axis(axis), eps, plus: false }, &[self])
    }

    /// `x / (|x| + eps)` along an axis.
    #[track_caller]
    pub fn l2norm_plus(&self, axis: isize, eps: f64) -> Self {
        apply(Norm { axis: self.shape().axis(axis), eps, plus: true }, &[self])
    }
}

impl Norm {
    fn dispatch(&self, gpu: &Gpu, kernel: Kernel, shape: Shape, x: &[&Buf], y: &Buf) {
        let rest = Words::default().floats(&[self.eps as f32]).sizes(&[usize::from(self.plus)]);
        Rows::of(shape, self.axis).dispatch(gpu, kernel, x, &[y], rest);
    }

    fn divisor(&self, norm: f64) -> f64 {
        if self.plus { norm + self.eps } else { norm.max(self.eps) }
    }
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        "l2norm"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        self.dispatch(gpu, KERNEL, shapes[0], x, y);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let n = x[0].shape[self.axis];
        let mut y = Array::zeros(x[0].shape);
        each_row(x[0].shape, self.axis, |_, at| {
            let squares: f64 = (0..n).map(|k| x[0].data[at(k)].powi(2)).sum();
            let divisor = self.divisor(squares.sqrt());
            for k in 0..n {
                y.data[at(k)] = x[0].data[at(k)] / divisor;
            }
        });
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: 4.0 * n, bytes: 8.0 * n }
    }
}

impl Pullback for Norm {
    fn keep(&self) -> Keep {
        Keep::inputs([0])
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        vec![Some(compute(NormGrad(self.clone()), &[back.x(0), back.g()]).into())]
    }
}

/// The gradient of a norm, from its input and the incoming gradient.
#[derive(Clone, Debug)]
struct NormGrad(Norm);

impl Op for NormGrad {
    fn name(&self) -> &'static str {
        "l2norm_grad"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        self.0.dispatch(gpu, GRAD, shapes[0], x, y);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let n = x[0].shape[self.0.axis];
        let mut y = Array::zeros(x[0].shape);
        each_row(x[0].shape, self.0.axis, |_, at| {
            let dot =
                |a: &ArrayView, b: &ArrayView| (0..n).map(|k| a.data[at(k)] * b.data[at(k)]).sum::<f64>();
            let norm = dot(&x[0], &x[0]).sqrt();
            let divisor = self.0.divisor(norm);
            let has_grad = norm > if self.0.plus { 0.0 } else { self.0.eps };
            let share = if has_grad { dot(&x[0], &x[1]) / (norm * divisor) } else { 0.0 };
            for k in 0..n {
                y.data[at(k)] = (x[1].data[at(k)] - x[0].data[at(k)] * share) / divisor;
            }
        });
        y
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("l2norm", "long rows", &[&[9, 256]], sums(256), |x| x[0].l2norm(-1, 1e-12)),
        case("l2norm", "rows", &[&[9, 36]], sums(36), |x| x[0].l2norm(-1, 1e-12)).bench(),
        case("l2norm", "columns", &[&[4, 7, 12]], sums(12), |x| x[0].l2norm(1, 1e-12)),
        case("l2norm", "plus eps", &[&[4, 7, 5]], sums(12), |x| x[0].l2norm_plus(1, 1e-8)),
        case("l2norm", "zero rows", &[&[4, 1]], sums(12), |x| x[0].map(Expr::relu).l2norm(-1, 1e-12))
            .all(Values::Extreme),
        case("l2norm", "zero rows, plus eps", &[&[4, 1]], sums(12), |x| {
            x[0].map(Expr::relu).l2norm_plus(-1, 1e-8)
        })
        .all(Values::Extreme),
    ]
}
