//! What makes an HREM, by the names of the authors' `train.py`, and its parameters.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::transformer::Layer;
use crate::nn::{Init, Layout, ParamSpec, Role, bert, layout};

/// Sizes past this are slips or hostile, and their products would overflow.
const MAX_SIZE: usize = 1 << 24;
/// Layers past which a configuration is a slip or hostile.
const MAX_LAYERS: usize = 1000;

/// A loss of similarities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Criterion {
    /// Triplets whose negatives are drawn by their distance.
    Trip,
    /// The hinge loss of VSE++.
    Vse,
}

/// The data set that has settings of its own.
const COCO: &str = "coco";

/// The options that make the model and its loss.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[command(rename_all = "verbatim", next_help_heading = "HREM: the model")]
#[serde(default)]
pub struct ModelOptions {
    /// Width of the joint embedding
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub embed_size: usize,
    /// Heads of every transformer layer; they divide the embedding
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub nhead: usize,
    /// Layers of the instance level's transformer
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub num_layers_enc: usize,
    /// Dropout of every transformer layer
    #[arg(long, value_name = "RATE", default_value_t = 0.1)]
    pub dropout: f32,
    /// Share of the largest values in an embedding; the rest is the transformer layer's mean
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    pub residual_weight: f64,
    /// Leaves image embeddings unnormalised
    #[arg(long)]
    pub no_imgnorm: bool,
    /// Leaves caption embeddings unnormalised
    #[arg(long)]
    pub no_txtnorm: bool,
    /// The data set: data_name is NAME_precomp; triplets reach to the distance 1.9 for coco, else to 1.7
    #[arg(long, value_name = "NAME", default_value = "f30k")]
    pub dataset: String,
    /// Loss of the embeddings: trip or vse
    #[arg(long, value_enum, value_name = "LOSS", default_value = "trip", hide_possible_values = true)]
    pub base_loss: Criterion,
    /// Loss of the instance level: trip or vse
    #[arg(long, value_enum, value_name = "LOSS", default_value = "trip", hide_possible_values = true)]
    pub gnn_loss: Criterion,
    /// Margin of the loss vse (of trip it is 0.2)
    #[arg(long, value_name = "X", default_value_t = 0.2, allow_negative_numbers = true)]
    pub margin: f64,
    /// Hardest negatives only in the loss vse, from the first step on
    #[arg(long)]
    pub max_violation: bool,
    /// Epochs after which the loss vse takes the hardest negatives only
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub vse_mean_warmup_epochs: u64,
    /// In the loss vse, 1: samples of one image are no negatives; 0: they are
    #[arg(long, value_name = "0|1", default_value_t = 1)]
    pub mask_repeat: u8,
    /// Steps before the instance level begins
    #[arg(long, value_name = "STEPS", default_value_t = 8000)]
    pub warmup: u64,
    /// The share of a batch that a sample is connected with, of each modality
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub threshold: f64,
    /// Largest scores that the relevance across modalities is learned from
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub topk: usize,
    /// Weight of the relevance in the instance level's attention
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub mask_weight: f64,
    /// Weight of the relevance's regulariser
    #[arg(long, value_name = "X", default_value_t = 10.0)]
    pub reg_loss_weight: f64,
    /// The instance level reads embeddings that are normalised (1) or not (0)
    #[arg(long, value_name = "0|1", default_value_t = 1)]
    pub norm_input: u8,
    /// 1: the instance level's losses across it, too; 0: the loss of its output alone
    #[arg(long, value_name = "0|1", default_value_t = 1)]
    pub cross_loss: u8,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            embed_size: 1024,
            nhead: 16,
            num_layers_enc: 1,
            dropout: 0.1,
            residual_weight: 0.8,
            no_imgnorm: false,
            no_txtnorm: false,
            dataset: "f30k".into(),
            base_loss: Criterion::Trip,
            gnn_loss: Criterion::Trip,
            margin: 0.2,
            max_violation: false,
            vse_mean_warmup_epochs: 1,
            mask_repeat: 1,
            warmup: 8000,
            threshold: 0.5,
            topk: 10,
            mask_weight: 1.0,
            reg_loss_weight: 10.0,
            norm_input: 1,
            cross_loss: 1,
        }
    }
}

