//! Recomputation (Chen et al. 2016): a part of a model keeps its inputs alone, and runs again on the way back.

use std::fmt;
use std::rc::Rc;

use crate::gpu::{Buf, Gpu};
use crate::host::Array;
use crate::shape::Shape;
use crate::tensor::{Back, Grad, Keep, Op, Tape, Tensor, record};

/// `f(inputs)`, of which the tape keeps the inputs only. `f` must reach every tracked tensor through its argument,
/// and give the same each time. At most 32 inputs.
#[track_caller]
pub fn checkpoint(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Tensor + 'static) -> Tensor {
    assert!(inputs.len() <= 32, "checkpoint: {} inputs", inputs.len());
    let plain: Vec<Tensor> = inputs.iter().map(|x| x.detach()).collect();
    let y = f(&plain);
    assert!(!y.is_tracked(), "checkpoint: a tracked tensor is not among the inputs");
    let op = Checkpoint { f: Box::new(f), inputs: inputs.len() };
    record(Rc::new(op), inputs, vec![y]).remove(0)
}

type Part = Box<dyn Fn(&[Tensor]) -> Tensor>;

/// Only the gradient needs an op.
struct Checkpoint {
    f: Part,
    inputs: usize,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint of {} inputs", self.inputs)
    }
}

impl Op for Checkpoint {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, _: &Gpu, _: &[&Buf], _: &Buf, _: &[Shape]) {
        unreachable!("the result is computed by other ops")
    }

    fn host(&self, _: &[&Array]) -> Array {
        unreachable!("the result is computed by other ops")
    }

    fn keep(&self) -> Keep {
        Keep::inputs(0..self.inputs)
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let tape = Tape::new();
        let inputs: Vec<Tensor> = (0..self.inputs)
            .map(|i| if back.needs(i) { tape.leaf(back.x(i)) } else { back.x(i).clone() })
            .collect();
        let grads = tape.backward_from(&(self.f)(&inputs), back.g().clone());
        inputs.iter().map(|x| grads.of(x).cloned().map(Grad::from)).collect()
    }
}
