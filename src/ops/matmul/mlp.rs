//! Two linear maps with an activation between, whose derivative is taken on the way to the hidden values' gradient.

use super::{Act, Epilogue, MatMul};
use crate::gpu::{Gpu, Style};
use crate::ops::pack::places;
use crate::shape::Shape;
use crate::tensor::{Device, Expr, Tensor, apply, split_with};

/// The activation whose output an operand is, and which leaves its derivative to the gradient of that operand.
#[derive(Clone, Debug)]
pub(super) enum Hidden {
    Relu,
    /// Of these values.
    Gelu(Tensor),
}

/// Whether a GELU between maps is a pass of its own, not part of a product that stores it and what it is of in one tensor:
/// a software driver compiles each further product for half a second, and a pass over memory costs it little.
pub(crate) fn gelu_is_apart(device: &Device) -> bool {
    device.gpu().is_some_and(|gpu| gpu.style() != Style::Workgroup)
}

impl Tensor {
    /// Two linear maps with a ReLU or a GELU between: `act(hidden(x w1ᵀ + b1) w2ᵀ + b2) + residual`, shapes as in
    /// [`Tensor::linear_plus`]. The derivative of `hidden` is taken on the way to the hidden values' gradient, a GELU's on
    /// GPUs alone.
    #[track_caller]
    pub fn mlp(
        &self,
        first: [&Self; 2],
        hidden: Act,
        second: [&Self; 2],
        act: Act,
        residual: Option<&Self>,
    ) -> Self {
        let [w, b] = first;
        let op = MatMul { bias: true, act: hidden, ..MatMul::linear(self.shape(), w.shape()) };
        let (y, hidden) = op.hide(&[self, w, b]);
        let [w, b] = second;
        let epilogue = if residual.is_some() { Epilogue::Residual } else { Epilogue::None };
        let op = MatMul { bias: true, epilogue, hidden, act, ..MatMul::linear(y.shape(), w.shape()) };
        assert!(
            residual.is_none_or(|r| r.shape() == op.shape),
            "mlp: x {} with w2 {}",
            self.shape(),
            w.shape()
        );
        let mut x = vec![&y, w, b];
        x.extend(residual);
        apply(op, &x)
    }
}

impl MatMul {
    /// Hidden values, and what they are of: the product that reads them takes the derivative.
    #[track_caller]
    fn hide(self, x: &[&Tensor]) -> (Tensor, Option<Hidden>) {
        let op = Self { act_grad_by_consumer: true, ..self };
        let (device, is_tracked) = (x[0].device(), x.iter().any(|x| x.is_tracked()));
        let (places, total) = places(&device, [op.shape.len(); 2]);
        let binds = |gpu: &Gpu| 4 * total as u64 <= gpu.facts().max_binding;
        let apart = gelu_is_apart(&device) || is_tracked && !device.gpu().is_none_or(binds);
        match op.act {
            Act::Relu => (apply(op, x), Some(Hidden::Relu)),
            Act::Gelu if apart => {
                let op = Self { act: Act::None, act_grad_by_consumer: false, ..op };
                (apply(op, x).map(Expr::gelu), None)
            }
            Act::Gelu if !is_tracked => (apply(op, x), None),
            Act::Gelu => {
                let shape = op.shape;
                let op = Self { before: Some(places[1]), shape: Shape::new(&[total]), ..op };
                let parts = |all: &Tensor| places.iter().map(|place| all.section(*place, shape)).collect();
                let mut both = split_with(op, x, parts);
                let before = both.swap_remove(1).detach();
                (both.swap_remove(0), Some(Hidden::Gelu(before)))
            }
            act => panic!("hidden values through {act:?}"),
        }
    }
}
