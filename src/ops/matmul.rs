//! Matrix products: batched, broadcast and transposed by strides, so that no operand is ever copied.

mod block;
mod cases;
mod cooperative;
mod lanes;
mod largest;
mod linears;
mod mlp;
mod record;
mod tile;

use std::hash::{DefaultHasher, Hash, Hasher};

use super::map::{AT_ONCE, map};
use crate::gpu::{Buf, Gpu, Kernel, Ways};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Expr, Grad, Keep, Op, Program, Pullback, Tensor, apply, compute};
pub(super) use cases::cases;
pub use linears::Linears;
use mlp::Hidden;
pub(crate) use mlp::gelu_is_apart;
use tile::{SizeClass, plan};
#[cfg(test)]
pub(super) use tile::{variants, with_each_form};

const KERNEL: Kernel = Kernel { name: "matmul", text: include_str!("../../shaders/matmul.wgsl") };
const BLOCK: Kernel = Kernel { name: "matmul_block", text: include_str!("../../shaders/matmul_block.wgsl") };
const COOPERATIVE: Kernel =
    Kernel { name: "matmul_cooperative", text: include_str!("../../shaders/matmul_cooperative.wgsl") };

/// Values that a gradient's products sum, and values of it, from which on splitting those sums may pay.
const LONG: usize = 512;
const MANY: usize = 1 << 20;

/// Applied to the product before it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Act {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
    /// `max(tanh(x), 0)`.
    TanhRelu,
    /// `x/2 (1 + erf(x / sqrt 2))`, between the maps of [`Tensor::mlp`] alone: its derivative needs `x`.
    Gelu,
}

/// What is done to the result with a tensor of its shape before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Epilogue {
    None,
    /// A residual, added.
    Residual,
    /// The output of a ReLU: where it is 0 so is the result, as that ReLU's derivative says.
    ReluGrad,
    /// What a GELU was taken of: its derivative there is multiplied by.
    GeluGrad,
}

/// An operand's layout: strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Layout {
    /// Of the outer and inner batch; 0 repeats.
    batch: [usize; 2],
    /// Of the batch summed over.
    sum: usize,
    row: usize,
    col: usize,
}

impl Layout {
    fn transposed(self) -> Self {
        Self { row: self.col, col: self.row, ..self }
    }

    /// From the first to the last value of an operand of so many rows and columns.
    fn extent(self, op: &MatMul, rows: usize, cols: usize) -> usize {
        let last = |n: usize, stride: usize| n.saturating_sub(1) * stride;
        let batches = last(op.batch[0], self.batch[0]) + last(op.batch[1], self.batch[1]);
        1 + batches + last(op.sum, self.sum) + last(rows, self.row) + last(cols, self.col)
    }
}

/// One product `c = a b` for each of `batch`, summed over `sum` further pairs.
#[derive(Clone, Debug)]
struct MatMul {
    m: usize,
    n: usize,
    k: usize,
    batch: [usize; 2],
    sum: usize,
    a: Layout,
    b: Layout,
    c: Layout,
    scale: f64,
    bias: bool,
    /// Whether the biases stand offset the weights in b, instead of by themselves.
    packed: bool,
    /// Where biases stand offset b's weights, or the sums of rows offset c, in a batch.
    offset: usize,
    epilogue: Epilogue,
    /// What a is the output of, where its derivative is left to this op's gradient.
    hidden: Option<Hidden>,
    /// Whether the activation's derivative is left to the op that reads the result.
    act_grad_by_consumer: bool,
    /// Where what the activation is taken of is stored besides.
    before: Option<usize>,
    /// Whether the sum of each row of a, over k, is stored offset c.
    sums: bool,
    /// Whether it yields a gradient.
    backward: bool,
    act: Act,
    shape: Shape,
}

