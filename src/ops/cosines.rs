//! Cosines of rows, and of blocks of vectors with means of others, in one pass each. They have no gradient of their own:
//! where one is asked, they are composed.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::codegen::{each, fill};
use super::registry::{Case, POINT, Values, case, sums};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Cost, Op, Tensor, View, Viewed, compute};

const ROWS: Kernel = Kernel { name: "cosines", text: include_str!("../../shaders/cosines.wgsl") };
const MEANS: Kernel = Kernel { name: "mean_cosines", text: include_str!("../../shaders/mean_cosines.wgsl") };
const FOUR: &str = "alias T = vec4<f32>;\nfn fold(x: T) -> f32 { return x.x + x.y + x.z + x.w; }";
const ONE: &str = "alias T = f32;\nfn fold(x: T) -> f32 { return x; }";

/// Fours of the context that an invocation holds in registers at most.
const MOST: usize = 16;

/// `a b / max(|a| |b|, eps)` of every row of `x [outer, rows, width]` with that of `own [rows, width]`, of untracked
/// tensors: `[outer, rows]`.
#[track_caller]
pub fn cosines(x: &Tensor, own: &Tensor, eps: f64) -> Tensor {
    compute(Cosines { eps }, &[x, own])
}

/// `q c / max(|q| |c|, eps)` of each block of nodes' vectors `q` and of the means `c` that `weights [outer, nodes,
/// context]` make of others, of untracked tensors: `[outer, nodes, blocks]`. The vectors are given by the products of
/// their blocks, `dots [outer, blocks, items, nodes of an item, context]`, by the others' Gram matrices `[outer, blocks,
/// context, context]` and by the squares `[nodes, blocks]` of the nodes' blocks. `None` where no kernel takes such shapes.
pub fn mean_cosines(
    weights: &Tensor,
    dots: &Viewed,
    grams: &Tensor,
    squares: &Tensor,
    eps: f64,
) -> Option<Tensor> {
    let op = MeanCosines { eps, dots: dots.view.clone() };
    op.fits().then(|| compute(op, &[weights, &dots.tensor, grams, squares]))
}

#[derive(Clone, Debug)]
struct Cosines {
    eps: f64,
}

fn cosine(product: f64, squares: f64, eps: f64) -> f64 {
    product / squares.sqrt().max(eps)
}

impl Op for Cosines {
    fn name(&self) -> &'static str {
        "cosines"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        assert!(x[0].rank() == 3 && x[1].dims() == &x[0].dims()[1..], "cosines: {x:?}");
        x[0].without(2)
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let width = shapes[0][2];
        let (vector, element) = if width.is_multiple_of(4) { (4, FOUR) } else { (1, ONE) };
        gpu.dispatch(&Launch {
            kernel: ROWS,
            body: Some((vector as u64, &|| fill(ROWS.text, &[("type", element)]))),
            constants: &[],
            reads: x,
            writes: &[y],
            params: Words::default()
                .sizes(&[y.len(), shapes[0][1], width / vector])
                .floats(&[self.eps as f32]),
            grid: Grid::Invocations(y.len()),
            loops: width / vector,
        });
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (width, rows) = (x[0].shape[2].max(1), x[0].shape[1]);
        let own = x[1].data.chunks(width).cycle().take(rows * x[0].shape[0]);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let of = |(a, b): (&[f64], &[f64])| cosine(dot(a, b), dot(a, a) * dot(b, b), self.eps);
        Array::new(x[0].shape.without(2), x[0].data.chunks(width).zip(own).map(of).collect())
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: 6.0 * n, bytes: 4.0 * (n + x[1].len() as f64) }
    }
}

#[derive(Clone, Debug)]
struct MeanCosines {
    eps: f64,
    /// How the products are read.
    dots: View,
}

impl MeanCosines {
    fn sizes(&self) -> [usize; 5] {
        [0, 1, 2, 3, 4].map(|k| self.dots.shape[k])
    }

    /// Whether the kernel takes these shapes: nodes and context in fours, one of them in order in the products.
    fn fits(&self) -> bool {
        let [_, _, _, nodes, context] = self.sizes();
        let (offset, strides) = self.dots.strides();
        let fours = |n: &usize| n.is_multiple_of(4);
        let along = |a: usize, b: usize| a == 1 && fours(&b);
        let ordered = along(strides[3], strides[4]) || along(strides[4], strides[3]);
        let plain = offset == 0 && !(0..5).any(|axis| self.dots.is_padded(axis));
        let in_fours = fours(&nodes) && fours(&context) && strides[..3].iter().all(fours);
        plain && ordered && in_fours && context <= 4 * MOST
    }
}

