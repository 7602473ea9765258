//! Several linear maps of one shape in one product.

use super::{Act, Epilogue, Hidden, Layout, MatMul};
use crate::ops::pack::{pack, places};
use crate::shape::Shape;
use crate::tensor::{Back, Grad, Tensor, apply, compute};

/// Linear maps of one shape, their weights and biases packed in one tensor.
pub struct Linears {
    packed: Tensor,
    maps: usize,
    /// Where a map's biases, and the next map, stand offset its weights.
    offset: usize,
    stride: usize,
    weight: Shape,
}

impl Linears {
    /// The maps with these weights `[n, k]` and biases `[n]`.
    #[track_caller]
    pub fn new(maps: &[[&Tensor; 2]]) -> Self {
        let (weight, bias) = (maps[0][0].shape(), maps[0][1].shape());
        let of_one_shape = |m: &[&Tensor; 2]| m[0].shape() == weight && m[1].shape() == bias;
        assert!(maps.iter().all(of_one_shape) && bias.dims() == [weight[0]], "linears: {weight} and {bias}");
        let (places, stride) = places(&maps[0][0].device(), [weight.len(), bias.len()]);
        let packed = pack(&maps.iter().flatten().copied().collect::<Vec<_>>());
        Self { packed, maps: maps.len(), offset: places[1], stride, weight }
    }

    /// Every map of `x [.., k]`, concatenated: `[.., maps * n]`.
    #[track_caller]
    pub fn concat(&self, x: &Tensor) -> Tensor {
        let n = self.weight[0];
        let last = x.shape().rank() - 1;
        let c = Layout { batch: [n, 0], sum: 0, row: self.maps * n, col: 1 };
        self.apply(x, MatMul { c, shape: x.shape().with(last, self.maps * n), ..self.of(x.shape(), false) })
    }

    /// Map `i` of `x [maps, rows, k]`'s entry `i`, or every map of `x [1, rows, k]`, through a ReLU; then map `i` of
    /// `next` and `act`: `[maps, rows, n]`. The ReLU's derivative is taken on the way to the hidden values' gradient.
    #[track_caller]
    pub fn mlps(&self, next: &Self, x: &Tensor, act: Act) -> Tensor {
        let [_, rows, _] = [0, 1, 2].map(|k| x.shape()[k]);
        let to = |maps: &Self| Shape::new(&[maps.maps, rows, maps.weight[0]]);
        let first = self.of(x.shape(), x.shape()[0] > 1);
        let hidden =
            self.apply(x, MatMul { act: Act::Relu, act_grad_by_consumer: true, shape: to(self), ..first });
        let second = next.of(hidden.shape(), true);
        next.apply(&hidden, MatMul { hidden: Some(Hidden::Relu), act, shape: to(next), ..second })
    }

    /// The maps' weights and biases, in one tensor.
    pub(in crate::ops) fn packed(&self) -> &Tensor {
        &self.packed
    }

    /// The same maps, untracked.
    pub(in crate::ops) fn detach(&self) -> Self {
        Self { packed: self.packed.detach(), ..*self }
    }

    /// The number of maps.
    pub(in crate::ops) fn maps(&self) -> usize {
        self.maps
    }

    /// The numbers that each map gives.
    pub(in crate::ops) fn outputs(&self) -> usize {
        self.weight[0]
    }

    /// The numbers that each map reads.
    pub(in crate::ops) fn width(&self) -> usize {
        self.weight[1]
    }

    /// Each map of its own rows `states[map, step]`, of `states [maps, steps, rows, k]`: `[maps, rows, n]`. Untracked.
    pub(in crate::ops) fn of_step(&self, states: &Tensor, step: usize) -> Tensor {
        let (s, op) = (states.shape(), self.rows(states.shape()));
        compute(op, &[&from_step(states, step), &self.packed]).reshape([self.maps, s[2], self.weight[0]])
    }

