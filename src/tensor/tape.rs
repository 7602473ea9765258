//! The tape: what was computed from tracked tensors, in order, and its way back.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Pullback, Tensor, View};
use crate::shape::Shape;

/// A tensor's place on a tape.
#[derive(Clone)]
pub(crate) struct Var {
    pub(super) tape: Rc<RefCell<Nodes>>,
    pub(crate) id: usize,
}

/// How the gradients of a node's inputs are made from that of its output.
pub(crate) enum Kind {
    /// As an op says.
    Op(Box<dyn Pullback>),
    /// By reading it: the output has the inputs' values, and often their memory.
    Alias(Alias),
    /// By computing the output of the inputs once more.
    Recompute(Box<Part>),
}

/// A part of a model, as a function of its inputs.
pub(crate) type Part = dyn Fn(&[Tensor]) -> Tensor;

/// How an output holds its inputs.
pub(crate) enum Alias {
    /// Input `i` is entry `i` of the leading axis.
    Stack,
    /// The only input under another shape.
    Reshape,
    /// What this view reads of the only input.
    Section(View),
}

pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) inputs: Vec<Option<usize>>,
    pub(crate) x: Vec<Option<Tensor>>,
    pub(crate) y: Option<Tensor>,
    pub(crate) shapes: Vec<Shape>,
    pub(crate) first: usize,
    pub(crate) outputs: Vec<Shape>,
}

#[derive(Default)]
pub(super) struct Nodes {
    nodes: Vec<Node>,
    next: usize,
}

impl Nodes {
    pub(super) fn ids(&mut self, n: usize) -> usize {
        self.next += n;
        self.next - n
    }

    pub(super) fn push(&mut self, node: Node) {
        self.nodes.push(node);
    }
}

/// A flat list of what was computed, in recording order. One tape serves one backward pass.
#[derive(Default)]
pub struct Tape(Rc<RefCell<Nodes>>);

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same values, tracked: gradients with respect to them can be asked for.
    pub fn leaf(&self, x: &Tensor) -> Tensor {
        let id = self.0.borrow_mut().ids(1);
        Tensor { var: Some(Var { tape: self.0.clone(), id }), ..x.clone() }
    }

    pub(crate) fn pop(&self) -> Option<Node> {
        self.0.borrow_mut().nodes.pop()
    }
}
