//! Dense routing: mixtures of four cells' outputs by the routers' probabilities, one kernel each way. The
//! composition of four mixtures reads every cell four times forward and twelve times backward.

use super::codegen::fill;
use super::reduce::{enough, sum_buffers};
use super::registry::{Case, case, sums};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Expr, Grad, Keep, Op, Pullback, Tensor, compute, split_with};

const ROUTE: Kernel = Kernel { name: "route", text: include_str!("../../shaders/route.wgsl") };
const WEIGHTS: Kernel =
    Kernel { name: "route_weights", text: include_str!("../../shaders/route_weights.wgsl") };

/// For each pair of `[outer, inner]`: mixture `i` is the sum over cells `j` of `w[.., i, j]` times cell `j`.
/// A cell is `[outer, inner, ..]`, or `[outer, 1, ..]` or `[1, inner, ..]` where it belongs to one side's
/// item; so are the weights, `[.., 4, 4]` or, for a single mixture, `[.., 1, 4]`. Returns the mixtures, each
/// `[outer, inner, ..]`.
#[track_caller]
pub fn route(cells: [&Tensor; 4], w: &Tensor) -> Vec<Tensor> {
    let [a, b, c, d] = cells;
    let op = Route { transposed: false, shares: false };
    split_with(op, &[a, b, c, d, w], |y| (0..y.shape()[0]).map(|i| y.select(i)).collect())
}

/// A single mixture as in [`route`], added to `rest [outer, inner, ..]`, where `shares [.., 1, 4]` are parts of a
/// whole of which the rest has taken its own: weights over their sum, that sum without a gradient. The gradient of a
/// share is that of its weight times the sum: of `y = (w x + ..) / (w + ..)` it is `x - y`, in which nothing large
/// cancels.
#[track_caller]
pub fn route_shares(cells: [&Tensor; 4], shares: &Tensor, rest: &Tensor) -> Tensor {
    let [a, b, c, d] = cells;
    let op = Route { transposed: false, shares: true };
    split_with(op, &[a, b, c, d, shares, rest], |y| vec![y.select(0)]).remove(0)
}

