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
}

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
            constants: &[],
            reads: x,
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
        Array::new(x[0].shape, x[0].data.iter().enumerate().map(value).collect())
    }
}

impl Pullback for Dropout {
    fn keep(&self) -> Keep {
        Keep::NOTHING
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        vec![Some(compute(self.clone(), &[back.g()]).into())]
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![case("dropout", "half", &[&[33, 8]], POINT, |x| x[0].dropout(0.5, 0x1234_5678_9abc))]
}
