//! Dense routing: mixtures of four cells' outputs by the routers' probabilities, one kernel each way. The
//! composition of four mixtures reads every cell four times forward and twelve times backward. The first cell is a ReLU
//! (DIME's rectified identity cell): given its input, its output is never stored.

use super::codegen::{Lane, each, fill};
use super::reduce::{enough, sum_parts};
use super::registry::{Case, Values, case, sums};
use super::rows::Team;
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Style, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Expr, Grad, Keep, Op, Pullback, Tensor, compute, split_with};

const ROUTE: Kernel = Kernel { name: "route", text: include_str!("../../shaders/route.wgsl") };
const GRAD: Kernel = Kernel { name: "route_grad", text: include_str!("../../shaders/route_grad.wgsl") };

/// Invocations that share a pair on a GPU: all of a workgroup.
const WORKGROUP: usize = 64;

/// For each pair of `[outer, inner]` the sum over cells `j` of `weights[.., 0, j]` times cell `j`. A cell is
/// `[outer, inner, ..]`, or `[outer, 1, ..]` or `[1, inner, ..]` where it belongs to one side's item; so are the
/// weights, `[.., 1, 4]`, which take no gradient. Returns `[outer, inner, ..]`.
#[track_caller]
pub fn route(cells: [&Tensor; 4], weights: &Tensor) -> Tensor {
    assert!(!weights.is_tracked(), "route: its weights take no gradient");
    let [a, b, c, d] = cells;
    split_with(Route::One, &[a, b, c, d, weights], |y| vec![y.reshape(mixed(cells, weights))]).remove(0)
}

/// A mixture as in [`route`] of `max(cell, 0)` and three others, added to `rest [outer, inner, ..]`, where `shares [.., 1,
/// 4]` are parts of a whole of which the rest has taken its own: weights over their sum, that sum without a gradient. The
/// gradient of a share is that of its weight times the sum: of `y = (w x + ..) / (w + ..)` it is `x - y`, in which nothing
/// large cancels.
#[track_caller]
pub fn route_shares(cells: [&Tensor; 4], shares: &Tensor, rest: &Tensor) -> Tensor {
    let [a, b, c, d] = cells;
    split_with(Route::Rest, &[a, b, c, d, shares, rest], |y| vec![y.reshape(mixed(cells, shares))]).remove(0)
}

/// Four mixtures as in [`route`] of `max(cell, 0)` and three others, by `weights [.., 4, 4]`, a row a mixture. Their
/// gradient goes to `shares [.., 4, 4]` in their place: probabilities over their sum, that sum without a gradient. The
/// gradient of a share is that of its probability times the sum: of the mean `m = (p x + ..) / (p + ..)` it is `x - m`. The
/// weights may hold more than the shares; what else they mix is no part of the mean.
#[track_caller]
pub fn route_means(cells: [&Tensor; 4], weights: &Tensor, shares: &Tensor) -> Vec<Tensor> {
    assert!(!weights.is_tracked(), "route: its weights take no gradient");
    let [a, b, c, d] = cells;
    let mixtures = |y: &Tensor| (0..4).map(|i| y.select(i).reshape(mixed(cells, weights))).collect();
    split_with(Route::Means, &[a, b, c, d, weights, shares], mixtures)
}

/// The shape of a mixture.
fn mixed(cells: [&Tensor; 4], weights: &Tensor) -> Shape {
    let shapes: Vec<Shape> = cells.iter().chain([&weights]).map(|x| x.shape()).collect();
    let pairs = Pairs::of(&shapes);
    shapes[0].with(0, pairs.outer).with(1, pairs.inner)
}

/// What is mixed, of four cells and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Route {
    /// One mixture.
    One,
    /// One mixture by shares, added to a sixth input.
    Rest,
    /// Four mixtures, whose gradients go to a sixth input, the shares.
    Means,
    /// The gradients of the cells from those of four mixtures: their weights, transposed.
    Cells,
}

impl Route {
    fn mixtures(self) -> usize {
        if matches!(self, Self::One | Self::Rest) { 1 } else { 4 }
    }

    /// Whether the first input is taken through a ReLU.
    fn rectifies(self) -> bool {
        matches!(self, Self::Rest | Self::Means)
    }
}

/// The sides and the values of a pair.
struct Pairs {
    outer: usize,
    inner: usize,
    m: usize,
}

