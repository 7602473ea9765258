//! Multi-head attention (Vaswani et al. 2017, section 3.2) in one kernel forward and two backward: the weights
//! are recomputed, never stored. The composition it replaces stores them three times.

mod cases;
mod host;
mod plan;
mod record;
mod window;

use super::pack::places;
use super::{add, materialize};
use crate::gpu::{Buf, Gpu};
use crate::host::{Array, ArrayView, uniform};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};
pub(super) use cases::cases;
use host::joined;
use plan::Part;
#[cfg(test)]
pub(super) use plan::{variants, with_each_way};
pub use window::Window;

impl Tensor {
    /// Attention of queries (this, `[n, r, heads * d]`) over keys and values `[n, l, heads * d]`: for each head
    /// `softmax(scale * q kᵀ + bias) v`, the result `[n, r, heads * d]`. Sequence `n` reads row `n % masks` of `bias
    /// [masks, l]`, which gets no gradient; -1e30 leaves a key out.
    #[track_caller]
    pub fn attention(&self, k: &Self, v: &Self, heads: usize, scale: f64, bias: Option<&Self>) -> Self {
        let bias_of = if bias.is_some() { Bias::Keys } else { Bias::None };
        let op = Attention { heads, scale, bias: bias_of, ..PLAIN };
        let mut x = vec![self, k, v];
        x.extend(bias);
        // Kernels read four channels of a head at a time.
        if (self.shape().last() / heads.max(1)).is_multiple_of(4) { apply(op, &x) } else { op.composed(&x) }
    }

    /// [`Tensor::attention`] of a sequence over itself: this, `[n, r, 3 * heads * d]`, holds queries, keys and values
    /// concatenated. The result, with `plus` added, is `[n, r, heads * d]`. Weights are dropped out at a rate and by a seed
    /// as [`Tensor::dropout`] would them in `[n, heads, r, r]`.
    #[track_caller]
    pub fn self_attention(
        &self,
        heads: usize,
        scale: f64,
        bias: Option<&Self>,
        plus: Option<&Self>,
        dropout: Option<(f32, u64)>,
    ) -> Self {
        let bias_of = if bias.is_some() { Bias::Keys } else { Bias::None };
        let dropout = dropout.filter(|(rate, _)| *rate != 0.0);
        assert!(dropout.is_none_or(|(rate, _)| (0.0..1.0).contains(&rate)), "attention: dropout {dropout:?}");
        let op =
            Attention { heads, scale, stacked: true, bias: bias_of, plus: plus.is_some(), dropout, ..PLAIN };
        let width = self.shape().last() / 3;
        if !(width / heads.max(1)).is_multiple_of(4) {
            let [q, k, v] = [0, 1, 2].map(|i| materialize(self.view().slice(2, i * width, width)));
            let y = op.composed(&[&q, &k, &v].into_iter().chain(bias).collect::<Vec<_>>());
            return plus.map_or_else(|| y.clone(), |x| add(x, &y));
        }
        let mut x = vec![self];
        x.extend(bias);
        x.extend(plus);
        apply(op, &x)
    }

    /// [`Tensor::self_attention`] inside windows of a grid (Swin, Liu et al. 2021, section 3.2): this is `[images, grid *
    /// grid, 3 * heads * d]`, row by row. Window `n` of an image reads `bias[n % masks]` of `[masks, heads, rows of a window,
    /// the same]`, which gets a gradient; `masks` divides the windows of an image. The result is `[images, grid * grid, heads
    /// * d]`, each row at its own place.
    #[track_caller]
    pub fn window_attention(&self, window: Window, heads: usize, scale: f64, bias: &Self) -> Self {
        let op = Attention { heads, scale, stacked: true, bias: Bias::Pairs, window: Some(window), ..PLAIN };
        let width = self.shape().last() / 3;
        if (width / heads.max(1)).is_multiple_of(4) {
            return apply(op, &[self, bias]);
        }
        let windows = window.partition(self);
        let [q, k, v] = [0, 1, 2].map(|i| materialize(windows.view().slice(2, i * width, width)));
        window.merge(&op.composed(&[&q, &k, &v, bias]), self.shape()[0])
    }
}

/// What is added to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Bias {
    None,
    /// One for each key.
    Keys,
    /// One for each head, query and key, with a gradient.
    Pairs,
}

#[derive(Clone, Debug)]
struct Attention {
    heads: usize,
    scale: f64,
    /// Whether one input holds queries, keys and values.
    stacked: bool,
    /// Which bias comes after them.
    bias: Bias,
    /// Whether the last input is added to the result.
    plus: bool,
    /// Whether sequences are windows of a grid.
    window: Option<Window>,
    /// The rate and seed by which weights are dropped out.
    dropout: Option<(f32, u64)>,
}

