//! GSMN: graph structured network for image-text matching (Liu et al., CVPR 2020).
//!
//! Regions and words are compared with what they attend to on the other side, block by block of their vectors; two small
//! graph layers over regions and over words turn these comparisons into two scores, which are added.

mod config;
mod encode;
mod graph;
mod matching;
mod options;

pub use config::{Config, ModelOptions};
pub use options::Options;

use super::hinge::hinge;
use super::{Batch, Inputs, Items, Loss, Pass, Rates, Schedule, System};
use crate::nn::ParamSpec;
use crate::tensor::Tensor;

/// A GSMN and how it is trained.
#[derive(Clone, Debug)]
pub struct Gsmn {
    config: Config,
    lr_update: u64,
}

/// A pass with the options of its model.
struct Run<'a> {
    pass: &'a Pass<'a>,
    config: &'a Config,
}

impl Gsmn {
    fn run<'a>(&'a self, pass: &'a Pass<'a>) -> Run<'a> {
        Run { pass, config: &self.config }
    }
}

impl System for Gsmn {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            images: &["images", "bboxes"],
            captions: if self.config.options.is_sparse {
                &["captions", "cap_lens", "depends", "depends_len"]
            } else {
                &["captions", "cap_lens"]
            },
            dim: self.config.img_dim,
            vocabulary: self.config.vocab_size,
            ..Inputs::default()
        }
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        self.config.parameters()
    }

    fn images(&self, pass: &Pass, x: &Items) -> Items {
        encode::images(&self.run(pass), x)
    }

    fn captions(&self, pass: &Pass, x: &Items) -> Items {
        encode::captions(&self.run(pass), x)
    }

    fn score(&self, pass: &Pass, images: &Items, captions: &Items) -> Tensor {
        matching::scores(&self.run(pass), images, captions)
    }

    fn pair_values(&self, regions: usize, words: usize) -> usize {
        matching::pair_values(&self.config, regions, words)
    }

    fn padded_column(&self) -> Option<&'static str> {
        Some("words")
    }

    fn loss(&self, pass: &Pass, images: &Items, captions: &Items, _: &Batch) -> Loss {
        let sims = matching::scores(&self.run(pass), images, captions);
        let options = &self.config.options;
        let total = hinge(&sims, options.margin, options.max_violation);
        pass.tap("scores", &sims);
        pass.tap("loss", &total);
        Loss { total, terms: Vec::new() }
    }

    fn schedule(&self, rates: &Rates, epoch: u64, _: u64) -> Schedule {
        let rate = rates.learning_rate * 0.1f64.powi((epoch / self.lr_update) as i32);
        Schedule { rates: vec![("", rate)], clip: rates.grad_clip, decay: 0.0 }
    }
}
