//! HREM: learning semantic relationship among instances for image-text matching (Fu et al., CVPR 2023).
//!
//! Image and caption are encoded apart and compared by one product. In training an instance level sees the whole batch:
//! its samples are connected by what resembles, and a transformer over them gives embeddings that are trained besides.

mod config;
mod encode;
mod fusion;
mod loss;
mod options;
mod relations;

pub use config::{Config, Criterion, ModelOptions};
pub use options::Options;

use options::ScheduleOptions;

use super::{Batch, Form, Inputs, Items, Loss, Pass, Rates, Schedule, System, TextEncoder};
use crate::nn::ParamSpec;
use crate::tensor::Tensor;

/// The chance that training leaves a region out, and that it changes a word.
const AUGMENT: f64 = 0.2;
/// The text encoder's rate beside the others'.
const BERT_RATE: f64 = 0.1;
/// Decoupled weight decay of everything.
const DECAY: f64 = 1e-4;

/// An HREM and how it is trained.
#[derive(Clone, Debug)]
pub struct Hrem {
    config: Config,
    /// Training leaves out regions and changes words.
    augments: bool,
    schedule: ScheduleOptions,
}

/// A pass with the options of its model.
struct Run<'a> {
    pass: &'a Pass<'a>,
    config: &'a Config,
}

impl Run<'_> {
    /// Whether attention and maps are taken in fused kernels.
    fn fused(&self) -> bool {
        self.pass.form != Form::Composed
    }

    /// Whether the instance level is on.
    fn relates(&self) -> bool {
        self.pass.step.is_some_and(|step| step.step >= self.config.options.warmup)
    }

    /// Whether the loss `vse` takes the hardest negatives only.
    fn hardest_only(&self) -> bool {
        let options = &self.config.options;
        options.max_violation
            || self.pass.step.is_some_and(|step| step.epoch >= options.vse_mean_warmup_epochs)
    }
}

impl Hrem {
    fn run<'a>(&'a self, pass: &'a Pass<'a>) -> Run<'a> {
        Run { pass, config: &self.config }
    }
}

impl System for Hrem {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn inputs(&self) -> Inputs {
        let augment = if self.augments { AUGMENT } else { 0.0 };
        Inputs {
            images: &["images", "image_lengths"],
            captions: &["captions", "lengths"],
            dim: self.config.img_dim,
            max_words: self.config.bert.max_position_embeddings,
            // The instance level takes so many scores of each.
            least: self.config.options.topk,
            exclude_own: true,
            drop_last: true,
            drop_regions: augment,
            mask_words: augment,
            ..Inputs::default()
        }
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        self.config.parameters()
    }

    fn text_encoder(&self) -> Option<TextEncoder<'_>> {
        Some(TextEncoder { prefix: "txt_enc.bert.", config: &self.config.bert })
    }

    fn images(&self, pass: &Pass, x: &Items) -> Items {
        encode::images(&self.run(pass), x)
    }

    fn captions(&self, pass: &Pass, x: &Items) -> Items {
        encode::captions(&self.run(pass), x)
    }

    fn score(&self, pass: &Pass, images: &Items, captions: &Items) -> Tensor {
        let sims = images.at("emb").matmul(captions.at("emb"), false, true);
        pass.tap("sims", &sims);
        sims
    }

    fn pair_values(&self, _: usize, _: usize) -> usize {
        0
    }

    fn loss(&self, pass: &Pass, images: &Items, captions: &Items, batch: &Batch) -> Loss {
        loss::loss(&self.run(pass), images, captions, batch)
    }

    fn schedule(&self, rates: &Rates, epoch: u64, _: u64) -> Schedule {
        let decays = self.schedule.lr_schedules.iter().filter(|at| epoch >= **at).count();
        let rate = rates.learning_rate * self.schedule.decay_rate.powi(decays as i32);
        let graph = self.schedule.graph_lr_factor * rate;
        Schedule {
            rates: vec![("", rate), ("bert", BERT_RATE * rate), ("criterion", graph)],
            clip: rates.grad_clip,
            decay: DECAY,
        }
    }
}