const PLAIN: Attention = Attention {
    heads: 1,
    scale: 1.0,
    stacked: false,
    bias: Bias::None,
    plus: false,
    window: None,
    dropout: None,
};

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
        x.get(self.sides()).copied().filter(|_| self.is_biased())
    }

    fn is_biased(&self) -> bool {
        self.bias != Bias::None
    }

    /// The number of row `i` of sequence `n`, of `rows`, among all rows.
    fn row_at(&self, n: usize, i: usize, rows: usize) -> usize {
        self.window.map_or(n * rows + i, |window| window.row_at(n, i))
    }

    /// Where the bias of a sequence's head, query and key is, of a bias of this shape.
    fn bias_at(&self, shape: Shape, [n, head, query, key]: [usize; 4]) -> usize {
        let row = n % shape[0];
        match self.bias {
            Bias::Pairs => ((row * shape[1] + head) * shape[2] + query) * shape[3] + key,
            Bias::None | Bias::Keys => row * shape[1] + key,
        }
    }

    /// What dropout multiplies a kept weight by.
    fn kept(&self) -> f32 {
        self.dropout.map_or(1.0, |(rate, _)| 1.0 / (1.0 - rate))
    }

    /// What dropout multiplies a weight by, at its place among all.
    fn kept_at(&self, place: usize) -> f64 {
        match self.dropout {
            Some((rate, seed)) if uniform(seed, place as u32) < rate => 0.0,
            _ => f64::from(self.kept()),
        }
    }

    #[track_caller]
    fn sizes(&self, x: &[Shape]) -> Sizes {
        if let Some(window) = self.window {
            let (rows, bias) = (window.size * window.size, x[1]);
            assert!(
                x[0].rank() == 3
                    && x[0][1] == window.grid * window.grid
                    && x[0][2].is_multiple_of(3 * self.heads)
                    && window.grid.is_multiple_of(window.size)
                    && window.shift < window.grid
                    && bias.dims()[1..] == [self.heads, rows, rows]
                    && window.count().is_multiple_of(bias[0]),
                "attention: {x:?}, {window:?}"
            );
            return Sizes { n: x[0][0] * window.count(), r: rows, l: rows, d: x[0][2] / 3 / self.heads };
        }
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
                let (masks, l) = (bias.shape()[0], bias.shape().last());
                let all = self.heads * x[0].shape()[1];
                let grouped = [x[0].shape()[0] / masks, masks, all, l];
                let rows = if self.bias == Bias::Pairs { all } else { 1 };
                let rows = bias.reshape([1, masks, rows, l]).view();
                scores.reshape(grouped).map2(rows, |s, b| s + b).reshape(scores.shape())
            }
            None => scores,
        };
        let weights = scores.softmax(-1, 1.0);
        let dropped = self.dropout.map(|(rate, seed)| weights.dropout(rate, seed));
        dropped.unwrap_or(weights).head_mix(x[2])
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
        let (Sizes { r, l, d, .. }, width) = (self.sizes_apart(x), x[0].shape[2]);
        self.weights(x, |s, h, i, p| {
            let (to, from) = (self.row_at(s, i, r) * width, |j| self.row_at(s, j, l) * width);
            for (j, p) in p.iter().enumerate() {
                let p = p * self.kept_at(((s * self.heads + h) * r + i) * l + j);
                for c in h * d..(h + 1) * d {
                    y.data[to + c] += p * x[2].data[from(j) + c];
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
        Keep::inputs(0..self.sides() + usize::from(self.is_biased()))
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let mut x: Vec<&Tensor> =
            (0..self.sides() + usize::from(self.is_biased())).map(|i| back.x(i)).collect();
        let shapes: Vec<Shape> = x.iter().map(|x| x.shape()).collect();
        x.push(back.g());
        let mut wanted = shapes[..self.sides()].to_vec();
        if self.bias == Bias::Pairs {
            let Sizes { n, r, l, .. } = self.sizes(&shapes);
            let masks = shapes[self.sides()][0];
            wanted.push(Shape::new(&[n / masks, masks, self.heads, r, l]));
        }
        let (places, total) = places(&back.g().device(), wanted.iter().map(Shape::len));
        let all = compute(AttentionGrad { op: self.clone(), places: places.clone(), total }, &x);
        let section = |(place, shape): (&usize, &Shape)| all.section(*place, *shape);
        let sections: Vec<Tensor> = places.iter().zip(&wanted).map(section).collect();
        let mut grads: Vec<Option<Grad>> =
            sections[..self.sides()].iter().map(|x| Some(x.clone().into())).collect();
        grads.extend(sections.get(self.sides()).map(|x| Some(x.sum(0).into())));
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
        let Sizes { n: sequences, r, l, .. } = op.sizes(&shapes[..n - 1]);
        let part = |place: usize, len: usize| y.part(place, len).expect("a place it can bind");
        let sides = op.sides();
        let grads: Vec<Buf> =
            self.places[..sides].iter().zip(shapes).map(|(place, shape)| part(*place, shape.len())).collect();
        let about = gpu.alloc(4 * sequences * op.heads * r);
        let biases = self.places.get(sides).map(|place| part(*place, sequences * op.heads * r * l));
        let (x, g, shapes) = (&x[..n - 1], x[n - 1], &shapes[..n - 1]);
        let writes: Vec<&Buf> = [&grads[0], &about].into_iter().chain(&biases).collect();
        op.launch(gpu, Part::Queries, x, &[g], &writes, shapes);
        let rest: Vec<&Buf> = grads.iter().skip(usize::from(!op.stacked)).collect();
        op.launch(gpu, Part::Keys, x, &[g, &about], &rest, shapes);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (g, x) = x.split_last().expect("the gradient comes last");
        let grads = self.op.grads_on_host(&self.op.apart(x), *g);
        let (sides, biases) = grads.split_at(3);
        let mut grads = if self.op.stacked { vec![joined(sides)] } else { sides.to_vec() };
        grads.extend_from_slice(biases);
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
