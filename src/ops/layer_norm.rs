//! Layer norm (Ba et al. 2016): rows taken to mean 0 and variance 1, then to a weight and a bias of each channel; one
//! kernel forward, two back.

use super::codegen::fill;
use super::pack::places;
use super::reduce::{enough, sum_buffers};
use super::registry::{Case, Values, case, sums};
use super::rows::{Rows, each_row};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};

const KERNEL: Kernel = Kernel { name: "layer_norm", text: include_str!("../../shaders/layer_norm.wgsl") };
const GRAD: Kernel =
    Kernel { name: "layer_norm_grad", text: include_str!("../../shaders/layer_norm_grad.wgsl") };
const SUMS: Kernel =
    Kernel { name: "layer_norm_sums", text: include_str!("../../shaders/layer_norm_sums.wgsl") };
/// Those that walk rows.
#[cfg(test)]
pub(super) const KERNELS: &[Kernel] = &[KERNEL, GRAD];
/// Rows that one invocation sums before they are split.
const LONG: usize = 512;

impl Tensor {
    /// `(x - mean) / sqrt(variance + eps) * w + b` along the last axis, of `n` values; the variance is biased, `w` and `b`
    /// are `[n]`.
    #[track_caller]
    pub fn layer_norm(&self, w: &Self, b: &Self, eps: f64) -> Self {
        apply(LayerNorm { eps }, &[self, w, b])
    }
}

#[derive(Clone, Debug)]
struct LayerNorm {
    eps: f64,
}

impl LayerNorm {
    fn dispatch(&self, gpu: &Gpu, kernel: Kernel, shape: Shape, reads: &[&Buf], writes: &[&Buf]) {
        let rows = Rows::of(shape, shape.rank() - 1);
        let rest = Words::default().floats(&[rows.n as f32, self.eps as f32]);
        rows.dispatch(gpu, kernel, reads, writes, rest);
    }

    /// Calls `f` with the places of each row's values, its values taken to mean 0 and variance 1, and the inverse of its
    /// deviation.
    fn each(&self, x: &ArrayView, mut f: impl FnMut(&dyn Fn(usize) -> usize, &[f64], f64)) {
        let (axis, count) = (x.shape.rank() - 1, x.shape.last() as f64);
        each_row(x.shape, axis, |_, at| {
            let row: Vec<f64> = (0..x.shape.last()).map(|k| x.data[at(k)]).collect();
            let mean = row.iter().sum::<f64>() / count;
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
            let inverse = 1.0 / (variance + self.eps).sqrt();
            f(at, &row.iter().map(|v| (v - mean) * inverse).collect::<Vec<_>>(), inverse);
        });
    }
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        let channels = Shape::new(&[x[0].last()]);
        assert!(x[1] == channels && x[2] == channels, "layer_norm: {x:?}");
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        self.dispatch(gpu, KERNEL, shapes[0], x, &[y]);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let mut y = Array::zeros(x[0].shape);
        self.each(&x[0], |at, row, _| {
            for (k, v) in row.iter().enumerate() {
                y.data[at(k)] = v * x[1].data[k] + x[2].data[k];
            }
        });
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: 6.0 * n, bytes: 8.0 * n }
    }
}

impl Pullback for LayerNorm {
    fn keep(&self) -> Keep {
        Keep::inputs([0, 1])
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let (x, w, g) = (back.x(0), back.x(1), back.g());
        let channels = w.len();
        let sums = back.needs(1) || back.needs(2);
        let (places, total) = places(&g.device(), [x.len(), if sums { 2 * channels } else { 0 }]);
        let all = compute(LayerNormGrad { op: self.clone(), sums, place: places[1], total }, &[x, w, g]);
        let channel = |i: usize| {
            back.needs(i).then(|| all.section(places[1] + (i - 1) * channels, back.shape(i)).into())
        };
        vec![back.needs(0).then(|| all.section(0, x.shape()).into()), channel(1), channel(2)]
    }
}

