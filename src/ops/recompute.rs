//! Recomputation (Chen et al. 2016): a part of a model keeps its inputs alone, and runs again on the way back.

use super::Act;
use super::registry::{Case, case, sums};
use crate::tensor::{Back, Grad, Kind, Part, Tape, Tensor, record};

/// `f(inputs)`, of which the tape keeps the inputs only. `f` must reach every tracked tensor through its argument,
/// and give the same each time. At most 32 inputs.
#[track_caller]
pub fn recompute(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Tensor + 'static) -> Tensor {
    assert!(inputs.len() <= 32, "recompute: {} inputs", inputs.len());
    let plain: Vec<Tensor> = inputs.iter().map(|x| x.detach()).collect();
    let y = f(&plain);
    assert!(!y.is_tracked(), "recompute: a tracked tensor is not among the inputs");
    record("recompute", Kind::Recompute(Box::new(f)), inputs, vec![y]).remove(0)
}

/// The gradients of `f`'s inputs, on a tape of their own.
pub(super) fn grads(f: &Part, back: &Back) -> Vec<Option<Grad>> {
    let tape = Tape::new();
    let inputs: Vec<Tensor> = (0..back.inputs())
        .map(|i| if back.needs(i) { tape.leaf(back.x(i)) } else { back.x(i).clone() })
        .collect();
    let grads = tape.backward_from(&f(&inputs), back.g().clone());
    inputs.iter().map(|x| grads.of(x).cloned().map(Grad::from)).collect()
}

pub(super) fn cases() -> Vec<Case> {
    fn part(x: &[Tensor]) -> Tensor {
        x[0].linear(&x[1], Some(&x[2]), Act::Tanh).softmax(-1, 2.0)
    }
    let twice: fn(&[Tensor]) -> Tensor = |x| {
        let y = recompute(&[&x[0], &x[1], &x[2]], part);
        recompute(&[&y, &x[3]], |x| x[0].map2(&x[1], |a, b| a * b)).map2(&y, |a, b| a + b)
    };
    vec![case("recompute", "two parts, one of the other", &[&[5, 12], &[8, 12], &[8], &[8]], sums(12), twice)]
}
