//! What an op is, and how calling one computes and records it.

use std::cell::{Cell, OnceCell};

use super::tape::{Kind, Node, Var};
use super::{Expr, Tensor, Viewed};
use crate::gpu::{Buf, Gpu};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;

/// What an op's gradient reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    inputs: u32,
    output: bool,
}

impl Keep {
    /// Nothing.
    pub const NOTHING: Self = Self { inputs: 0, output: false };
    /// The output alone.
    pub const OUTPUT: Self = Self { inputs: 0, output: true };

    /// These inputs.
    pub fn inputs(inputs: impl IntoIterator<Item = usize>) -> Self {
        Self { inputs: inputs.into_iter().fold(0, |mask, i| mask | 1 << i), output: false }
    }

    /// These inputs and the output.
    pub fn and_output(self) -> Self {
        Self { output: true, ..self }
    }

    fn has(self, i: usize) -> bool {
        i < 32 && self.inputs & (1 << i) != 0
    }
}

/// What an op costs, for the roofline.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations (a multiply-add is two).
    pub flops: f64,
    /// Bytes that must move between memory and the cores.
    pub bytes: f64,
}

/// What an op computes: its kernel and its f64 definition.
pub trait Op: std::fmt::Debug {
    /// The op's name: its file's, its kernel's and its registry row's.
    fn name(&self) -> &'static str;

    /// The output's shape. A wrong input shape is the caller's bug: it panics with the op and the shapes.
    fn shape(&self, x: &[Shape]) -> Shape;

    /// Records the dispatches that fill `y`.
    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]);

    /// The definition, in f64.
    fn host(&self, x: &[ArrayView]) -> Array;

    /// What it costs: by default each buffer moves once and an output element costs one operation.
    fn cost(&self, x: &[Shape]) -> Cost {
        let y = self.shape(x).len() as f64;
        let moved: f64 = x.iter().map(|s| s.len() as f64).sum::<f64>() + y;
        Cost { flops: y, bytes: 4.0 * moved }
    }
}

/// The gradient of an op, written with other ops so that it runs on both sides. An op that only serves gradients has
/// none: [`compute`] takes it.
pub trait Pullback {
    /// What [`Pullback::grad`] reads.
    fn keep(&self) -> Keep;

    /// The gradient of each input; `None` where an input has none or `back.needs(i)` is false.
    fn grad(&self, back: &Back) -> Vec<Option<Grad>>;
}

/// A gradient, or one of several that are summed: a formula over viewed tensors of one shape. What is pointwise or only
/// repeats, slices or scales is thus never stored, and a sum of any number takes one pass.
#[derive(Clone, Debug)]
pub struct Grad {
    /// What the formula reads.
    pub inputs: Vec<Viewed>,
    /// The values.
    pub formula: Expr,
}

impl From<Tensor> for Grad {
    fn from(tensor: Tensor) -> Self {
        Viewed::from(&tensor).into()
    }
}

impl From<Viewed> for Grad {
    fn from(viewed: Viewed) -> Self {
        Self { inputs: vec![viewed], formula: Expr::input(0) }
    }
}

/// The gradient of an output: a formula that is computed when its values are first asked for; zeros if nothing depends on
/// it.
pub(crate) struct Incoming {
    grad: Option<Grad>,
    values: OnceCell<Tensor>,
    compute: Box<Compute>,
}

/// The values of a formula, or zeros where there is none.
type Compute = dyn Fn(Option<&Grad>) -> Tensor;

impl Incoming {
    pub(crate) fn new(grad: Option<Grad>, compute: impl Fn(Option<&Grad>) -> Tensor + 'static) -> Self {
        Self { grad, values: OnceCell::new(), compute: Box::new(compute) }
    }

    /// The formula, while its values are not computed.
    pub(crate) fn formula(&self) -> Option<&Grad> {
        self.grad.as_ref().filter(|_| self.values.get().is_none())
    }

