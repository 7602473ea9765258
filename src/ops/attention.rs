//! Multi-head attention (Vaswani et al. 2017, section 3.2) in one kernel forward and two backward: the weights
//! are recomputed, never stored. The composition it replaces stores them three times.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::codegen::{each, fill, pointwise};
use super::pack::places;
use super::registry::{Case, Values, case, sums};
use super::{add, materialize};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Style, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};

const FORWARD: &str = include_str!("../../shaders/attention.wgsl");
const QUERIES: &str = include_str!("../../shaders/attention_queries.wgsl");
const KEYS: &str = include_str!("../../shaders/attention_keys.wgsl");

/// Passes over the other side in the longest of the three kernels.
const PASSES: usize = 3;
/// Scores that an invocation holds in registers, where a subgroup's invocations load for each other: of longer rows it
/// computes them again in each pass. Unrolled, so a text for each two steps.
const HELD: usize = 40;
/// And for heads of so many channels, in fours: wider ones make long texts.
const HELD_QUADS: usize = 4;
/// A kernel's beginning where a subgroup's invocations load for each other.
const ENTRY: &str = "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
    @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {";
/// And where they do not.
const LONE_ENTRY: &str = "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
    @builtin(num_workgroups) groups: vec3<u32>) {\n    let lane = 0u;";

impl Tensor {
    /// Attention of queries (this, `[n, r, heads * d]`) over keys and values `[n, l, heads * d]`: for each head
    /// `softmax(scale * q kᵀ + bias) v`, the result `[n, r, heads * d]`. Sequence `n` reads row `n % masks` of `bias
    /// [masks, l]`, which gets no gradient; -1e30 leaves a key out.
    #[track_caller]
    pub fn attention(&self, k: &Self, v: &Self, heads: usize, scale: f64, bias: Option<&Self>) -> Self {
        let op = Attention { heads, scale, stacked: false, masked: bias.is_some(), plus: false };
        let mut x = vec![self, k, v];
        x.extend(bias);
        // Kernels read four channels of a head at a time.
        if (self.shape().last() / heads.max(1)).is_multiple_of(4) { apply(op, &x) } else { op.composed(&x) }
    }

    /// [`Tensor::attention`] of a sequence over itself: this, `[n, r, 3 * heads * d]`, holds queries, keys and values
    /// concatenated. The result, with `plus` added, is `[n, r, heads * d]`.
    #[track_caller]
    pub fn self_attention(&self, heads: usize, scale: f64, bias: Option<&Self>, plus: Option<&Self>) -> Self {
        let op = Attention { heads, scale, stacked: true, masked: bias.is_some(), plus: plus.is_some() };
        let width = self.shape().last() / 3;
        if !(width / heads.max(1)).is_multiple_of(4) {
            let [q, k, v] = [0, 1, 2].map(|i| materialize(self.view().slice(2, i * width, width)));
            let y = q.attention(&k, &v, heads, scale, bias);
            return plus.map_or_else(|| y.clone(), |x| add(x, &y));
        }
        let mut x = vec![self];
        x.extend(bias);
        x.extend(plus);
        apply(op, &x)
    }
}

#[derive(Clone, Debug)]
struct Attention {
    heads: usize,
    scale: f64,
    /// Whether one input holds queries, keys and values.
    stacked: bool,
    /// Whether a bias comes after them.
    masked: bool,
    /// Whether the last input is added to the result.
    plus: bool,
}

/// Sequences, queries, keys and the width of a head.
struct Sizes {
    n: usize,
    r: usize,
    l: usize,
    d: usize,
}

impl Attention {
    /// How many inputs hold queries, keys and values.
    fn sides(&self) -> usize {
        if self.stacked { 1 } else { 3 }
    }

    /// The bias among the inputs, if there is one.
    fn bias<T: Copy>(&self, x: &[T]) -> Option<T> {
        x.get(self.sides()).copied().filter(|_| self.masked)
    }

    #[track_caller]
    fn sizes(&self, x: &[Shape]) -> Sizes {
        assert!(self.bias(x).is_none_or(|b| b[1] == x[usize::from(!self.stacked)][1]), "attention: {x:?}");
        if self.stacked {
            assert!(x[0].rank() == 3 && x[0][2].is_multiple_of(3 * self.heads), "attention: {x:?}");
            return Sizes { n: x[0][0], r: x[0][1], l: x[0][1], d: x[0][2] / 3 / self.heads };
        }
        let (q, k) = (x[0], x[1]);
        assert!(
            q.rank() == 3 && k == x[2] && q[0] == k[0] && q[2] == k[2] && q[2].is_multiple_of(self.heads),
            "attention: {x:?}, {} heads",
            self.heads
        );
        Sizes { n: q[0], r: q[1], l: k[1], d: q[2] / self.heads }
    }

    /// The same by products and a softmax.
    fn composed(&self, x: &[&Tensor]) -> Tensor {
        let scores = x[0].head_scores(x[1], self.heads, self.scale);
        let scores = match x.get(3) {
            Some(bias) => {
                let (masks, l) = (bias.shape()[0], bias.shape()[1]);
                let grouped = [x[0].shape()[0] / masks, masks, self.heads * x[0].shape()[1], l];
                let rows = bias.view().repeat(1, 1).repeat(0, 1);
                scores.reshape(grouped).map2(rows, |s, b| s + b).reshape(scores.shape())
            }
            None => scores,
        };
        scores.softmax(-1, 1.0).head_mix(x[2])
    }

    /// Records a kernel whose invocations own one side's rows and stream over the other's: of inputs `x`, and of
    /// what that kernel reads besides.
    fn launch(&self, gpu: &Gpu, part: Part, x: &[&Buf], besides: &[&Buf], writes: &[&Buf], shapes: &[Shape]) {
        let Sizes { n, r, l, d } = self.sizes(shapes);
        let lanes = if gpu.style() == Style::Subgroup { gpu.facts().lanes().unwrap_or(1) } else { 1 };
        let bias = self.bias(shapes);
        let (own, other) = if part == Part::Keys { (l, r) } else { (r, l) };
        let plus = self.plus && part == Part::Forward;
        let plan =
            Plan { part, lanes, quads: d / 4, masked: self.masked, stacked: self.stacked, plus, held: None };
        let holds = lanes > 1 && part != Part::Keys && other <= HELD && plan.quads <= HELD_QUADS;
        let plan = Plan { held: holds.then(|| other.div_ceil(plan.chunk()).next_multiple_of(2)), ..plan };
        #[cfg(test)]
        super::gates::planned("attention", &plan);
        // What a variant does not read is bound to the queries.
        let (k, v) = if self.stacked { (x[0], x[0]) } else { (x[1], x[2]) };
        let reads = [&[x[0], k, v, self.bias(x).unwrap_or(x[0])], besides].concat();
        let padded = own.next_multiple_of(lanes);
        let masks = bias.map_or(1, |b| b[0]);
        let count = n * self.heads * padded;
        let mut hash = DefaultHasher::new();
        plan.hash(&mut hash);
        gpu.dispatch(&Launch {
            kernel: Kernel { name: part.name(), text: part.text() },
            body: Some((hash.finish(), &|| plan.source())),
            constants: &[],
            reads: &reads,
            writes,
            params: Words::default()
                .sizes(&[count, self.heads, own, padded, other, masks, l])
                .floats(&[self.scale as f32]),
            grid: Grid::Heavy(count),
            loops: PASSES * other.div_ceil(plan.chunk()),
        });
    }

    /// Queries, keys, values and the bias, each by itself.
    fn apart(&self, x: &[ArrayView]) -> Vec<Array> {
        let x = &x[..self.sides() + usize::from(self.masked)];
        let own = |x: &ArrayView| Array::new(x.shape, x.data.to_vec());
        if !self.stacked {
            return x.iter().map(own).collect();
        }
        let shape = x[0].shape.with(2, x[0].shape[2] / 3);
        let third = |i: usize| {
            let rows = x[0].data.chunks(3 * shape[2]);
            Array::new(shape, rows.flat_map(|row| &row[i * shape[2]..(i + 1) * shape[2]]).copied().collect())
        };
        [third(0), third(1), third(2)].into_iter().chain(x[1..].iter().map(own)).collect()
    }

    /// Calls `f` with the weights of every sequence, head and query, in f64.
    fn weights(&self, x: &[Array], mut f: impl FnMut(usize, usize, usize, &[f64])) {
        let ([n, r, width], l) = ([0, 1, 2].map(|i| x[0].shape[i]), x[1].shape[1]);
        let d = width / self.heads;
        for s in 0..n {
            for h in 0..self.heads {
                for i in 0..r {
                    let q = &x[0].data[(s * r + i) * width + h * d..][..d];
                    let score = |j: usize| {
                        let k = &x[1].data[(s * l + j) * width + h * d..][..d];
                        let bias = x.get(3).map_or(0.0, |b| b.data[s % b.shape[0] * l + j]);
                        self.scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() + bias
                    };
                    let scores: Vec<f64> = (0..l).map(score).collect();
                    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let exps: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                    let sum: f64 = exps.iter().sum();
                    f(s, h, i, &exps.iter().map(|e| e / sum).collect::<Vec<_>>());
                }
            }
        }
    }

    fn grads_on_host(&self, x: &[Array], g: ArrayView) -> [Array; 3] {
        let ([r, width], l) = ([1, 2].map(|i| x[0].shape[i]), x[1].shape[1]);
        let d = width / self.heads;
        let mut grads = [0, 1, 2].map(|i| Array::zeros(x[i].shape));
        self.weights(x, |s, h, i, p| {
            let q = (s * r + i) * width + h * d;
            let at = |j: usize| (s * l + j) * width + h * d;
            let slopes: Vec<f64> =
                (0..l).map(|j| (0..d).map(|c| g.data[q + c] * x[2].data[at(j) + c]).sum()).collect();
            let mean: f64 = p.iter().zip(&slopes).map(|(p, s)| p * s).sum();
            for j in 0..l {
                let score = self.scale * p[j] * (slopes[j] - mean);
                for c in 0..d {
                    grads[0].data[q + c] += score * x[1].data[at(j) + c];
                    grads[1].data[at(j) + c] += score * x[0].data[q + c];
                    grads[2].data[at(j) + c] += p[j] * g.data[q + c];
                }
            }
        });
        grads
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0].with(2, self.heads * self.sizes(x).d)
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let plus = if self.plus { x[x.len() - 1] } else { x[0] };
        self.launch(gpu, Part::Forward, x, &[plus], &[y], shapes);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let plus = self.plus.then(|| x[x.len() - 1].data.to_vec());
        let x = &self.apart(x)[..];
        let mut y = plus.map_or_else(|| Array::zeros(x[0].shape), |plus| Array::new(x[0].shape, plus));
        let (r, l, width) = (x[0].shape[1], x[1].shape[1], x[0].shape[2]);
        let d = width / self.heads;
        self.weights(x, |s, h, i, p| {
            for (j, p) in p.iter().enumerate() {
                for c in h * d..(h + 1) * d {
                    y.data[(s * r + i) * width + c] += p * x[2].data[(s * l + j) * width + c];
                }
            }
        });
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let Sizes { n, r, l, d } = self.sizes(x);
        let moved: usize = x.iter().map(Shape::len).sum::<usize>() + self.shape(x).len();
        Cost { flops: 4.0 * (n * r * l * self.heads * d) as f64, bytes: 4.0 * moved as f64 }
    }
}

