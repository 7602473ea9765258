//! Every op's cases in one list, gathered from their files. The tests, `crossweave selftest` and the benches read it:
//! an op with cases gets the GPU against f64 both ways, finite differences, repeatability and a bench row.

use crate::error::Result;
use crate::gpu::Precision;
use crate::host::{Array, Rng, ratios};
use crate::shape::Shape;
use crate::tensor::{Device, Tape, Tensor};

/// How an input's values are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Standard normal.
    Normal,
    /// Uniform in these bounds.
    Uniform(f64, f64),
    /// Whole numbers below the bound: ids and lengths; no gradient is asked.
    Whole(usize),
    /// From a coarse grid, so that ties are common; no finite differences.
    Grid,
    /// Normal times 1e4 with zeros among them; no finite differences.
    Extreme,
}

/// One op on inputs of certain shapes.
pub struct Case {
    /// The op's name.
    pub op: &'static str,
    /// What this case is about.
    pub about: &'static str,
    /// The inputs.
    pub inputs: Vec<(Shape, Values)>,
    /// Calls the op.
    pub run: fn(&[Tensor]) -> Tensor,
    /// The largest norm ratio of the result in f32, and (ten times this) of the inf-norm.
    pub bound: f64,
    /// Whether `cargo bench` times it.
    pub bench: bool,
    /// Whether it has gradients; what is done in place has none.
    pub tracked: bool,
}

/// How a case fared.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The forward result's worst ratio to the f64 definition.
    pub forward: f64,
    /// The gradients' worst ratio to the f64 gradients.
    pub backward: f64,
    /// Whether a second run gave the same bits.
    pub repeats: bool,
}

impl Outcome {
    /// Whether the case holds at `bound` (gradients accumulate: four times it).
    pub fn passes(&self, bound: f64) -> bool {
        self.forward <= bound && self.backward <= 4.0 * bound && self.repeats
    }
}

/// Products under [`Precision::F16`]: each operand is off by up to 2^-11, at random in sign, whatever the length of the
/// sum (measured: 2.5e-4 to 3.5e-4).
const HALF: f64 = 1e-3;

/// Pointwise results.
pub(super) const POINT: f64 = 2e-6;

/// Sums of `k` terms.
pub(super) fn sums(k: usize) -> f64 {
    4e-7 * (k as f64).sqrt().max(5.0)
}

/// A case of normal values.
pub fn case(
    op: &'static str,
    about: &'static str,
    dims: &[&[usize]],
    bound: f64,
    run: fn(&[Tensor]) -> Tensor,
) -> Case {
    let inputs = dims.iter().map(|d| (Shape::new(d), Values::Normal)).collect();
    Case { op, about, inputs, run, bound, bench: false, tracked: true }
}

impl Case {
    pub(super) fn with(mut self, i: usize, values: Values) -> Self {
        self.inputs[i].1 = values;
        self
    }

    pub(super) fn all(mut self, values: Values) -> Self {
        self.inputs.iter_mut().for_each(|x| x.1 = values);
        self
    }

    pub(super) fn bench(mut self) -> Self {
        self.bench = true;
        self
    }

    pub(super) fn untracked(mut self) -> Self {
        self.tracked = false;
        self
    }

    /// The inputs' values, the same for a seed.
    pub fn draw(&self, seed: u64) -> Vec<Array> {
        let mut rng = Rng::of(seed, &[self.inputs.len() as u64]);
        let mut value = |values: Values| match values {
            Values::Normal => rng.normal(),
            Values::Uniform(low, high) => rng.range(low, high),
            Values::Whole(n) => rng.below(n) as f64,
            Values::Grid => rng.below(5) as f64 / 4.0 - 0.5,
            Values::Extreme if rng.below(8) == 0 => 0.0,
            Values::Extreme => 1e4 * rng.normal(),
        };
        let round = |v: f64| f64::from(v as f32);
        self.inputs
            .iter()
            .map(|(shape, values)| {
                Array::new(*shape, (0..shape.len()).map(|_| round(value(*values))).collect())
            })
            .collect()
    }

    /// The bound on a device: its own, or that of products of f16 operands.
    pub fn bound_on(&self, device: &Device) -> f64 {
        let half = device.gpu().is_some_and(|gpu| gpu.precision() == Precision::F16);
        if half && self.op == "matmul" { self.bound.max(HALF) } else { self.bound }
    }

    fn differentiable(&self, i: usize) -> bool {
        self.tracked && !matches!(self.inputs[i].1, Values::Whole(_))
    }