    /// Takes the formula's values, computed elsewhere.
    pub(crate) fn set(&self, values: Tensor) {
        let _ = self.values.set(values);
    }

    fn values(&self) -> &Tensor {
        self.values.get_or_init(|| (self.compute)(self.grad.as_ref()))
    }
}

/// Operations up to which a formula goes on through pointwise gradients. Longer ones would grow without end, and their
/// parts be computed again and again.
const MOST_OPERATIONS: u32 = 64;

/// What a gradient sees: the incoming gradient and what [`Pullback::keep`] asked for. Nothing in it is tracked.
pub struct Back {
    x: Vec<Option<Tensor>>,
    y: Option<Tensor>,
    shapes: Vec<Shape>,
    needs: Vec<bool>,
    g: Vec<Incoming>,
    /// Computes several of these in fewer passes.
    together: fn(&[Incoming]),
    so_far: Vec<Option<Tensor>>,
    /// Bit `i` is set once the gradient of input `i` is to include what there was of it.
    included: Cell<u32>,
}

impl Back {
    pub(crate) fn new(
        x: Vec<Option<Tensor>>,
        y: Option<Tensor>,
        shapes: Vec<Shape>,
        needs: Vec<bool>,
        g: Vec<Incoming>,
        together: fn(&[Incoming]),
        so_far: Vec<Option<Tensor>>,
    ) -> Self {
        Self { x, y, shapes, needs, g, together, so_far, included: Cell::new(0) }
    }

    /// A kept input.
    #[track_caller]
    pub fn x(&self, i: usize) -> &Tensor {
        self.x[i].as_ref().expect("the op keeps this input")
    }

    /// The kept output.
    #[track_caller]
    pub fn y(&self) -> &Tensor {
        self.y.as_ref().expect("the op keeps its output")
    }

    /// The gradient of the output.
    pub fn g(&self) -> &Tensor {
        self.g[0].values()
    }

    /// The same as a formula of so many tensors at most: what is pointwise goes on from it without storing its values.
    pub fn formula(&self, most: usize) -> Grad {
        let Incoming { grad, values, .. } = &self.g[0];
        let short = |g: &&Grad| g.inputs.len() <= most && g.formula.size() <= MOST_OPERATIONS;
        match grad.as_ref().filter(short).filter(|_| values.get().is_none()) {
            Some(grad) => grad.clone(),
            None => self.g().clone().into(),
        }
    }

    /// The same where it is one tensor, at most times another number; else its values.
    pub fn plain(&self) -> Grad {
        let plain = self.g[0].grad.as_ref().is_some_and(|g| g.formula.size() <= 3);
        self.formula(usize::from(plain))
    }

    /// The gradients of all outputs of an op applied with [`split_with`], in as few passes as they take.
    pub fn gs(&self) -> impl Iterator<Item = &Tensor> {
        (self.together)(&self.g);
        self.g.iter().map(Incoming::values)
    }

    /// The gradient of output `i` of such an op, whether or not those of the others are asked for.
    pub fn g_of(&self, i: usize) -> &Tensor {
        self.g[i].values()
    }

    /// The gradient of input `i` from what came after this op, where it is one tensor: whoever asks adds it to the gradient
    /// that he gives.
    pub fn include(&self, i: usize) -> Option<&Tensor> {
        let so_far = self.so_far[i].as_ref()?;
        self.included.set(self.included.get() | 1 << i);
        Some(so_far)
    }

    /// Whether the gradient of input `i` includes what there was of it.
    pub(crate) fn includes(&self, i: usize) -> bool {
        i < 32 && self.included.get() >> i & 1 == 1
    }

    /// Input `i`'s shape.
    pub fn shape(&self, i: usize) -> Shape {
        self.shapes[i]
    }

    /// The number of inputs.
    pub fn inputs(&self) -> usize {
        self.shapes.len()
    }

    /// Whether input `i`'s gradient is wanted.
    pub fn needs(&self, i: usize) -> bool {
        self.needs[i]
    }
}

