//! Dropout by a counter-based generator: the mask is a function of a seed, never stored.

use super::codegen::fill;
use super::registry::{Case, POINT, case};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::host::{Array, ArrayView, uniform};
use crate::shape::Shape;
use crate::tensor::{Back, Grad, Keep, Op, Pullback, Tensor, apply, compute};

const KERNEL: Kernel = Kernel { name: "dropout", text: include_str!("../../shaders/dropout.wgsl") };

impl Tensor {
    /// Zero with probability `rate`, else `x / (1 - rate)`; the choice is a function of `seed` and the place.
    #[track_caller]
    pub fn dropout(&self, rate: f32, seed: u64) -> Self {
        assert!((0.0..1.0).contains(&rate), "dropout rate {rate}");
        if rate == 0.0 { self.clone() } else { apply(Dropout { rate, seed }, &[self]) }
    }

    /// [`Tensor::dropout`] plus `residual`, of one shape.
    #[track_caller]
    pub fn dropout_plus(&self, rate: f32, seed: u64, residual: &Self) -> Self {
        assert!((0.0..1.0).contains(&rate) && self.shape() == residual.shape(), "dropout rate {rate}");
        if rate == 0.0 {
            super::add(self, residual)
        } else {
            apply(Dropout { rate, seed }, &[self, residual])
        }
    }
}

/// Of one input, or of the first plus the second.
#[derive(Clone, Debug)]
struct Dropout {
    rate: f32,
    seed: u64,
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let count = shapes[0].len();
        let mut params = Words::default().sizes(&[count]);
        params.0.extend([self.seed as u32, (self.seed >> 32) as u32]);
        gpu.dispatch(&Launch {
            kernel: KERNEL,
            body: Some((0, &|| fill(KERNEL.text, &[]))),
            constants: &[("plus", f64::from(u8::from(x.len() > 1)))],
            reads: &[x[0], x[x.len() - 1]],
            writes: &[y],
            params: params.floats(&[self.rate, 1.0 / (1.0 - self.rate)]),
            grid: Grid::Invocations(count),
            loops: 1,
        });
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let scale = f64::from(1.0 / (1.0 - self.rate));
        let kept = |i: usize| uniform(self.seed, i as u32) >= self.rate;
        let value = |(i, v): (usize, &f64)| if kept(i) { v * scale } else { 0.0 };
        let plus = |i: usize| x.get(1).map_or(0.0, |residual| residual.data[i]);
        Array::new(x[0].shape, x[0].data.iter().enumerate().map(|(i, v)| value((i, v)) + plus(i)).collect())
    }
}

impl Pullback for Dropout {
    fn keep(&self) -> Keep {
        Keep::NOTHING
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let dropped = back.needs(0).then(|| compute(self.clone(), &[back.g()]).into());
        let residual = (back.inputs() > 1).then(|| Some(back.g().clone().into()));
        [dropped].into_iter().chain(residual).collect()
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("dropout", "half", &[&[33, 8]], POINT, |x| x[0].dropout(0.5, 0x1234_5678_9abc)),
        case("dropout", "plus a residual", &[&[33, 8], &[33, 8]], POINT, |x| {
            x[0].dropout_plus(0.3, 0x9abc, &x[1])
        }),
        case("dropout", "plus its own input", &[&[33, 8]], POINT, |x| x[0].dropout_plus(0.3, 0x9abc, &x[0])),
    ]
}