#[derive(Clone, Debug)]
struct Route {
    /// Whether the weights, of four mixtures, are read transposed.
    transposed: bool,
    /// Whether the weights are shares and a sixth input is the rest.
    shares: bool,
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
        let mut dims = vec![x[4][2], pairs.outer, pairs.inner];
        let rest = &x[0].dims()[2..];
        assert!(
            x[..4].iter().all(|s| &s.dims()[2..] == rest)
                && matches!(x[4].dims()[2..], [4 | 1, 4])
                && (!self.shares || x[4][2] == 1 && x[5].len() == pairs.outer * pairs.inner * pairs.m),
            "route: cells and weights {x:?}"
        );
        dims.push(rest.iter().product());
        Shape::new(&dims)
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
            fill(ROUTE.text, if self.shares { &rest } else { &rest[..1] })
        };
        gpu.dispatch(&Launch {
            kernel: ROUTE,
            body: Some((2 * vector as u64 + u64::from(self.shares), &text)),
            constants: &[
                ("mixtures", shapes[4][2] as f64),
                ("transposed", f64::from(u8::from(self.transposed))),
            ],
            reads: x,
            writes: &[y],
            params: params.sizes(&[outer, inner]),
            grid: Grid::Invocations(count),
            loops: 4,
        });
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let shapes: Vec<Shape> = x.iter().map(|a| a.shape).collect();
        let (pairs, shape) = (Pairs::of(&shapes[..5]), self.shape(&shapes));
        let mut y =
            x.get(5).map_or_else(|| Array::zeros(shape), |rest| Array::new(shape, rest.data.to_vec()));
        for o in 0..pairs.outer {
            for n in 0..pairs.inner {
                let at = |k: usize| {
                    let (so, sn) = pairs.strides(shapes[k]);
                    o * so + n * sn
                };
                for i in 0..shape[0] {
                    for j in 0..4 {
                        let place = if self.transposed { 4 * j + i } else { 4 * i + j };
                        let w = x[4].data[at(4) * 4 * shape[0] + place];
                        for m in 0..pairs.m {
                            y.data[((i * pairs.outer + o) * pairs.inner + n) * pairs.m + m] +=
                                w * x[j].data[at(j) * pairs.m + m];
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
        let inputs = Keep::inputs(0..5);
        if self.shares { inputs.and_output() } else { inputs }
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let pairs = Pairs::of(&(0..5).map(|i| back.shape(i)).collect::<Vec<_>>());
        let g: Vec<Tensor> =
            back.gs().iter().map(|g| g.reshape([pairs.outer, pairs.inner, pairs.m])).collect();
        let mut grads: Vec<Option<Grad>> = match g.as_slice() {
            [g] => (0..4).map(|j| back.needs(j).then(|| weighted(g, back.x(4), j, back.shape(j)))).collect(),
            _ => {
                let all: Vec<&Tensor> = g.iter().chain([back.x(4)]).collect();
                let cells = compute(Self { transposed: true, shares: false }, &all);
                let cell = |j: usize| to_side(&cells.select(j), back.shape(j)).into();
                (0..4).map(|j| back.needs(j).then(|| cell(j))).collect()
            }
        };
        grads.push(back.needs(4).then(|| {
            let cells: Vec<Tensor> = (0..4).map(|j| flat(back.x(j))).collect();
            let mixture = self.shares.then(|| back.y().reshape(g[0].shape()));
            let x: Vec<&Tensor> = g.iter().chain(&mixture).chain(&cells).collect();
            to_side(&compute(RouteWeights { shares: self.shares }, &x), back.shape(4)).into()
        }));
        if self.shares {
            grads.push(back.needs(5).then(|| g[0].reshape(back.shape(5)).into()));
        }
        grads
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

/// The gradient of the weights from those of the mixtures, and the cells.
#[derive(Clone, Debug)]
struct RouteWeights {
    /// Whether the weights are shares; then the single mixture follows its gradient.
    shares: bool,
}

impl RouteWeights {
    fn mixtures(&self, inputs: usize) -> usize {
        if self.shares { 1 } else { inputs - 4 }
    }
}

impl Op for RouteWeights {
    fn name(&self) -> &'static str {
        "route_weights"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        Shape::new(&[x[0][0], x[0][1], self.mixtures(x.len()), 4])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let pairs = Pairs::of(shapes);
        let vector = pairs.vector();
        let m = pairs.m / vector;
        let count = pairs.outer * pairs.inner;
        let chunks = (enough(gpu) / count.max(1)).min(m / 64).max(m.div_ceil(crate::gpu::MAX_LOOP)).max(1);
        let partial = (chunks > 1).then(|| gpu.alloc(chunks * y.len()));
        let (g, cells) = x.split_at(x.len() - 4);
        let strides = pairs.all_strides(&shapes[g.len()..]).0;
        let text = || fill(WEIGHTS.text, &[("type", &element(vector, true))]);
        let mixtures = self.mixtures(x.len());
        for (i, some) in g.chunks(2).enumerate() {
            let mut params = Words::default().sizes(&[count * chunks, m, pairs.inner, chunks]);
            params.0.extend(&strides);
            let mut reads = vec![some[0], some[some.len() - 1]];
            reads.extend(cells);
            gpu.dispatch(&Launch {
                kernel: WEIGHTS,
                body: Some((vector as u64, &text)),
                constants: &[
                    ("two", f64::from(u8::from(some.len() == 2 && !self.shares))),
                    ("shares", f64::from(u8::from(self.shares))),
                ],
                reads: &reads,
                writes: &[partial.as_ref().unwrap_or(y)],
                params: params.sizes(&[mixtures, 2 * i]),
                grid: Grid::Heavy(count * chunks),
                loops: m.div_ceil(chunks),
            });
        }
        if let Some(partial) = &partial {
            sum_buffers(gpu, partial, y, chunks, y.len());
        }
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let shapes: Vec<Shape> = x.iter().map(|a| a.shape).collect();
        let (pairs, mixtures) = (Pairs::of(&shapes), self.mixtures(x.len()));
        let mut y = Array::zeros(self.shape(&shapes));
        for (n, value) in y.data.iter_mut().enumerate() {
            let (pair, i, j) = (n / (4 * mixtures), n / 4 % mixtures, x.len() - 4 + n % 4);
            let (so, sn) = pairs.strides(shapes[j]);
            let at = (pair / pairs.inner * so + pair % pairs.inner * sn) * pairs.m;
            let of_pair = |k: usize| &x[k].data[pair * pairs.m..][..pairs.m];
            *value = of_pair(i).iter().zip(&x[j].data[at..]).map(|(g, x)| g * x).sum();
            if self.shares {
                *value -= of_pair(0).iter().zip(of_pair(1)).map(|(g, y)| g * y).sum::<f64>();
            }
        }
        y
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mixed: fn(&[Tensor]) -> Tensor = |x| {
        let y = route([&x[0], &x[1], &x[2], &x[3]], &x[4]);
        let views = y.iter().map(Tensor::view).collect();
        super::map(views, |y| &y[0] + y[1].tanh() * &y[2] - &y[3] * 2.0)
    };
    let one: fn(&[Tensor]) -> Tensor = |x| route([&x[0], &x[1], &x[2], &x[3]], &x[4]).remove(0);
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
        case("route", "weights of a pair", &[pair, pair, pair, pair, &[3, 5, 4, 4]], sums(56), mixed).bench(),
        case(
            "route",
            "items of images",
            &[&[3, 1, 7, 8], pair, &[3, 1, 7, 8], pair, &[3, 1, 4, 4]],
            sums(280),
            mixed,
        ),
        case(
            "route",
            "items of captions, odd",
            &[&[1, 5, 3, 3], &[2, 5, 3, 3], &[1, 5, 3, 3], &[2, 5, 3, 3], &[1, 5, 4, 4]],
            sums(90),
            mixed,
        ),
        case("route", "one mixture", &[pair, pair, pair, pair, &[3, 5, 1, 4]], sums(56), one).bench(),
        case(
            "route",
            "one mixture of items, odd",
            &[&[1, 5, 3, 3], &[2, 5, 3, 3], &[2, 1, 3, 3], &[2, 5, 3, 3], &[1, 5, 1, 4]],
            sums(90),
            one,
        ),
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
