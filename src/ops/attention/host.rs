//! Attention and its gradients in f64.

use super::{Attention, Bias, Sizes};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;

impl Attention {
    /// Queries, keys, values and the bias, each by itself.
    pub(super) fn apart(&self, x: &[ArrayView]) -> Vec<Array> {
        let x = &x[..self.sides() + usize::from(self.is_biased())];
        let own = |x: &ArrayView| Array::new(x.shape, x.data.to_vec());
        if !self.stacked {
            return x.iter().map(own).collect();
        }
        let shape = x[0].shape.with(2, x[0].shape[2] / 3);
        let third = |i: usize| {
            let rows = x[0].data.chunks(3 * shape[2]);
            Array::new(shape, rows.flat_map(|row| &row[i * shape[2]..(i + 1) * shape[2]]).copied().collect())
        };
        [third(0), third(1), third(2)].into_iter().chain(x[1..].iter().map(own)).collect()
    }

    /// Calls `f` with the weights of every sequence, head and query, in f64.
    pub(super) fn weights(&self, x: &[Array], mut f: impl FnMut(usize, usize, usize, &[f64])) {
        let (Sizes { n, r, l, d }, width) = (self.sizes_apart(x), x[0].shape[2]);
        for s in 0..n {
            for h in 0..self.heads {
                for i in 0..r {
                    let q = &x[0].data[self.row_at(s, i, r) * width + h * d..][..d];
                    let score = |j: usize| {
                        let k = &x[1].data[self.row_at(s, j, l) * width + h * d..][..d];
                        let bias = x.get(3).map_or(0.0, |b| b.data[self.bias_at(b.shape, [s, h, i, j])]);
                        self.scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() + bias
                    };
                    let scores: Vec<f64> = (0..l).map(score).collect();
                    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let exps: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                    let sum: f64 = exps.iter().sum();
                    f(s, h, i, &exps.iter().map(|e| e / sum).collect::<Vec<_>>());
                }
            }
        }
    }

    /// The sizes of what [`Attention::apart`] gives.
    pub(super) fn sizes_apart(&self, x: &[Array]) -> Sizes {
        let ([n, r, width], l) = ([0, 1, 2].map(|i| x[0].shape[i]), x[1].shape[1]);
        match self.window {
            Some(w) => {
                Sizes { n: n * w.count(), r: w.size * w.size, l: w.size * w.size, d: width / self.heads }
            }
            None => Sizes { n, r, l, d: width / self.heads },
        }
    }

    /// The gradients of queries, keys and values, and, of [`Bias::Pairs`], of each sequence's bias.
    pub(super) fn grads_on_host(&self, x: &[Array], g: ArrayView) -> Vec<Array> {
        let (Sizes { n, r, l, d }, width) = (self.sizes_apart(x), x[0].shape[2]);
        let mut grads: Vec<Array> = x[..3].iter().map(|x| Array::zeros(x.shape)).collect();
        let pairs = self.bias == Bias::Pairs;
        if pairs {
            grads.push(Array::zeros(Shape::new(&[n, self.heads, r, l])));
        }
        self.weights(x, |s, h, i, p| {
            let q = self.row_at(s, i, r) * width + h * d;
            let at = |j: usize| self.row_at(s, j, l) * width + h * d;
            let first = ((s * self.heads + h) * r + i) * l;
            let kept: Vec<f64> = (0..l).map(|j| self.kept_at(first + j)).collect();
            let slope =
                |j: usize| (0..d).map(|c| g.data[q + c] * x[2].data[at(j) + c]).sum::<f64>() * kept[j];
            let slopes: Vec<f64> = (0..l).map(slope).collect();
            let mean: f64 = p.iter().zip(&slopes).map(|(p, s)| p * s).sum();
            for j in 0..l {
                let slope = p[j] * (slopes[j] - mean);
                if pairs {
                    grads[3].data[first + j] = slope;
                }
                let score = self.scale * slope;
                for c in 0..d {
                    grads[0].data[q + c] += score * x[1].data[at(j) + c];
                    grads[1].data[at(j) + c] += score * x[0].data[q + c];
                    grads[2].data[at(j) + c] += p[j] * kept[j] * g.data[q + c];
                }
            }
        });
        grads
    }
}

/// Arrays `[n, r, width]` as one `[n, r, 3 width]`.
pub(super) fn joined(x: &[Array]) -> Array {
    let (shape, width) = (x[0].shape, x[0].shape[2]);
    let row = |i: usize| x.iter().flat_map(move |x| x.data[i * width..(i + 1) * width].iter().copied());
    Array::new(shape.with(2, 3 * width), (0..shape.len() / width).flat_map(row).collect())
}
