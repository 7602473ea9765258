//! The pretend system's twin without a BERT: ids of the data's own words, boxes and dependency pairs.

use std::path::{Path, PathBuf};

use clap::Args;
use crossweave::error::{Error, Result};
use crossweave::nn::{Init, ParamSpec, Role, layout, linear};
use crossweave::ops::Act;
use crossweave::systems::hinge::hinge;
use crossweave::systems::{
    Batch, Checkpoint, Encoders, Family, Inputs, Items, Loss, Options, Pass, Rates, Schedule, System, Text,
};
use crossweave::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const WIDTH: usize = 8;

#[derive(Args, Clone, Debug, Serialize)]
pub struct WordsOptions {
    /// The folder of the vocabulary
    #[arg(long = "vocab_path")]
    vocab_path: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Words {
    img_dim: usize,
    vocab: usize,
    boxes_again: Option<usize>,
}

impl System for Words {
    fn config(&self) -> Value {
        serde_json::to_value(self).expect("plain data")
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            images: &["images", "bboxes"],
            captions: &["captions", "cap_lens", "depends", "depends_len"],
            dim: self.img_dim,
            vocabulary: self.vocab,
            boxes_again: self.boxes_again,
            ..Inputs::default()
        }
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        layout(|l| {
            l.linear("img.map", self.img_dim, WIDTH);
            l.linear("img.boxes", 4, WIDTH);
            l.push("txt.words".into(), &[self.vocab, WIDTH], Init::Normal(0.3), Role::Weight);
        })
    }

    fn images(&self, pass: &Pass, x: &Items) -> Items {
        let scope = pass.scope.sub("img");
        let mapped = linear(&scope.sub("map"), &x.at("images").mean(1), Act::None);
        let boxes = linear(&scope.sub("boxes"), &x.at("bboxes").mean(1), Act::None);
        Items::default().with("image", mapped.map2(&boxes, |a, b| a + b).l2norm(-1, 1e-12))
    }

    fn captions(&self, pass: &Pass, x: &Items) -> Items {
        let words = pass.scope.sub("txt").at("words").gather(x.at("captions"));
        Items::default().with("caption", words.sum(1).l2norm(-1, 1e-12))
    }

    fn score(&self, _: &Pass, images: &Items, captions: &Items) -> Tensor {
        images.at("image").matmul(captions.at("caption"), false, true)
    }

    fn pair_values(&self, _: usize, _: usize) -> usize {
        0
    }

    fn loss(&self, pass: &Pass, images: &Items, captions: &Items, _: &Batch) -> Loss {
        Loss { total: hinge(&self.score(pass, images, captions), 0.2, false), terms: Vec::new() }
    }

    fn schedule(&self, rates: &Rates, _: u64, _: u64) -> Schedule {
        Schedule { rates: vec![("", rates.learning_rate)], clip: rates.grad_clip, decay: 0.0 }
    }
}

impl Options for WordsOptions {
    fn check(&self, _: bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn common(&self, _: bool) -> Vec<(&'static str, String)> {
        vec![("batch_size", "10".into())]
    }

    fn all(&self) -> Value {
        serde_json::to_value(self).expect("plain data")
    }

    fn free(&self) -> Value {
        self.all()
    }

    fn max_words(&self) -> Option<usize> {
        None
    }

    fn vocabulary(&self) -> Option<&Path> {
        self.vocab_path.as_deref()
    }

    fn system(&self, encoders: &Encoders) -> Result<Box<dyn System>> {
        let boxes_again = encoders.faithful.then_some(encoders.batch_size);
        Ok(Box::new(Words { img_dim: encoders.dim, vocab: encoders.words(), boxes_again }))
    }
}

impl Family for WordsOptions {
    const NAME: &'static str = "pretend-words";
    const TITLE: &'static str = "two linear maps and a product, of words";
    const MODULES: &'static [&'static str] = &["img", "txt"];
    const TEXT: Text = Text::Words;

    fn open(config: &Value) -> Result<Box<dyn System>> {
        let words = Words::deserialize(config);
        Ok(Box::new(words.map_err(|e| Error::new(format!("the configuration is not understood: {e}")))?))
    }

    fn import(checkpoint: Checkpoint) -> Result<Value> {
        let told = [("img_dim", "img.map.weight", 1), ("vocab", "txt.words", 0)];
        let config = checkpoint.config(&told, &["img_dim", "vocab"])?;
        Ok(json!({"img_dim": config["img_dim"], "vocab": config["vocab"], "boxes_again": null}))
    }
}