/// The gradients of `x`, and at a place after it those of the weight and the bias, from `x`, the weight and the result's
/// gradient.
#[derive(Clone, Debug)]
struct LayerNormGrad {
    op: LayerNorm,
    /// Whether those of the weight and the bias are wanted.
    sums: bool,
    place: usize,
    total: usize,
}

impl Op for LayerNormGrad {
    fn name(&self) -> &'static str {
        "layer_norm_grad"
    }

    fn shape(&self, _: &[Shape]) -> Shape {
        Shape::new(&[self.total])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let (channels, len) = (shapes[1].len(), shapes[0].len());
        if channels == 0 {
            return;
        }
        let rows = len / channels;
        let about = gpu.alloc(2 * rows);
        let part = |place: usize, len: usize| y.part(place, len).expect("a place it can bind");
        self.op.dispatch(gpu, GRAD, shapes[0], &[x[0], x[1], x[2]], &[&part(0, len), &about]);
        if !self.sums {
            return;
        }
        let vector = if channels.is_multiple_of(4) { "vec4<f32>" } else { "f32" };
        let columns = if channels.is_multiple_of(4) { channels / 4 } else { channels };
        let wanted = if rows > LONG { enough(gpu).div_ceil(columns) } else { 1 };
        let chunks = wanted.min(rows.div_ceil(LONG / 8)).max(rows.div_ceil(MAX_LOOP)).max(1);
        let target = part(self.place, 2 * channels);
        let partial = (chunks > 1).then(|| gpu.alloc(chunks * 2 * channels));
        let chunk = rows.div_ceil(chunks);
        gpu.dispatch(&Launch {
            kernel: SUMS,
            body: Some((vector.len() as u64, &|| {
                fill(SUMS.text, &[("type", &format!("alias T = {vector};"))])
            })),
            constants: &[],
            reads: &[x[0], x[2], &about],
            writes: &[partial.as_ref().unwrap_or(&target)],
            params: Words::default().sizes(&[columns * chunks, columns, rows, chunk]),
            grid: Grid::Heavy(columns * chunks),
            loops: chunk,
        });
        if let Some(partial) = &partial {
            sum_buffers(gpu, partial, &target, chunks, 2 * channels);
        }
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (w, g, n) = (x[1].data, x[2].data, x[0].shape.last());
        let mut y = Array::zeros(Shape::new(&[self.total]));
        self.op.each(&x[0], |at, row, inverse| {
            let slope = |k: usize| g[at(k)] * w[k];
            let mean = (0..n).map(slope).sum::<f64>() / n as f64;
            let share = (0..n).map(|k| slope(k) * row[k]).sum::<f64>() / n as f64;
            for k in 0..n {
                y.data[at(k)] = (slope(k) - mean - row[k] * share) * inverse;
                if self.sums {
                    y.data[self.place + k] += g[at(k)] * row[k];
                    y.data[self.place + n + k] += g[at(k)];
                }
            }
        });
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: 12.0 * n, bytes: 20.0 * n }
    }
}

pub(super) fn cases() -> Vec<Case> {
    let norm: fn(&[Tensor]) -> Tensor = |x| x[0].layer_norm(&x[1], &x[2], 1e-12);
    vec![
        case("layer_norm", "long rows", &[&[9, 768], &[768], &[768]], sums(768), norm),
        case("layer_norm", "rows", &[&[3, 7, 64], &[64], &[64]], sums(64), norm).bench(),
        case("layer_norm", "odd rows", &[&[9, 37], &[37], &[37]], sums(64), norm),
        case("layer_norm", "many rows", &[&[1200, 8], &[8], &[8]], sums(1200), norm),
        case("layer_norm", "many odd rows", &[&[700, 5], &[5], &[5]], sums(700), norm),
        case("layer_norm", "the longest row", &[&[1, 10_922], &[10_922], &[10_922]], sums(10_922), norm),
        case("layer_norm", "a frozen weight", &[&[9, 64], &[64], &[64]], sums(64), norm)
            .with(1, Values::Whole(5))
            .with(2, Values::Whole(5)),
    ]
}
