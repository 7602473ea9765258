//! Layer norm (Ba et al. 2016): rows taken to mean 0 and variance 1, then to a weight and a bias of each channel; one
//! kernel forward, two back. Rows may be the sum of a residual and what is dropped out, as post-norm transformers have it:
//! the same kernels then make the sum, and both gradients.

use super::codegen::fill;
use super::dropout::Dropout;
use super::pack::places;
use super::reduce::{enough, sum_parts};
use super::registry::{Case, Values, case, sums};
use super::rows::{Rows, each_row};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute, split_with};

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
        apply(LayerNorm { eps, sum: None }, &[self, w, b])
    }

    /// [`Tensor::layer_norm`] of `residual` plus [`Tensor::dropout`] of this, of one shape.
    #[track_caller]
    pub fn dropout_add_layer_norm(
        &self,
        residual: &Self,
        [w, b]: [&Self; 2],
        eps: f64,
        rate: f32,
        seed: u64,
    ) -> Self {
        assert_eq!(self.shape(), residual.shape(), "dropout_add_layer_norm");
        // The sum outlives the kernel for the gradient alone: else the norm takes its place.
        let tracked = [self, residual, w, b].iter().any(|x| x.is_tracked());
        let (places, total) = match tracked {
            true => places(&self.device(), [self.len(); 2]),
            false => (vec![0; 2], self.len()),
        };
        let sum = Sum { dropout: Dropout::new(rate, seed), place: places[1], total };
        let parts = |all: &Self| vec![all.section(places[1], self.shape()), all.section(0, self.shape())];
        split_with(LayerNorm { eps, sum: Some(sum) }, &[self, w, b, residual], parts).swap_remove(1)
    }
}

/// Of rows and a weight and a bias; or of what is dropped out, these and a residual: the result is then the norm and, at
/// a place after it, the sum. The gradient reads the sum, which is the first of the outputs.
#[derive(Clone, Debug)]
struct LayerNorm {
    eps: f64,
    sum: Option<Sum>,
}

/// How rows are sums.
#[derive(Clone, Debug)]
struct Sum {
    dropout: Dropout,
    /// Where the sum is.
    place: usize,
    total: usize,
}

impl LayerNorm {
    /// Records a kernel that has a second result at `second` if rows are sums.
    fn dispatch(
        &self,
        gpu: &Gpu,
        kernel: Kernel,
        shape: Shape,
        second: usize,
        reads: &[&Buf],
        writes: &[&Buf],
    ) {
        let rows = Rows::of(shape, shape.rank() - 1);
        let at_once = rows.n / rows.steps.max(1);
        let mut rest =
            Words::default().floats(&[rows.n as f32, self.eps as f32]).sizes(&[second / at_once.max(1)]);
        rest.0.extend(self.sum.as_ref().map_or([0; 4], |sum| sum.dropout.params()));
        let plus = f64::from(u8::from(self.sum.is_some()));
        rows.dispatch_with(gpu, kernel, &[("plus", plus)], reads, writes, rest);
    }

