//! Cross-attention that scales and shifts its queries by what they attend, in one kernel that stores nothing between: for
//! GPUs, where no gradient is wanted.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{CELLS, CrossAttention, SIDE, WordAxis, variant};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Style, Ways, Words};
use crate::host::{Array, ArrayView};
use crate::ops::codegen::{each, fill, pointwise};
use crate::shape::Shape;
use crate::tensor::{Cost, Op, Tensor, compute};

const KERNEL: Kernel = Kernel { name: "modulate", text: include_str!("../../../shaders/modulate.wgsl") };

/// Invocations of a workgroup; rows and columns of a tile of scores; queries that an invocation moves at once.
const WIDE: usize = 256;
const TILE: usize = 4;
const QUERIES: usize = 8;

impl CrossAttention {
    /// Queries `x [images, captions, queries, d]`, moved by what they attend: `x tanh(a) + b`, where a and b are the halves
    /// of `mapped [images, captions, context, 2 d]` in sums by the weights of `context [images, captions, context, d]`.
    /// Leading axes of length 1 repeat; `lens` as for [`CrossAttention::weights`].
    #[track_caller]
    pub fn modulate(&self, x: &Tensor, context: &Tensor, mapped: &Tensor, lens: Option<&Tensor>) -> Tensor {
        let lens = lens.filter(|_| self.heeds_lens());
        let mut all = vec![x, context, mapped];
        all.extend(lens);
        let stored = || modulated(x, &self.weights(&x.matmul(context, false, true), lens), mapped);
        if all.iter().any(|t| t.is_tracked()) {
            return stored();
        }
        let Some(gpu) = x.device().gpu().cloned() else { return self.in_one_kernel(&all) };
        let shapes: Vec<Shape> = all.iter().map(|t| t.shape()).collect();
        let Some(plan) = Plan::of(self, &gpu, &shapes) else { return stored() };
        let run = |way: usize| if way == 0 { self.in_one_kernel(&all) } else { stored() };
        let y = Modulate::result(&shapes);
        let sizes = [y[0] * y[1], y[2], context.shape()[2], y[3]].map(|n| 1_usize << n.max(1).ilog2());
        let mut hash = DefaultHasher::new();
        ("modulate", plan, sizes).hash(&mut hash);
        let names = || {
            let [pairs, queries, context, width] = sizes;
            let class = format!("modulate {pairs} pairs, {queries} by {context} of {width}, {plan:?}");
            (class, vec!["one kernel".into(), "products".into()])
        };
        let ways = Ways { key: hash.finish(), names: &names, planned: &[0, 1] };
        run(gpu.choose(&ways, &mut |way| drop(run(way))))
    }

    /// The same of queries, context, what it is mapped to and perhaps lengths, where the kernel fits them.
    fn in_one_kernel(&self, x: &[&Tensor]) -> Tensor {
        compute(Modulate(self.clone()), x)
    }

    /// The same, in the kernel wherever it fits, whatever is faster.
    #[track_caller]
    pub(super) fn modulate_at_once(&self, x: &[&Tensor]) -> Tensor {
        let shapes: Vec<Shape> = x.iter().map(|t| t.shape()).collect();
        let fits = x[0].device().gpu().is_none_or(|gpu| Plan::of(self, gpu, &shapes).is_some());
        match fits && x.iter().all(|t| !t.is_tracked()) {
            true => self.in_one_kernel(x),
            false => self.modulate(x[0], x[1], x[2], x.get(3).copied()),
        }
    }
}

/// Queries `x [images, captions, queries, d]` moved by sums of `mapped [images, captions, context, 2 d]` with these weights
/// `[images, captions, queries, context]`: `x tanh(a) + b`, where a and b are the sums' halves.
#[track_caller]
pub fn modulated(x: &Tensor, weights: &Tensor, mapped: &Tensor) -> Tensor {
    let d = x.shape()[3];
    let both = weights.matmul(mapped, false, false);
    let half = |i: usize| both.view().slice(3, i * d, d);
    x.map3(half(0), half(1), |x, a, b| x * a.tanh() + b)
}