    /// The gradient of [`Linears::of_step`]'s rows, from that of what the maps gave, `g [maps, steps, rows, n]`.
    pub(in crate::ops) fn back_of_step(&self, g: &Tensor, step: usize) -> Tensor {
        let (s, k) = (g.shape(), self.weight[1]);
        let op = self.rows(s.with(3, k));
        let c = Layout { batch: [s[2] * k, 0], ..op.a };
        let shape = Shape::new(&[self.maps, s[2], k]);
        let a = Layout { batch: [s[1] * s[2] * op.n, 0], ..op.c };
        let op = op.product([op.m, k, op.n], a, op.b.transposed(), c, shape);
        compute(op, &[&from_step(g, step), &self.packed])
    }

    /// The gradient of the packed maps from all steps: of states `[maps, 1 + steps, rows, k]`, of which the last has no
    /// step, and `g [maps, steps, rows, n]`.
    pub(in crate::ops) fn weights_grad(&self, states: &Tensor, g: &Tensor) -> Tensor {
        let (s, [n, k]) = (g.shape(), [self.weight[0], self.weight[1]]);
        let op = self.rows(states.shape());
        let a = Layout { batch: [s[1] * s[2] * n, 0], ..op.c };
        let c = Layout { batch: op.b.batch, sum: 0, row: k, col: 1 };
        let op = op.product([n, k, s[1] * s[2]], a.transposed(), op.a, c, self.packed.shape());
        compute(MatMul { sums: true, offset: self.offset, ..op }, &[g, states])
    }

    /// The product of each map with rows of one step.
    fn rows(&self, s: Shape) -> MatMul {
        let (rows, shape) = (s[2], Shape::new(&[self.maps, s[2], self.weight[0]]));
        let one = self.of(Shape::new(&[self.maps, rows, s[3]]), true);
        let a = Layout { batch: [s[1] * rows * s[3], 0], ..one.a };
        MatMul { a, shape, ..one }
    }

    fn apply(&self, x: &Tensor, op: MatMul) -> Tensor {
        apply(op, &[x, &self.packed])
    }

    /// The product of each map with its own rows, or of all with the same.
    #[track_caller]
    fn of(&self, x: Shape, own: bool) -> MatMul {
        let (n, k) = (self.weight[0], self.weight[1]);
        let one = MatMul::linear(x, self.weight);
        assert!(!own || x[0] == self.maps, "linears: {} maps of {x}", self.maps);
        let m = if own { one.m / self.maps } else { one.m };
        let batch = |l: Layout, stride| Layout { batch: [stride, 0], ..l };
        MatMul {
            m,
            batch: [self.maps, 1],
            a: batch(one.a, if own { m * k } else { 0 }),
            b: batch(one.b, self.stride),
            c: batch(one.c, m * n),
            bias: true,
            packed: true,
            offset: self.offset,
            ..one
        }
    }
}

/// Of `x [maps, steps, ..]` what there is from a step of the first map on.
fn from_step(x: &Tensor, step: usize) -> Tensor {
    let (all, rows) = (x.len(), x.shape()[2] * x.shape()[3]);
    x.section(step * rows, Shape::new(&[all - step * rows]))
}

impl MatMul {
    /// The gradients of packed linear maps: those of the biases are summed on the way to those of the weights.
    pub(super) fn packed_grads(&self, back: &Back, g: Tensor) -> Vec<Option<Grad>> {
        let (m, n, k) = (self.m, self.n, self.k);
        assert_eq!(self.epilogue, Epilogue::None, "packed maps take no residual");
        let gx = back.needs(0).then(|| self.grad_a(back, &g));
        let gw = back.needs(1).then(|| {
            let c = Layout { batch: self.b.batch, sum: 0, row: k, col: 1 };
            let op = self.product([n, k, m], self.c.transposed(), self.a, c, back.shape(1));
            compute(Self { sums: true, offset: self.offset, ..op }, &[&g, back.x(0)]).into()
        });
        vec![gx, gw]
    }
}
