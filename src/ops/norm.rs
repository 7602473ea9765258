//! Norms along an axis: division by the L2 norm, and standardisation (the heart of layer norm).

use super::Expr;
use super::registry::{Case, Values, case, sums};
use super::rows::{Rows, each_row};
use crate::gpu::{Buf, Gpu, Kernel, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};

macro_rules! kernel {
    ($name:literal) => {
        Kernel { name: $name, text: include_str!(concat!("../../shaders/", $name, ".wgsl")) }
    };
}
const L2NORM: Kernel = kernel!("l2norm");
const L2NORM_GRAD: Kernel = kernel!("l2norm_grad");
const STANDARDIZE: Kernel = kernel!("standardize");
const STANDARDIZE_GRAD: Kernel = kernel!("standardize_grad");
#[cfg(test)]
pub(super) const KERNELS: &[Kernel] = &[L2NORM, L2NORM_GRAD, STANDARDIZE, STANDARDIZE_GRAD];

/// What a row is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `max(|x|, eps)`, PyTorch's `normalize`.
    L2Max,
    /// `|x| + eps`, SCAN's `l2norm`.
    L2Plus,
    /// The standard deviation, after the mean is taken off.
    Standard,
}

#[derive(Clone, Debug)]
struct Norm {
    form: Form,
    axis: usize,
    eps: f64,
}

impl Tensor {
    /// `x / max(|x|, eps)` along an axis.
    #[track_caller]
    pub fn l2norm(&self, axis: isize, eps: f64) -> Self {
        apply(Norm { form: Form::L2Max, axis: self.shape().axis(axis), eps }, &[self])
    }

    /// `x / (|x| + eps)` along an axis.
    #[track_caller]
    pub fn l2norm_plus(&self, axis: isize, eps: f64) -> Self {
        apply(Norm { form: Form::L2Plus, axis: self.shape().axis(axis), eps }, &[self])
    }

    /// `(x - mean) / sqrt(variance + eps)` along an axis, the variance biased.
    #[track_caller]
    pub fn standardize(&self, axis: isize, eps: f64) -> Self {
        apply(Norm { form: Form::Standard, axis: self.shape().axis(axis), eps }, &[self])
    }
}

impl Norm {
    fn params(&self, rows: &Rows) -> Words {
        match self.form {
            Form::Standard => Words::default().floats(&[rows.n as f32, self.eps as f32]),
            form => Words::default().floats(&[self.eps as f32]).sizes(&[usize::from(form == Form::L2Plus)]),
        }
    }
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        if self.form == Form::Standard { "standardize" } else { "l2norm" }
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let rows = Rows::of(shapes[0], self.axis);
        let kernel = if self.form == Form::Standard { STANDARDIZE } else { L2NORM };
        rows.dispatch(gpu, kernel, x, y, self.params(&rows));
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (n, eps) = (x[0].shape[self.axis], self.eps);
        let mut y = Array::zeros(x[0].shape);
        each_row(x[0].shape, self.axis, |_, at| {
            let row: Vec<f64> = (0..n).map(|k| x[0].data[at(k)]).collect();
            let squares = |shift: f64| row.iter().map(|v| (v - shift) * (v - shift)).sum::<f64>();
            let (shift, divisor) = match self.form {
                Form::L2Max => (0.0, squares(0.0).sqrt().max(eps)),
                Form::L2Plus => (0.0, squares(0.0).sqrt() + eps),
                Form::Standard => {
                    let mean = row.iter().sum::<f64>() / n as f64;
                    (mean, (squares(mean) / n as f64 + eps).sqrt())
                }
            };
            for (k, v) in row.iter().enumerate() {
                y.data[at(k)] = (v - shift) / divisor;
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
        if self.0.form == Form::Standard { "standardize_grad" } else { "l2norm_grad" }
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let rows = Rows::of(shapes[0], self.0.axis);
        let kernel = if self.0.form == Form::Standard { STANDARDIZE_GRAD } else { L2NORM_GRAD };
        rows.dispatch(gpu, kernel, x, y, self.0.params(&rows));
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (n, eps) = (x[0].shape[self.0.axis], self.0.eps);
        let mut y = Array::zeros(x[0].shape);
        each_row(x[0].shape, self.0.axis, |_, at| {
            let row: Vec<f64> = (0..n).map(|k| x[0].data[at(k)]).collect();
            let g: Vec<f64> = (0..n).map(|k| x[1].data[at(k)]).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let over = |k: usize| match self.0.form {
                Form::Standard => {
                    let count = n as f64;
                    let mean = row.iter().sum::<f64>() / count;
                    let centred: Vec<f64> = row.iter().map(|v| v - mean).collect();
                    let inverse = 1.0 / (dot(&centred, &centred) / count + eps).sqrt();
                    let share = dot(&g, &centred) / count * inverse * inverse;
                    (g[k] - g.iter().sum::<f64>() / count - centred[k] * share) * inverse
                }
                form => {
                    let norm = dot(&row, &row).sqrt();
                    let plus = form == Form::L2Plus;
                    let divisor = if plus { norm + eps } else { norm.max(eps) };
                    let has_grad = norm > if plus { 0.0 } else { eps };
                    let share = if has_grad { dot(&row, &g) / (norm * divisor) } else { 0.0 };
                    (g[k] - row[k] * share) / divisor
                }
            };
            for k in 0..n {
                y.data[at(k)] = over(k);
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
        case("standardize", "long rows", &[&[9, 768]], sums(768), |x| x[0].standardize(-1, 1e-12)),
        case("standardize", "rows", &[&[9, 64]], sums(64), |x| x[0].standardize(-1, 1e-12)).bench(),
        case("standardize", "odd rows", &[&[9, 37]], sums(64), |x| x[0].standardize(-1, 1e-5)),
        case("standardize", "columns", &[&[3, 17, 8]], sums(64), |x| x[0].standardize(1, 1e-5)),
        case("standardize", "the longest column", &[&[10_922]], sums(10_922), |x| x[0].standardize(0, 1e-5)),
    ]
}