/// Of queries, context, what it is mapped to, and lengths where they are heeded.
#[derive(Clone, Debug)]
struct Modulate(CrossAttention);

impl Modulate {
    fn result(shapes: &[Shape]) -> Shape {
        let (x, context) = (shapes[0], shapes[1]);
        Shape::new(&[x[0].max(context[0]), x[1].max(context[1]), x[2], x[3]])
    }
}

/// How many pairs of a tensor the next image's is past an image's, and the next caption's; 0 repeats.
fn strides(s: Shape) -> [usize; 2] {
    [if s[0] == 1 { 0 } else { s[1] }, usize::from(s[1] > 1)]
}

impl Op for Modulate {
    fn name(&self) -> &'static str {
        "modulate"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        let (y, context) = (Self::result(x), x[1]);
        let repeats = |s: Shape| (0..2).all(|i| s[i] == 1 || s[i] == y[i]);
        let agree = context[3] == y[3] && x[2] == context.with(3, 2 * y[3]);
        let lens = x.get(3).is_none_or(|lens| lens.dims() == [y[1]]);
        assert!(agree && repeats(x[0]) && repeats(context) && lens, "modulate: {x:?}");
        y
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let plan = Plan::of(&self.0, gpu, shapes).expect("`modulate` takes steps where there is no plan");
        #[cfg(test)]
        crate::ops::gates::planned("modulate", &plan);
        let s = Self::result(shapes);
        let (pairs, columns, fours) = (s[0] * s[1], shapes[1][2], s[3] / 4);
        let mut hash = DefaultHasher::new();
        plan.hash(&mut hash);
        gpu.dispatch(&Launch {
            kernel: KERNEL,
            body: Some((hash.finish(), &|| plan.source())),
            constants: &[],
            reads: &[x[0], x[1], x[2], x[x.len() - 1]],
            writes: &[y],
            params: Words::default()
                .sizes(&[pairs, s[2], columns, shapes.get(3).map_or(0, Shape::len)])
                .floats(&self.0.numbers())
                .sizes(&[s[1], fours, s[2].next_multiple_of(QUERIES)])
                .sizes(&strides(shapes[0]))
                .sizes(&strides(shapes[1])),
            grid: Grid::Groups(pairs),
            loops: Plan::loops(s[2], columns, fours),
        });
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let shapes: Vec<Shape> = x.iter().map(|x| x.shape).collect();
        let mut y = Array::zeros(Self::result(&shapes));
        let (s, columns) = (y.shape, shapes[1][2]);
        let (rows, d) = (s[2], s[3]);
        // Where a pair's values of input `i` begin, each `size` long.
        let at = |i: usize, pair: usize, size: usize| {
            let [image, caption] = strides(shapes[i]);
            (pair / s[1] * image + pair % s[1] * caption) * size
        };
        let mut scores = Array::zeros(Shape::new(&[s[0], s[1], rows, columns]));
        for (e, score) in scores.data.iter_mut().enumerate() {
            let (pair, r, l) = (e / (rows * columns), e / columns % rows, e % columns);
            let own = &x[0].data[at(0, pair, rows * d) + r * d..][..d];
            let other = &x[1].data[at(1, pair, columns * d) + l * d..][..d];
            *score = own.iter().zip(other).map(|(a, b)| a * b).sum();
        }
        let scores = ArrayView { shape: scores.shape, data: &scores.data };
        let inputs: Vec<ArrayView> = [scores].into_iter().chain(x.get(3).copied()).collect();
        self.0.pairs(&inputs, |first, _, _, weights| {
            let pair = first / (rows * columns);
            for (r, c) in (0..rows).flat_map(|r| (0..d).map(move |c| (r, c))) {
                let sum = |c: usize| {
                    let value = |l: usize| x[2].data[at(2, pair, 2 * columns * d) + 2 * l * d + c];
                    (0..columns).map(|l| weights[r * columns + l] * value(l)).sum::<f64>()
                };
                let own = x[0].data[at(0, pair, rows * d) + r * d + c];
                y.data[(pair * rows + r) * d + c] = own * sum(c).tanh() + sum(d + c);
            }
        });
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let (y, columns) = (Self::result(x), x[1][2]);
        let moved: usize = x.iter().map(Shape::len).sum::<usize>() + y.len();
        Cost { flops: 6.0 * (y.len() * columns) as f64, bytes: 4.0 * moved as f64 }
    }
}