impl Pairs {
    fn of(x: &[Shape]) -> Self {
        let side = |k: usize| x.iter().map(|s| s[k]).max().unwrap_or(1);
        Self { outer: side(0), inner: side(1), m: x[0].dims()[2..].iter().product() }
    }

    /// Strides in pairs over each side.
    fn strides(&self, s: Shape) -> (usize, usize) {
        let inner = usize::from(s[1] > 1);
        (if s[0] > 1 { s[1] } else { 0 }, inner)
    }

    fn all_strides(&self, x: &[Shape]) -> Words {
        let strides: Vec<(usize, usize)> = x.iter().map(|s| self.strides(*s)).collect();
        let outer: Vec<usize> = strides.iter().map(|s| s.0).collect();
        let inner: Vec<usize> = strides.iter().map(|s| s.1).collect();
        Words::default().sizes(&outer).sizes(&inner)
    }

    fn vector(&self) -> usize {
        if self.m.is_multiple_of(4) { 4 } else { 1 }
    }
}

/// The bindings from the fifth on, where a mixture is added to a rest.
const REST: &str = "@group(0) @binding(5) var<storage, read> r: array<T>; // [outer, inner, m]
@group(0) @binding(6) var<storage, read_write> y: array<T>; // [1, outer, inner, m]
@group(0) @binding(7) var<uniform> p: Params;
fn rest(i: u32) -> T { return r[i]; }";

fn element(vector: usize, with_fold: bool) -> String {
    let (alias, fold) = match vector {
        4 => ("vec4<f32>", "x.x + x.y + x.z + x.w"),
        _ => ("f32", "x"),
    };
    let fold = if with_fold { format!("\nfn fold(x: T) -> f32 {{ return {fold}; }}") } else { String::new() };
    format!("alias T = {alias};{fold}")
}

impl Op for Route {
    fn name(&self) -> &'static str {
        "route"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        let pairs = Pairs::of(&x[..5]);
        let rest = &x[0].dims()[2..];
        let sixth = match self {
            Self::One | Self::Cells => x.len() == 5,
            Self::Rest => x[5].len() == pairs.outer * pairs.inner * pairs.m,
            Self::Means => x[5] == x[4],
        };
        assert!(
            sixth
                && x[..4].iter().all(|s| &s.dims()[2..] == rest)
                && x[4].dims()[2..] == [self.mixtures(), 4],
            "route: cells and weights {x:?}"
        );
        Shape::new(&[self.mixtures(), pairs.outer, pairs.inner, pairs.m])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let pairs = Pairs::of(&shapes[..5]);
        let vector = pairs.vector();
        let m = pairs.m / vector;
        let count = pairs.outer * pairs.inner * m;
        let mut params = Words::default().sizes(&[count, m, pairs.inner, count]);
        params.0.extend(pairs.all_strides(&shapes[..4]).0);
        let (outer, inner) = pairs.strides(shapes[4]);
        let element = element(vector, false);
        let text = || {
            let rest = [("type", element.as_str()), ("rest", REST)];
            fill(ROUTE.text, if *self == Self::Rest { &rest } else { &rest[..1] })
        };
        gpu.dispatch(&Launch {
            kernel: ROUTE,
            body: Some((2 * vector as u64 + u64::from(*self == Self::Rest), &text)),
            constants: &[
                ("mixtures", self.mixtures() as f64),
                ("transposed", f64::from(u8::from(*self == Self::Cells))),
                ("rectified", f64::from(u8::from(self.rectifies()))),
            ],
            reads: if *self == Self::Means { &x[..5] } else { x },
            writes: &[y],
            params: params.sizes(&[outer, inner]),
            grid: Grid::Invocations(count),
            loops: 4,
        });
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let shapes: Vec<Shape> = x.iter().map(|a| a.shape).collect();
        let (pairs, shape) = (Pairs::of(&shapes[..5]), self.shape(&shapes));
        let mut y = match self {
            Self::Rest => Array::new(shape, x[5].data.to_vec()),
            _ => Array::zeros(shape),
        };
        for o in 0..pairs.outer {
            for n in 0..pairs.inner {
                let at = |k: usize| {
                    let (so, sn) = pairs.strides(shapes[k]);
                    o * so + n * sn
                };
                for i in 0..shape[0] {
                    for j in 0..4 {
                        let place = if *self == Self::Cells { 4 * j + i } else { 4 * i + j };
                        let w = x[4].data[at(4) * 4 * shape[0] + place];
                        for m in 0..pairs.m {
                            let value = x[j].data[at(j) * pairs.m + m];
                            let cell = if j == 0 && self.rectifies() { value.max(0.0) } else { value };
                            y.data[((i * pairs.outer + o) * pairs.inner + n) * pairs.m + m] += w * cell;
                        }
                    }
                }
            }
        }
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let y = self.shape(x).len() as f64;
        let moved: f64 = x.iter().map(|s| s.len() as f64).sum::<f64>() + y;
        Cost { flops: 8.0 * y, bytes: 4.0 * moved }
    }
}

