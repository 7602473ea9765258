//! The way back along a tape.

use std::collections::BTreeMap;

use super::map::{map, materialize};
use crate::shape::Shape;
use crate::tensor::{Back, Device, Expr, Grad, Holds, Tape, Tensor, Viewed};

/// Tensors that one pass reads.
const AT_ONCE: usize = 7;

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
        let mut open = Open { terms: BTreeMap::new(), device: y.device() };
        let Some(var) = y.var() else { return Grads(BTreeMap::new()) };
        open.terms.insert(var.id, vec![g.into()]);
        while let Some(node) = self.pop() {
            let ids = node.first..node.first + node.outputs.len();
            if !ids.clone().any(|id| open.terms.contains_key(&id)) {
                continue;
            }
            if let Some(holds) = node.op.holds() {
                open.hand_on(node.first, holds, &node.inputs, &node.shapes);
                continue;
            }
            let g = ids.zip(&node.outputs).map(|(id, shape)| open.take(id, *shape)).collect();
            let needs = node.inputs.iter().map(Option::is_some).collect();
            let back = Back::new(node.x, node.y, node.shapes.clone(), needs, g);
            let results = node.op.grad(&back);
            assert_eq!(results.len(), node.inputs.len(), "{}: gradients", node.op.name());
            drop(back);
            for (i, (id, grad)) in node.inputs.iter().zip(results).enumerate() {
                if let (Some(id), Some(grad)) = (id, grad) {
                    let (name, shape) = (node.op.name(), grad.inputs[0].shape());
                    assert_eq!(shape, node.shapes[i], "{name}: gradient of input {i}");
                    open.terms.entry(*id).or_default().push(grad);
                }
            }
        }
        Grads(open.terms.into_iter().map(|(id, terms)| (id, sum(terms))).collect())
    }
}

/// Gradients not yet summed, by what they belong to; in order, so that every step takes the same memory.
struct Open {
    terms: BTreeMap<usize, Vec<Grad>>,
    device: Device,
}

impl Open {
    /// Hands the gradient of tensors held in one on to each.
    fn hand_on(&mut self, of: usize, holds: Holds, parts: &[Option<usize>], shapes: &[Shape]) {
        let mut terms = self.terms.remove(&of).unwrap_or_default();
        let fits = |v: &Viewed| match holds {
            Holds::Stacked => !v.view.is_padded(0),
            Holds::Reshaped => v.view.is_identity(),
        };
        if !terms.iter().all(|g| g.inputs.iter().all(fits)) {
            terms = vec![sum(terms).into()];
        }
        for (i, id) in parts.iter().enumerate() {
            let Some(id) = id else { continue };
            let part = |v: &Viewed| match holds {
                Holds::Stacked => v.clone().slice(0, i, 1).squeeze(0),
                Holds::Reshaped => v.tensor.reshape(shapes[i]).view(),
            };
            let part = |g: &Grad| Grad { inputs: g.inputs.iter().map(part).collect(), ..g.clone() };
            self.terms.entry(*id).or_default().extend(terms.iter().map(part));
        }
    }

    fn take(&mut self, id: usize, shape: Shape) -> Tensor {
        self.terms.remove(&id).map_or_else(|| self.device.full(shape, 0.0), sum)
    }
}

/// The terms' sum, in their order; a single plain tensor is itself.
fn sum(terms: Vec<Grad>) -> Tensor {
    if let [Grad { inputs, formula }] = terms.as_slice()
        && let [viewed] = inputs.as_slice()
        && formula.is_input()
    {
        return materialize(viewed.clone());
    }
    let (mut inputs, mut total): (Vec<Viewed>, Option<Expr>) = (Vec::new(), None);
    for term in terms {
        let (mut places, mut joined) = places(&inputs, &term);
        if joined.len() > AT_ONCE {
            let so_far = Grad::from(map(inputs, |_| total.take().expect("terms fit one pass")));
            (places, joined) = self::places(&so_far.inputs, &term);
            total = Some(so_far.formula);
        }
        let value = term.formula.renumbered(&places);
        total = Some(total.map_or(value.clone(), |total| total + value));
        inputs = joined;
    }
    map(inputs, |_| total.expect("at least one term"))
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
