//! Dense routing: four mixtures of four cells' outputs by the routers' probabilities, one kernel each way.
//! The composition it replaces reads every cell four times forward and twelve times backward.

use super::reduce::{enough, sum_buffers};
use super::walk::fill;
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::host::Array;
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Tensor, Viewed, apply, split_with};

const ROUTE: Kernel = Kernel { name: "route", text: include_str!("../../shaders/route.wgsl") };
const WEIGHTS: Kernel =
    Kernel { name: "route_weights", text: include_str!("../../shaders/route_weights.wgsl") };

/// For each pair of `[outer, inner]`: mixture `i` is the sum over cells `j` of `w[.., i, j]` times cell `j`.
/// A cell is `[outer, inner, ..]`, or `[outer, 1, ..]` or `[1, inner, ..]` where it belongs to one side's
/// item; so are the weights, `[.., 4, 4]`. Returns the four mixtures, each `[outer, inner, ..]`.
#[track_caller]
pub fn route(cells: [&Tensor; 4], w: &Tensor) -> Vec<Tensor> {
    let [a, b, c, d] = cells;
    let op = Route { transposed: false };
    split_with(op, &[a, b, c, d, w], |y| (0..4).map(|i| y.select(i)).collect())
}

#[derive(Clone, Debug)]
struct Route {
    /// Whether the weights are read transposed.
    transposed: bool,
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
        let pairs = Pairs::of(x);
        let mut dims = vec![4, pairs.outer, pairs.inner];
        let rest = &x[0].dims()[2..];
        assert!(
            x[..4].iter().all(|s| &s.dims()[2..] == rest) && x[4].dims()[2..] == [4, 4],
            "route: cells and weights {x:?}"
        );
        dims.push(rest.iter().product());
        Shape::new(&dims)
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let pairs = Pairs::of(shapes);
        let vector = pairs.vector();
        let m = pairs.m / vector;
        let count = pairs.outer * pairs.inner * m;
        let mut params = Words::default().sizes(&[count, m, pairs.inner, count]);
        params.0.extend(pairs.all_strides(&shapes[..4]).0);
        let (outer, inner) = pairs.strides(shapes[4]);
        let text = || fill(ROUTE.text, &[("type", &element(vector, false))]);
        gpu.dispatch(&Launch {
            kernel: ROUTE,
            body: Some((vector as u64, &text)),
            constants: &[("transposed", f64::from(u8::from(self.transposed)))],
            reads: x,
            writes: &[y],
            params: params.sizes(&[outer, inner]),
            grid: Grid::Invocations(count),
            loops: 4,
        });
    }

    fn host(&self, x: &[&Array]) -> Array {
        let shapes: Vec<Shape> = x.iter().map(|a| a.shape).collect();
        let (pairs, shape) = (Pairs::of(&shapes), self.shape(&shapes));
        let mut y = Array::zeros(shape);
        for o in 0..pairs.outer {
            for n in 0..pairs.inner {
                let at = |k: usize| {
                    let (so, sn) = pairs.strides(shapes[k]);
                    o * so + n * sn
                };
                for i in 0..4 {
                    for j in 0..4 {
                        let place = if self.transposed { 4 * j + i } else { 4 * i + j };
                        let w = x[4].data[at(4) * 16 + place];
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

    fn keep(&self) -> Keep {
        Keep::inputs(0..5)
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        assert!(!self.transposed, "route: second derivatives are not taken");
        let pairs = Pairs::of(&(0..5).map(|i| back.shape(i)).collect::<Vec<_>>());
        let g: Vec<Tensor> =
            back.gs().iter().map(|g| g.reshape([pairs.outer, pairs.inner, pairs.m])).collect();
        let cells = apply(Self { transposed: true }, &[&g[0], &g[1], &g[2], &g[3], back.x(4)]);
        let mut grads: Vec<Option<Grad>> =
            (0..4).map(|j| back.needs(j).then(|| to_side(&cells.select(j), back.shape(j)).into())).collect();
        grads.push(back.needs(4).then(|| {
            let rows = |i: usize| {
                let x: Vec<Tensor> = (0..4).map(|j| flat(back.x(j))).collect();
                apply(RouteWeights, &[&g[i], &g[i + 1], &x[0], &x[1], &x[2], &x[3]])
            };
            let (upper, lower) = (rows(0), rows(2));
            let pad = |t: &Tensor, before, after| Viewed::from(t).pad(2, before, after);
            let w = super::map(vec![pad(&upper, 0, 2), pad(&lower, 2, 0)], |x| &x[0] + &x[1]);
            to_side(&w, back.shape(4)).into()
        }));
        grads
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let y = self.shape(x).len() as f64;
        let moved: f64 = x.iter().map(|s| s.len() as f64).sum::<f64>() + y;
        Cost { flops: 8.0 * y, bytes: 4.0 * moved }
    }
}

/// A cell as `[outer, inner, m]`.
fn flat(x: &Tensor) -> Tensor {
    let d = x.dims();
    x.reshape([d[0], d[1], d[2..].iter().product()])
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

#[derive(Clone, Debug)]
struct RouteWeights;

impl Op for RouteWeights {
    fn name(&self) -> &'static str {
        "route_weights"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        Shape::new(&[x[0][0], x[0][1], 2, 4])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let pairs = Pairs::of(shapes);
        let vector = pairs.vector();
        let m = pairs.m / vector;
        let count = pairs.outer * pairs.inner;
        let chunks = (enough(gpu) / count.max(1)).min(m / 64).max(m.div_ceil(crate::gpu::MAX_LOOP)).max(1);
        let partial = (chunks > 1).then(|| gpu.alloc(chunks * y.len()));
        let mut params = Words::default().sizes(&[count * chunks, m, pairs.inner, chunks]);
        params.0.extend(pairs.all_strides(&shapes[2..]).0);
        let text = || fill(WEIGHTS.text, &[("type", &element(vector, true))]);
        gpu.dispatch(&Launch {
            kernel: WEIGHTS,
            body: Some((vector as u64, &text)),
            constants: &[],
            reads: x,
            writes: &[partial.as_ref().unwrap_or(y)],
            params,
            grid: Grid::Heavy(count * chunks),
            loops: m.div_ceil(chunks),
        });
        if let Some(partial) = &partial {
            sum_buffers(gpu, partial, y, chunks, y.len());
        }
    }

    fn host(&self, x: &[&Array]) -> Array {
        let shapes: Vec<Shape> = x.iter().map(|a| a.shape).collect();
        let pairs = Pairs::of(&shapes);
        let mut y = Array::zeros(self.shape(&shapes));
        for (n, value) in y.data.iter_mut().enumerate() {
            let (pair, i, j) = (n / 8, n / 4 % 2, n % 4);
            let (so, sn) = pairs.strides(shapes[2 + j]);
            let at = (pair / pairs.inner * so + pair % pairs.inner * sn) * pairs.m;
            let g = &x[i].data[pair * pairs.m..][..pairs.m];
            *value = g.iter().zip(&x[2 + j].data[at..]).map(|(g, x)| g * x).sum();
        }
        y
    }

    fn keep(&self) -> Keep {
        Keep::NOTHING
    }

    fn grad(&self, _: &Back) -> Vec<Option<Grad>> {
        panic!("route_weights: second derivatives are not taken")
    }
}