impl Pullback for Route {
    fn keep(&self) -> Keep {
        match self {
            Self::One | Self::Cells => Keep::inputs([4]),
            Self::Rest => Keep::inputs(0..5).and_output(),
            Self::Means => Keep::inputs(0..6),
        }
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let pairs = Pairs::of(&(0..5).map(|i| back.shape(i)).collect::<Vec<_>>());
        let g: Vec<Tensor> = back.gs().map(|g| g.reshape([pairs.outer, pairs.inner, pairs.m])).collect();
        let shares = |i: usize, whole: Option<Tensor>| {
            back.needs(i).then(|| {
                let cells: Vec<Tensor> = (0..4).map(|j| flat(back.x(j))).collect();
                let x: Vec<&Tensor> = g.iter().chain(&whole).chain([back.x(i)]).chain(&cells).collect();
                to_side(&compute(RouteGrad { whole: whole.is_some() }, &x), back.shape(i)).into()
            })
        };
        let through = |j: usize, grad: Grad| {
            if j == 0 && self.rectifies() { rectified(grad, back.x(0)) } else { grad }
        };
        let cell = |j: usize| back.needs(j).then(|| through(j, weighted(&g[0], back.x(4), j, back.shape(j))));
        match self {
            Self::One | Self::Cells => (0..4).map(cell).chain([None]).collect(),
            Self::Rest => {
                let rest = back.needs(5).then(|| g[0].reshape(back.shape(5)).into());
                let whole = back.y().reshape(g[0].shape());
                (0..4).map(cell).chain([shares(4, Some(whole)), rest]).collect()
            }
            Self::Means => {
                let all = compute(Self::Cells, &[&g[0], &g[1], &g[2], &g[3], back.x(4)]);
                let cell = |j: usize| through(j, to_side(&all.select(j), back.shape(j)).into());
                let cells = (0..4).map(|j| back.needs(j).then(|| cell(j)));
                cells.chain([None, shares(5, None)]).collect()
            }
        }
    }
}

/// A cell as `[outer, inner, m]`.
fn flat(x: &Tensor) -> Tensor {
    let d = x.dims();
    x.reshape([d[0], d[1], d[2..].iter().product()])
}

/// The gradient of cell `j`, of `shape`, from that of the only mixture: its weight times that.
fn weighted(g: &Tensor, w: &Tensor, j: usize, shape: Shape) -> Grad {
    let mut weight = w.view().slice(3, j, 1).squeeze(3).squeeze(2);
    let full = [&g.dims()[..2], &shape.dims()[2..]].concat();
    for (axis, n) in full.iter().enumerate().skip(2) {
        weight = weight.repeat(axis, *n);
    }
    let full = Shape::new(&full);
    let inputs = vec![g.reshape(full).view(), weight.broadcast(full)];
    let formula = Expr::input(0) * Expr::input(1);
    if full == shape {
        return Grad { inputs, formula };
    }
    to_side(&super::map(inputs, |_| formula), shape).into()
}

/// A gradient of `max(x, 0)` as one of `x`.
fn rectified(Grad { mut inputs, formula }: Grad, x: &Tensor) -> Grad {
    let value = Expr::input(inputs.len());
    inputs.push(x.view());
    Grad { inputs, formula: formula * value.greater(0.0) }
}

/// A gradient of every pair, summed over the side along which `shape` repeats.
fn to_side(g: &Tensor, shape: Shape) -> Tensor {
    let mut g = g.clone();
    for axis in [1, 0] {
        if shape[axis] == 1 && g.shape()[axis] > 1 {
            let with = g.shape().with(axis, 1);
            g = g.sum(axis as isize).reshape(with);
        }
    }
    g.reshape(shape)
}

/// The gradient of the shares from those of the mixtures, the shares and the cells.
#[derive(Clone, Debug)]
struct RouteGrad {
    /// Whether there is a single mixture, which follows its gradient; else there are four, of what the shares make of
    /// the cells.
    whole: bool,
}

