//! What makes a GSMN, by the names of the authors' `train.py`, and its parameters.

use std::f64::consts::PI;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::graph::KERNELS;
use crate::error::{Error, Result};
use crate::nn::gru::Gru;
use crate::nn::{Init, Layout, ParamSpec, Role, layout};

/// Sizes past this are slips or hostile, and their products would overflow.
const MAX_SIZE: usize = 1 << 24;
/// Layers past which a configuration is a slip or hostile.
const MAX_LAYERS: usize = 1000;

/// The options that make the model and its loss.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[command(rename_all = "verbatim", next_help_heading = "GSMN: the model")]
#[serde(default)]
pub struct ModelOptions {
    /// Width of the joint embedding
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub embed_size: usize,
    /// Width of a word's embedding
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub word_dim: usize,
    /// Layers of the GRU
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub num_layers: usize,
    /// Reads captions from both ends
    #[arg(long)]
    pub bi_gru: bool,
    /// Blocks that an embedding is compared in; their width is embed_size / num_block and divides the embedding
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub num_block: usize,
    /// Numbers of a comparison: as many as there are blocks
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub feat_dim: usize,
    /// Width of the graph layers: a multiple of their 8 kernels
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub hid_dim: usize,
    /// Outputs whose mean is a node's score
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub out_dim: usize,
    /// Inverse temperature of every attention
    #[arg(long, value_name = "X", default_value_t = 9.0, allow_negative_numbers = true)]
    pub lambda_softmax: f64,
    /// Words are connected by their dependencies ({split}_caps.json), not each with all
    #[arg(long)]
    pub is_sparse: bool,
    /// Leaves regions unnormalised
    #[arg(long)]
    pub no_imgnorm: bool,
    /// Leaves words unnormalised
    #[arg(long)]
    pub no_txtnorm: bool,
    /// Margin of the hinge loss
    #[arg(long, value_name = "X", default_value_t = 0.2, allow_negative_numbers = true)]
    pub margin: f64,
    /// Hardest negatives only
    #[arg(long)]
    pub max_violation: bool,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            embed_size: 1024,
            word_dim: 300,
            num_layers: 1,
            bi_gru: false,
            num_block: 16,
            feat_dim: 16,
            hid_dim: 32,
            out_dim: 1,
            lambda_softmax: 9.0,
            is_sparse: false,
            no_imgnorm: false,
            no_txtnorm: false,
            margin: 0.2,
            max_violation: false,
        }
    }
}

/// What determines the model and its loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The options.
    #[serde(flatten)]
    pub options: ModelOptions,
    /// Width of a region's features.
    pub img_dim: usize,
    /// Words that have an embedding.
    pub vocab_size: usize,
    /// Samples of a batch in training: how the authors' loader cuts an evaluation, too.
    #[serde(default = "batch_size")]
    pub batch_size: usize,
    /// Boxes are divided again at every read and an image gets another's, as in the authors' code: what the weights that
    /// they released were trained and evaluated with.
    #[serde(default = "yes")]
    pub faithful: bool,
}

fn batch_size() -> usize {
    128
}

fn yes() -> bool {
    true
}

fn out_of_range(option: &str, expected: &str, found: impl ToString) -> Error {
    Error::new("the value is out of range")
        .at(format!("--{option}"))
        .expected(expected)
        .found(found.to_string())
        .cure(format!("give another --{option}"))
}

impl ModelOptions {
    /// The width of a block, and how many of them there are.
    pub(super) fn blocks(&self) -> [usize; 2] {
        let width = self.embed_size / self.num_block;
        [width, self.embed_size / width]
    }

