//! Our ranks and metrics against a recall fixture's.

use std::collections::BTreeMap;

use super::{Metrics, Ranks, Recall, Sims, ensemble};
use crate::error::{Error, Result};

/// The named tensors of a recall fixture, values as f64.
pub type Tensors = BTreeMap<String, Vec<f64>>;

/// One tensor of a recall fixture against ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// The tensor's name in the file.
    pub name: String,
    /// The largest deviation relative to the expected tensor's largest magnitude; infinite where lengths differ.
    pub worst: f64,
    /// The bound on it; 0 where the values must be equal.
    pub bound: f64,
}

impl Compared {
    /// Whether the tensor agrees.
    pub fn passes(&self) -> bool {
        self.worst <= self.bound
    }

    fn new(name: &str, ours: &[f64], expected: &[f64], bound: f64) -> Self {
        let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let scale = if bound == 0.0 || scale == 0.0 { 1.0 } else { scale };
        let mut worst = if ours.len() == expected.len() { 0.0f64 } else { f64::INFINITY };
        for (a, b) in ours.iter().zip(expected) {
            let d = (a - b).abs() / scale;
            worst = if d.is_nan() { f64::INFINITY } else { worst.max(d) };
        }
        Self { name: name.into(), worst, bound }
    }
}

/// Metrics are stored as f32.
const METRIC_BOUND: f64 = 1e-6;

/// Checks a recall fixture: `in.sims`, or `in.sims1`, `in.sims2`, .. to be averaged; `folds` as its
/// `config` says (`fold5`).
///
/// Stable ranks must be equal and lie within the file's bounds. Metrics, published ranks and first
/// matches are compared as stored where no tie decides; under ties metrics are recomputed from the
/// file's stable ranks, and what an unstable sort decided is left out.
///
/// Errors: a tensor that the form demands is missing, or the matrix is refused by [`Sims::new`].
pub fn parity(tensors: &Tensors, captions_per_image: usize, folds: Option<usize>) -> Result<Vec<Compared>> {
    let mut rows = Vec::new();
    let scores = match tensors.get("in.sims") {
        Some(sims) => sims.clone(),
        None => {
            let members: Vec<&[f64]> =
                (1..).map_while(|i| tensors.get(&format!("in.sims{i}"))).map(Vec::as_slice).collect();
            if members.is_empty() {
                return Err(missing("in.sims"));
            }
            ensemble(&members)?
        }
    };
    if let Some(mean) = tensors.get("out.sims_mean") {
        rows.push(Compared::new("out.sims_mean", &scores, mean, METRIC_BOUND));
    }
    let images = ((scores.len() / captions_per_image.max(1)) as f64).sqrt().round() as usize;
    let sims = Sims::new(&scores, images, captions_per_image)?;
    match folds {
        Some(k) => compare_folds(&sims, k, tensors, &mut rows)?,
        None => compare_whole(&sims, tensors, &mut rows)?,
    }
    Ok(rows)
}

fn missing(name: &str) -> Error {
    Error::new("a recall fixture lacks a tensor").at(name).cure("see the form in the fixtures' README")
}

fn find<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a [f64]> {
    tensors.get(name).map(Vec::as_slice).ok_or_else(|| missing(name))
}

fn compare_folds(sims: &Sims<'_, f64>, k: usize, tensors: &Tensors, rows: &mut Vec<Compared>) -> Result<()> {
    let ranks: Vec<Ranks> = sims.folds(k)?.iter().map(Sims::ranks).collect();
    if ranks.iter().any(|r| r.tied) {
        return Ok(());
    }
    let metrics: Vec<Metrics> = ranks.iter().map(Ranks::metrics).collect();
    let mean = Metrics::mean(&metrics);
    let table: Vec<f64> = metrics.iter().flat_map(Metrics::columns).collect();
    for (name, ours) in
        [("out.folds", table), ("out.mean", mean.columns().to_vec()), ("out.rsum", vec![mean.rsum()])]
    {
        rows.push(Compared::new(name, &ours, find(tensors, name)?, METRIC_BOUND));
    }
    Ok(())
}

fn compare_whole(sims: &Sims<'_, f64>, tensors: &Tensors, rows: &mut Vec<Compared>) -> Result<()> {
    let ranks = sims.ranks();
    let mut tied = false;
    for (way, ours) in [("i2t", &ranks.i2t), ("t2i", &ranks.t2i)] {
        let ours: Vec<f64> = ours.iter().map(|&r| f64::from(r)).collect();
        let stable = format!("out.rank_stable_{way}");
        rows.push(Compared::new(&stable, &ours, find(tensors, &stable)?, 0.0));
        let (lo, hi) = (format!("out.rank_lo_{way}"), format!("out.rank_hi_{way}"));
        let (low, high) = (find(tensors, &lo)?, find(tensors, &hi)?);
        tied |= low != high;
        let clamp = |limit: &[f64], f: fn(f64, f64) -> f64| -> Vec<f64> {
            limit.iter().zip(&ours).map(|(&l, &r)| f(l, r)).collect()
        };
        // A rank inside the bounds leaves them as they are.
        rows.push(Compared::new(&lo, &clamp(low, f64::min), low, 0.0));
        rows.push(Compared::new(&hi, &clamp(high, f64::max), high, 0.0));
    }
    if tied {
        return compare_tied_metrics(&ranks, tensors, rows);
    }
    for (way, ours) in [("i2t", &ranks.i2t), ("t2i", &ranks.t2i)] {
        let ours: Vec<f64> = ours.iter().map(|&r| f64::from(r)).collect();
        let name = format!("out.ranks_{way}");
        rows.push(Compared::new(&name, &ours, find(tensors, &name)?, 0.0));
    }
    for (way, ours) in [("i2t", &ranks.top1_i2t), ("t2i", &ranks.top1_t2i)] {
        let ours: Vec<f64> = ours.iter().map(|&r| f64::from(r)).collect();
        let name = format!("out.top1_{way}");
        rows.push(Compared::new(&name, &ours, find(tensors, &name)?, 0.0));
    }
    for (name, ours) in named(&ranks.metrics()) {
        rows.push(Compared::new(name, &ours, find(tensors, name)?, METRIC_BOUND));
    }
    Ok(())
}

fn compare_tied_metrics(ranks: &Ranks, tensors: &Tensors, rows: &mut Vec<Compared>) -> Result<()> {
    let from_file = |name| -> Result<Recall> {
        let ranks: Vec<u32> = find(tensors, name)?.iter().map(|&r| r as u32).collect();
        if ranks.is_empty() { Err(missing(name)) } else { Ok(Recall::of(&ranks)) }
    };
    let expected = Metrics { i2t: from_file("out.rank_stable_i2t")?, t2i: from_file("out.rank_stable_t2i")? };
    for ((name, ours), (_, expected)) in named(&ranks.metrics()).into_iter().zip(named(&expected)) {
        rows.push(Compared::new(name, &ours, &expected, METRIC_BOUND));
    }
    Ok(())
}

fn named(m: &Metrics) -> [(&'static str, Vec<f64>); 5] {
    [
        ("out.i2t", m.i2t.values().to_vec()),
        ("out.t2i", m.t2i.values().to_vec()),
        ("out.ar", vec![m.i2t.average(), m.t2i.average()]),
        ("out.rsum_train", vec![m.r1r5()]),
        ("out.rsum_test", vec![m.rsum()]),
    ]
}