impl RouteGrad {
    fn mixtures(&self) -> usize {
        if self.whole { 1 } else { 4 }
    }
}

/// Iterations in which a workgroup makes sums of its own: four mixtures.
const FOLDS: usize = 4 * 6;

/// What replaces a mean that is a mixture of the cells: the one that is read.
const READ: &str = "@group(0) @binding(6) var<storage, read> g_1: array<T>;
fn mean(x: array<T, 4>, w: vec4<f32>, at: u32) -> T { return g_1[at]; }";

/// A kernel's variant.
#[derive(Clone, Copy, Debug)]
struct GradPlan {
    whole: bool,
    vector: usize,
    /// Buffers beside the cells and the shares: gradients of so many mixtures, or one and its mixture.
    grads: usize,
    /// Who adds the values of a pair.
    team: Team,
}

impl GradPlan {
    /// All mixtures at once where the adapter binds as many buffers: the cells are then read once.
    fn of(gpu: &Gpu, whole: bool, vector: usize) -> Self {
        let all = !whole && gpu.facts().buffers >= 10;
        let team = if gpu.style() == Style::Workgroup { Team::Workgroup(WORKGROUP) } else { Team::Own };
        Self { whole, vector, grads: if all { 4 } else { 2 }, team }
    }

    fn key(&self) -> u64 {
        (self.vector + 8 * self.grads + 64 * self.team.size()) as u64 * 2 + u64::from(self.whole)
    }

    fn source(&self) -> String {
        let Self { whole, grads, .. } = *self;
        let variant = format!(
            "{}\nconst GRADS = {grads}u;\n{}",
            element(self.vector, true),
            self.team.folds("vec4<f32>", Lane::Out)
        );
        let parts = [("variant", variant.as_str()), ("mean", READ)];
        let text = fill(GRAD.text, &parts[..if whole { 2 } else { 1 }]);
        each(&text, "i", if whole { 1 } else { grads })
    }
}

#[cfg(test)]
pub(super) fn variants(gpu: &Gpu) -> Vec<super::gates::Variant> {
    let mut all = Vec::new();
    for (whole, grads) in [(false, 4), (false, 2), (true, 2)] {
        for vector in [1, 4] {
            let plan = GradPlan { grads, ..GradPlan::of(gpu, whole, vector) };
            all.push(super::gates::Variant::new("route_grad", &plan, plan.source()));
        }
    }
    all
}

impl Op for RouteGrad {
    fn name(&self) -> &'static str {
        "route_grad"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        Shape::new(&[x[0][0], x[0][1], self.mixtures(), 4])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let pairs = Pairs::of(shapes);
        let vector = pairs.vector();
        let m = pairs.m / vector;
        let count = pairs.outer * pairs.inner;
        let (g, rest) = x.split_at(x.len() - 5);
        let plan = GradPlan::of(gpu, self.whole, vector);
        let wanted = match plan.team {
            Team::Own => (enough(gpu) / count.max(1)).min(m / 64),
            _ => 1,
        };
        let own = m.div_ceil(plan.team.size());
        let chunks = wanted.max(own.div_ceil(MAX_LOOP - FOLDS)).max(1);
        let partial = (chunks > 1).then(|| gpu.alloc(chunks * y.len()));
        let strides = pairs.all_strides(&shapes[g.len() + 1..]).0;
        let (outer, inner) = pairs.strides(shapes[g.len()]);
        #[cfg(test)]
        super::gates::planned("route_grad", &plan);
        for (i, some) in g.chunks(plan.grads).enumerate() {
            let mut params = Words::default().sizes(&[count * chunks, m, pairs.inner, chunks]);
            params.0.extend(&strides);
            let reads: Vec<&Buf> = rest.iter().chain(some).copied().collect();
            gpu.dispatch(&Launch {
                kernel: GRAD,
                body: Some((plan.key(), &|| plan.source())),
                constants: &[],
                reads: &reads,
                writes: &[partial.as_ref().unwrap_or(y)],
                params: params.sizes(&[self.mixtures(), plan.grads * i, outer, inner]),
                grid: Grid::Heavy(count * chunks * plan.team.size()),
                loops: own.div_ceil(chunks) + FOLDS,
            });
        }
        if let Some(partial) = partial {
            sum_parts(gpu, partial, y, chunks);
        }
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let shapes: Vec<Shape> = x.iter().map(|a| a.shape).collect();
        let (pairs, mixtures, inputs) = (Pairs::of(&shapes), self.mixtures(), x.len());
        let mut y = Array::zeros(self.shape(&shapes));
        for (n, value) in y.data.iter_mut().enumerate() {
            let (pair, i, j) = (n / (4 * mixtures), n / 4 % mixtures, n % 4);
            let at = |k: usize| {
                let (so, sn) = pairs.strides(shapes[k]);
                pair / pairs.inner * so + pair % pairs.inner * sn
            };
            let share = &x[inputs - 5].data[4 * (at(inputs - 5) * mixtures + i)..][..4];
            for m in 0..pairs.m {
                let read = |j: usize| x[inputs - 4 + j].data[at(inputs - 4 + j) * pairs.m + m];
                let cell = |j: usize| if j == 0 { read(0).max(0.0) } else { read(j) };
                let of_pair = |k: usize| x[k].data[pair * pairs.m + m];
                let mean = if self.whole { of_pair(1) } else { (0..4).map(|k| share[k] * cell(k)).sum() };
                *value += of_pair(i) * (cell(j) - mean);
            }
        }
        y
    }
}

