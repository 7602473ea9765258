//! A system of a program that uses the library: two linear maps, of the mean region and of the mean word, and their
//! product. All that it needs is here. [`words`] has its twin that reads word
//! ids and boxes, [`pictures`] the one that reads pictures.

#![allow(dead_code, reason = "each test program uses its own part")]

pub mod pictures;
pub mod words;

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

#[derive(Args, Clone, Debug, Serialize)]
pub struct PretendOptions {
    /// Width of the joint embedding
    #[arg(long = "pretend_width", default_value_t = 8)]
    pretend_width: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pretend {
    pretend_width: usize,
    img_dim: usize,
    vocab: usize,
}

impl System for Pretend {
    fn config(&self) -> Value {
        serde_json::to_value(self).expect("plain data")
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            images: &["images"],
            captions: &["input_ids", "attention_mask", "lengths"],
            dim: self.img_dim,
            max_words: 16,
            ..Inputs::default()
        }
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        layout(|l| {
            l.linear("img.map", self.img_dim, self.pretend_width);
            l.push("txt.words".into(), &[self.vocab, self.pretend_width], Init::Normal(0.3), Role::Weight);
        })
    }

    fn images(&self, pass: &Pass, x: &Items) -> Items {
        let map = pass.scope.sub("img").sub("map");
        let mapped = linear(&map, &x.at("images").mean(1), Act::None);
        Items::default().with("image", mapped.l2norm(-1, 1e-12))
    }

    fn captions(&self, pass: &Pass, x: &Items) -> Items {
        let words = pass.scope.sub("txt").at("words").gather(x.at("input_ids"));
        let mask = x.at("attention_mask").view().repeat(2, 1);
        Items::default().with("caption", words.map2(mask, |w, m| w * m).sum(1).l2norm(-1, 1e-12))
    }

    fn score(&self, pass: &Pass, images: &Items, captions: &Items) -> Tensor {
        let sims = images.at("image").matmul(captions.at("caption"), false, true);
        pass.tap("sims", &sims);
        sims
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

impl Options for PretendOptions {
    fn check(&self, _: bool) -> Result<Vec<String>> {
        match self.pretend_width {
            0 => Err(Error::new("the width is zero").at("--pretend_width").cure("give 1 or more")),
            _ => Ok(Vec::new()),
        }
    }

    fn common(&self, _: bool) -> Vec<(&'static str, String)> {
        vec![("batch_size", "10".into())]
    }

    fn all(&self) -> Value {
        serde_json::to_value(self).expect("plain data")
    }

    fn free(&self) -> Value {
        json!({})
    }

    fn max_words(&self) -> Option<usize> {
        Some(16)
    }

    fn system(&self, encoders: &Encoders) -> Result<Box<dyn System>> {
        let (img_dim, vocab) = (encoders.dim, encoders.bert().vocab_size);
        Ok(Box::new(Pretend { pretend_width: self.pretend_width, img_dim, vocab }))
    }
}

impl Family for PretendOptions {
    const NAME: &'static str = "pretend";
    const TITLE: &'static str = "two linear maps and a product";
    const MODULES: &'static [&'static str] = &["img", "txt"];
    const TEXT: Text = Text::Bert { trained: false };

    fn open(config: &Value) -> Result<Box<dyn System>> {
        let pretend = Pretend::deserialize(config);
        Ok(Box::new(pretend.map_err(|e| Error::new(format!("the configuration is not understood: {e}")))?))
    }

    fn import(checkpoint: Checkpoint) -> Result<Value> {
        let shape = |name| (checkpoint.shape)(name).ok_or_else(|| Error::new(format!("no {name}")));
        let (map, words) = (shape("img.map.weight")?, shape("txt.words")?);
        Ok(json!({"pretend_width": map[0], "img_dim": map[1], "vocab": words[0]}))
    }
}