    /// Calls `f` with the places of each row's values, its values taken to mean 0 and variance 1, and its mean and inverse
    /// deviation.
    fn each(&self, x: &ArrayView, mut f: impl FnMut(&dyn Fn(usize) -> usize, &[f64], [f64; 2])) {
        let (axis, count) = (x.shape.rank() - 1, x.shape.last() as f64);
        each_row(x.shape, axis, |_, at| {
            let row: Vec<f64> = (0..x.shape.last()).map(|k| x.data[at(k)]).collect();
            let mean = row.iter().sum::<f64>() / count;
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
            let inverse = 1.0 / (variance + self.eps).sqrt();
            f(at, &row.iter().map(|v| (v - mean) * inverse).collect::<Vec<_>>(), [mean, inverse]);
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
        self.sum.as_ref().map_or(x[0], |sum| Shape::new(&[sum.total]))
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let residual = x.get(3).unwrap_or(&x[0]);
        let place = self.sum.as_ref().map_or(0, |sum| sum.place);
        self.dispatch(gpu, KERNEL, shapes[0], place, &[x[0], x[1], x[2], residual], &[y]);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let mut y = Array::zeros(self.shape(&[x[0].shape, x[1].shape, x[2].shape]));
        let summed = self.sum.as_ref().map(|sum| {
            let s = |(i, v): (usize, &f64)| sum.dropout.of(i, *v) + x[3].data[i];
            let s = Array::new(x[0].shape, x[0].data.iter().enumerate().map(s).collect());
            y.data[sum.place..sum.place + s.data.len()].copy_from_slice(&s.data);
            s
        });
        self.each(&summed.as_ref().map_or(x[0], Array::view), |at, row, _| {
            for (k, v) in row.iter().enumerate() {
                y.data[at(k)] = v * x[1].data[k] + x[2].data[k];
            }
        });
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        let sum = if self.sum.is_some() { 2.0 } else { 0.0 };
        Cost { flops: (6.0 + sum) * n, bytes: 4.0 * (2.0 + sum) * n }
    }
}

impl Pullback for LayerNorm {
    fn keep(&self) -> Keep {
        if self.sum.is_some() { Keep::inputs([1]).and_output() } else { Keep::inputs([0, 1]) }
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let is_sum = self.sum.is_some();
        let (x, w) = (if is_sum { back.y() } else { back.x(0) }, back.x(1));
        // That of the last output.
        let g = back.g_of(usize::from(is_sum));
        let (channels, rows) = (w.len(), x.len() / w.len().max(1));
        let second = if is_sum { x.len() } else { 0 };
        let (places, total) = places(&g.device(), [x.len(), second, 2 * rows]);
        let op = LayerNormGrad { op: self.clone(), second: places[1], about: places[2], total };
        let all = compute(op, &[x, w, g]);
        // Memory of their own: what outlives this pass holds no row's gradient.
        let sums = (back.needs(1) || back.needs(2)).then(|| {
            let about = all.section(places[2], Shape::new(&[rows, 2]));
            compute(LayerNormSums, &[x, g, &about])
        });
        let channel = |i: usize| {
            let sums = sums.as_ref().filter(|_| back.needs(i))?;
            Some(sums.section((i - 1) * channels, back.shape(i)).into())
        };
        let of = |i: usize, place| back.needs(i).then(|| all.section(place, x.shape()).into());
        let first = of(0, if is_sum { places[1] } else { 0 });
        let mut grads = vec![first, channel(1), channel(2)];
        grads.extend(is_sum.then(|| of(3, 0)));
        grads
    }
}

/// The gradient of `x`, and at places after it that of what was dropped out, if `x` is a sum, and each row's mean and
/// inverse deviation; from `x`, the weight and the result's gradient.
#[derive(Clone, Debug)]
struct LayerNormGrad {
    op: LayerNorm,
    second: usize,
    about: usize,
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
        let part = |place: usize, len: usize| y.part(place, len).expect("a place it can bind");
        let writes = [&part(0, self.about), &part(self.about, 2 * (len / channels))];
        self.op.dispatch(gpu, GRAD, shapes[0], self.second, x, &writes);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (w, g, n) = (x[1].data, x[2].data, x[0].shape.last());
        let mut y = Array::zeros(Shape::new(&[self.total]));
        let mut about = self.about;
        self.op.each(&x[0], |at, row, [mean, inverse]| {
            let slope = |k: usize| g[at(k)] * w[k];
            let shift = (0..n).map(slope).sum::<f64>() / n as f64;
            let share = (0..n).map(|k| slope(k) * row[k]).sum::<f64>() / n as f64;
            for (k, v) in row.iter().enumerate() {
                let value = (slope(k) - shift - v * share) * inverse;
                y.data[at(k)] = value;
                if let Some(sum) = &self.op.sum {
                    y.data[self.second + at(k)] = sum.dropout.of(at(k), value);
                }
            }
            y.data[about..about + 2].copy_from_slice(&[mean, inverse]);
            about += 2;
        });
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        let sum = if self.op.sum.is_some() { 1.0 } else { 0.0 };
        Cost { flops: (10.0 + sum) * n, bytes: 4.0 * (3.0 + sum) * n }
    }
}

/// The gradients of the weight and the bias, `[2, n]`, from `x`, the result's gradient and each row's mean and inverse
/// deviation.
#[derive(Clone, Debug)]
struct LayerNormSums;

impl Op for LayerNormSums {
    fn name(&self) -> &'static str {
        "layer_norm_sums"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        Shape::new(&[2, x[0].last()])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let (channels, rows) = (shapes[0].last(), shapes[2][0]);
        let (vector, columns) =
            if channels.is_multiple_of(4) { ("vec4<f32>", channels / 4) } else { ("f32", channels) };
        let wanted = if rows > LONG { enough(gpu).div_ceil(columns.max(1)) } else { 1 };
        let chunks = wanted.min(rows.div_ceil(LONG / 8)).max(rows.div_ceil(MAX_LOOP)).max(1);
        let partial = (chunks > 1).then(|| gpu.alloc(chunks * y.len()));
        let chunk = rows.div_ceil(chunks);
        let alias = format!("alias T = {vector};");
        gpu.dispatch(&Launch {
            kernel: SUMS,
            body: Some((vector.len() as u64, &|| fill(SUMS.text, &[("type", &alias)]))),
            constants: &[],
            reads: x,
            writes: &[partial.as_ref().unwrap_or(y)],
            params: Words::default().sizes(&[columns * chunks, columns, rows, chunk]),
            grid: Grid::Heavy(columns * chunks),
            loops: chunk,
        });
        if let Some(partial) = partial {
            sum_parts(gpu, partial, y, chunks);
        }
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let n = x[0].shape.last();
        let mut y = Array::zeros(Shape::new(&[2, n]));
        for (i, g) in x[1].data.iter().enumerate() {
            let (row, k) = (i / n, i % n);
            y.data[k] += g * (x[0].data[i] - x[2].data[2 * row]) * x[2].data[2 * row + 1];
            y.data[n + k] += g;
        }
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: 4.0 * n, bytes: 8.0 * n }
    }
}