pub(super) fn cases() -> Vec<Case> {
    let one: fn(&[Tensor]) -> Tensor = |x| route([&x[0], &x[1], &x[2], &x[3]], &x[4]);
    // Shares of less than 1 in all, and a gate of the first cell besides.
    let means: fn(&[Tensor]) -> Tensor = |x| {
        let raw = x[4].map(|w| w * w);
        let total = raw.sum(-1).map(|s| s + 0.5).detach();
        let shares = raw.map2(total.view().repeat(3, 4), |w, t| w / t);
        let gate = x[5].view().repeat(3, 1).pad(3, 0, 3);
        let weights = super::map(vec![shares.detach().view(), gate], |x| &x[0] + &x[1]);
        let y = route_means([&x[0], &x[1], &x[2], &x[3]], &weights, &shares);
        let views = y.iter().map(Tensor::view).collect();
        super::map(views, |y| &y[0] + y[1].tanh() * &y[2] - &y[3] * 2.0)
    };
    // A mean of five, of which the last weighs 1.
    let shares: fn(&[Tensor]) -> Tensor = |x| {
        let weights = x[4].map(|w| w * w);
        let total = weights.sum(-1).map(|s| s + 1.0).detach();
        let share = weights.map2(total.view().repeat(3, 4), |w, t| w / t);
        let rest = x[5].map2(total.view().repeat(3, 1), |x, t| x / t);
        route_shares([&x[0], &x[1], &x[2], &x[3]], &share, &rest)
    };
    let pair: &[usize] = &[3, 5, 7, 8];
    vec![
        case("route", "means", &[pair, pair, pair, pair, &[3, 5, 4, 4], &[3, 5, 4]], sums(60), means)
            .with(5, Values::Whole(2))
            .bench(),
        case(
            "route",
            "means of items of images",
            &[&[3, 1, 7, 8], pair, &[3, 1, 7, 8], pair, &[3, 1, 4, 4], &[3, 1, 4]],
            sums(280),
            means,
        )
        .with(5, Values::Whole(2)),
        case(
            "route",
            "means of items of captions, odd",
            &[&[1, 5, 3, 3], &[2, 5, 3, 3], &[1, 5, 3, 3], &[2, 5, 3, 3], &[1, 5, 4, 4], &[1, 5, 4]],
            sums(90),
            means,
        )
        .with(5, Values::Whole(2)),
        case("route", "one mixture", &[pair, pair, pair, pair, &[3, 5, 1, 4]], sums(56), one)
            .with(4, Values::Whole(3))
            .bench(),
        case(
            "route",
            "one mixture of items, odd",
            &[&[1, 5, 3, 3], &[2, 5, 3, 3], &[2, 1, 3, 3], &[2, 5, 3, 3], &[1, 5, 1, 4]],
            sums(90),
            one,
        )
        .with(4, Values::Whole(3)),
        case("route", "shares", &[pair, pair, pair, pair, &[3, 5, 1, 4], pair], sums(60), shares),
        case(
            "route",
            "shares of items, odd",
            &[&[1, 5, 3, 3], &[2, 5, 3, 3], &[2, 1, 3, 3], &[2, 5, 3, 3], &[1, 5, 1, 4], &[2, 5, 3, 3]],
            sums(90),
            shares,
        ),
    ]
}
