//! The way back along a tape.

use std::collections::BTreeMap;

use super::map::{AT_ONCE, fits_a_pass, map, maps, materialize};
use super::recompute;
use crate::shape::Shape;
use crate::tensor::{Alias, Back, Device, Expr, Grad, Incoming, Kind, Node, Tape, Tensor, Viewed};

impl Tape {
    /// The gradients of a scalar with respect to every leaf. Walks the tape in reverse and frees each node,
    /// and what it kept, as it passes.
    #[track_caller]
    pub fn backward(&self, loss: &Tensor) -> Grads {
        assert_eq!(loss.len(), 1, "backward from shape {}", loss.shape());
        let seed = loss.device().full(loss.shape(), 1.0);
        self.backward_from(loss, seed)
    }

    /// As [`Tape::backward`], from any tensor with its gradient.
    #[track_caller]
    pub fn backward_from(&self, y: &Tensor, g: Tensor) -> Grads {
        let mut pending = Pending { terms: BTreeMap::new(), device: y.device() };
        let Some(var) = y.var() else { return Grads(BTreeMap::new()) };
        pending.terms.insert(var.id, vec![g.into()]);
        while let Some(node) = self.pop() {
            let Node { name, kind, inputs, x, y, shapes, first, outputs } = node;
            let ids = first..first + outputs.len();
            if !ids.clone().any(|id| pending.terms.contains_key(&id)) {
                continue;
            }
            let needs = inputs.iter().map(Option::is_some).collect();
            let back = |pending: &mut Pending| {
                let g = ids.zip(&outputs).map(|(id, shape)| pending.take(id, *shape)).collect();
                Back::new(x, y, shapes.clone(), needs, g, compute_together, pending.so_far(&inputs))
            };
            let grads: Vec<Vec<Grad>> = match kind {
                Kind::Alias(alias) => pending.read_as_inputs(first, &alias, &shapes),
                Kind::Op(op) => {
                    let back = back(&mut pending);
                    let grads = op.grad(&back);
                    let included = inputs.iter().enumerate().filter(|(i, _)| back.includes(*i));
                    included.for_each(|(_, id)| drop(id.map(|id| pending.terms.remove(&id))));
                    each(grads)
                }
                Kind::Recompute(part) => each(recompute::grads(&*part, &back(&mut pending))),
            };
            assert_eq!(grads.len(), inputs.len(), "{name}: gradients");
            for (i, (id, grads)) in inputs.iter().zip(grads).enumerate() {
                let Some(id) = id else { continue };
                for grad in grads {
                    assert_eq!(grad.inputs[0].shape(), shapes[i], "{name}: gradient of input {i}");
                    pending.terms.entry(*id).or_default().push(grad);
                }
            }
        }
        Grads(pending.terms.into_iter().map(|(id, terms)| (id, sum(terms))).collect())
    }
}

fn each(grads: Vec<Option<Grad>>) -> Vec<Vec<Grad>> {
    grads.into_iter().map(|grad| grad.into_iter().collect()).collect()
}

/// Gradients not yet summed, by what they belong to; in order, so that every step takes the same memory.
struct Pending {
    terms: BTreeMap<usize, Vec<Grad>>,
    device: Device,
}

impl Pending {
    /// The terms of an output's gradient, read as those of each input it aliases: unsummed, where they read it so that
    /// a view of it can.
    fn read_as_inputs(&mut self, output: usize, alias: &Alias, shapes: &[Shape]) -> Vec<Vec<Grad>> {
        let mut terms = self.terms.remove(&output).unwrap_or_default();
        let fits = |v: &Viewed| match alias {
            Alias::Stack => !v.view.is_padded(0),
            Alias::Reshape | Alias::Section(_) => v.view.is_identity(),
        };
        if !terms.iter().all(|g| g.inputs.iter().all(fits)) || matches!(alias, Alias::Section(_)) {
            terms = vec![sum(terms).into()];
        }
        let read = |i: usize, v: &Viewed| match alias {
            Alias::Stack => v.clone().slice(0, i, 1).squeeze(0),
            Alias::Reshape => v.tensor.reshape(shapes[i]).view(),
            Alias::Section(view) => {
                let (_, view) = view.adjoint();
                Viewed { tensor: v.tensor.reshape(view.source), view }
            }
        };
        let term = |i: usize, g: &Grad| Grad {
            inputs: g.inputs.iter().map(|v| read(i, v)).collect(),
            formula: g.formula.clone(),
        };
        (0..shapes.len()).map(|i| terms.iter().map(|g| term(i, g)).collect()).collect()
    }