    /// Whether the options make a model, as far as they tell.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("embed_size", self.embed_size, MAX_SIZE),
            ("word_dim", self.word_dim, MAX_SIZE),
            ("num_layers", self.num_layers, MAX_LAYERS),
            ("num_block", self.num_block, self.embed_size),
            ("hid_dim", self.hid_dim, MAX_SIZE),
            ("out_dim", self.out_dim, MAX_SIZE),
        ];
        for (name, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(out_of_range(name, &format!("1 to {most}"), size));
            }
        }
        let [width, blocks] = self.blocks();
        if !self.embed_size.is_multiple_of(width) {
            return Err(Error::new("the blocks do not divide the embedding")
                .at("--num_block")
                .expected(format!("embed_size {} / num_block to divide it", self.embed_size))
                .found(format!("{} / {} = {width}", self.embed_size, self.num_block))
                .cure("give another --num_block or --embed_size"));
        }
        if self.feat_dim != blocks {
            return Err(out_of_range("feat_dim", &format!("{blocks}, the number of blocks"), self.feat_dim)
                .cure(format!("give --feat_dim {blocks}, or another --num_block")));
        }
        if !self.hid_dim.is_multiple_of(KERNELS) {
            return Err(out_of_range("hid_dim", &format!("a multiple of {KERNELS}"), self.hid_dim));
        }
        match [("lambda_softmax", self.lambda_softmax), ("margin", self.margin)]
            .iter()
            .find(|(_, v)| !v.is_finite())
        {
            Some((name, value)) => Err(out_of_range(name, "a number", value)),
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
        let sizes =
            [("img_dim", self.img_dim), ("vocab_size", self.vocab_size), ("batch_size", self.batch_size)];
        for (name, size) in sizes {
            if !(1..=MAX_SIZE).contains(&size) {
                return Err(out_of_range(name, &format!("1 to {MAX_SIZE}"), size));
            }
        }
        Ok(())
    }

    pub(super) fn gru(&self) -> Gru {
        let ModelOptions { word_dim: from, embed_size: width, num_layers: layers, bi_gru: both_ways, .. } =
            self.options;
        Gru { from, width, layers, both_ways }
    }

    /// Every parameter, named as in the authors' state dicts, behind their modules' names: `img_enc`, `txt_enc`,
    /// `i2t_match_G`, `t2i_match_G`.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        let ModelOptions { embed_size: d, word_dim, feat_dim, hid_dim, out_dim, .. } = self.options;
        layout(|l| {
            let mut push = |name: &str, shape: &[usize], begin| {
                l.push(name.into(), shape, begin, Role::Weight);
            };
            let bound = (6.0 / (self.img_dim + d) as f64).sqrt();
            push("img_enc.fc.weight", &[d, self.img_dim], Init::Uniform(bound));
            push("img_enc.fc.bias", &[d], Init::Const(0.0));
            push("txt_enc.embed.weight", &[self.vocab_size, word_dim], Init::Uniform(0.1));
            self.gru().parameters(l, "txt_enc.rnn");
            let graph = "i2t_match_G.graph_convolution_1";
            for (name, begin) in [
                ("mean_rho", Init::Between(0.0, 1.0)),
                ("mean_theta", Init::Between(-PI, PI)),
                ("precision_rho", Init::Between(0.0, 1.0)),
                ("precision_theta", Init::Between(0.0, 1.0)),
            ] {
                l.push(format!("{graph}.{name}"), &[KERNELS, 1], begin, Role::Weight);
            }
            let bound = Init::Uniform(1.0 / (feat_dim as f64).sqrt());
            for k in 0..KERNELS {
                let shape = [hid_dim / KERNELS, feat_dim];
                l.push(format!("{graph}.conv_weights.{k}.weight"), &shape, bound.clone(), Role::Weight);
            }
            head(l, "i2t_match_G", hid_dim, out_dim);
            let graph = "t2i_match_G.graph_convolution_3";
            l.push(format!("{graph}.params"), &[KERNELS, 1], Init::Uniform(1.0), Role::Weight);
            for k in 0..KERNELS {
                l.linear(&format!("{graph}.conv_weights.{k}"), feat_dim, hid_dim / KERNELS);
            }
            head(l, "t2i_match_G", hid_dim, out_dim);
        })
    }
}

/// The two maps from a node's hidden values to its score, their weights as PyTorch's weight norm keeps them.
fn head(l: &mut Layout, at: &str, hid_dim: usize, out_dim: usize) {
    let bound = Init::Uniform(1.0 / (hid_dim as f64).sqrt());
    for (name, to) in [("out_1", hid_dim), ("out_2", out_dim)] {
        let mut push = |kind: &str, shape: &[usize], begin| {
            l.push(format!("{at}.{name}.{kind}"), shape, begin, Role::Weight);
        };
        push("bias", &[to], bound.clone());
        push("weight_g", &[to, 1], Init::RowNorms(format!("{at}.{name}.weight_v")));
        push("weight_v", &[to, hid_dim], bound.clone());
    }
}