impl Pullback for Attention {
    fn keep(&self) -> Keep {
        Keep::inputs(0..self.sides() + usize::from(self.masked))
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let mut x: Vec<&Tensor> = (0..self.sides() + usize::from(self.masked)).map(|i| back.x(i)).collect();
        x.push(back.g());
        let sides: Vec<Shape> = (0..self.sides()).map(|i| back.shape(i)).collect();
        let (places, total) = places(&back.g().device(), sides.iter().map(Shape::len));
        let all = compute(AttentionGrad { op: self.clone(), places: places.clone(), total }, &x);
        let section = |(place, shape): (&usize, &Shape)| Some(all.section(*place, *shape).into());
        let mut grads: Vec<Option<Grad>> = places.iter().zip(&sides).map(section).collect();
        grads.resize(back.inputs(), None);
        if self.plus {
            grads[back.inputs() - 1] = Some(back.g().clone().into());
        }
        grads
    }
}

/// The gradients of queries, keys and values, at places in one tensor, from the inputs and the result's gradient.
#[derive(Clone, Debug)]
struct AttentionGrad {
    op: Attention,
    places: Vec<usize>,
    total: usize,
}

impl Op for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn shape(&self, _: &[Shape]) -> Shape {
        Shape::new(&[self.total])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let (op, n) = (&self.op, x.len());
        let Sizes { n: sequences, r, .. } = op.sizes(&shapes[..n - 1]);
        let part =
            |(place, shape): (&usize, &Shape)| y.part(*place, shape.len()).expect("a place it can bind");
        let grads: Vec<Buf> = self.places.iter().zip(shapes).map(part).collect();
        let about = gpu.alloc(4 * sequences * op.heads * r);
        let (x, g, shapes) = (&x[..n - 1], x[n - 1], &shapes[..n - 1]);
        op.launch(gpu, Part::Queries, x, &[g], &[&grads[0], &about], shapes);
        let rest: Vec<&Buf> = grads.iter().skip(usize::from(!op.stacked)).collect();
        op.launch(gpu, Part::Keys, x, &[g, &about], &rest, shapes);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (g, x) = x.split_last().expect("the gradient comes last");
        let grads = self.op.grads_on_host(&self.op.apart(x), *g);
        let grads = if self.op.stacked { vec![concat(&grads)] } else { grads.to_vec() };
        let mut y = Array::zeros(Shape::new(&[self.total]));
        for (grad, place) in grads.iter().zip(&self.places) {
            y.data[*place..place + grad.data.len()].copy_from_slice(&grad.data);
        }
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let forward = self.op.cost(&x[..x.len() - 1]);
        Cost {
            flops: 2.5 * forward.flops,
            bytes: 4.0 * (x.iter().map(Shape::len).sum::<usize>() + self.total) as f64,
        }
    }
}

