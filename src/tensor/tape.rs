//! The tape: what was computed from tracked tensors, in order, and its way back.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Op, Tensor};
use crate::shape::Shape;

/// A tensor's place on a tape.
#[derive(Clone)]
pub(crate) struct Var {
    pub(super) tape: Rc<RefCell<Nodes>>,
    pub(crate) id: usize,
}

pub(crate) struct Node {
    pub(crate) op: Rc<dyn Op>,
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
