//! Sums, means and maxima over an axis, of a formula over viewed tensors.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::codegen::{Codegen, Lane, distinct, fill, param, pointwise};
use super::map::{broadcast_all, gather, kept_inputs, pullbacks};
use super::registry::{Case, POINT, Values, case, sums};
use super::rows::fits;
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{
    Back, Cost, Expr, Grad, Keep, Op, Program, Pullback, Tensor, View, Viewed, apply, compute,
};

const KERNEL: Kernel = Kernel { name: "reduce", text: include_str!("../../shaders/reduce.wgsl") };
const MAX_GRAD: Kernel = Kernel { name: "max_grad", text: include_str!("../../shaders/max_grad.wgsl") };

/// Values that are summed before their sum is added to the rest: rounding grows with the longer of both.
const PART: usize = 32;
/// Iterations of one invocation before the axis is split into chunks.
const LONG: usize = 512;
/// Invocations that keep a GPU busy, and each core of a CPU.
const ENOUGH: usize = 4096;
const ENOUGH_A_CORE: usize = 64;
/// Iterations from which on an invocation counts as heavy.
const HEAVY: usize = 64;

/// Invocations that keep the adapter busy.
pub(super) fn enough(gpu: &Gpu) -> usize {
    gpu.facts().cores.map_or(ENOUGH, |cores| ENOUGH_A_CORE * cores)
}

/// What is kept of the values along the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Sum,
    Max,
}

impl Kind {
    fn start(self) -> f64 {
        match self {
            Self::Sum => 0.0,
            Self::Max => f64::NEG_INFINITY,
        }
    }
}

/// The sum over `axis` of `f(x0, x1, ..)`, the inputs broadcast; the axis is removed.
#[track_caller]
pub fn sum_of(x: Vec<Viewed>, axis: usize, f: impl FnOnce(&[Expr]) -> Expr) -> Tensor {
    scaled_sum_of(1.0, x, axis, f)
}

/// `factor` times [`sum_of`].
#[track_caller]
pub fn scaled_sum_of(factor: f64, x: Vec<Viewed>, axis: usize, f: impl FnOnce(&[Expr]) -> Expr) -> Tensor {
    let inputs: Vec<Expr> = (0..x.len()).map(Expr::input).collect();
    reduce(Kind::Sum, x, axis, Program::new(f(&inputs)), factor)
}

pub(super) fn sum_axis(x: &Tensor, axis: usize) -> Tensor {
    reduce(Kind::Sum, vec![x.view()], axis, Program::new(Expr::input(0)), 1.0)
}

#[track_caller]
fn reduce(kind: Kind, x: Vec<Viewed>, axis: usize, program: Program, factor: f64) -> Tensor {
    let (_, x) = broadcast_all(x);
    let (tensors, views): (Vec<Tensor>, Vec<View>) = x.into_iter().map(|v| (v.tensor, v.view)).unzip();
    apply(Reduce { kind, program, views, axis, factor }, &tensors.iter().collect::<Vec<_>>())
}

impl Tensor {
    /// The sum over an axis (counted from the end if negative), which is removed.
    #[track_caller]
    pub fn sum(&self, axis: isize) -> Self {
        sum_axis(self, self.shape().axis(axis))
    }

    /// The mean over an axis, which is removed.
    #[track_caller]
    pub fn mean(&self, axis: isize) -> Self {
        let axis = self.shape().axis(axis);
        let factor = 1.0 / self.shape()[axis] as f64;
        reduce(Kind::Sum, vec![self.view()], axis, Program::new(Expr::input(0)), factor)
    }

    /// The largest value over an axis, which is removed; the gradient goes to its first place, as PyTorch's.
    #[track_caller]
    pub fn max(&self, axis: isize) -> Self {
        let axis = self.shape().axis(axis);
        reduce(Kind::Max, vec![self.view()], axis, Program::new(Expr::input(0)), 1.0)
    }

    /// The sum of all values, a scalar.
    pub fn sum_all(&self) -> Self {
        sum_axis(&self.reshape([self.len()]), 0)
    }
}

/// The reduction op. All views have the shape before the axis is removed; a maximum takes one plain input.
#[derive(Clone, Debug)]
pub(super) struct Reduce {
    pub(super) kind: Kind,
    pub(super) program: Program,
    pub(super) views: Vec<View>,
    pub(super) axis: usize,
    pub(super) factor: f64,
}

/// `y[i]` is the sum of `parts[s, i]` over `rows` partial results.
pub(super) fn sum_buffers(gpu: &Gpu, parts: &Buf, y: &Buf, rows: usize, n: usize) {
    Reduce::rows(Kind::Sum, 1.0, rows, n).gpu(gpu, &[parts], y, &[]);
}

