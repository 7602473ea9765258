//! Gated recurrent units over sequences, under the names of PyTorch's `nn.GRU`.

use super::{Init, Layout, Role, Scope};
use crate::ops::{Linears, gru};
use crate::tensor::Tensor;

/// What makes the units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gru {
    /// Width of what is read.
    pub from: usize,
    /// Width of a state.
    pub width: usize,
    /// Layers, each over the states of the one before.
    pub layers: usize,
    /// Whether each layer also reads from the end.
    pub both_ways: bool,
}

impl Gru {
    fn directions(&self) -> &'static [&'static str] {
        if self.both_ways { &["", "_reverse"] } else { &[""] }
    }

    /// The parameters, begun as PyTorch does: uniform within the inverse root of the width.
    pub fn parameters(&self, l: &mut Layout, at: &str) {
        let bound = Init::Uniform(1.0 / (self.width as f64).sqrt());
        for layer in 0..self.layers {
            let from = if layer == 0 { self.from } else { self.directions().len() * self.width };
            for (of, from) in [("ih", from), ("hh", self.width)] {
                l.together(format!("{at}.{of}_l{layer}"), |l| {
                    for way in self.directions() {
                        let mut push = |kind: &str, shape: &[usize]| {
                            let name = format!("{at}.{kind}_{of}_l{layer}{way}");
                            l.push(name, shape, bound.clone(), Role::Weight);
                        };
                        push("weight", &[3 * self.width, from]);
                        push("bias", &[3 * self.width]);
                    }
                });
            }
        }
    }

    /// The last layer's states `[captions, words, directions, width]` of words `x [captions, words, from]`; each
    /// caption is read to its length `lens [captions]`, past which states are 0.
    pub fn run(&self, scope: &Scope, x: &Tensor, lens: &Tensor) -> Tensor {
        let (captions, words) = (x.shape()[0], x.shape()[1]);
        let maps = |of: &str, layer: usize| {
            let pair =
                |way: &&str| ["weight", "bias"].map(|kind| scope.at(&format!("{kind}_{of}_l{layer}{way}")));
            Linears::new(&self.directions().iter().map(pair).collect::<Vec<_>>())
        };
        let of_layer = |x: &Tensor, layer| gru(&maps("ih", layer).concat(x), &maps("hh", layer), lens);
        let joined = [captions, words, self.directions().len() * self.width];
        (1..self.layers).fold(of_layer(x, 0), |states, layer| of_layer(&states.reshape(joined), layer))
    }
}
