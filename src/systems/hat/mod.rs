//! HAT: hierarchical alignment transformers for image-text matching (Bin et al., ACM MM 2023).
//!
//! A Swin reads pictures and a BERT captions. Three depths of each, mapped to one width, are aligned as SCAN aligns regions
//! and words; a pair's score is the sum of the three. There are no other interactions, and nothing is normalised.

mod align;
mod config;
mod encode;
mod options;
mod run_py;

pub use config::{Config, ModelOptions};
pub use options::Options;

use super::{Batch, Form, ImageEncoder, Inputs, Items, Loss, Pass, Rates, Schedule, System, TextEncoder};
use crate::nn::ParamSpec;
use crate::ops::{add, materialize, sum_of};
use crate::tensor::Tensor;
use options::TrainingOptions;

/// What the names of BERT's parameters begin with, and those of Swin's.
const TEXT: &str = "text_transformer.";
const IMAGE: &str = "vit_model.";
/// The levels by what their names end with: the last stage and layer, then those of half and of less depth.
const LEVELS: [&str; 3] = ["", "_1", "_2"];
/// What the learning rate falls to, again and again.
const DECAY: f64 = 0.1;

/// A HAT and how it is trained.
#[derive(Clone, Debug)]
pub struct Hat {
    config: Config,
    training: TrainingOptions,
    form: Form,
}

/// A pass with the options of its model.
struct Run<'a> {
    pass: &'a Pass<'a>,
    config: &'a Config,
}

impl Hat {
    fn run<'a>(&'a self, pass: &'a Pass<'a>) -> Run<'a> {
        Run { pass, config: &self.config }
    }
}

impl System for Hat {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            images: &["image"],
            captions: &["input_ids", "input_mask", "lengths"],
            image_size: self.config.swin.img_size,
            crop: self.training.crop,
            as_stored: self.config.faithful,
            max_words: self.config.max_words(),
            ..Inputs::default()
        }
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        self.config.parameters()
    }

    fn text_encoder(&self) -> Option<TextEncoder<'_>> {
        Some(TextEncoder { prefix: TEXT, config: &self.config.bert })
    }

    fn image_encoder(&self) -> Option<ImageEncoder<'_>> {
        Some(ImageEncoder { prefix: IMAGE, config: &self.config.swin })
    }

    fn images(&self, pass: &Pass, x: &Items) -> Items {
        encode::images(&self.run(pass), x)
    }

    fn captions(&self, pass: &Pass, x: &Items) -> Items {
        encode::captions(&self.run(pass), x)
    }

    fn score(&self, pass: &Pass, images: &Items, captions: &Items) -> Tensor {
        align::scores(&self.run(pass), images, captions)
    }

    fn pair_values(&self, _: usize, words: usize) -> usize {
        align::pair_values(&self.config, words)
    }

    fn padded_columns(&self) -> &'static [&'static str] {
        &["text_feats", "text_feats_1", "text_feats_2"]
    }

    fn form(&self) -> Form {
        self.form
    }

    fn loss(&self, pass: &Pass, images: &Items, captions: &Items, _: &Batch) -> Loss {
        let sims = align::scores(&self.run(pass), images, captions);
        let warm = pass.step.is_some_and(|step| step.epoch < self.training.vse_mean_warmup_epochs);
        let costs = sims.hinge_costs(None, self.config.options.margin, !warm);
        let of = |side: usize| costs.view().slice(0, side, 1).squeeze(0);
        let terms = [0, 1].map(|side| sum_of(vec![of(side)], 0, |x| x[0].clone()));
        let total = add(&terms[0], &terms[1]);
        pass.tap("sims", &sims);
        for (side, name) in ["cost_s", "cost_im"].into_iter().enumerate().filter(|_| pass.taps().is_some()) {
            pass.tap(name, &materialize(of(side)));
        }
        pass.tap("loss_s", &terms[0]);
        pass.tap("loss_im", &terms[1]);
        pass.tap("loss", &total);
        Loss { total, terms: ["s", "im"].into_iter().zip(terms).collect() }
    }

    /// The encoders join after the epochs in which only the maps between them and the scores are trained.
    fn schedule(&self, rates: &Rates, epoch: u64, step: u64) -> Schedule {
        let training = &self.training;
        let falls = (epoch / training.lr_step) as i32;
        let warm = (step + 1) as f64 / training.warmup.max(1) as f64;
        let rate = rates.learning_rate * DECAY.powi(falls) * warm.min(1.0);
        let mut groups = vec![("", rate)];
        if epoch >= training.frozen_epochs {
            groups.extend(["swin", "bert"].map(|group| (group, rate * training.encoder_lr_factor)));
        }
        Schedule { rates: groups, clip: rates.grad_clip, decay: 0.0 }
    }
}