/// What determines the model, its loss and its optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The options.
    #[serde(flatten)]
    pub options: ModelOptions,
    /// Width of a region's features.
    pub img_dim: usize,
    /// Values of a channel whose mean is pooled.
    #[serde(default = "two")]
    pub k_max_pool: usize,
    /// The number of values pooled falls for every item after a shorter one of the batch, as in the authors' code.
    #[serde(default = "yes")]
    pub faithful: bool,
    /// The text encoder.
    #[serde(rename = "bert_config", alias = "bert")]
    pub bert: bert::Config,
}

fn two() -> usize {
    2
}

fn yes() -> bool {
    true
}

fn out_of_range(option: &str, expected: &str, found: impl ToString) -> Error {
    Error::new("the value is out of range").at(option).expected(expected).found(found.to_string())
}

impl ModelOptions {
    pub(super) fn is_coco(&self) -> bool {
        self.dataset == COCO
    }

    /// Whether the options make a model, as far as they tell.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("embed_size", self.embed_size, 2, MAX_SIZE),
            ("nhead", self.nhead, 1, MAX_SIZE),
            ("num_layers_enc", self.num_layers_enc, 1, MAX_LAYERS),
            ("topk", self.topk, 1, MAX_SIZE),
        ];
        for (name, size, least, most) in sizes {
            if !(least..=most).contains(&size) {
                return Err(out_of_range(name, &format!("{least} to {most}"), size));
            }
        }
        if !self.embed_size.is_multiple_of(self.nhead) {
            return Err(Error::new("the heads do not divide the embedding")
                .at("nhead")
                .expected(format!("a divisor of embed_size {}", self.embed_size))
                .found(self.nhead)
                .cure("give another --nhead or --embed_size"));
        }
        if !(self.threshold > 0.0 && self.threshold <= 1.0) {
            return Err(out_of_range("threshold", "above 0 and at most 1", self.threshold)
                .cure("give --threshold the share of a batch that a sample is connected with"));
        }
        if !(self.mask_weight.is_finite() && self.mask_weight > 0.0) {
            return Err(out_of_range("mask_weight", "a number above 0", self.mask_weight)
                .cure("what is not connected is masked by minus infinity times --mask_weight"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(out_of_range("dropout", "at least 0 and below 1", self.dropout));
        }
        let numbers = [
            ("residual_weight", self.residual_weight),
            ("margin", self.margin),
            ("reg_loss_weight", self.reg_loss_weight),
        ];
        if let Some((name, value)) = numbers.iter().find(|(_, v)| !v.is_finite()) {
            return Err(out_of_range(name, "a number", value));
        }
        let flags = [
            ("mask_repeat", self.mask_repeat),
            ("norm_input", self.norm_input),
            ("cross_loss", self.cross_loss),
        ];
        match flags.iter().find(|(_, flag)| *flag > 1) {
            Some((name, flag)) => Err(out_of_range(name, "0 or 1", flag)),
            None => Ok(()),
        }
    }
}

