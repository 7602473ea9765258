//! The k largest values along an axis.

use super::registry::{Case, POINT, Values, case};
use super::rows::{each_row, fits};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};

const TOP: Kernel = Kernel { name: "top", text: include_str!("../../shaders/top.wgsl") };
const GRAD: Kernel = Kernel { name: "top_grad", text: include_str!("../../shaders/top_grad.wgsl") };

impl Tensor {
    /// The `k` largest values along an axis, descending: the axis gets length `k`. The gradient goes to the values'
    /// places, of equal ones to the first. Meant for small `k`: each is a pass over the axis.
    #[track_caller]
    pub fn top(&self, k: usize, axis: isize) -> Self {
        apply(Top { axis: self.shape().axis(axis), k, every: 0 }, &[self])
    }

    /// As [`Tensor::top`] over the first `lens[o / every % lens.len()]` places of the axis, where `o` counts the rows
    /// of the axes before it; where there are fewer than `k`, the rest is 0.
    #[track_caller]
    pub fn top_to(&self, k: usize, axis: isize, lens: &Self, every: usize) -> Self {
        apply(Top { axis: self.shape().axis(axis), k, every }, &[self, lens])
    }
}

#[derive(Clone, Debug)]
struct Top {
    axis: usize,
    k: usize,
    /// Outer rows that share a length; lengths repeat. 0 if not masked.
    every: usize,
}

impl Top {
    fn launch(&self, gpu: &Gpu, kernel: Kernel, reads: &[&Buf], y: &Buf, x: Shape, lens: usize) {
        let (outer, n, inner) = x.split(self.axis);
        let loops = (self.k + 1) * n;
        if !fits(gpu, &kernel, n, loops) {
            return;
        }
        gpu.dispatch(&Launch {
            kernel,
            body: None,
            constants: &[],
            reads,
            writes: &[y],
            params: Words::default().sizes(&[outer * inner, n, inner, self.k, self.every.max(1), lens]),
            grid: Grid::Invocations(outer * inner),
            loops,
        });
    }

    /// Calls `f` for each value that is kept: where it is in the input and in the result.
    fn each(&self, x: &ArrayView, lens: Option<&ArrayView>, mut f: impl FnMut(usize, usize)) {
        let (_, n, inner) = x.shape.split(self.axis);
        each_row(x.shape, self.axis, |o, at| {
            let len = lens.map_or(n, |l| (l.data[o / self.every % l.data.len()] as usize).min(n));
            let mut order: Vec<usize> = (0..len).collect();
            // A stable sort: equal values stay in order, of either zero too.
            order.sort_by(|a, b| (x.data[at(*b)] + 0.0).total_cmp(&(x.data[at(*a)] + 0.0)));
            for (rank, place) in order.into_iter().take(self.k).enumerate() {
                f(at(place), (o * self.k + rank) * inner + at(0) % inner);
            }
        });
    }
}

impl Op for Top {
    fn name(&self) -> &'static str {
        "top"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0].with(self.axis, self.k)
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        // Unmasked rows bind their input twice.
        let lens = shapes.get(1).map_or(0, Shape::len);
        self.launch(gpu, TOP, &[x[0], x[x.len() - 1]], y, shapes[0], lens);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let mut y = Array::zeros(x[0].shape.with(self.axis, self.k));
        self.each(&x[0], x.get(1), |from, to| y.data[to] = x[0].data[from]);
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: n * self.k as f64, bytes: 8.0 * n }
    }
}

impl Pullback for Top {
    fn keep(&self) -> Keep {
        Keep::inputs([0, 1])
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        // Unmasked, the input takes the place of lengths.
        let lens = if self.every > 0 { back.x(1) } else { back.x(0) };
        let g = compute(TopGrad(self.clone()), &[back.x(0), lens, back.g()]);
        let mut grads = vec![Some(g.into())];
        grads.resize(back.inputs(), None);
        grads
    }
}

/// The gradient of the largest values: each back to its place.
#[derive(Clone, Debug)]
struct TopGrad(Top);

impl Op for TopGrad {
    fn name(&self) -> &'static str {
        "top_grad"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let lens = if self.0.every > 0 { shapes[1].len() } else { 0 };
        self.0.launch(gpu, GRAD, x, y, shapes[0], lens);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let mut y = Array::zeros(x[0].shape);
        let lens = (self.0.every > 0).then(|| &x[1]);
        self.0.each(&x[0], lens, |from, to| y.data[from] = x[2].data[to]);
        y
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("top", "of columns", &[&[5, 9, 12]], POINT, |x| x[0].top(2, 1)).bench(),
        case("top", "of rows, all of them", &[&[7, 10]], POINT, |x| x[0].top(10, -1)),
        case("top", "equal values", &[&[6, 11, 3]], POINT, |x| x[0].top(4, 1)).all(Values::Grid),
        case("top", "to lengths, fewer than are asked", &[&[4, 8, 5], &[2]], POINT, |x| {
            x[0].top_to(3, 1, &x[1], 2)
        })
        .with(1, Values::Whole(9)),
    ]
}
