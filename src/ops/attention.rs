//! Multi-head attention (Vaswani et al. 2017, section 3.2) in one kernel forward and two backward: the weights
//! are recomputed, never stored. The composition it replaces stores them three times.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::codegen::{fill, pointwise};
use super::pack::places;
use super::registry::{Case, Values, case, sums};
use super::{add, materialize};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Style, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};

const TEXT: &str = include_str!("../../shaders/attention.wgsl");

/// Passes over the other side in the longest of the three kernels.
const PASSES: usize = 3;
/// Scores that an invocation holds in registers, where a subgroup's invocations load for each other: of longer rows it
/// computes them again in each pass. Unrolled, so a text for each two steps.
const HELD: usize = 40;
/// And for heads of so many channels, in fours: wider ones make long texts.
const HELD_QUADS: usize = 4;
/// Below this a score has no weight.
const NOWHERE: &str = "-3e38";

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

    /// Records a kernel whose invocations own one side's rows and stream over the other's.
    fn launch(&self, gpu: &Gpu, part: Part, reads: &[&Buf], writes: &[&Buf], shapes: &[Shape]) {
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
        let padded = own.next_multiple_of(lanes);
        let masks = bias.map_or(1, |b| b[0]);
        let count = n * self.heads * padded;
        let mut hash = DefaultHasher::new();
        plan.hash(&mut hash);
        gpu.dispatch(&Launch {
            kernel: Kernel { name: part.name(), text: TEXT },
            body: Some((hash.finish(), &|| plan.source())),
            constants: &[],
            reads,
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
        self.launch(gpu, Part::Forward, x, &[y], shapes);
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
        let (sides, masks) = x[..n - 1].split_at(op.sides());
        let queries = [sides, &[x[n - 1]], masks].concat();
        op.launch(gpu, Part::Queries, &queries, &[&grads[0], &about], &shapes[..n - 1]);
        let rest: Vec<&Buf> = grads.iter().skip(usize::from(!op.stacked)).collect();
        let keys = [sides, &[x[n - 1], &about], masks].concat();
        op.launch(gpu, Part::Keys, &keys, &rest, &shapes[..n - 1]);
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
    /// The binding that holds an array.
    fn bound<'a>(&self, array: &'a str) -> &'a str {
        match array {
            "q" | "k" | "v" if self.stacked => "qkv",
            "gq" | "gk" | "gv" if self.stacked => "gqkv",
            own => own,
        }
    }

    /// Vector `j` of the owned head in a row of an array.
    fn place(&self, array: &str, row: &str, j: &str) -> String {
        let third = ["q", "k", "v"].iter().position(|name| array.trim_start_matches('g') == *name);
        let row = match third.filter(|_| self.stacked) {
            Some(third) => format!("({row}) * 3u + {third}u"),
            None => row.to_string(),
        };
        format!("{}[(({row}) * p.heads + head) * {}u + {j}]", self.bound(array), self.quads)
    }

    /// Rows of the other side in a step: enough that each invocation loads something.
    fn chunk(&self) -> usize {
        (self.lanes / self.quads).max(1)
    }

    fn source(&self) -> String {
        let (reads, writes): (&[&str], &[&str]) = match self.part {
            Part::Forward => (&["q", "k", "v"], &["y"]),
            Part::Queries => (&["q", "k", "v", "g"], &["gq", "about"]),
            Part::Keys => (&["q", "k", "v", "g", "about"], &["gk", "gv"]),
        };
        let mut bindings = String::new();
        let bound = |names: &[&'static str]| {
            let mut bound: Vec<&str> = names.iter().map(|name| self.bound(name)).collect();
            bound.dedup();
            bound
        };
        let masked = if self.masked { &["bias"][..] } else { &[] };
        let plus = if self.plus { &["plus"][..] } else { &[] };
        let (reads, writes) = (bound(&[reads, masked, plus].concat()), bound(writes));
        let all = reads.iter().map(|name| (name, "read"));
        for (i, (name, access)) in all.chain(writes.iter().map(|name| (name, "read_write"))).enumerate() {
            let element = if *name == "bias" { "f32" } else { "vec4<f32>" };
            let _ = writeln!(
                bindings,
                "@group(0) @binding({i}) var<storage, {access}> {name}: array<{element}>;"
            );
        }
        let last = reads.len() + writes.len();
        let _ = write!(bindings, "@group(0) @binding({last}) var<uniform> p: Params;");
        let entry = if self.lanes > 1 {
            "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
             @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {"
        } else {
            "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
             @builtin(num_workgroups) groups: vec3<u32>) {\n    let lane = 0u;"
        };
        let body = match self.part {
            Part::Forward => self.forward(),
            Part::Queries => self.queries(),
            Part::Keys => self.keys(),
        };
        let text = fill(TEXT, &[("bindings", &bindings), ("entry", entry), ("body", &body)]);
        format!("{}{text}", pointwise(false))
    }

    /// Loads the owned row of `array` as `{name}0, {name}1, ..`.
    fn own(&self, name: &str, array: &str) -> String {
        let at = |j: usize| self.place(array, "n * p.own + row", &format!("{j}u"));
        (0..self.quads).fold(String::new(), |s, j| s + &format!("    let {name}{j} = {};\n", at(j)))
    }

    /// Declares sums `{name}0, {name}1, ..`.
    fn zeros(&self, name: &str) -> String {
        (0..self.quads).fold(String::new(), |s, j| s + &format!("    var {name}{j} = vec4<f32>(0.0);\n"))
    }

    /// Stores sums as the owned row of `array`.
    fn store(&self, name: &str, array: &str) -> String {
        let at = |j: usize| self.place(array, "n * p.own + row", &format!("{j}u"));
        (0..self.quads).fold(String::new(), |s, j| s + &format!("    {} = {name}{j};\n", at(j)))
    }

    /// The other side's rows of a step from `first`: `{name}{c}_{j}` of row `first + c`, from `array`.
    fn rows(&self, name: &str, array: &str) -> String {
        let (chunk, quads, lanes) = (self.chunk(), self.quads, self.lanes);
        let mut s = String::new();
        let at = |c: String, j: String| {
            self.place(array, &format!("n * p.other + min(first + {c}, p.other - 1u)"), &j)
        };
        // A lane loads every `lanes`-th of the step's vectors; past the last it loads what nobody reads.
        let shares = (chunk * quads).div_ceil(lanes);
        if lanes > 1 {
            for t in 0..shares {
                let e = format!("({}u + lane)", t * lanes);
                let value = at(format!("{e} / {quads}u"), format!("{e} % {quads}u"));
                let _ = writeln!(s, "    let l{name}{t} = {value};");
            }
        }
        for e in 0..chunk * quads {
            let (c, j) = (e / quads, e % quads);
            let value = match lanes {
                1 => at(format!("{c}u"), format!("{j}u")),
                _ => format!("subgroupBroadcast(l{name}{}, {}u)", e / lanes, e % lanes),
            };
            let _ = writeln!(s, "    let {name}{c}_{j} = {value};");
        }
        s
    }

    /// One value of `array` for each row of a step as `{array}{c}`, from `before` on; a lane loads one for all.
    fn broadcast(&self, array: &str, before: &str) -> String {
        let chunk = self.chunk();
        let at = |c: &str| format!("{array}[{before}min(first + {c}, p.other - 1u)]");
        if self.lanes == 1 {
            return (0..chunk).fold(String::new(), |s, c| {
                s + &format!("    let {array}{c} = {};\n", at(&format!("{c}u")))
            });
        }
        let own = format!("    let l{array} = {};\n", at(&format!("lane % {chunk}u")));
        (0..chunk).fold(own, |s, c| s + &format!("    let {array}{c} = subgroupBroadcast(l{array}, {c}u);\n"))
    }

    /// What is added to the scores of a step's keys as `b{c}`: the bias, and nowhere past the end.
    fn biases(&self) -> String {
        let mut s = String::new();
        if self.masked {
            s += &self.broadcast("bias", "n % p.masks * p.keys + ");
        }
        for c in 0..self.chunk() {
            let bias = if self.masked { format!("bias{c}") } else { "0.0".into() };
            let _ = writeln!(s, "    let b{c} = select({NOWHERE}, {bias}, first + {c}u < p.other);");
        }
        s
    }

    /// The dot product of `{a}{j}` and `{b}{j}`, in the order that a matrix product sums.
    fn dot(&self, a: &str, b: &str) -> String {
        let parts = (0..self.quads).flat_map(|j| ["x", "y", "z", "w"].map(|x| (j, x)));
        parts.fold("0.0".into(), |sum, (j, x)| format!("fma({a}{j}.{x}, {b}{j}.{x}, {sum})"))
    }

    /// `{sum}{j} += factor * {x}{j}`.
    fn add(&self, sum: &str, factor: &str, x: &str) -> String {
        (0..self.quads).fold(String::new(), |s, j| {
            s + &format!("    {sum}{j} = fma(vec4<f32>({factor}), {x}{j}, {sum}{j});\n")
        })
    }

    /// A loop over the other side, `chunk` rows a step.
    fn each_step(&self, body: &str) -> String {
        format!("    for (var first = 0u; first < p.other; first += {}u) {{\n{body}    }}\n", self.chunk())
    }

    /// Scores of a step's keys, the largest so far and what becomes of the sums before: `s{c}`, `most`, `kept`.
    fn scores(&self) -> String {
        let mut s = self.biases();
        let mut top = "most".to_string();
        for c in 0..self.chunk() {
            let _ = writeln!(s, "    let s{c} = {} * p.scale + b{c};", self.dot("q", &format!("k{c}_")));
            top = format!("max({top}, s{c})");
        }
        let _ = writeln!(s, "    let top = {top};\n    let kept = precise_exp(most - top);\n    most = top;");
        s
    }

    /// The steps' texts, each for its own `first`.
    fn each_held(&self, steps: usize, body: impl Fn(usize) -> String) -> String {
        let step = |t: usize| format!("    {{ let first = {}u;\n{}    }}\n", t * self.chunk(), body(t));
        (0..steps).map(step).collect()
    }

    /// Declares `{name}{i}` for each row of so many steps.
    fn held(&self, name: &str, steps: usize) -> String {
        (0..steps * self.chunk()).map(|i| format!("    var {name}{i} = 0.0;\n")).collect()
    }

    /// e to each score of all steps less the largest as `e{i}`, their `sum`, and `extra` beside each score.
    fn held_scores(&self, steps: usize, arrays: &[&str], extra: impl Fn(usize, usize) -> String) -> String {
        let chunk = self.chunk();
        let scores = self.each_held(steps, |t| {
            let mut s: String = arrays.iter().map(|array| self.rows(array, array)).collect();
            s += &self.biases();
            for c in 0..chunk {
                let (i, score) = (t * chunk + c, self.dot("q", &format!("k{c}_")));
                let _ = writeln!(s, "    e{i} = {score} * p.scale + b{c};\n    most = max(most, e{i});");
                s += &extra(i, c);
            }
            s
        });
        let weights: String = (0..steps * chunk)
            .map(|i| format!("    e{i} = precise_exp(e{i} - most);\n    sum += e{i};\n"))
            .collect();
        format!("{}{scores}{weights}", self.held("e", steps))
    }

    fn forward(&self) -> String {
        let passes = match self.held {
            Some(steps) => {
                let chunk = self.chunk();
                let values = self.each_held(steps, |t| {
                    let add =
                        |c: usize| self.add("y", &format!("(e{} * share)", t * chunk + c), &format!("v{c}_"));
                    self.rows("v", "v") + &(0..chunk).map(add).collect::<String>()
                });
                let scores = self.held_scores(steps, &["k"], |_, _| String::new());
                format!("{scores}    let share = 1.0 / sum;\n{values}")
            }
            None => self.streamed(),
        };
        let plus = if self.plus { self.own("plus", "plus") } else { String::new() };
        let added: String =
            (0..self.quads).filter(|_| self.plus).map(|j| format!("    y{j} += plus{j};\n")).collect();
        format!(
            "{}{}    var most = {NOWHERE};\n    var sum = 0.0;\n{passes}    \
             if owned >= p.own {{ return; }}\n{plus}{added}{}",
            self.own("q", "q"),
            self.zeros("y"),
            self.store("y", "y")
        )
    }

    /// The forward passes over keys that are too many to hold their scores.
    fn streamed(&self) -> String {
        let (keys, values) = (format!("{}{}", self.rows("k", "k"), self.biases()), self.rows("v", "v"));
        let (mut first, mut second, mut third) = (keys.clone(), keys.clone(), keys + &values);
        for c in 0..self.chunk() {
            let score = format!("{} * p.scale + b{c}", self.dot("q", &format!("k{c}_")));
            let _ = writeln!(first, "    most = max(most, {score});");
            let _ = writeln!(second, "    sum += precise_exp({score} - most);");
            let _ = writeln!(third, "    let p{c} = precise_exp({score} - most) * share;");
            third += &self.add("y", &format!("p{c}"), &format!("v{c}_"));
        }
        format!(
            "{}{}    let share = 1.0 / sum;\n{}",
            self.each_step(&first),
            self.each_step(&second),
            self.each_step(&third)
        )
    }

    fn queries(&self) -> String {
        let passes = match self.held {
            Some(steps) => {
                let chunk = self.chunk();
                let slope =
                    |i: usize, c: usize| format!("    d{i} = {};\n", self.dot("g", &format!("v{c}_")));
                let slopes: String =
                    (0..steps * chunk).map(|i| format!("    slope = fma(e{i}, d{i}, slope);\n")).collect();
                let sums = self.each_held(steps, |t| {
                    let add = |c: usize| {
                        let i = t * chunk + c;
                        let d = format!("(e{i} * share * (d{i} - mean) * p.scale)");
                        self.add("gq", &d, &format!("k{c}_"))
                    };
                    self.rows("k", "k") + &(0..chunk).map(add).collect::<String>()
                });
                let scores = self.held_scores(steps, &["k", "v"], slope);
                format!(
                    "{}{scores}{slopes}    let share = 1.0 / sum;\n    let mean = slope * share;\n{sums}",
                    self.held("d", steps)
                )
            }
            None => self.streamed_queries(),
        };
        format!(
            "{}{}{}    var most = {NOWHERE};\n    var sum = 0.0;\n    var slope = 0.0;\n{passes}    \
             if owned >= p.own {{ return; }}\n{}    \
             about[(n * p.heads + head) * p.own + row] = vec4<f32>(most, share, mean, 0.0);\n",
            self.own("q", "q"),
            self.own("g", "g"),
            self.zeros("gq"),
            self.store("gq", "gq"),
        )
    }

    /// The passes of [`Plan::queries`] over keys that are too many to hold their scores.
    fn streamed_queries(&self) -> String {
        let mut first = format!("{}{}{}", self.rows("k", "k"), self.rows("v", "v"), self.scores());
        first += "    sum *= kept;\n    slope *= kept;\n";
        let mut second = format!("{}{}{}", self.rows("k", "k"), self.rows("v", "v"), self.biases());
        for c in 0..self.chunk() {
            let slope = self.dot("g", &format!("v{c}_"));
            let _ = writeln!(
                first,
                "    let e{c} = precise_exp(s{c} - top);\n    sum += e{c};\n    slope = fma(e{c}, {slope}, slope);"
            );
            let _ = writeln!(
                second,
                "    let p{c} = precise_exp(fma({}, p.scale, b{c}) - most) * share;\n    \
                 let d{c} = p{c} * ({slope} - mean) * p.scale;",
                self.dot("q", &format!("k{c}_")),
            );
            second += &self.add("gq", &format!("d{c}"), &format!("k{c}_"));
        }
        format!(
            "{}    let share = 1.0 / sum;\n    let mean = slope * share;\n{}",
            self.each_step(&first),
            self.each_step(&second)
        )
    }

    fn keys(&self) -> String {
        let about = self.broadcast("about", "(n * p.heads + head) * p.other + ");
        let mut step = format!("{}{}{about}", self.rows("q", "q"), self.rows("g", "g"));
        for c in 0..self.chunk() {
            let _ = writeln!(
                step,
                "    let share{c} = select(0.0, about{c}.y, first + {c}u < p.other);\n    \
                 let p{c} = precise_exp(fma({}, p.scale, b) - about{c}.x) * share{c};\n    \
                 let d{c} = p{c} * ({} - about{c}.z) * p.scale;",
                self.dot("k", &format!("q{c}_")),
                self.dot("v", &format!("g{c}_")),
            );
            step += &self.add("gk", &format!("d{c}"), &format!("q{c}_"));
            step += &self.add("gv", &format!("p{c}"), &format!("g{c}_"));
        }
        let bias = if self.masked { "bias[n % p.masks * p.keys + row]" } else { "0.0" };
        format!(
            "{}{}{}{}    let b = {bias};\n{}    if owned >= p.own {{ return; }}\n{}{}",
            self.own("k", "k"),
            self.own("v", "v"),
            self.zeros("gk"),
            self.zeros("gv"),
            self.each_step(&step),
            self.store("gk", "gk"),
            self.store("gv", "gv"),
        )
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
