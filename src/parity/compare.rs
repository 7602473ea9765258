//! The rules of comparison, as the fixtures' README states them.

use std::collections::BTreeMap;

use super::Fixture;
use crate::gpu::Precision;
use crate::host::{Ratios, ratios};
use crate::tensor::Device;

/// Of results under [`Precision::F16`]: an operand is off by up to 2^-11, and DIME's routers, where paths cancel, carry
/// twenty times that through three layers (measured: 9.4e-3; the gradients' norm 1.3e-2).
const HALF_OUT: f64 = 2e-2;
/// Of similarities, which are means of much (measured: 1.3e-3).
pub const HALF_SIMS: f64 = 4e-3;
/// Of BERT's states (measured: 6.9e-4).
pub const HALF_TEXT: f64 = 2e-3;
/// Of a gradient under [`Precision::F16`], as a share of all gradients together: a tensor whose terms cancel (a bias
/// before a norm) has no accuracy of its own, and rectifiers near zero open or shut (measured: 4.4e-2).
const HALF_GRAD: f64 = 1e-1;

/// A tensor below this share of the largest of its family is what is left of terms that cancel. f32 does not hold it:
/// on the GPU it may be as far as the authors' code is in f32, where the fixture has measured that.
const CANCELLED: f64 = 1e-3;

/// One tensor compared.
#[derive(Clone, Debug)]
pub struct Row {
    /// The form: `composed`, `fast` or `recomputed`.
    pub path: &'static str,
    /// The tensor's full name.
    pub name: String,
    /// How far it is, in the bound's measure.
    pub worst: f64,
    /// The bound.
    pub bound: f64,
    /// Whether the bound is what rounding the inputs moves the result.
    pub raised: bool,
    /// What is wrong besides, such as a missing tensor.
    pub problem: Option<String>,
}

impl Row {
    /// A comparison by a bound.
    pub fn new(path: &'static str, name: impl Into<String>, worst: f64, bound: f64) -> Self {
        Self { path, name: name.into(), worst, bound, raised: false, problem: None }
    }

    /// A tensor that could not be compared.
    pub fn missing(path: &'static str, name: impl Into<String>, problem: &str) -> Self {
        Self {
            path,
            name: name.into(),
            worst: f64::NAN,
            bound: 0.0,
            raised: false,
            problem: Some(problem.into()),
        }
    }

    /// Takes a larger bound.
    pub(super) fn raise(&mut self, bound: f64) {
        if bound > self.bound {
            (self.bound, self.raised) = (bound, true);
        }
    }

    /// Whether it holds.
    pub fn passes(&self) -> bool {
        self.problem.is_none() && self.worst <= self.bound
    }
}

/// Bounds of one file on one side.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether the host twin is compared.
    pub host: bool,
    /// Whether products round their operands to f16.
    pub half: bool,
    /// Of `out.*` and running statistics.
    pub out: f64,
    /// Of `grad.*`: of each, or with `half` beside all of them.
    pub grad: f64,
}

impl Rules {
    /// The bounds after encoders of that many transformer layers (`None`: where there is no product).
    pub fn new(fixture: &Fixture, device: &Device, layers: Option<usize>) -> Self {
        let host = device.gpu().is_none() && !fixture.half;
        let half = layers.is_some() && (fixture.half || is_half(device));
        let out = match layers {
            _ if host => 1e-6,
            _ if half => HALF_OUT,
            None => 1e-5,
            Some(0..6) => 3e-5,
            Some(_) => 1e-4,
        };
        let grad = if half { HALF_GRAD } else { [1e-4, 1e-6][usize::from(host)] };
        Self { host, half, out, grad }
    }

    /// The bounds where gradients go on through an image encoder.
    pub fn through_pixels(self) -> Self {
        if self.host || self.half { self } else { Self { grad: 1e-3, ..self } }
    }
}

/// Whether products round their operands to f16 there.
pub(super) fn is_half(device: &Device) -> bool {
    device.gpu().is_some_and(|gpu| gpu.precision() == Precision::F16)
}