pub(super) fn cases() -> Vec<Case> {
    let norm: fn(&[Tensor]) -> Tensor = |x| x[0].layer_norm(&x[1], &x[2], 1e-12);
    let of_sum: fn(&[Tensor]) -> Tensor =
        |x| x[0].dropout_add_layer_norm(&x[1], [&x[2], &x[3]], 1e-12, 0.3, 0x1234_5678_9abc);
    vec![
        case("layer_norm", "of a sum", &[&[3, 7, 64], &[3, 7, 64], &[64], &[64]], sums(64), of_sum).bench(),
        case("layer_norm", "of an odd sum", &[&[9, 37], &[9, 37], &[37], &[37]], sums(64), of_sum),
        case("layer_norm", "of a long sum", &[&[9, 768], &[9, 768], &[768], &[768]], sums(768), of_sum),
        case(
            "layer_norm",
            "of a sum of many rows",
            &[&[1200, 8], &[1200, 8], &[8], &[8]],
            sums(1200),
            of_sum,
        ),
        case("layer_norm", "of a sum with itself", &[&[9, 64], &[64], &[64]], sums(64), |x| {
            x[0].dropout_add_layer_norm(&x[0], [&x[1], &x[2]], 1e-12, 0.3, 0x9abc)
        }),
        case(
            "layer_norm",
            "of a sum, a frozen weight",
            &[&[9, 64], &[9, 64], &[64], &[64]],
            sums(64),
            of_sum,
        )
        .with(2, Values::Whole(5))
        .with(3, Values::Whole(5)),
        case(
            "layer_norm",
            "of a sum, a frozen residual",
            &[&[9, 64], &[9, 64], &[64], &[64]],
            sums(64),
            of_sum,
        )
        .with(1, Values::Whole(5)),
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
