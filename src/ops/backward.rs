//! The way back along a tape.

use std::collections::HashMap;

use crate::tensor::{Back, Tape, Tensor};

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
        let mut grads = Grads(HashMap::new());
        let Some(var) = y.var() else { return grads };
        grads.0.insert(var.id, g);
        let device = y.device();
        loop {
            let Some(node) = self.pop() else { return grads };
            let ids = node.first..node.first + node.outputs.len();
            if !ids.clone().any(|id| grads.0.contains_key(&id)) {
                continue;
            }
            let g = ids
                .zip(&node.outputs)
                .map(|(id, shape)| grads.0.remove(&id).unwrap_or_else(|| device.full(*shape, 0.0)))
                .collect();
            let needs = node.inputs.iter().map(Option::is_some).collect();
            let back = Back::new(node.x, node.y, node.shapes, needs, g);
            let results = node.op.grad(&back);
            assert_eq!(results.len(), node.inputs.len(), "{}: gradients", node.op.name());
            drop(back);
            for (i, (id, grad)) in node.inputs.iter().zip(results).enumerate() {
                if let (Some(id), Some(grad)) = (id, grad) {
                    grads.add(*id, grad, node.op.name(), i);
                }
            }
        }
    }
}

/// Gradients by leaf.
pub struct Grads(HashMap<usize, Tensor>);

impl Grads {
    /// The gradient of a leaf; `None` if the result does not depend on it.
    pub fn of(&self, leaf: &Tensor) -> Option<&Tensor> {
        leaf.var().and_then(|v| self.0.get(&v.id))
    }

    fn add(&mut self, id: usize, g: Tensor, op: &str, i: usize) {
        let sum = match self.0.remove(&id) {
            Some(before) => {
                assert_eq!(before.shape(), g.shape(), "{op}: gradient of input {i}");
                super::add(&before, &g)
            }
            None => g,
        };
        self.0.insert(id, sum);
    }
}
