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

use crate::ops::{Act, Expr, Linears, map, scaled_sum_of, sum_of};
use crate::tensor::{Tensor, Viewed};
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
        let rows = parts.iter().map(|x| x.shape()[0]).sum::<usize>() as f64;
        // With masks, the number of rows is known on the device only.
        let counted = masks.map(|masks| add_all(masks.iter().map(Tensor::sum_all).collect()));
        let shares: Option<Vec<Tensor>> = masks
            .zip(counted.as_ref())
            .map(|(masks, n)| masks.iter().map(|mask| mask.map2(n, |m, n| m / n)).collect());
        let mean_of = |i: usize, mut views: Vec<Viewed>, f: &dyn Fn(&[Expr]) -> Expr| match &shares {
            Some(shares) => {
                let last = views.len();
                views.push(shares[i].view());
                sum_of(views, 0, |v| f(v) * &v[last])
            }
            None => scaled_sum_of(1.0 / rows, views, 0, f),
        };
        let all = |part: &dyn Fn(usize) -> Tensor| add_all((0..parts.len()).map(part).collect());
        let mean = all(&|i| mean_of(i, vec![parts[i].view()], &|v| v[0].clone()));
        // The variance does not change with the mean it is taken around: no gradient goes that way.
        let around = mean.detach();
        let var = all(&|i| {
            mean_of(i, vec![parts[i].view(), around.view()], &|v| {
                let centred = &v[0] - &v[1];
                &centred * &centred
            })
        });
        let old = |name: &str| scope.at(name).detach();
        let moved = |old: &Expr, new: Expr| old * (1.0 - MOMENTUM) + new * MOMENTUM;
        let new = var.detach();
        let running_mean = old("running_mean").map2(&around, |old, new| moved(old, new.clone()));
        let running_var = match &counted {
            Some(n) => {
                old("running_var").map3(&new, n, |old, new, n| moved(old, new * (n / (n - 1.0).max(1.0))))
            }
            None => {
                old("running_var").map2(&new, |old, new| moved(old, new * (rows / (rows - 1.0).max(1.0))))
            }
        };
        Self { mean, var, running: Some([running_mean, running_var]) }
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
        x.dropout(rate, self.draw())
    }

    /// The next call's seed.
    pub fn draw(&self) -> u64 {
        self.calls.set(self.calls.get() + 1);
        crate::host::Rng::of(self.seed, &[self.calls.get()]).next_u64()
    }
}
