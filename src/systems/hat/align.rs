//! The alignment of an image and a caption at each level (section 3.3 of the paper): SCAN's, without its sharpening.
//!
//! At each the score is the mean cosine of an image's rows (`i2t`) or of the words (`t2i`) with what they attend to; the
//! scores of the levels are added.

use super::{Config, LEVELS, Run};
use crate::ops::{WordAxis, add, concat};
use crate::systems::Items;
use crate::systems::contexts::{aligned, attention};
use crate::tensor::Tensor;

/// Similarities `[images, captions]`, as many captions at a time as the pass says.
pub(super) fn scores(run: &Run, images: &Items, captions: &Items) -> Tensor {
    let (n, tile) = (captions.len(), run.pass.tile.clamp(1, captions.len().max(1)));
    let tiles: Vec<Tensor> = (0..n)
        .step_by(tile)
        .map(|start| of_tile(run, images, &captions.part(start, tile.min(n - start))))
        .collect();
    concat(&tiles, 1)
}

/// The largest tensor of a pair.
pub(super) fn pair_values(config: &Config, words: usize) -> usize {
    let width = config.options.hidden_size;
    let of_level = |stage: &usize| {
        let rows = config.swin.grid(*stage).pow(2);
        let context = if config.options.is_i2t() { rows * words.min(width) } else { words * rows.min(width) };
        context.max(rows * words)
    };
    super::encode::STAGES.iter().map(of_level).max().unwrap_or(1)
}

fn of_tile(run: &Run, images: &Items, captions: &Items) -> Tensor {
    let (options, lengths) = (&run.config.options, captions.at("lengths"));
    let asked = if options.is_i2t() { WordAxis::Context } else { WordAxis::Queries };
    let attention = attention(options.lambda_softmax, asked);
    let levels: Vec<Tensor> = LEVELS
        .iter()
        .map(|suffix| {
            let (rows, words) =
                (images.at(&format!("image_feats{suffix}")), captions.at(&format!("text_feats{suffix}")));
            let scores = aligned(&attention, rows, words, lengths, run.pass.form, &mut |_, _| ());
            let level = if suffix.is_empty() { "_0" } else { suffix };
            run.pass.tap(&format!("scores{level}"), &scores);
            scores
        })
        .collect();
    add(&add(&levels[0], &levels[1]), &levels[2])
}
