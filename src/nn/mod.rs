//! Building blocks shared by the systems: parameters by name, linear maps, norms, transformer layers, BERT,
//! Swin, gated recurrent units, tables of position biases.

pub mod bert;
pub mod gru;
pub mod optim;
mod params;
pub mod position_table;
mod slab;
pub mod swin;
pub mod transformer;

use crate::ops::{Act, BatchNorm, Linears};
use crate::tensor::Tensor;
pub use params::{Init, Layout, ParamSpec, Params, Role, Scope, begin_values, layout, shapes};
pub use slab::{Member, ParamValues, Slab, Source};

/// `act(x wᵀ + b)` with the scope's `weight` and `bias`.
pub fn linear(scope: &Scope, x: &Tensor, act: Act) -> Tensor {
    x.linear(scope.at("weight"), Some(scope.at("bias")), act)
}

/// `x wᵀ + b + residual` with the scope's `weight` and `bias`.
pub fn linear_plus(scope: &Scope, x: &Tensor, residual: &Tensor) -> Tensor {
    x.linear_plus(scope.at("weight"), scope.at("bias"), residual)
}

/// The linear maps of several scopes of one shape, to be taken in one product.
pub fn linears(scopes: &[Scope]) -> Linears {
    let maps: Vec<[&Tensor; 2]> = scopes.iter().map(|s| [s.at("weight"), s.at("bias")]).collect();
    Linears::new(&maps)
}

/// `act(max(x w1ᵀ + b1, 0) w2ᵀ + b2) + residual` with the weights and biases of two scopes.
pub fn mlp(first: &Scope, second: &Scope, x: &Tensor, act: Act, residual: Option<&Tensor>) -> Tensor {
    let of = |scope: &Scope| [scope.at("weight").clone(), scope.at("bias").clone()];
    let ([w1, b1], [w2, b2]) = (of(first), of(second));
    x.mlp([&w1, &b1], [&w2, &b2], act, residual)
}

/// Layer norm over the last axis with the scope's `weight` and `bias`; the variance is biased.
pub fn layer_norm(scope: &Scope, x: &Tensor, eps: f64) -> Tensor {
    x.layer_norm(scope.at("weight"), scope.at("bias"), eps)
}

/// Batch norm with the scope's `weight`, `bias`, `running_mean` and `running_var`.
pub fn batch_norm(scope: &Scope) -> BatchNorm {
    let of = |name: &str| scope.at(name).clone();
    BatchNorm { weight: of("weight"), bias: of("bias"), mean: of("running_mean"), var: of("running_var") }
}

/// The sum of tensors of one shape.
pub fn add_all(terms: Vec<Tensor>) -> Tensor {
    terms.into_iter().reduce(|a, b| crate::ops::add(&a, &b)).expect("at least one term")
}

/// Seeds for the dropouts of one step: each call is its own stream.
pub struct Dropouts {
    seed: u64,
    calls: std::cell::Cell<u64>,
}

impl Dropouts {
    /// The dropouts of a step.
    pub fn new(seed: u64) -> Self {
        Self { seed, calls: std::cell::Cell::new(0) }
    }

    /// `x` with this rate.
    pub fn apply(&self, x: &Tensor, rate: f32) -> Tensor {
        x.dropout(rate, self.draw())
    }

    /// `x` with this rate, plus `residual`.
    pub fn apply_plus(&self, x: &Tensor, rate: f32, residual: &Tensor) -> Tensor {
        x.dropout_plus(rate, self.draw(), residual)
    }

    /// The next call's seed.
    pub fn draw(&self) -> u64 {
        self.calls.set(self.calls.get() + 1);
        crate::host::Rng::of(self.seed, &[self.calls.get()]).next_u64()
    }
}