impl Op for MeanCosines {
    fn name(&self) -> &'static str {
        "mean_cosines"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        let [outer, blocks, items, nodes, context] = self.sizes();
        let all = items * nodes;
        assert!(
            x[0].dims() == [outer, all, context]
                && x[2].dims() == [outer, blocks, context, context]
                && x[3].dims() == [all, blocks],
            "mean_cosines: {x:?}, products {}",
            self.dots.shape
        );
        Shape::new(&[outer, all, blocks])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, _: &[Shape]) {
        let [outer, blocks, items, nodes, context] = self.sizes();
        let (_, strides) = self.dots.strides();
        let (fours, quads) = (items * nodes / 4, context / 4);
        let (unrolled, by_node) = (quads.next_multiple_of(2), strides[4] != 1);
        let count = outer * blocks * fours;
        let text = || {
            let variant = format!("const BY_NODE = {by_node};");
            each(&fill(MEANS.text, &[("variant", &variant)]), "q", unrolled)
        };
        let mut hash = DefaultHasher::new();
        (unrolled, by_node).hash(&mut hash);
        gpu.dispatch(&Launch {
            kernel: MEANS,
            body: Some((hash.finish(), &text)),
            constants: &[],
            reads: x,
            writes: &[y],
            params: Words::default()
                .sizes(&[count, fours, blocks, quads, nodes])
                .sizes(&strides)
                .floats(&[self.eps as f32]),
            grid: Grid::Heavy(count),
            loops: context.min(MAX_LOOP),
        });
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let [outer, blocks, items, nodes, context] = self.sizes();
        let (_, strides) = self.dots.strides();
        let all = items * nodes;
        let mut y = Array::zeros(Shape::new(&[outer, all, blocks]));
        for (place, value) in y.data.iter_mut().enumerate() {
            let (o, n, b) = (place / blocks / all, place / blocks % all, place % blocks);
            let weights = &x[0].data[(o * all + n) * context..][..context];
            let at = o * strides[0] + b * strides[1] + n / nodes * strides[2] + n % nodes * strides[3];
            let gram = &x[2].data[(o * blocks + b) * context * context..][..context * context];
            let product: f64 = (0..context).map(|k| weights[k] * x[1].data[at + k * strides[4]]).sum();
            let row = |k: usize| (0..context).map(|l| weights[l] * gram[k * context + l]).sum::<f64>();
            let square: f64 = (0..context).map(|k| weights[k] * row(k)).sum();
            let cosine = cosine(product, square.max(0.0) * x[3].data[n * blocks + b], self.eps);
            *value = cosine.clamp(-1.0, 1.0);
        }
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let [outer, blocks, items, nodes, context] = self.sizes();
        let units = (outer * blocks * items * nodes) as f64;
        let moved: f64 = x.iter().map(|s| s.len() as f64).sum::<f64>() + units;
        Cost { flops: 2.0 * units * (context * context + 2 * context) as f64, bytes: 4.0 * moved }
    }
}

pub(super) fn cases() -> Vec<Case> {
    // Vectors of 2 blocks of width 4: of 3 items with 4 nodes each, and of the context.
    fn means(x: &[Tensor], by_node: bool) -> Tensor {
        let (outer, context) = (x[0].shape()[0], x[0].shape()[2]);
        let (nodes, others) = (x[1].reshape([1, 12, 8]), &x[2]);
        let dots = if by_node {
            let turned = others.head_scores(&x[1].reshape([3, 4, 8]), 2, 1.0);
            turned.reshape([3, 2, outer, context, 4]).view().permute(&[2, 1, 0, 4, 3])
        } else {
            nodes.head_scores(others, 2, 1.0).reshape([outer, 2, 3, 4, context]).view()
        };
        let squares =
            super::sum_of(vec![x[1].reshape([24, 4]).view()], 1, |x| &x[0] * &x[0]).reshape([12, 2]);
        let grams = others.head_scores(others, 2, 1.0);
        mean_cosines(&x[0], &dots, &grams, &squares, 1e-8).expect("in fours")
    }
    vec![
        case("cosines", "in fours", &[&[3, 5, 8], &[5, 8]], sums(8), |x| cosines(&x[0], &x[1], 1e-8))
            .untracked(),
        case("cosines", "odd", &[&[3, 5, 7], &[5, 7]], sums(7), |x| cosines(&x[0], &x[1], 1e-8)).untracked(),
        case("cosines", "below eps", &[&[2, 3, 4], &[3, 4]], POINT, |x| cosines(&x[0], &x[1], 1e6))
            .untracked(),
        case(
            "mean_cosines",
            "the context in order",
            &[&[2, 12, 12], &[12, 8], &[2, 12, 8]],
            sums(144),
            |x| means(x, false),
        )
        .with(0, Values::Uniform(0.0, 1.0))
        .untracked(),
        case("mean_cosines", "nodes in order", &[&[1, 12, 8], &[12, 8], &[1, 8, 8]], sums(64), |x| {
            means(x, true)
        })
        .with(0, Values::Uniform(0.0, 1.0))
        .untracked(),
    ]
}
