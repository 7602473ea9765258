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
        let op = Dropout::new(rate, seed);
        if rate == 0.0 { self.clone() } else { apply(op, &[self]) }
    }
}

/// What is dropped, and by what the rest is multiplied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout {
    rate: f32,
    seed: u64,
}

impl Dropout {
    #[track_caller]
    pub(super) fn new(rate: f32, seed: u64) -> Self {
        assert!((0.0..1.0).contains(&rate), "dropout rate {rate}");
        Self { rate, seed }
    }

    fn scale(self) -> f32 {
        1.0 / (1.0 - self.rate)
    }

    /// What kernels read of it: the seed's low and high bits, the rate, the scale.
    pub(super) fn params(self) -> [u32; 4] {
        [self.seed as u32, (self.seed >> 32) as u32, self.rate.to_bits(), self.scale().to_bits()]
    }

    /// What becomes of the value at place `i`.
    pub(super) fn of(self, i: usize, value: f64) -> f64 {
        let is_kept = uniform(self.seed, i as u32) >= self.rate;
        if is_kept { value * f64::from(self.scale()) } else { 0.0 }
    }
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
        params.0.extend(self.params());
        gpu.dispatch(&Launch {
            kernel: KERNEL,
            body: Some((0, &|| fill(KERNEL.text, &[]))),
            constants: &[],
            reads: x,
            writes: &[y],
            params,
            grid: Grid::Invocations(count),
            loops: 1,
        });
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        Array::new(x[0].shape, x[0].data.iter().enumerate().map(|(i, v)| self.of(i, *v)).collect())
    }
}

impl Pullback for Dropout {
    fn keep(&self) -> Keep {
        Keep::NOTHING
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        vec![Some(compute(*self, &[back.g()]).into())]
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![case("dropout", "half", &[&[33, 8]], POINT, |x| x[0].dropout(0.5, 0x1234_5678_9abc))]
}
