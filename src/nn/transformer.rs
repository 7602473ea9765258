//! The encoder layer of Vaswani et al. 2017 as PyTorch's `nn.TransformerEncoderLayer` has it by default: norms after
//! the residual sums, ReLU between the two maps, queries, keys and values from one packed map.

use super::params::{Init, Layout, Role, Scope};
use super::{Dropouts, add_norm, linear, linear_plus, mlp};
use crate::ops::{Act, add, materialize};
use crate::tensor::Tensor;

/// PyTorch's default epsilon of layer norms.
const EPS: f64 = 1e-5;
/// Below this a score has no weight.
const NOWHERE: f64 = -1e30;

/// Which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// The first so many of each sequence, `[sequences]`.
    To(&'a Tensor),
    /// All, with this added to the scores of every head, `[queries, keys]`; it gets a gradient.
    Plus(&'a Tensor),
}

/// How a layer is run.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// Heads of attention; they divide the width.
    pub heads: usize,
    /// The dropouts of training and their rate.
    pub dropout: Option<(&'a Dropouts, f32)>,
    /// Attention and maps in fused kernels where there is one; the numbers are the same.
    pub fused: bool,
}

impl Layer<'_> {
    /// Parameters of a layer of a width, begun as PyTorch begins them.
    pub fn parameters(l: &mut Layout, at: &str, width: usize, hidden: usize) {
        // Xavier over all three maps at once.
        let packed = Init::Uniform((6.0 / (4 * width) as f64).sqrt());
        let zero = || Init::Const(0.0);
        l.push(format!("{at}.self_attn.in_proj_weight"), &[3 * width, width], packed, Role::Weight);
        l.push(format!("{at}.self_attn.in_proj_bias"), &[3 * width], zero(), Role::Weight);
        l.linear(&format!("{at}.self_attn.out_proj"), width, width);
        l.begin_last(zero());
        l.linear(&format!("{at}.linear1"), width, hidden);
        l.linear(&format!("{at}.linear2"), hidden, width);
        for norm in ["norm1", "norm2"] {
            l.push(format!("{at}.{norm}.weight"), &[width], Init::Const(1.0), Role::Weight);
            l.push(format!("{at}.{norm}.bias"), &[width], zero(), Role::Weight);
        }
    }

    /// The layer's output for `x [sequences, rows, width]`: `y = norm1(x + attention(x))`, then
    /// `norm2(y + linear2(max(linear1(y), 0)))`.
    pub fn run(&self, scope: &Scope, x: &Tensor, keys: Keys) -> Tensor {
        let attention = scope.sub("self_attn");
        let mixed = self.attention(&attention, x, keys);
        let [norm1, norm2, first, second] =
            ["norm1", "norm2", "linear1", "linear2"].map(|name| scope.sub(name));
        let dropout = self.dropout.filter(|(_, rate)| *rate > 0.0);
        let out = attention.sub("out_proj");
        let y = add_norm(&norm1, x, dropout, EPS, |residual| linear_plus(&out, &mixed, residual));
        add_norm(&norm2, &y, dropout, EPS, |residual| {
            if self.fused && dropout.is_none() {
                return mlp(&first, Act::Relu, &second, &y, residual);
            }
            linear_plus(&second, &self.dropped(linear(&first, &y, Act::Relu)), residual)
        })
    }

    fn attention(&self, scope: &Scope, x: &Tensor, keys: Keys) -> Tensor {
        let (rows, width) = (x.shape()[1], x.shape()[2]);
        let scale = 1.0 / ((width / self.heads) as f64).sqrt();
        let packed = x.linear(scope.at("in_proj_weight"), Some(scope.at("in_proj_bias")), Act::None);
        if let (Keys::To(lengths), true) = (keys, self.fused) {
            let places: Vec<f32> = (0..rows).map(|i| i as f32).collect();
            let places = x.device().tensor([rows], &places);
            let hidden =
                places.map2(lengths.view().repeat(1, 1), |place, n| n.greater(place).select(0.0, NOWHERE));
            let dropout = self.dropout.filter(|(_, rate)| *rate > 0.0);
            let dropout = dropout.map(|(dropouts, rate)| (rate, dropouts.draw()));
            return packed.self_attention(self.heads, scale, Some(&hidden), None, dropout);
        }
        let [q, k, v] = [0, 1, 2].map(|i| materialize(packed.view().slice(2, i * width, width)));
        let scores = q.head_scores(&k, self.heads, scale);
        let weights = match keys {
            Keys::To(lengths) => scores.softmax_to(-1, 1.0, lengths, self.heads * rows),
            Keys::Plus(mask) => add(&scores, mask).softmax(-1, 1.0),
        };
        self.dropped(weights).head_mix(&v)
    }

    fn dropped(&self, x: Tensor) -> Tensor {
        match self.dropout {
            Some((dropouts, rate)) => dropouts.apply(&x, rate),
            None => x,
        }
    }
}
