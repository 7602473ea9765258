//! Building blocks shared by the systems: parameters by name, linear maps, norms, BERT.

pub mod bert;
mod params;

use crate::ops::{Act, Linears, map, sum_of};
use crate::tensor::Tensor;
pub use params::{Init, Layout, ParamSpec, Params, Role, Scope, layout, shapes};

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
    x.standardize(-1, eps).map3(scope.at("weight"), scope.at("bias"), |x, w, b| x * w + b)
}

/// Statistics of batch norm, its running ones and what they become.
pub struct BatchNorm {
    mean: Tensor,
    var: Tensor,
    /// Running mean and variance after this batch; `None` in evaluation.
    pub running: Option<[Tensor; 2]>,
}

/// PyTorch's default epsilon.
const EPS: f64 = 1e-5;
/// PyTorch's default momentum.
const MOMENTUM: f64 = 0.1;

impl BatchNorm {
    /// Statistics of evaluation: the running ones.
    pub fn running(scope: &Scope) -> Self {
        Self { mean: scope.at("running_mean").clone(), var: scope.at("running_var").clone(), running: None }
    }

    /// Statistics of a batch given in parts, each `[rows, channels]`: exact over all of them, or over the rows
    /// that `masks`, each `[rows, 1]`, hold 1 for. The running ones move by a tenth, towards the unbiased
    /// variance.
    pub fn of_batch(scope: &Scope, parts: &[&Tensor], masks: Option<&[Tensor]>) -> Self {
        if let Some(masks) = masks {
            return Self::of_rows(scope, parts, masks);
        }
        let n: usize = parts.iter().map(|x| x.shape()[0]).sum();
        let sums = parts.iter().map(|x| x.sum(0)).collect();
        let mean = add_all(sums).map(|s| s * (1.0 / n as f64));
        let squares = parts.iter().map(|x| {
            sum_of(vec![x.view(), mean.view()], 0, |v| {
                let centred = &v[0] - &v[1];
                &centred * &centred
            })
        });
        let squares = add_all(squares.collect());
        let var = squares.map(|s| s * (1.0 / n as f64));
        let moved = |name: &str, batch: &Tensor, factor: f64| {
            scope
                .at(name)
                .detach()
                .map2(&batch.detach(), |old, new| old * (1.0 - MOMENTUM) + new * (MOMENTUM * factor))
        };
        let unbiased = n as f64 / (n as f64 - 1.0).max(1.0);
        let running = [moved("running_mean", &mean, 1.0), moved("running_var", &var, unbiased)];
        Self { mean, var, running: Some(running) }
    }

    /// As [`BatchNorm::of_batch`] with masks: the number of rows is known on the device only.
    fn of_rows(scope: &Scope, parts: &[&Tensor], masks: &[Tensor]) -> Self {
        let n = add_all(masks.iter().map(Tensor::sum_all).collect());
        let parts = || parts.iter().zip(masks);
        let sums = parts().map(|(x, m)| sum_of(vec![x.view(), m.view()], 0, |v| &v[0] * &v[1]));
        let mean = add_all(sums.collect()).map2(&n, |s, n| s / n);
        let squares = parts().map(|(x, m)| {
            sum_of(vec![x.view(), mean.view(), m.view()], 0, |v| {
                let centred = &v[0] - &v[1];
                &centred * &centred * &v[2]
            })
        });
        let var = add_all(squares.collect()).map2(&n, |s, n| s / n);
        let unbiased = var.detach().map2(&n, |v, n| v * (n / (n - 1.0).max(1.0)));
        let moved = |name: &str, batch: &Tensor| {
            let old = scope.at(name).detach();
            old.map2(&batch.detach(), |old, new| old * (1.0 - MOMENTUM) + new * MOMENTUM)
        };
        let running = [moved("running_mean", &mean), moved("running_var", &unbiased)];
        Self { mean, var, running: Some(running) }
    }

    /// `x [.., channels]`, normalised, with the scope's `weight` and `bias`.
    pub fn apply(&self, scope: &Scope, x: &Tensor) -> Tensor {
        let scale = self.var.map2(scope.at("weight"), |v, w| w * (v + EPS).rsqrt());
        let views = vec![x.view(), self.mean.view(), scale.view(), scope.at("bias").view()];
        // The mean first: a scale's gradient is then a sum of what varies, not a difference of two large sums.
        map(views, |v| (&v[0] - &v[1]) * &v[2] + &v[3])
    }
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
        self.calls.set(self.calls.get() + 1);
        x.dropout(rate, crate::host::Rng::of(self.seed, &[self.calls.get()]).next_u64())
    }
}