impl Tensor {
    /// `act(x wᵀ + bias)`: x `[.., k]`, w `[n, k]` as PyTorch keeps it, bias `[n]`; the result is `[.., n]`.
    #[track_caller]
    pub fn linear(&self, w: &Self, bias: Option<&Self>, act: Act) -> Self {
        let mut x = vec![self, w];
        x.extend(bias);
        apply(MatMul { bias: bias.is_some(), act, ..MatMul::linear(self.shape(), w.shape()) }, &x)
    }

    /// `x wᵀ + bias + residual`, shapes as in [`Tensor::linear`] and the residual of the result's.
    #[track_caller]
    pub fn linear_plus(&self, w: &Self, bias: &Self, residual: &Self) -> Self {
        let op =
            MatMul { bias: true, epilogue: Epilogue::Residual, ..MatMul::linear(self.shape(), w.shape()) };
        assert_eq!(residual.shape(), op.shape, "linear_plus: x {} with w {}", self.shape(), w.shape());
        apply(op, &[self, w, bias, residual])
    }

    /// `a b` over the last two axes, each transposed first if asked; up to two leading axes are batches and
    /// broadcast.
    #[track_caller]
    pub fn matmul(&self, b: &Self, transpose_a: bool, transpose_b: bool) -> Self {
        let (sa, sb) = (four(self.shape()), four(b.shape()));
        let (m, k) = if transpose_a { (sa[3], sa[2]) } else { (sa[2], sa[3]) };
        let (k2, n) = if transpose_b { (sb[3], sb[2]) } else { (sb[2], sb[3]) };
        assert_eq!(k, k2, "matmul: {} with {}", self.shape(), b.shape());
        let batch = [0, 1].map(|i| match (sa[i], sb[i]) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => panic!("matmul: batches of {} and {}", self.shape(), b.shape()),
        });
        let layout = |s: [usize; 4], transpose| {
            let stride = [s[1] * s[2] * s[3], s[2] * s[3]];
            let one = Layout {
                batch: [0, 1].map(|i| if s[i] == 1 { 0 } else { stride[i] }),
                sum: 0,
                row: s[3],
                col: 1,
            };
            if transpose { one.transposed() } else { one }
        };
        let rank = self.shape().rank().max(b.shape().rank());
        let shape = Shape::new(&[batch[0], batch[1], m, n][4 - rank..]);
        let c = Layout { batch: [batch[1] * m * n, m * n], sum: 0, row: n, col: 1 };
        let (a, b_layout) = (layout(sa, transpose_a), layout(sb, transpose_b));
        apply(MatMul { batch, ..MatMul::plain([m, n, k], [a, b_layout, c], shape) }, &[self, b])
    }

    /// Attention scores by heads: q `[n, r, heads*d]`, k `[n, l, heads*d]`, the result `[n, heads, r, l]` is
    /// `scale * q kᵀ` of each head's contiguous channels.
    #[track_caller]
    pub fn head_scores(&self, k: &Self, heads: usize, scale: f64) -> Self {
        let (q, s) = (self.shape(), k.shape());
        assert!(
            q[0] == s[0] && q[2] == s[2] && q[2] % heads == 0,
            "head_scores: {q} with {s}, {heads} heads"
        );
        let (n, r, l, width) = (q[0], q[1], s[1], q[2]);
        let d = width / heads;
        let a = Layout { batch: [r * width, d], sum: 0, row: width, col: 1 };
        let b = Layout { batch: [l * width, d], sum: 0, row: 1, col: width };
        let c = Layout { batch: [heads * r * l, r * l], sum: 0, row: l, col: 1 };
        let op = MatMul::plain([r, l, d], [a, b, c], Shape::new(&[n, heads, r, l]));
        apply(MatMul { batch: [n, heads], scale, ..op }, &[self, k])
    }

    /// Weighted sums by heads: weights `[n, heads, r, l]`, v `[n, l, heads*d]`, the result `[n, r, heads*d]`.
    #[track_caller]
    pub fn head_mix(&self, v: &Self) -> Self {
        let (w, s) = (self.shape(), v.shape());
        assert!(w[0] == s[0] && w[3] == s[1] && s[2] % w[1] == 0, "head_mix: {w} with {s}");
        let (n, heads, r, l, width) = (w[0], w[1], w[2], w[3], s[2]);
        let d = width / heads;
        let a = Layout { batch: [heads * r * l, r * l], sum: 0, row: l, col: 1 };
        let b = Layout { batch: [l * width, d], sum: 0, row: width, col: 1 };
        let c = Layout { batch: [r * width, d], sum: 0, row: width, col: 1 };
        let op = MatMul::plain([r, d, l], [a, b, c], Shape::new(&[n, r, width]));
        apply(MatMul { batch: [n, heads], ..op }, &[self, v])
    }
}

