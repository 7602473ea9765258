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

/// `x wᵀ + b`, and a residual if there is one, with the scope's `weight` and `bias`.
pub fn linear_plus(scope: &Scope, x: &Tensor, residual: Option<&Tensor>) -> Tensor {
    match residual {
        Some(residual) => x.linear_plus(scope.at("weight"), scope.at("bias"), residual),
        None => linear(scope, x, Act::None),
    }
}

/// The linear maps of several scopes of one shape, to be taken in one product.
pub fn linears(scopes: &[Scope]) -> Linears {
    let maps: Vec<[&Tensor; 2]> = scopes.iter().map(|s| [s.at("weight"), s.at("bias")]).collect();
    Linears::new(&maps)
}

/// `hidden(x w1ᵀ + b1) w2ᵀ + b2 + residual` with the weights and biases of two scopes; `hidden` is a ReLU or a GELU.
pub fn mlp(first: &Scope, hidden: Act, second: &Scope, x: &Tensor, residual: Option<&Tensor>) -> Tensor {
    let [first, second] = [first, second].map(|scope| ["weight", "bias"].map(|name| scope.at(name)));
    x.mlp(first, hidden, second, Act::None, residual)
}

/// Layer norm over the last axis with the scope's `weight` and `bias`; the variance is biased.
pub fn layer_norm(scope: &Scope, x: &Tensor, eps: f64) -> Tensor {
    x.layer_norm(scope.at("weight"), scope.at("bias"), eps)
}

/// `norm(residual + dropout(branch))`, as post-norm transformers end their sublayers, with the norm's `weight` and `bias`.
/// The branch is given the residual to add where nothing is dropped.
pub fn add_norm(
    norm: &Scope,
    residual: &Tensor,
    dropout: Option<(&Dropouts, f32)>,
    eps: f64,
    branch: impl FnOnce(Option<&Tensor>) -> Tensor,
) -> Tensor {
    let drops = dropout.is_some_and(|(_, rate)| rate > 0.0);
    let y = branch(Some(residual).filter(|_| !drops));
    let dropout = dropout.map(|(dropouts, rate)| (rate, dropouts.draw()));
    match dropout.filter(|_| drops) {
        Some((rate, seed)) => {
            let params = [norm.at("weight"), norm.at("bias")];
            y.dropout_add_layer_norm(residual, params, eps, rate, seed)
        }
        None => layer_norm(norm, &y, eps),
    }
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

    /// The next call's seed.
    pub fn draw(&self) -> u64 {
        self.calls.set(self.calls.get() + 1);
        crate::host::Rng::of(self.seed, &[self.calls.get()]).next_u64()
    }
}
