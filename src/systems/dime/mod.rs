//! DIME: dynamic modality interaction modelling for image-text retrieval (Qu et al., SIGIR 2021).
//!
//! Local features of one side (regions for i2t, words for t2i) pass through three layers of four interaction
//! cells; routers mix the cells' outputs for every image-caption pair. Pairs are processed together as tiles
//! `[images, captions, rows, embed]`.

mod cells;
mod config;
mod encode;
mod loss;
mod mask;
mod routing;

use std::cell::RefCell;
use std::collections::BTreeMap;

pub use config::{AttentionNorm, Config, Direction};
pub use encode::{Captions, Images, encode_captions, encode_images, encode_states};
pub use loss::{Losses, losses};
pub use routing::{Pairs, Scored, interact, score};

use crate::nn::Scope;
use crate::tensor::Tensor;

/// How the model is computed. All forms give the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Literally as the paper and its code do, but for the last layer's mixture: the reference for bisecting.
    Composed,
    /// With what does not depend on the pair taken out of the pair loop, and attention and routing fused.
    Fast,
    /// As `Fast`, with the cells run again on the way back instead of keeping what their gradients read.
    Recomputed,
}

/// One run of the model: its parameters, options, and what to note on the way.
pub struct Run<'a> {
    /// The parameters.
    pub scope: Scope<'a>,
    /// The options.
    pub config: &'a Config,
    /// How it is computed.
    pub path: Path,
    /// Whether batch norm uses the batch's statistics and paths are returned.
    pub train: bool,
    /// Where intermediate results are noted, if wanted.
    pub taps: Option<&'a Taps>,
}

impl Run<'_> {
    fn tap(&self, name: &str, value: &Tensor) {
        if let Some(taps) = self.taps {
            taps.0.borrow_mut().insert(name.to_string(), value.detach());
        }
    }
}

/// What one training batch gives.
pub struct Outcome {
    /// Similarities and paths.
    pub scored: Scored,
    /// The loss and its terms.
    pub losses: Losses,
    /// Buffers after the batch, by name: running statistics and counters.
    pub buffers: Vec<(String, Tensor)>,
}

/// The loss of a batch, its pairs processed `tile` captions at a time. The tile changes the order of sums,
/// nothing else.
pub fn forward(run: &Run, images: &Images, captions: &Captions, tile: usize) -> Outcome {
    let scored = score_tiles(run, images, captions, tile);
    let losses = losses(run, &scored, &captions.label);
    let mut buffers = Vec::new();
    for (at, running) in [("img_enc.bn", &images.running), ("itr_module.bn", &scored.running)] {
        let Some([mean, var]) = running else { continue };
        let count = run.scope.sub(at).at("num_batches_tracked").detach().map(|n| n + 1.0);
        buffers.push((format!("{at}.running_mean"), mean.clone()));
        buffers.push((format!("{at}.running_var"), var.clone()));
        buffers.push((format!("{at}.num_batches_tracked"), count));
    }
    Outcome { scored, losses, buffers }
}

/// Similarities of every image with every caption, `tile` captions at a time.
pub fn score_tiles(run: &Run, images: &Images, captions: &Captions, tile: usize) -> Scored {
    let n = captions.words.shape()[0];
    let tiles: Vec<Pairs> = (0..n)
        .step_by(tile.max(1))
        .map(|start| interact(run, images, &captions.part(start, tile.min(n - start))))
        .collect();
    score(run, &tiles)
}

/// Intermediate results by name.
#[derive(Default)]
pub struct Taps(RefCell<BTreeMap<String, Tensor>>);

impl Taps {
    /// What was noted.
    pub fn take(self) -> BTreeMap<String, Tensor> {
        self.0.into_inner()
    }
}