fn four(s: Shape) -> [usize; 4] {
    assert!((2..=4).contains(&s.rank()), "matmul of shape {s}");
    let mut dims = [1; 4];
    dims[4 - s.rank()..].copy_from_slice(s.dims());
    dims
}

impl MatMul {
    /// `x wᵀ` for each row of x.
    #[track_caller]
    fn linear(x: Shape, w: Shape) -> Self {
        let (n, k) = (w[0], w[1]);
        assert_eq!(x.last(), k, "linear: x {x} with w {w}");
        let rank = x.rank();
        let flat = |row, col| Layout { batch: [0, 0], sum: 0, row, col };
        let m = x.dims()[..rank - 1].iter().product();
        Self::plain([m, n, k], [flat(k, 1), flat(1, k), flat(n, 1)], x.with(rank - 1, n))
    }

    /// One product of `m, n, k` with these layouts, and nothing else.
    fn plain([m, n, k]: [usize; 3], [a, b, c]: [Layout; 3], shape: Shape) -> Self {
        Self {
            m,
            n,
            k,
            batch: [1, 1],
            sum: 1,
            a,
            b,
            c,
            scale: 1.0,
            bias: false,
            packed: false,
            offset: 0,
            epilogue: Epilogue::None,
            hidden: None,
            act_grad_by_consumer: false,
            before: None,
            sums: false,
            backward: false,
            act: Act::None,
            shape,
        }
    }

    fn batches(&self) -> usize {
        self.batch[0] * self.batch[1]
    }

    /// The product that yields a gradient of shape `shape` laid out as `c`: batches over which `c` repeats
    /// are summed.
    fn product(&self, size: [usize; 3], a: Layout, b: Layout, c: Layout, shape: Shape) -> Self {
        let plain = Self::plain(size, [a, b, c], shape);
        let mut op = Self { batch: self.batch, sum: self.sum, scale: self.scale, backward: true, ..plain };
        for i in 0..2 {
            if c.batch[i] == 0 && op.batch[i] > 1 {
                assert_eq!(op.sum, 1, "matmul: a gradient summed over two batch axes");
                op.sum = op.batch[i];
                (op.a.sum, op.b.sum) = (a.batch[i], b.batch[i]);
                op.batch[i] = 1;
            }
        }
        op
    }

    /// The same product with contiguous rows of `c`.
    fn oriented(&self) -> Self {
        if self.c.col == 1 || self.c.row != 1 {
            return self.clone();
        }
        Self {
            m: self.n,
            n: self.m,
            a: self.b.transposed(),
            b: self.a.transposed(),
            c: self.c.transposed(),
            ..self.clone()
        }
    }

    /// The same product with what one stride reaches joined: batches that share b are more rows, batches summed over
    /// are more k.
    fn folded(mut self) -> Self {
        for i in [1, 0] {
            let n = self.batch[i];
            let joins = |l: &Layout| l.batch[i] == self.m * l.row;
            let inner = i == 1 || self.batch[1] == 1;
            if n > 1 && inner && self.b.batch[i] == 0 && joins(&self.a) && joins(&self.c) && !self.sums {
                self.m *= n;
                self.batch[i] = 1;
            }
        }
        if self.a.sum == self.k * self.a.col && self.b.sum == self.k * self.b.row {
            self.k *= self.sum;
            self.sum = 1;
        }
        self
    }