/// Computes an op where its inputs are, and records it if one of them is tracked.
#[track_caller]
pub fn apply(op: impl Op + Pullback + 'static, x: &[&Tensor]) -> Tensor {
    let y = run(&op, x);
    record(op.name(), Kind::Op(Box::new(op)), x, vec![y]).remove(0)
}

/// As [`apply`], for an op of several results: `select` splits the output into them.
#[track_caller]
pub fn split_with(
    op: impl Op + Pullback + 'static,
    x: &[&Tensor],
    select: impl Fn(&Tensor) -> Vec<Tensor>,
) -> Vec<Tensor> {
    let y = run(&op, x);
    record(op.name(), Kind::Op(Box::new(op)), x, select(&y))
}

/// Computes an op of untracked inputs. It needs no gradient.
#[track_caller]
pub fn compute(op: impl Op, x: &[&Tensor]) -> Tensor {
    assert!(x.iter().all(|t| !t.is_tracked()), "{}: it has no gradient", op.name());
    run(&op, x)
}

#[track_caller]
fn run(op: &dyn Op, x: &[&Tensor]) -> Tensor {
    let shapes: Vec<Shape> = x.iter().map(|t| t.shape).collect();
    let shape = op.shape(&shapes);
    if let Some(first) = x[0].buf() {
        let gpu = first.gpu().expect("a tensor never outlives its device");
        let bufs: Vec<&Buf> = x.iter().map(|t| t.buf().unwrap_or_else(|| mixed(op))).collect();
        let y = gpu.alloc(shape.len());
        let cost = op.cost(&shapes);
        gpu.count(cost.flops, cost.bytes);
        op.gpu(&gpu, &bufs, &y, &shapes);
        return Tensor::on_gpu(shape, y);
    }
    let values: Vec<_> = x.iter().map(|t| t.values().unwrap_or_else(|| mixed(op))).collect();
    let views: Vec<ArrayView> =
        shapes.iter().zip(&values).map(|(shape, data)| ArrayView { shape: *shape, data }).collect();
    let y = op.host(&views);
    assert_eq!(y.shape, shape, "{}: the definition's shape", op.name());
    Tensor::on_host(y)
}

fn mixed(op: &dyn Op) -> ! {
    panic!("{}: inputs on different devices", op.name())
}

/// Puts `y`, made of `x`, on the tape of the inputs that are tracked, if any is.
pub(crate) fn record(name: &'static str, kind: Kind, x: &[&Tensor], mut y: Vec<Tensor>) -> Vec<Tensor> {
    #[cfg(test)]
    seen::note(name);
    let Some(tape) = x.iter().find_map(|t| t.var.as_ref()).map(|v| v.tape.clone()) else { return y };
    let keep = match &kind {
        Kind::Op(op) => op.keep(),
        Kind::Alias(_) => Keep::NOTHING,
        Kind::Recompute(_) => Keep::inputs(0..x.len()),
    };
    let first = tape.borrow_mut().ids(y.len());
    let node = Node {
        name,
        kind,
        inputs: x.iter().map(|t| t.var.as_ref().map(|v| v.id)).collect(),
        x: x.iter().enumerate().map(|(i, t)| keep.has(i).then(|| t.detach())).collect(),
        y: keep.output.then(|| y[0].detach()),
        shapes: x.iter().map(|t| t.shape).collect(),
        first,
        outputs: y.iter().map(|t| t.shape).collect(),
    };
    tape.borrow_mut().push(node);
    for (i, t) in y.iter_mut().enumerate() {
        t.var = Some(Var { tape: tape.clone(), id: first + i });
    }
    y
}

/// The names of what this thread recorded.
#[cfg(test)]
pub(crate) mod seen {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        static RECORDED: RefCell<BTreeSet<&'static str>> = RefCell::default();
    }

    pub(super) fn note(name: &'static str) {
        RECORDED.with_borrow_mut(|all| all.insert(name));
    }

    pub(crate) fn take() -> BTreeSet<&'static str> {
        RECORDED.take()
    }
}