/// Compares results with the tensors of a family (`out.` or `grad.`) that `wanted` picks.
pub fn family(
    fixture: &Fixture,
    prefix: &str,
    path: &'static str,
    rules: Rules,
    results: &BTreeMap<String, Vec<f64>>,
    wanted: impl Fn(&str) -> bool,
) -> Vec<Row> {
    let largest = fixture
        .family(prefix)
        .map(|name| size(&fixture.tensors[&format!("{prefix}{name}")].1))
        .fold(0.0, f64::max);
    let bound = if prefix == "grad." { rules.grad } else { rules.out };
    let shared = rules.half && prefix == "grad.";
    let whole = fixture.family(prefix).map(|name| norm(&fixture.tensors[&format!("{prefix}{name}")].1));
    let whole = whole.map(|n| n * n).sum::<f64>().sqrt();
    fixture
        .family(prefix)
        .filter(|name| wanted(name))
        .map(|name| {
            let full = format!("{prefix}{name}");
            let reference: Vec<f64> = fixture.tensors[&full].1.iter().map(|v| f64::from(*v)).collect();
            match results.get(name) {
                Some(values) if values.len() == reference.len() && shared => {
                    let off: Vec<f32> = values.iter().zip(&reference).map(|(a, b)| (a - b) as f32).collect();
                    Row::new(path, full, norm(&off) / whole, bound)
                }
                Some(values) if values.len() == reference.len() => {
                    let little = !rules.host && size(&fixture.tensors[&full].1) < CANCELLED * largest;
                    let bound = if little { bound.max(f32_loses(fixture, prefix)) } else { bound };
                    let (worst, bound) = distance(values, &reference, largest, bound, rules.host);
                    Row::new(path, full, worst, bound)
                }
                Some(values) => Row::missing(
                    path,
                    full,
                    &format!("{} values instead of {}", values.len(), reference.len()),
                ),
                None => Row::missing(path, full, "not computed"),
            }
        })
        .collect()
}

/// What the reference's own code loses in f32, where the fixture says: the largest distance of a tensor of a family, as
/// a share of its largest value.
fn f32_loses(fixture: &Fixture, prefix: &str) -> f64 {
    let family = prefix.trim_end_matches('.');
    fixture.spec["f32_dev"][family]["max_rel_to_tensor_max"].as_f64().unwrap_or(0.0)
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

fn size(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(f64::from(v.abs())))
}

/// How far a tensor is and its bound: by norm ratios, or absolutely where the reference is zero or nothing
/// beside the largest of its family.
fn distance(values: &[f64], reference: &[f64], largest: f64, bound: f64, host: bool) -> (f64, f64) {
    let r: Ratios = ratios(values, reference);
    if r.scale == 0.0 || r.scale < 1e-10 * largest {
        let share = if host { 1e-6 } else { 1e-4 };
        return (r.size, if largest == 0.0 { 1e-7 } else { share * largest });
    }
    (r.worst(), bound)
}

/// Compares parameters after a step: within a hundredth of the learning rate where the clipped gradient
/// decides, within 2.1 rates where it is noise; those without gradient are equal.
pub fn steps(
    fixture: &Fixture,
    path: &'static str,
    rules: Rules,
    results: &BTreeMap<String, Vec<f64>>,
    rates: &BTreeMap<String, f64>,
    clip: f64,
) -> Vec<Row> {
    let norm = fixture.tensors.get("out.grad_norm").map_or(0.0, |t| f64::from(t.1[0]));
    let scale = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let noise = if rules.half { rules.grad * norm * scale } else { 1e-5 };
    fixture
        .family("step.")
        .map(|name| {
            let full = format!("step.{name}");
            let reference: Vec<f64> = fixture.tensors[&full].1.iter().map(|v| f64::from(*v)).collect();
            let Some(values) = results.get(name).filter(|v| v.len() == reference.len()) else {
                return Row::missing(path, full, "not computed, or of another size");
            };
            let statistic = name.ends_with("running_mean") || name.ends_with("running_var");
            let gradient = fixture.tensors.get(&format!("grad.{name}"));
            let rate = rates.get(name).copied().unwrap_or(1.0);
            match gradient {
                None if statistic => Row::new(path, full, ratios(values, &reference).worst(), rules.out),
                None => Row::new(path, full, furthest(values, &reference), 0.0),
                Some(_) if rules.host => Row::new(path, full, ratios(values, &reference).worst(), 1e-5),
                Some((_, g)) => {
                    let share = |i: usize| {
                        let off = (values[i] - reference[i]).abs() / rate;
                        let decided = f64::from(g[i].abs()) * scale > noise;
                        off / if decided { 1e-2 } else { 2.1 }
                    };
                    let worst =
                        (0..g.len()).map(share).fold(0.0, |m: f64, s| if s.is_nan() { s } else { m.max(s) });
                    Row::new(path, full, worst, 1.0)
                }
            }
        })
        .collect()
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0.0, |m: f64, (x, y)| if x.is_nan() { f64::NAN } else { m.max((x - y).abs()) })
}