    fn grad_a(&self, back: &Back, g: &Tensor) -> Grad {
        let (m, n, k) = (self.m, self.n, self.k);
        let op = self.product([m, k, n], self.c, self.b.transposed(), self.a, back.shape(0));
        if let Some(hidden) = &self.hidden {
            let (epilogue, other) = match hidden {
                Hidden::Relu => (Epilogue::ReluGrad, back.x(0)),
                Hidden::Gelu(before) => (Epilogue::GeluGrad, before),
            };
            return compute(MatMul { epilogue, ..op }, &[g, back.x(1), other]).into();
        }
        // A product to which something is added is not split.
        let split = op.k * op.sum > LONG && op.shape.len() < MANY;
        match if split { None } else { back.include(0) } {
            Some(so_far) => {
                let op = MatMul { epilogue: Epilogue::Residual, ..op };
                compute(op, &[g, back.x(1), so_far]).into()
            }
            None => compute(op, &[g, back.x(1)]).into(),
        }
    }

    /// The gradients of a linear map with a bias: that of the bias is summed on the way to that of the weight.
    fn linear_grads(&self, back: &Back, g: Tensor) -> Vec<Option<Grad>> {
        let (m, n, k) = (self.m, self.n, self.k);
        let gx = back.needs(0).then(|| self.grad_a(back, &g));
        let c = Layout { row: k, col: 1, ..self.c };
        let shape = Shape::new(&[n * k + n]);
        let op = self.product([n, k, m], self.c.transposed(), self.a, c, shape);
        let op = Self { sums: true, offset: n * k, ..op };
        let both = compute(op, &[&g, back.x(0)]);
        let part = |start, dims: &[usize]| Some(both.section(start, Shape::new(dims)).into());
        let mut grads = vec![gx, part(0, &[n, k]), part(n * k, &[n])];
        grads.extend((self.epilogue == Epilogue::Residual).then(|| Some(g.into())));
        grads
    }