impl Config {
    /// Whether the sizes make a model.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        self.options.check()?;
        self.bert.check()?;
        for (name, size) in [("img_dim", self.img_dim), ("k_max_pool", self.k_max_pool)] {
            if !(1..=MAX_SIZE).contains(&size) {
                return Err(out_of_range(name, &format!("1 to {MAX_SIZE}"), size));
            }
        }
        let words = self.bert.max_position_embeddings;
        if self.options.topk > words {
            return Err(out_of_range(
                "topk",
                &format!("at most {words}, the text encoder's positions"),
                self.options.topk,
            )
            .cure("lower --topk"));
        }
        Ok(())
    }

    /// The distance at which triplets' negatives end.
    pub(super) fn far(&self) -> f64 {
        if self.options.is_coco() { 1.9 } else { 1.7 }
    }

    /// Every parameter, named as in the authors' state dicts: `img_enc`, `txt_enc`, and `criterion`, which serves
    /// training alone.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        let d = self.options.embed_size;
        layout(|l| {
            let maps =
                [("fc", self.img_dim, d), ("mlp.layers.0", self.img_dim, d / 2), ("mlp.layers.1", d / 2, d)];
            for (name, from, to) in maps {
                xavier(l, &format!("img_enc.fc.{name}"), from, to);
            }
            l.batch_norm("img_enc.fc.mlp.bns.0", d / 2);
            // In the authors' state dict, never used.
            l.batch_norm("img_enc.fc.mlp.bns.1", d);
            Layer::parameters(l, "img_enc.aggr.layers.0", d, d);
            l.extend(self.bert.parameters("txt_enc.bert."));
            l.linear("txt_enc.linear", self.bert.hidden_size, d);
            Layer::parameters(l, "txt_enc.aggr.layers.0", d, d);
            let k = self.options.topk;
            let learned = "criterion.adj_model.adj_learning";
            let first = layout(|l| {
                l.linear(&format!("{learned}.mlp_t2i.0"), k, k);
                l.linear(&format!("{learned}.mlp_t2i.3"), k, 1);
            });
            l.extend(copies(&first, "mlp_t2i", "mlp_i2t"));
            l.extend(first);
            let first = layout(|l| Layer::parameters(l, "criterion.gnn.layers.0", d, d));
            // PyTorch clones a stack of layers from one.
            for i in 1..self.options.num_layers_enc {
                l.extend(copies(&first, "layers.0", &format!("layers.{i}")));
            }
            l.extend(first);
        })
        .into_iter()
        .map(placed)
        .collect()
    }
}

/// A parameter with its optimiser group and what it is to training: those of the loss are no part of a saved model.
fn placed(mut spec: ParamSpec) -> ParamSpec {
    if spec.name.starts_with("criterion.") {
        spec.role = Role::Criterion;
        spec.group = "criterion";
    } else if spec.role == Role::Encoder {
        spec.group = "bert";
    }
    spec
}

/// A linear map begun by Glorot and Bengio's bound, its bias 0.
fn xavier(l: &mut Layout, at: &str, from: usize, to: usize) {
    l.push(
        format!("{at}.weight"),
        &[to, from],
        Init::Uniform((6.0 / (from + to) as f64).sqrt()),
        Role::Weight,
    );
    l.push(format!("{at}.bias"), &[to], Init::Const(0.0), Role::Weight);
}

/// The same parameters under other names, begun with the same values.
fn copies(specs: &[ParamSpec], from: &str, to: &str) -> Vec<ParamSpec> {
    let copy = |spec: &ParamSpec| ParamSpec {
        name: spec.name.replacen(from, to, 1),
        init: Init::Same(spec.name.clone()),
        ..spec.clone()
    };
    specs.iter().map(copy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_make_no_model_are_named() {
        ModelOptions::default().check().expect("the authors' defaults");
        let wrong = |name: &str, change: fn(&mut ModelOptions)| {
            let mut options = ModelOptions::default();
            change(&mut options);
            let error = options.check().expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        };
        wrong("nhead", |o| o.nhead = 7);
        wrong("nhead", |o| o.nhead = 0);
        wrong("embed_size", |o| o.embed_size = 0);
        wrong("embed_size", |o| o.embed_size = usize::MAX);
        wrong("topk", |o| o.topk = 0);
        wrong("num_layers_enc", |o| o.num_layers_enc = 0);
        wrong("threshold", |o| o.threshold = 0.0);
        wrong("threshold", |o| o.threshold = f64::NAN);
        wrong("mask_weight", |o| o.mask_weight = 0.0);
        wrong("mask_weight", |o| o.mask_weight = f64::INFINITY);
        wrong("dropout", |o| o.dropout = 1.0);
        wrong("margin", |o| o.margin = f64::NAN);
        wrong("cross_loss", |o| o.cross_loss = 2);
    }
}