/// Arrays `[n, r, width]` as one `[n, r, 3 width]`.
fn concat(x: &[Array; 3]) -> Array {
    let (shape, width) = (x[0].shape, x[0].shape[2]);
    let row = |i: usize| x.iter().flat_map(move |x| x.data[i * width..(i + 1) * width].iter().copied());
    Array::new(shape.with(2, 3 * width), (0..shape.len() / width).flat_map(row).collect())
}

/// Which of the three kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Forward,
    Queries,
    Keys,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "attention",
            Self::Queries => "attention_queries",
            Self::Keys => "attention_keys",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Forward => FORWARD,
            Self::Queries => QUERIES,
            Self::Keys => KEYS,
        }
    }
}

/// A kernel's variant.
#[derive(Clone, Copy, Debug, Hash)]
struct Plan {
    part: Part,
    /// Invocations that load for each other.
    lanes: usize,
    /// Fours of channels in a head.
    quads: usize,
    masked: bool,
    stacked: bool,
    plus: bool,
    /// Steps whose scores are held.
    held: Option<usize>,
}

impl Plan {
    /// Rows of the other side in a step: enough that each invocation loads something.
    fn chunk(&self) -> usize {
        (self.lanes / self.quads).max(1)
    }

    fn source(&self) -> String {
        let (lanes, quads, chunk, steps) = (self.lanes, self.quads, self.chunk(), self.held.unwrap_or(1));
        let (vectors, shares) = (chunk * quads, (chunk * quads).div_ceil(lanes));
        // In one array the gradients of keys and values are bound once, after what is read.
        let (values, params) = match self.part {
            Part::Forward => (None, 6),
            Part::Queries => (None, 7),
            Part::Keys if self.stacked => {
                (Some("fn store_value(place: u32, x: vec4<f32>) { gk[place] = x; }"), 7)
            }
            Part::Keys => (None, 8),
        };
        let [parts, k, v] = if self.stacked { [3, 1, 2] } else { [1, 0, 0] };
        let variant = format!(
            "@group(0) @binding({params}) var<uniform> p: Params;\nconst LANES = {lanes}u;\n\
             const QUADS = {quads}u;\nconst CHUNK = {chunk}u;\nconst SHARES = {shares}u;\nconst HELD = {};\n\
             const MASKED = {};\nconst PLUS = {};\nconst PARTS = {parts}u;\nconst K = {k}u;\nconst V = {v}u;",
            self.held.is_some(),
            self.masked,
            self.plus,
        );
        let [entry, gather, spread] = if lanes > 1 {
            [ENTRY, "subgroupBroadcast(own[e / LANES], e % LANES)", "subgroupBroadcast(own, c)"]
        } else {
            [LONE_ENTRY, "own[e]", "own"]
        };
        let gather = format!("    rows[e / QUADS][e % QUADS] = {gather};");
        let spread = format!("    b[c] = {spread};");
        let mut all =
            vec![("variant", &*variant), ("entry", entry), ("gather", &gather), ("spread", &spread)];
        all.extend(values.map(|text| ("values", text)));
        let counts = [("c", chunk), ("e", vectors), ("h", steps), ("j", quads), ("t", shares)];
        let text = fill(self.part.text(), &all);
        let text = counts.iter().fold(text, |text, (name, count)| each(&text, name, *count));
        format!("{}{text}", pointwise(false))
    }
}

