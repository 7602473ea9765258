//! The table of recalls, and what chance would give.

use serde_json::{Value, json as object};

use super::{table, text_of};
use crate::eval::rank::{Metrics, Recall};
use crate::eval::sims::Matrix;

/// What a random order gives on average: a query has `own` matches among `n`, and its best one counts.
fn by_chance(n: usize, own: usize) -> Recall {
    // The chance that the first k of n hold none of the matches.
    let missed =
        |k: usize| (0..own).map(|i| (n - i).saturating_sub(k) as f64 / (n - i) as f64).product::<f64>();
    let within = |k: usize| 100.0 * (1.0 - missed(k.min(n)));
    let (mut low, mut high) = (1, n);
    while low < high {
        let middle = low.midpoint(high);
        if missed(middle) <= 0.5 { high = middle } else { low = middle + 1 }
    }
    let meanr = (n + 1) as f64 / (own + 1) as f64;
    Recall { r1: within(1), r5: within(5), r10: within(10), medr: low as f64, meanr }
}

/// Chance on `images` with `captions_per_image` each.
pub fn chance(images: usize, captions_per_image: usize) -> Metrics {
    let i2t = by_chance(images * captions_per_image, captions_per_image);
    Metrics { i2t, t2i: by_chance(images, 1) }
}

const COLUMNS: [&str; 7] = ["", "R@1", "R@5", "R@10", "median", "mean", "rsum"];

/// What was evaluated.
pub struct Source {
    /// The runs or matrices.
    pub names: Vec<String>,
    /// The split; a saved matrix does not say.
    pub split: Option<String>,
    /// The data folders.
    pub data: Vec<String>,
}

/// The table a person reads: both ways, rsum, and chance beside it.
pub fn text(source: &Source, sims: &Matrix, folds: &[Metrics]) -> String {
    let k = sims.captions_per_image;
    let (metrics, chance) = (Metrics::mean(folds), chance(sims.images / folds.len(), k));
    let mut rows = table(&COLUMNS, &[1, 2, 3, 4, 5, 6]);
    let mut add = |name: &str, recall: &Recall, rsum: Option<f64>| {
        let mut row = vec![name.to_owned()];
        row.extend(recall.values().map(|v| format!("{v:.1}")));
        row.push(rsum.map_or(String::new(), |v| format!("{v:.1}")));
        rows.add_row(row);
    };
    if folds.len() > 1 {
        for (i, fold) in folds.iter().enumerate() {
            add(&format!("fold {}: image to text", i + 1), &fold.i2t, None);
            add(&format!("fold {}: text to image", i + 1), &fold.t2i, Some(fold.rsum()));
        }
    }
    let mean = if folds.len() > 1 { "mean: " } else { "" };
    add(&format!("{mean}image to text"), &metrics.i2t, None);
    add(&format!("{mean}text to image"), &metrics.t2i, Some(metrics.rsum()));
    add("chance: image to text", &chance.i2t, None);
    add("chance: text to image", &chance.t2i, Some(chance.rsum()));
    let folded = if folds.len() > 1 { format!(", {} folds", folds.len()) } else { String::new() };
    let plural = if source.names.len() > 1 { "mean of " } else { "" };
    let data = match &source.split {
        Some(split) => format!(" on {split} of {}", source.data.join(", ")),
        None => String::new(),
    };
    format!(
        "{plural}{}{data}: {} images, {} captions{folded}\n\n{}",
        source.names.join(" + "),
        sims.images,
        sims.captions(),
        text_of(&rows)
    )
}

/// The same for a program.
pub fn json(source: &Source, sims: &Matrix, folds: &[Metrics], tied: bool) -> Value {
    let recall =
        |r: &Recall| object!({"r1": r.r1, "r5": r.r5, "r10": r.r10, "medr": r.medr, "meanr": r.meanr});
    let metrics = |m: &Metrics| object!({"i2t": recall(&m.i2t), "t2i": recall(&m.t2i), "rsum": m.rsum()});
    let mut result = metrics(&Metrics::mean(folds));
    result["from"] = object!(source.names);
    result["split"] = object!(source.split);
    result["data"] = object!(source.data);
    result["images"] = object!(sims.images);
    result["captions"] = object!(sims.captions());
    result["tied"] = object!(tied);
    result["chance"] = metrics(&chance(sims.images / folds.len(), sims.captions_per_image));
    if folds.len() > 1 {
        result["folds"] = folds.iter().map(metrics).collect();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_the_mean_over_every_order() {
        // Two matches among five: all ten places of the pair.
        let mut ranks = Vec::new();
        for a in 0..5u32 {
            for _ in a + 1..5 {
                ranks.push(a);
            }
        }
        let all = Recall::of(&ranks);
        let chance = by_chance(5, 2);
        for (want, got) in all.values().iter().zip(chance.values()) {
            assert!((want - got).abs() < 1e-9, "{all:?} {chance:?}");
        }
    }

    #[test]
    fn chance_on_emojitiny_is_52() {
        assert_eq!(format!("{:.0}", chance(60, 5).rsum()), "52");
        assert_eq!(chance(1, 1).rsum(), 600.0);
    }
}
