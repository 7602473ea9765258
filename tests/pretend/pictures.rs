//! The twin of the pretend system that reads pictures: a linear map of all their pixels.

use clap::Args;
use crossweave::error::{Error, Result};
use crossweave::nn::{Init, ParamSpec, Role, layout, linear};
use crossweave::ops::Act;
use crossweave::systems::hinge::hinge;
use crossweave::systems::{
    Batch, Checkpoint, Encoders, Family, Images, Inputs, Items, Loss, Options, Pass, Rates, Schedule, System,
    Text,
};
use crossweave::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Args, Clone, Debug, Serialize)]
pub struct PicturesOptions {
    /// Width and height of a picture
    #[arg(long = "pretend_size", default_value_t = 8)]
    pretend_size: usize,
    /// Trains on random parts
    #[arg(long = "pretend_crop")]
    pretend_crop: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pretend {
    pretend_size: usize,
    pretend_crop: bool,
    vocab: usize,
}

const WIDTH: usize = 16;

impl System for Pretend {
    fn config(&self) -> Value {
        serde_json::to_value(self).expect("plain data")
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            images: &["image"],
            captions: &["input_ids", "input_mask", "lengths"],
            image_size: self.pretend_size,
            crop: if self.pretend_crop { 0.08 } else { 0.0 },
            max_words: 16,
            ..Inputs::default()
        }
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        layout(|l| {
            l.linear("img.map", 3 * self.pretend_size * self.pretend_size, WIDTH);
            l.push("txt.words".into(), &[self.vocab, WIDTH], Init::Normal(0.3), Role::Weight);
        })
    }

    fn images(&self, pass: &Pass, x: &Items) -> Items {
        let pixels = 3 * self.pretend_size * self.pretend_size;
        let pictures = x.at("image");
        let flat = pictures.reshape([pictures.shape().len() / pixels, pixels]);
        let mapped = linear(&pass.scope.sub("img").sub("map"), &flat, Act::None);
        Items::default().with("image", mapped.l2norm(-1, 1e-12))
    }

    fn captions(&self, pass: &Pass, x: &Items) -> Items {
        let words = pass.scope.sub("txt").at("words").gather(x.at("input_ids"));
        let mask = x.at("input_mask").view().repeat(2, 1);
        Items::default().with("caption", words.map2(mask, |w, m| w * m).sum(1).l2norm(-1, 1e-12))
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

impl Options for PicturesOptions {
    fn check(&self, _: bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn common(&self, _: bool) -> Vec<(&'static str, String)> {
        vec![("batch_size", "40".into())]
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
        assert_eq!((encoders.regions, encoders.dim), (0, 3), "pictures have no regions, and three colours");
        let Self { pretend_size, pretend_crop } = *self;
        Ok(Box::new(Pretend { pretend_size, pretend_crop, vocab: encoders.bert().vocab_size }))
    }
}

impl Family for PicturesOptions {
    const NAME: &'static str = "pretend-pictures";
    const TITLE: &'static str = "a linear map of pixels, one of words, and a product";
    const MODULES: &'static [&'static str] = &["img", "txt"];
    const IMAGES: Images = Images::Pictures;
    const TEXT: Text = Text::Bert { trained: false };

    fn open(config: &Value) -> Result<Box<dyn System>> {
        let pretend = Pretend::deserialize(config);
        Ok(Box::new(pretend.map_err(|e| Error::new(format!("the configuration is not understood: {e}")))?))
    }

    fn import(_: Checkpoint) -> Result<Value> {
        Err(Error::new("there are no checkpoints of it"))
    }
}