    /// Runs forward, and backward with a random gradient, where `device` is: the result and the gradients
    /// of the inputs that have one.
    ///
    /// # Errors
    /// What the device reports.
    pub fn evaluate(&self, device: &Device, x: &[Array], seed: u64) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
        let tape = Tape::new();
        let leaves: Vec<Tensor> = x
            .iter()
            .enumerate()
            .map(|(i, a)| {
                let t = device.tensor(a.shape, &a.to_f32());
                if self.differentiable(i) { tape.leaf(&t) } else { t }
            })
            .collect();
        let y = (self.run)(&leaves);
        let mut rng = Rng::of(seed, &[99]);
        let g: Vec<f32> = (0..y.len()).map(|_| rng.normal() as f32).collect();
        let grads = tape.backward_from(&y, device.tensor(y.shape(), &g));
        let of = |t: &Tensor| grads.of(t).map_or(Ok(vec![0.0; t.len()]), Tensor::to_f64);
        let wanted = (0..x.len()).filter(|i| self.differentiable(*i));
        Ok((y.to_f64()?, wanted.map(|i| of(&leaves[i])).collect::<Result<_>>()?))
    }

    /// Compares a device with the f64 definition.
    ///
    /// # Errors
    /// What the device reports.
    pub fn check(&self, device: &Device, seed: u64) -> Result<Outcome> {
        let x = self.draw(seed);
        let (want_y, want_grads) = self.evaluate(&Device::Host, &x, seed)?;
        let (y, grads) = self.evaluate(device, &x, seed)?;
        let again = self.evaluate(device, &x, seed)?;
        let largest = want_grads.iter().map(|g| size(g)).fold(0.0, f64::max);
        let wanted = (0..x.len()).filter(|i| self.differentiable(*i));
        let backward = wanted
            .zip(grads.iter().zip(&want_grads))
            .map(|(i, (got, want))| far(got, want, largest.max(natural(&want_y, &x[i].data))))
            .fold(0.0, |m: f64, r| if r.is_nan() || m.is_nan() { f64::NAN } else { m.max(r) });
        let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let repeats =
            bits(&y) == bits(&again.0) && grads.iter().zip(&again.1).all(|(a, b)| bits(a) == bits(b));
        Ok(Outcome { forward: ratios(&y, &want_y).worst(), backward, repeats })
    }

    /// The largest relative difference between the f64 gradients and central differences along random
    /// directions; `None` where differences mean nothing (ties, extremes, work in place).
    ///
    /// # Errors
    /// None on the host.
    pub fn differences(&self, seed: u64) -> Result<Option<f64>> {
        if !self.tracked || self.inputs.iter().any(|(_, v)| matches!(v, Values::Grid | Values::Extreme)) {
            return Ok(None);
        }
        let x = self.draw(seed);
        let (y, grads) = self.evaluate(&Device::Host, &x, seed)?;
        let mut rng = Rng::of(seed, &[99]);
        let g: Vec<f64> = (0..y.len()).map(|_| f64::from(rng.normal() as f32)).collect();
        let wanted: Vec<usize> = (0..x.len()).filter(|i| self.differentiable(*i)).collect();
        let mut worst = 0.0f64;
        for _ in 0..3 {
            let along: Vec<Vec<f64>> =
                wanted.iter().map(|i| (0..x[*i].data.len()).map(|_| rng.normal()).collect()).collect();
            let h = 1e-5;
            let at = |sign: f64| {
                let mut moved: Vec<Tensor> = x.iter().map(|a| Tensor::on_host(a.clone())).collect();
                for (i, d) in wanted.iter().zip(&along) {
                    let data = x[*i].data.iter().zip(d).map(|(v, d)| v + sign * h * d).collect();
                    moved[*i] = Tensor::on_host(Array::new(x[*i].shape, data));
                }
                Ok((self.run)(&moved).to_f64()?.iter().zip(&g).map(|(y, g)| y * g).sum::<f64>())
            };
            let slope = (at(1.0)? - at(-1.0)?) / (2.0 * h);
            let exact: f64 =
                grads.iter().zip(&along).map(|(g, d)| g.iter().zip(d).map(|(g, d)| g * d).sum::<f64>()).sum();
            let norm: f64 = grads.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
            worst = worst.max((slope - exact).abs() / norm.max(1e-3));
        }
        Ok(Some(worst))
    }
}

fn size(values: &[f64]) -> f64 {
    values.iter().fold(0.0f64, |m, v| m.max(v.abs()))
}

/// The size of a gradient of `y` by `x` in which nothing cancels, where that of the result is near 1.
fn natural(y: &[f64], x: &[f64]) -> f64 {
    if size(x) > 0.0 { size(y) / size(x) } else { 0.0 }
}

/// How far a gradient is from its reference. One that is 0 by mathematics is what rounding leaves of `terms` that
/// cancel: it must be small beside them.
fn far(got: &[f64], want: &[f64], terms: f64) -> f64 {
    if size(want) < 1e-9 * terms {
        ratios(got, &vec![0.0; want.len()]).size / terms
    } else {
        ratios(got, want).worst()
    }
}

/// Every case of every op.
pub fn cases() -> Vec<Case> {
    [
        super::map::cases(),
        super::alias::cases(),
        super::pack::cases(),
        super::dropout::cases(),
        super::gather::cases(),
        super::gru::cases(),
        super::reduce::cases(),
        super::matmul::cases(),
        super::cosines::cases(),
        super::cross_attention::cases(),
        super::attention::cases(),
        super::softmax::cases(),
        super::hinge::cases(),
        super::batch_norm::cases(),
        super::layer_norm::cases(),
        super::norm::cases(),
        super::paths::cases(),
        super::route::cases(),
        super::recompute::cases(),
        super::write::cases(),
        super::adam::cases(),
        super::top::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cancels_is_held_against_what_it_is_made_of() {
        assert!(far(&[3e-7, 0.0], &[0.0, 0.0], 0.5) < 1e-6);
        assert!(far(&[3e-3, 0.0], &[0.0, 1e-16], 0.5) > 1e-3);
        assert!(far(&[3e-7], &[0.0], 0.0).is_infinite());
        // Rows of one value normed: their gradient is 0, of which a GPU's division leaves a crumb.
        assert!(far(&[2e-12, 0.0], &[0.0, 0.0], natural(&[1.0, 0.0], &[2e4, -1e4])) < 1e-7);
        assert!(far(&[f64::NAN], &[0.0], 1.0).is_nan());
    }
}