impl Reduce {
    fn rows(kind: Kind, factor: f64, rows: usize, n: usize) -> Self {
        let views = vec![View::identity(Shape::new(&[rows, n]))];
        Self { kind, program: Program::new(Expr::input(0)), views, axis: 0, factor }
    }

    fn full(&self) -> Shape {
        self.views[0].shape
    }

    fn launch(&self, gpu: &Gpu, codegen: &Codegen, buffers: &[&Buf], used: &[usize], y: &Buf, chunks: usize) {
        let steps = codegen.axis_steps();
        let chunk = steps.div_ceil(chunks);
        let per_chunk = codegen.invocations();
        let factor = if chunks == 1 { self.factor } else { 1.0 };
        let mut params = Words::default()
            .sizes(&[per_chunk * chunks, steps, chunk])
            .floats(&[factor as f32])
            .sizes(&[per_chunk])
            .0;
        const FIRST: usize = 5;
        codegen.params(&mut params);
        let constants = params.len();
        params.extend(self.program.constants().iter().map(|c| (*c as f32).to_bits()));
        let mut hash = DefaultHasher::new();
        (self.program.key(), used, buffers.len(), self.kind, chunks > 1).hash(&mut hash);
        codegen.hash(&mut hash);
        let text = || {
            let vector = codegen.lane != Lane::Single;
            let place = |i: usize| format!("in{}", used.iter().position(|u| *u == i).unwrap_or(0));
            let constant = |i: usize| format!("bitcast<f32>({})", param(constants + i));
            let (formula, result) = self.program.wgsl(place, constant);
            let (start, [join, join_parts]) = match self.kind {
                Kind::Sum => ("0.0", [format!("part + {result}"), "acc + part".to_owned()]),
                Kind::Max => {
                    ("-0x1.fffffep+127", [format!("max(part, {result})"), "max(acc, part)".to_owned()])
                }
            };
            let fold = match (codegen.lane, self.kind) {
                (Lane::Axis, Kind::Sum) => "acc.x + acc.y + acc.z + acc.w",
                (Lane::Axis, Kind::Max) => "max(max(acc.x, acc.y), max(acc.z, acc.w))",
                _ => "acc",
            };
            let times = if codegen.lane == Lane::Axis { "4u" } else { "1u" };
            let per = param(4);
            let (chunk, index) = match chunks {
                1 => ("0u".to_owned(), "i".to_owned()),
                _ => (format!("i / {per}"), format!("i % {per}")),
            };
            let body = format!(
                "    let chunk = {chunk};\n{coordinates}    var acc = T({start});\n    \
                 let end = min(chunk * {len} + {len}, {all});\n    \
                 for (var first = chunk * {len}; first < end; first += {PART}u) {{\n    var part = T({start});\n    \
                 for (var step = first; step < min(first + {PART}u, end); step++) {{\n    let n = step * {times};\n\
                 {loads}{formula}    part = {join};\n    }}\n    acc = {join_parts};\n    }}\n    y[i] = ({fold}) * bitcast<f32>({factor});",
                coordinates = codegen.coordinates(FIRST, &index),
                len = param(2),
                all = param(1),
                loads = codegen.loads(FIRST, |_| true),
                factor = param(3),
            );
            let bindings = codegen.bindings(buffers.len(), codegen.lane == Lane::Out);
            format!("{}{}", pointwise(vector), fill(KERNEL.text, &[("bindings", &bindings), ("body", &body)]))
        };
        gpu.dispatch(&Launch {
            kernel: KERNEL,
            body: Some((hash.finish(), &text)),
            constants: &[],
            reads: buffers,
            writes: &[y],
            params: Words(params),
            grid: if chunk < HEAVY { Grid::Invocations } else { Grid::Heavy }(per_chunk * chunks),
            loops: chunk,
        });
    }
}