/// Kernels of narrow heads, and of BERT's.
#[cfg(test)]
pub(super) fn variants(gpu: &Gpu) -> Vec<super::gates::Variant> {
    let lanes = if gpu.style() == Style::Subgroup { gpu.facts().lanes().unwrap_or(1) } else { 1 };
    let mut all = Vec::new();
    for part in [Part::Forward, Part::Queries, Part::Keys] {
        for (quads, n) in [1, 2, 3, 4, 16].into_iter().flat_map(|quads| (0..8).map(move |n| (quads, n))) {
            let [masked, stacked, plus] = [0, 1, 2].map(|i| n >> i & 1 == 1);
            let holds = lanes > 1 && part != Part::Keys && quads <= HELD_QUADS;
            for held in [None, Some(2), Some(6)].into_iter().filter(|held| held.is_none() || holds) {
                let plus = plus && part == Part::Forward;
                let plan = Plan { part, lanes, quads, masked, stacked, plus, held };
                all.push(super::gates::Variant::new("attention", &plan, plan.source()));
            }
        }
    }
    all
}

pub(super) fn cases() -> Vec<Case> {
    let plain: fn(&[Tensor]) -> Tensor = |x| x[0].attention(&x[1], &x[2], 4, 0.35, None);
    let masked: fn(&[Tensor]) -> Tensor =
        |x| x[0].attention(&x[1], &x[2], 2, 0.35, Some(&x[3].map(|m| (m - 1.0) * 1e30)));
    let (q, k): (&[usize], &[usize]) = (&[6, 36, 32], &[6, 12, 32]);
    vec![
        case("attention", "eight channels a head", &[q, k, k], sums(36), plain).bench(),
        case(
            "attention",
            "sixteen channels a head",
            &[&[2, 37, 64], &[2, 33, 64], &[2, 33, 64]],
            sums(64),
            plain,
        ),
        case(
            "attention",
            "twelve channels a head",
            &[&[2, 7, 48], &[2, 5, 48], &[2, 5, 48]],
            sums(48),
            plain,
        ),
        case(
            "attention",
            "more keys than are held",
            &[&[1, 9, 16], &[1, 45, 16], &[1, 45, 16]],
            sums(45),
            plain,
        ),
        case("attention", "one query, one key", &[&[2, 1, 16], &[2, 1, 16], &[2, 1, 16]], sums(16), plain),
        case(
            "attention",
            "keys left out",
            &[&[6, 9, 64], &[6, 10, 64], &[6, 10, 64], &[3, 10]],
            sums(64),
            masked,
        )
        .with(3, Values::Whole(2)),
        case(
            "attention",
            "heads of odd width, keys left out",
            &[&[4, 5, 14], &[4, 3, 14], &[4, 3, 14], &[2, 3]],
            sums(14),
            masked,
        )
        .with(3, Values::Whole(2)),
        case("attention", "of a sequence over itself", &[&[6, 13, 96]], sums(32), |x| {
            x[0].self_attention(4, 0.35, None, None)
        }),
        case(
            "attention",
            "over itself, keys left out, added",
            &[&[6, 10, 96], &[3, 10], &[6, 10, 32]],
            sums(32),
            |x| x[0].self_attention(2, 0.35, Some(&x[1].map(|m| (m - 1.0) * 1e30)), Some(&x[2])),
        )
        .with(1, Values::Whole(2)),
        case(
            "attention",
            "over itself, heads of odd width, added",
            &[&[4, 5, 42], &[4, 5, 14]],
            sums(14),
            |x| x[0].self_attention(2, 0.35, None, Some(&x[1])),
        ),
        case("attention", "large scores", &[&[2, 9, 16], &[2, 6, 16], &[2, 6, 16]], sums(16), |x| {
            x[0].map(|x| x * 1e-2).attention(&x[1].map(|x| x * 1e-4), &x[2].map(|x| x * 1e-4), 4, 1.0, None)
        })
        .all(Values::Extreme),
        case("attention", "BERT's heads", &[&[2, 5, 384], &[2, 5, 128]], sums(64), |x| {
            x[0].self_attention(2, 0.125, None, Some(&x[1]))
        }),
    ]
}
