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
use super::{Batch, Form, Inputs, Items, Loss, Pass, Rates, Schedule, System, Taps};
use crate::error::Result;
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
            boxes_again: self.config.faithful.then_some(self.config.batch_size),
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

    fn padded_columns(&self) -> &'static [&'static str] {
        if self.config.options.is_sparse { &["words", "own"] } else { &["words"] }
    }

    /// What the recurrent units keep of each word for their gradients.
    fn caption_values(&self, words: usize) -> usize {
        let options = &self.config.options;
        4 * options.embed_size * words * if options.bi_gru { 2 } else { 1 }
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

    /// The score of each side, and the region and the word that add most to it.
    fn explain(&self, pass: &Pass, image: &Items, caption: &Items) -> Result<Option<String>> {
        let taps = Taps::default();
        let noting = Pass::evaluation(pass.scope.clone()).computed(Form::Composed, usize::MAX).tapped(&taps);
        matching::scores(&self.run(&noting), image, caption);
        let words = caption.at("lengths").to_vec()?[0] as usize;
        let side = |name: &str, node: &str, most: usize, first: usize| {
            let values = |what: &str| {
                taps.get(&format!("{name}.{what}")).expect("both sides note their scores").to_vec()
            };
            let nodes = values("nodes")?;
            let best = (0..most.min(nodes.len())).max_by(|a, b| nodes[*a].total_cmp(&nodes[*b]));
            Ok(format!("{node}s {:.2} ({node} {})", values("scores")?[0], best.unwrap_or(0) + first))
        };
        Ok(Some(format!("{} | {}", side("i2t", "region", usize::MAX, 1)?, side("t2i", "word", words, 0)?)))
    }

    fn explanation(&self) -> &'static str {
        "what regions and words add to the score, and which of them matches best, counted from 1 (0 is the mark before the \
         words)"
    }
}