    /// The gradient of each input so far, where it is one tensor and the input is there once.
    fn so_far(&self, inputs: &[Option<usize>]) -> Vec<Option<Tensor>> {
        let of = |id: &Option<usize>| match self.terms.get(id.as_ref()?)?.as_slice() {
            [Grad { inputs: read, formula }] if formula.is_input() && read[0].view.is_identity() => {
                let once = inputs.iter().filter(|other| *other == id).count() == 1;
                once.then(|| read[0].tensor.clone())
            }
            _ => None,
        };
        inputs.iter().map(of).collect()
    }

    fn take(&mut self, id: usize, shape: Shape) -> Incoming {
        let device = self.device.clone();
        let compute = move |grad: Option<&Grad>| grad.map_or_else(|| device.full(shape, 0.0), values);
        Incoming::new(self.terms.remove(&id).map(total), compute)
    }
}

/// Formulas that one pass computes, and what they read.
#[derive(Default)]
struct Together<'a> {
    of: Vec<&'a Incoming>,
    formulas: Vec<Expr>,
    inputs: Vec<Viewed>,
}

impl Together<'_> {
    /// Computes them, unless there is but one.
    fn compute(self) {
        if self.of.len() > 1 {
            let values = maps(self.inputs, self.formulas);
            self.of.iter().zip(values).for_each(|(incoming, values)| incoming.set(values));
        }
    }
}

/// Computes formulas of one shape, neighbours in one pass as far as it binds what they read and give.
fn compute_together(all: &[Incoming]) {
    let mut pass = Together::default();
    for incoming in all {
        let Some(grad) = incoming.formula().filter(|grad| !grad.formula.is_input()) else { continue };
        let (mut places, mut inputs) = places(&pass.inputs, grad);
        let operations = pass.formulas.iter().chain([&grad.formula]).map(Expr::size).sum::<u32>();
        if !fits_a_pass(&inputs, pass.of.len() + 1, operations as usize) {
            std::mem::take(&mut pass).compute();
            (places, inputs) = self::places(&[], grad);
        }
        pass.of.push(incoming);
        pass.formulas.push(grad.formula.renumbered(&places));
        pass.inputs = inputs;
    }
    pass.compute();
}

/// The terms' sum, in their order.
fn sum(terms: Vec<Grad>) -> Tensor {
    values(&total(terms))
}

/// A formula's values; a plain tensor is itself.
fn values(grad: &Grad) -> Tensor {
    match grad.inputs.as_slice() {
        [viewed] if grad.formula.is_input() => materialize(viewed.clone()),
        inputs => map(inputs.to_vec(), |_| grad.formula.clone()),
    }
}

/// The terms' sum as one formula, of no more tensors than one pass reads: what is more is summed first.
fn total(terms: Vec<Grad>) -> Grad {
    let (mut inputs, mut total): (Vec<Viewed>, Option<Expr>) = (Vec::new(), None);
    for mut term in terms {
        let (mut places, mut joined) = places(&inputs, &term);
        if joined.len() > AT_ONCE && inputs.len() > 1 {
            let so_far = Grad::from(map(inputs, |_| total.take().expect("terms fit one pass")));
            (places, joined) = self::places(&so_far.inputs, &term);
            (inputs, total) = (so_far.inputs, Some(so_far.formula));
        }
        if joined.len() > AT_ONCE && !inputs.is_empty() {
            term = values(&term).into();
            (places, joined) = self::places(&inputs, &term);
        }
        let value = term.formula.renumbered(&places);
        total = Some(total.map_or(value.clone(), |total| total + value));
        inputs = joined;
    }
    Grad { inputs, formula: total.expect("at least one term") }
}

/// `inputs` and what `term` reads besides, and where among them its inputs are.
fn places(inputs: &[Viewed], term: &Grad) -> (Vec<usize>, Vec<Viewed>) {
    let mut all = inputs.to_vec();
    let place = |x: &Viewed| {
        all.iter().position(|other| other.same(x)).unwrap_or_else(|| {
            all.push(x.clone());
            all.len() - 1
        })
    };
    (term.inputs.iter().map(place).collect(), all)
}

/// Gradients by leaf.
pub struct Grads(BTreeMap<usize, Tensor>);

impl Grads {
    /// The gradient of a leaf; `None` if the result does not depend on it.
    pub fn of(&self, leaf: &Tensor) -> Option<&Tensor> {
        leaf.var().and_then(|v| self.0.get(&v.id))
    }
}