impl Op for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn shape(&self, _: &[Shape]) -> Shape {
        self.full().without(self.axis)
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, _: &[Shape]) {
        let used: Vec<usize> = (0..x.len()).filter(|i| self.program.reads(*i)).collect();
        let (buffers, places) = distinct(&used.iter().map(|i| x[*i]).collect::<Vec<_>>());
        let views: Vec<&View> = used.iter().map(|i| &self.views[*i]).collect();
        let codegen = Codegen::new(self.full(), Some(self.axis), &views, &places);
        let steps = codegen.axis_steps();
        let enough = enough(gpu);
        let wanted = if steps > LONG { enough.div_ceil(codegen.invocations().max(1)) } else { 1 };
        let chunks = wanted.min(steps.div_ceil(LONG / 8)).max(steps.div_ceil(crate::gpu::MAX_LOOP)).max(1);
        if chunks == 1 {
            return self.launch(gpu, &codegen, &buffers, &used, y, 1);
        }
        let n = codegen.outputs();
        let partial = gpu.alloc(chunks * n);
        self.launch(gpu, &codegen, &buffers, &used, &partial, chunks);
        Self::rows(self.kind, self.factor, chunks, n).gpu(gpu, &[&partial], y, &[]);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let read: Vec<Vec<f64>> = x.iter().zip(&self.views).map(|(x, v)| gather(x, v)).collect();
        let (outer, n, inner) = self.full().split(self.axis);
        let (mut row, mut scratch) = (vec![0.0; x.len()], Vec::new());
        let mut data = vec![self.kind.start(); outer * inner];
        for o in 0..outer {
            for k in 0..n {
                for i in 0..inner {
                    for (value, values) in row.iter_mut().zip(&read) {
                        *value = values[(o * n + k) * inner + i];
                    }
                    let value = self.program.value(&row, &mut scratch);
                    let acc = &mut data[o * inner + i];
                    *acc = match self.kind {
                        Kind::Sum => *acc + value,
                        Kind::Max => acc.max(value),
                    };
                }
            }
        }
        data.iter_mut().for_each(|v| *v *= self.factor);
        Array::new(self.full().without(self.axis), data)
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = self.full().len();
        let moved = self.full().without(self.axis).len() + x.iter().map(Shape::len).sum::<usize>();
        Cost { flops: (n * (1 + self.program.flops())) as f64, bytes: 4.0 * moved as f64 }
    }
}

impl Pullback for Reduce {
    fn keep(&self) -> Keep {
        match self.kind {
            Kind::Sum => kept_inputs(&self.program, self.views.len()),
            Kind::Max => Keep::inputs([0]),
        }
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        match self.kind {
            Kind::Sum => pullbacks(&self.program, &self.views, back, Some(self.axis), self.factor),
            Kind::Max => vec![Some(compute(MaxGrad { axis: self.axis }, &[back.x(0), back.g()]).into())],
        }
    }
}

/// The gradient of a maximum: `g` at the first place of the largest value, 0 elsewhere.
#[derive(Clone, Debug)]
struct MaxGrad {
    axis: usize,
}

impl Op for MaxGrad {
    fn name(&self) -> &'static str {
        "max_grad"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let (outer, n, inner) = shapes[0].split(self.axis);
        if !fits(gpu, &MAX_GRAD, n, 2 * n) {
            return;
        }
        gpu.dispatch(&Launch {
            kernel: MAX_GRAD,
            body: None,
            constants: &[],
            reads: x,
            writes: &[y],
            params: Words::default().sizes(&[outer * inner, n, inner]),
            grid: Grid::Invocations(outer * inner),
            loops: 2 * n,
        });
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (outer, n, inner) = x[0].shape.split(self.axis);
        let mut y = Array::zeros(x[0].shape);
        for o in 0..outer {
            for i in 0..inner {
                let at = |k: usize| (o * n + k) * inner + i;
                let first = (0..n).fold(0, |m, k| if x[0].data[at(k)] > x[0].data[at(m)] { k } else { m });
                if n > 0 {
                    y.data[at(first)] = x[1].data[o * inner + i];
                }
            }
        }
        y
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("reduce", "rows, in fours", &[&[257, 36]], sums(36), |x| x[0].sum(-1)),
        case("reduce", "rows, odd", &[&[5, 37]], sums(37), |x| x[0].mean(-1)),
        case("reduce", "columns", &[&[255, 64]], sums(255), |x| x[0].sum(0)),
        case("reduce", "long columns in chunks", &[&[9216, 64]], sums(9216), |x| x[0].sum(0)).bench(),
        case("reduce", "a long axis, past the loop limit", &[&[300_001]], sums(300_001), |x| x[0].sum(0))
            .all(Values::Uniform(0.0, 1.0)),
        case("reduce", "the middle axis", &[&[6, 36, 5]], sums(36), |x| x[0].mean(1)),
        case("reduce", "of a formula", &[&[9, 36], &[9, 36]], sums(36), |x| {
            sum_of(vec![x[0].view(), x[1].view()], 1, |x| &x[0] * x[1].tanh())
        }),
        case("reduce", "of one row", &[&[1, 5]], POINT, |x| x[0].sum(0)),
        case("reduce", "of nothing", &[&[0, 5]], POINT, |x| x[0].sum(0)),
        case("reduce", "maximum", &[&[7, 36, 8]], POINT, |x| x[0].max(1)).bench(),
        case("reduce", "the longest maximum", &[&[16_384]], POINT, |x| x[0].max(0)),
        case("reduce", "maximum with ties", &[&[7, 12]], POINT, |x| x[0].max(-1)).all(Values::Grid),
    ]
}
