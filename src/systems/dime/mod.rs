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
mod options;
mod routing;

pub use config::{AttentionNorm, Config, Direction, ModelOptions};
pub use options::Options;

use super::{Batch, Form, Inputs, Items, Loss, Pass, Rates, Schedule, System, TextEncoder};
use crate::error::Result;
use crate::nn::ParamSpec;
use crate::systems::Taps;
use crate::tensor::Tensor;
use options::TrainingOptions;
use routing::{Pairs, Scored, interact};

/// A DIME and how it is trained.
#[derive(Clone, Debug)]
pub struct Dime {
    config: Config,
    training: TrainingOptions,
    /// Epochs between two tenths of the learning rate.
    lr_update: u64,
    /// Extras leave out the sample's own captions and images.
    exclude_own: bool,
}

/// A pass with the options of its model.
struct Run<'a> {
    pass: &'a Pass<'a>,
    config: &'a Config,
}

impl Dime {
    fn run<'a>(&'a self, pass: &'a Pass<'a>) -> Run<'a> {
        Run { pass, config: &self.config }
    }
}

impl System for Dime {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn inputs(&self) -> Inputs {
        let (extra_captions, extra_images) = (self.training.extra_stc, self.training.extra_img);
        Inputs {
            images: &["images"],
            captions: &["input_ids", "attention_mask", "lengths"],
            dim: self.config.img_dim,
            max_words: self.config.options.max_words,
            pad_to_max: !self.config.options.mask_padding,
            extra_captions,
            // As in the published code.
            extra_images: if extra_captions > 0 { 0 } else { extra_images },
            exclude_own: self.exclude_own,
            ..Inputs::default()
        }
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        self.config.parameters()
    }

    fn text_encoder(&self) -> Option<TextEncoder<'_>> {
        Some(TextEncoder { prefix: "txt_enc.bert.", config: &self.config.bert_config })
    }

    fn images(&self, pass: &Pass, x: &Items) -> Items {
        encode::images(&self.run(pass), x.at("images"))
    }

    fn captions(&self, pass: &Pass, x: &Items) -> Items {
        let run = self.run(pass);
        let states = x.get("states").cloned().unwrap_or_else(|| encode::states(&run, x));
        encode::captions(&run, &states, x.at("lengths"))
    }

    fn score(&self, pass: &Pass, images: &Items, captions: &Items) -> Tensor {
        score_tiles(&self.run(pass), images, captions).sims
    }

    fn pair_values(&self, regions: usize, words: usize) -> usize {
        let options = &self.config.options;
        let (rows, context) = match options.direction {
            Direction::I2t => (regions, words),
            Direction::T2i => (words, regions),
        };
        let widest =
            (4 * options.embed_size).max(options.hid_IMRC).max(options.num_head_IMRC * rows).max(context);
        rows * widest
    }

    fn padded_columns(&self) -> &'static [&'static str] {
        if self.config.options.mask_padding { &["words"] } else { &[] }
    }

    fn form(&self) -> Form {
        if self.training.checkpoint_cells { Form::Recomputed } else { Form::Fast }
    }

    fn loss(&self, pass: &Pass, images: &Items, captions: &Items, _: &Batch) -> Loss {
        let run = self.run(pass);
        let scored = score_tiles(&run, images, captions);
        loss::loss(&run, &scored, captions.at("label"))
    }

    fn schedule(&self, rates: &Rates, epoch: u64, _: u64) -> Schedule {
        let rate = rates.learning_rate * 0.1f64.powi((epoch / self.lr_update) as i32);
        Schedule { rates: vec![("", rate), ("bert", rate)], clip: rates.grad_clip, decay: 0.0 }
    }

    /// The share of each cell in each layer's path probabilities.
    fn explain(&self, pass: &Pass, image: &Items, caption: &Items) -> Result<Option<String>> {
        let taps = Taps::default();
        let noting = Pass::evaluation(pass.scope.clone()).tapped(&taps);
        interact(&self.run(&noting), image, caption);
        let layers = (0..3).map(|layer| {
            let p = taps.get(&format!("path_l{layer}")).expect("every layer notes its paths").to_vec()?;
            let total: f32 = p.iter().sum();
            let mut shares = [0.0; 4];
            p.iter().enumerate().for_each(|(i, v)| shares[i % 4] += v / total.max(f32::MIN_POSITIVE));
            Ok(describe(&shares))
        });
        Ok(Some(layers.collect::<Result<Vec<_>>>()?.join(" | ")))
    }

    fn explanation(&self) -> &'static str {
        "the cells' shares of the path probabilities, layer by layer"
    }
}

/// The two cells with the largest shares.
fn describe(shares: &[f32; 4]) -> String {
    let cells = ["identity", "guidance", "intra", "cross"];
    let mut order = [0, 1, 2, 3];
    order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
    let top = order.iter().take(2).filter(|j| shares[**j] > 0.0);
    let text: Vec<String> = top.map(|j| format!("{} {:.0}%", cells[*j], 100.0 * shares[*j])).collect();
    if text.is_empty() { "skip".to_string() } else { text.join(" ") }
}

/// Similarities of every image with every caption, as many captions at a time as the pass says. The tile changes the
/// order of sums, nothing else.
fn score_tiles(run: &Run, images: &Items, captions: &Items) -> Scored {
    let (n, tile) = (captions.len(), run.pass.tile.max(1));
    let tiles: Vec<Pairs> = (0..n)
        .step_by(tile.min(n.max(1)))
        .map(|start| interact(run, images, &captions.part(start, tile.min(n - start))))
        .collect();
    routing::score(run, &tiles)
}
