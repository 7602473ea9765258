//! Cosines of rows, and of blocks of vectors with means of others, in one pass each. They have no gradient of their own:
//! where one is asked, they are composed.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::codegen::{each, fill};
use super::registry::{Case, POINT, Values, case, sums};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Style, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Cost, Op, Tensor, View, Viewed, compute};

const ROWS: Kernel = Kernel { name: "cosines", text: include_str!("../../shaders/cosines.wgsl") };
const MEANS: Kernel = Kernel { name: "mean_cosines", text: include_str!("../../shaders/mean_cosines.wgsl") };
const FOUR: &str = "alias T = vec4<f32>;\nfn fold(x: T) -> f32 { return x.x + x.y + x.z + x.w; }";
const ONE: &str = "alias T = f32;\nfn fold(x: T) -> f32 { return x; }";

/// A kernel's beginning where a subgroup's invocations load for each other.
const ENTRY: &str = "@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32) {";
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
        let plan = Plan::of(gpu, quads, strides[4] != 1);
        #[cfg(test)]
        super::gates::planned("mean_cosines", &plan);
        let padded = fours.next_multiple_of(plan.lanes);
        let count = outer * blocks * padded;
        let mut hash = DefaultHasher::new();
        plan.hash(&mut hash);
        gpu.dispatch(&Launch {
            kernel: MEANS,
            body: Some((hash.finish(), &|| plan.source())),
            constants: &[],
            reads: x,
            writes: &[y],
            params: Words::default()
                .sizes(&[count, fours, padded, blocks, nodes])
                .sizes(&strides)
                .floats(&[self.eps as f32]),
            grid: Grid::Heavy(count),
            loops: quads,
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

/// A kernel's variant.
#[derive(Clone, Copy, Debug, Hash)]
struct Plan {
    /// Invocations that load for each other.
    lanes: usize,
    /// Whether four neighbours in the products are nodes, not context.
    by_node: bool,
    /// Fours of the context.
    unrolled: usize,
}

impl Plan {
    fn of(gpu: &Gpu, unrolled: usize, by_node: bool) -> Self {
        let lanes = gpu.facts().lanes().filter(|_| gpu.style() == Style::Subgroup).unwrap_or(1);
        Self { lanes, by_node, unrolled }
    }

    fn source(&self) -> String {
        let Self { lanes, by_node, unrolled } = *self;
        let shares = (4 * unrolled).div_ceil(lanes);
        let variant = format!(
            "const BY_NODE = {by_node};\nconst QUADS = {unrolled}u;\nconst LANES = {lanes}u;\nconst SHARES = {shares}u;"
        );
        let mut parts = vec![("variant", variant.as_str())];
        if lanes > 1 {
            parts.extend([("share", ""), ("entry", ENTRY)]);
        }
        let text = each(&each(&fill(MEANS.text, &parts), "q", unrolled), "j", shares);
        if lanes > 1 { text.replace(" share(", " subgroupBroadcast(") } else { text }
    }
}

#[cfg(test)]
pub(super) fn variants(gpu: &Gpu) -> Vec<super::gates::Variant> {
    let plans = (1..=MOST).flat_map(|n| [false, true].map(|by_node| Plan::of(gpu, n, by_node)));
    plans.map(|plan| super::gates::Variant::new("mean_cosines", &plan, plan.source())).collect()
}

pub(super) fn cases() -> Vec<Case> {
    // Vectors of 2 blocks of width 4: of 3 items with 4 nodes each, and of the context.
    fn means(x: &[Tensor], by_node: bool) -> Tensor {
        let (outer, context) = (x[0].shape()[0], x[0].shape()[2]);
        let (nodes, others) = (x[1].reshape([1, 12, 8]), x[2].reshape([1, outer * context, 8]));
        let dots = if by_node {
            let dots = others.head_scores(&nodes, 2, 1.0).reshape([2, outer, context, 3, 4]);
            dots.view().permute(&[1, 0, 3, 4, 2])
        } else {
            let dots = nodes.head_scores(&others, 2, 1.0).reshape([2, 3, 4, outer, context]);
            dots.view().permute(&[3, 0, 1, 2, 4])
        };
        let squares =
            super::sum_of(vec![x[1].reshape([24, 4]).view()], 1, |x| &x[0] * &x[0]).reshape([12, 2]);
        let grams = x[2].head_scores(&x[2], 2, 1.0);
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