    fn is_dense(&self) -> bool {
        let (m, n, inner) = (self.m, self.n, self.batch[1]);
        let batch = |i: usize, stride| self.batch[i] == 1 || self.c.batch[i] == stride || self.sums;
        self.c.col == 1 && self.c.row == n && batch(1, m * n) && batch(0, inner * m * n)
    }
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn shape(&self, _: &[Shape]) -> Shape {
        self.shape
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, _: &[Shape]) {
        let op = self.oriented().folded();
        let can_split = op.is_dense()
            && !self.bias
            && self.epilogue == Epilogue::None
            && self.act == Act::None
            && op.sum == 1;
        let (ways, planned) = plan(&op, gpu, can_split);
        let run = |way: usize| self.run(gpu, &op, ways[way], can_split, x, y);
        if let [only] = planned[..] {
            return run(only);
        }
        let class = SizeClass::of(&op, &ways, can_split);
        let mut hash = DefaultHasher::new();
        ("matmul", &class).hash(&mut hash);
        let names = || class.names(&ways);
        let ways = Ways { key: hash.finish(), names: &names, planned: &planned };
        // In a step, one of the operands is new.
        let timed = &mut |way| {
            x[0].forget_derived();
            run(way);
            y.settle(gpu);
        };
        run(gpu.choose(&ways, timed));
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let mut y = Array::zeros(self.shape);
        let gelu = Expr::input(0).gelu();
        let [gelu_grad, gelu] = [gelu.derivative(0), gelu].map(Program::new);
        let mut scratch = Vec::new();
        for b0 in 0..self.batch[0] {
            for b1 in 0..self.batch[1] {
                let at = |l: &Layout| b0 * l.batch[0] + b1 * l.batch[1];
                let (a, b, c) = (at(&self.a), at(&self.b), at(&self.c));
                for m in 0..self.m {
                    if self.sums {
                        let at = a + m * self.a.row;
                        y.data[c + self.offset + m] =
                            (0..self.k).map(|k| x[0].data[at + k * self.a.col]).sum();
                    }
                    for n in 0..self.n {
                        let mut sum = 0.0;
                        for s in 0..self.sum {
                            let row = a + s * self.a.sum + m * self.a.row;
                            let col = b + s * self.b.sum + n * self.b.col;
                            for k in 0..self.k {
                                sum += x[0].data[row + k * self.a.col] * x[1].data[col + k * self.b.row];
                            }
                        }
                        let biased = sum * self.scale
                            + match (self.bias, self.packed) {
                                (true, true) => x[1].data[b + self.offset + n],
                                (true, false) => x[2].data[n],
                                (false, _) => 0.0,
                            };
                        let at = c + m * self.c.row + n * self.c.col;
                        if let Some(place) = self.before {
                            y.data[place + at] = biased;
                        }
                        let value = match self.act {
                            Act::None => biased,
                            Act::Relu => biased.max(0.0),
                            Act::Tanh => biased.tanh(),
                            Act::TanhRelu => biased.tanh().max(0.0),
                            Act::Gelu => gelu.value(&[biased], &mut scratch),
                        };
                        let epilogue = x[x.len() - 1].data.get(at).copied();
                        y.data[at] = match (self.epilogue, epilogue) {
                            (Epilogue::Residual, Some(epilogue)) => value + epilogue,
                            (Epilogue::ReluGrad, Some(epilogue)) if epilogue <= 0.0 => 0.0,
                            (Epilogue::GeluGrad, Some(epilogue)) => {
                                value * gelu_grad.value(&[epilogue], &mut scratch)
                            }
                            _ => value,
                        };
                    }
                }
            }
        }
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let moved: usize = x.iter().map(Shape::len).sum::<usize>() + self.shape.len();
        Cost {
            flops: 2.0 * (self.m * self.n * self.k * self.batches() * self.sum) as f64,
            bytes: 4.0 * moved as f64,
        }
    }
}

impl Pullback for MatMul {
    fn keep(&self) -> Keep {
        let keep = Keep::inputs([0, 1]);
        if self.act == Act::None || self.act_grad_by_consumer { keep } else { keep.and_output() }
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let g = match self.act {
            _ if self.act_grad_by_consumer => back.g().clone(),
            Act::None => back.g().clone(),
            Act::Relu => times(back, |y| y.greater(0.0)),
            Act::Tanh => times(back, |y| 1.0 - y * y),
            Act::TanhRelu => times(back, |y| y.greater(0.0) * (1.0 - y * y)),
            Act::Gelu => panic!("a GELU leaves its derivative to the map that follows it"),
        };
        let (m, n, k) = (self.m, self.n, self.k);
        if self.packed {
            return self.packed_grads(back, g);
        }
        if self.bias && back.needs(1) && back.needs(2) {
            return self.linear_grads(back, g);
        }
        let ga = back.needs(0).then(|| self.grad_a(back, &g));
        let gb = back.needs(1).then(|| {
            let op = self.product([k, n, m], self.a.transposed(), self.c, self.b, back.shape(1));
            compute(op, &[back.x(0), &g]).into()
        });
        let mut grads = vec![ga, gb];
        if self.bias {
            grads.push(back.needs(2).then(|| g.reshape([m, n]).sum(0).into()));
        }
        if self.epilogue == Epilogue::Residual {
            grads.push(Some(g.into()));
        }
        grads
    }
}

/// The incoming gradient times what `slope` makes of the output.
fn times(back: &Back, slope: impl FnOnce(&Expr) -> Expr) -> Tensor {
    let Grad { mut inputs, formula } = back.formula(AT_ONCE - 1);
    let y = Expr::input(inputs.len());
    inputs.push(back.y().view());
    map(inputs, |_| formula * slope(&y))
}