/// A kernel's variant.
#[derive(Clone, Copy, Debug, Hash)]
struct Plan {
    /// Room in workgroup memory for a pair's weights, and for the norms of its columns.
    cells: usize,
    side: usize,
    normed: bool,
    plus: bool,
    masked: Option<WordAxis>,
}

impl Plan {
    /// The variant for inputs of these shapes, if the adapter is a GPU that has room for a pair.
    fn of(op: &CrossAttention, gpu: &Gpu, shapes: &[Shape]) -> Option<Self> {
        let (rows, columns, d) = (shapes[0][2], shapes[1][2], shapes[0][3]);
        let up = |n: usize, step| n.max(1).next_multiple_of(step);
        let (cells, side) = (up(rows.next_multiple_of(QUERIES) * columns, CELLS), up(columns, SIDE));
        let fits = gpu.style() == Style::Workgroup
            && rows * columns * d > 0
            && d.is_multiple_of(4)
            && 4 * (cells + side) <= gpu.facts().workgroup_memory as usize
            && Self::loops(rows, columns, d / 4) <= MAX_LOOP;
        let (normed, plus) = op.norms();
        fits.then(|| Self { cells, side, normed, plus, masked: (shapes.len() > 3).then_some(op.words) })
    }

    /// Loop iterations of an invocation, at most.
    fn loops(rows: usize, columns: usize, fours: usize) -> usize {
        let each = |n: usize| n.div_ceil(WIDE);
        let tiles = rows.div_ceil(TILE) * columns.div_ceil(TILE);
        let scores = each(tiles) * (fours + TILE * TILE + WIDE);
        let weights = 2 * each(rows.next_multiple_of(QUERIES) * columns);
        let sides = each(columns) * rows + 3 * each(rows) * columns;
        scores + weights + sides + each(fours * rows.div_ceil(QUERIES)) * columns
    }

    fn source(&self) -> String {
        let variant = variant(self.normed, self.plus, self.masked, self.cells, self.side);
        let text = fill(KERNEL.text, &[("variant", &variant)]);
        format!("{}{}", pointwise(false), each(&each(&text, "q", TILE), "o", QUERIES))
    }
}

#[cfg(test)]
pub(in crate::ops) fn variants(gpu: &Gpu) -> Vec<crate::ops::gates::Variant> {
    let of = |n: usize| {
        let over = [super::QueryNorm::None, super::QueryNorm::Max(1e-8), super::QueryNorm::Plus(1e-8)][n / 4];
        let words = if n.is_multiple_of(2) { WordAxis::Queries } else { WordAxis::Context };
        let op = CrossAttention { leaky: None, over, scale: 1.0, words };
        let mut shapes =
            vec![Shape::new(&[1, 1, 9, 8]), Shape::new(&[1, 1, 7, 8]), Shape::new(&[1, 1, 7, 16])];
        shapes.extend((n / 2 % 2 == 1 && op.heeds_lens()).then(|| Shape::new(&[1])));
        Plan::of(&op, gpu, &shapes)
    };
    let plans = (0..12).filter_map(of);
    plans.map(|plan| crate::ops::gates::Variant::new("modulate", &plan, plan.source())).collect()
}
