//! What makes a DIME, by the names of the authors' `train.py`, and its parameters.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::cells::CELLS;
use crate::error::{Error, Result};
use crate::nn::{Init, ParamSpec, Role, bert, layout};

/// Which side's local features travel through the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Regions, guided by the sentence, with words as context.
    I2t,
    /// Words, guided by the image, with regions as context.
    T2i,
}

/// How cross-modal attention normalises its scores over the queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum AttentionNorm {
    /// Leaky ReLU of slope 0.1, then the L2 norm.
    ClippedL2norm,
    /// SCAN's L2 norm, plus 1e-8.
    L2norm,
    /// Softmax.
    Softmax,
    /// Leaky ReLU of slope 0.1.
    Clipped,
    /// Nothing.
    NoNorm,
}

/// Sizes past this are slips or hostile, and their products would overflow.
const MAX_SIZE: usize = 1 << 24;

/// The options that make the model and its loss.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[command(rename_all = "verbatim", next_help_heading = "DIME: the model")]
#[allow(non_snake_case, reason = "the authors' option names are the interface")]
pub struct ModelOptions {
    /// Pieces of a caption, its two marks and padding included
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub max_words: usize,
    /// Width of the joint embedding
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub embed_size: usize,
    /// Which side travels through the cells: regions (i2t) or words (t2i)
    #[arg(long, value_enum, default_value = "i2t", hide_possible_values = true)]
    pub direction: Direction,
    /// Heads of the intra-modal reasoning cell; they divide the embedding
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub num_head_IMRC: usize,
    /// Hidden width of the intra-modal reasoning cell
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub hid_IMRC: usize,
    /// Hidden width of the routers
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub hid_router: usize,
    /// Norm of the cross-modal attention: clipped_l2norm, l2norm, softmax, clipped, no_norm
    #[arg(long, value_name = "NORM", value_parser = norm, default_value = "clipped_l2norm")]
    pub raw_feature_norm_CMRC: AttentionNorm,
    /// Inverse temperature of the cross-modal attention; --lambda_softmax for short
    #[arg(
        long,
        value_name = "X",
        aliases = ["lambda_softmax", "lambda-softmax"],
        default_value_t = 4.0,
        allow_negative_numbers = true
    )]
    pub lambda_softmax_CMRC: f64,
    /// Takes absolute values of the image vector
    #[arg(long)]
    pub use_abs: bool,
    /// Leaves the image vector unnormalised
    #[arg(long)]
    pub no_imgnorm: bool,
    /// Margin of the hinge loss
    #[arg(long, value_name = "X", default_value_t = 0.2, allow_negative_numbers = true)]
    #[serde(default = "margin")]
    pub margin: f64,
    /// Hardest negatives only.
    #[arg(
        long = "no-max-violation",
        action = clap::ArgAction::SetFalse,
        help = "Sums all violations in the hinge loss, not the hardest alone"
    )]
    #[serde(default = "always")]
    pub max_violation: bool,
    /// Weight of the path loss
    #[arg(long, value_name = "X", default_value_t = 0.5, allow_negative_numbers = true)]
    #[serde(default = "trade_off")]
    pub trade_off: f64,
    /// Padded words are masked, for new models; the authors let them into means, maxima and routers
    #[arg(long = "mask-padding")]
    #[serde(default)]
    pub mask_padding: bool,
}

/// Reads an attention norm; those that the authors' code offers and stops at are named.
fn norm(text: &str) -> std::result::Result<AttentionNorm, String> {
    <AttentionNorm as ValueEnum>::from_str(text, false).map_err(|_| {
        let what = match text {
            "l1norm" | "clipped_l1norm" => "the authors' code offers this attention norm but stops at it",
            _ => "no such attention norm",
        };
        format!("{what}; expected clipped_l2norm, l2norm, softmax, clipped or no_norm")
    })
}

/// What determines the model and its loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The options.
    #[serde(flatten)]
    pub options: ModelOptions,
    /// Width of a region's features.
    pub img_dim: usize,
    /// The option that divides the path loss.
    #[serde(default = "batch_size")]
    pub batch_size: usize,
    /// Width of the path embedding.
    #[serde(default = "path_hid")]
    pub path_hid: usize,
    /// The text encoder.
    pub bert_config: bert::Config,
}

// The authors' defaults of what scoring does not need: an imported checkpoint may not tell.

fn margin() -> f64 {
    0.2
}

fn always() -> bool {
    true
}

fn trade_off() -> f64 {
    0.5
}

fn batch_size() -> usize {
    32
}

pub(super) fn path_hid() -> usize {
    128
}

impl ModelOptions {
    /// Whether the options make a model.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        check_sizes(&[("max_words", self.max_words)], 3)?;
        check_sizes(
            &[
                ("embed_size", self.embed_size),
                ("num_head_IMRC", self.num_head_IMRC),
                ("hid_IMRC", self.hid_IMRC),
                ("hid_router", self.hid_router),
            ],
            1,
        )?;
        if !self.embed_size.is_multiple_of(self.num_head_IMRC) {
            return Err(Error::new("the heads do not divide the width")
                .at("--num_head_IMRC, --embed_size")
                .expected(format!("--num_head_IMRC to be a divisor of --embed_size {}", self.embed_size))
                .found(self.num_head_IMRC));
        }
        let numbers = [
            ("margin", self.margin),
            ("trade_off", self.trade_off),
            ("lambda_softmax_CMRC", self.lambda_softmax_CMRC),
        ];
        match numbers.iter().find(|(_, v)| !v.is_finite()) {
            Some((name, value)) => Err(Error::new("the number is out of range")
                .at(format!("--{name}"))
                .expected("a number")
                .found(value)),
            None => Ok(()),
        }
    }
}

fn check_sizes(sizes: &[(&str, usize)], least: usize) -> Result<()> {
    match sizes.iter().find(|(_, n)| !(least..=MAX_SIZE).contains(n)) {
        Some((name, size)) => Err(Error::new("the number is out of range")
            .at(format!("--{name}"))
            .expected(format!("{least} to {MAX_SIZE}"))
            .found(size)),
        None => Ok(()),
    }
}

impl Config {
    /// Whether the sizes make a model.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        self.bert_config.check()?;
        self.options.check()?;
        let sizes = [("img_dim", self.img_dim), ("batch_size", self.batch_size), ("path_hid", self.path_hid)];
        check_sizes(&sizes, 1)?;
        let max_words = self.options.max_words;
        if max_words > self.bert_config.max_position_embeddings {
            return Err(Error::new("captions are longer than the text encoder's position table")
                .at("max_words")
                .expected(format!("at most {}", self.bert_config.max_position_embeddings))
                .found(max_words)
                .cure("lower --max_words"));
        }
        Ok(())
    }

    /// Every parameter, named as in the authors' state dicts `img_enc`, `txt_enc` and `itr_module`.
    /// Those without a use in the direction, or any (`fc_2` of the guidance cell), are there too.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        let d = self.options.embed_size;
        layout(|l| {
            l.linear("img_enc.fc", self.img_dim, d);
            l.begin_last(Init::Const(0.0));
            l.batch_norm("img_enc.bn", d);
            l.extend(self.bert_config.parameters("txt_enc.bert."));
            let hidden = self.bert_config.hidden_size;
            l.linear("txt_enc.fc", hidden, d);
            for k in 1..=3 {
                let bound = Init::Uniform(1.0 / ((k * hidden) as f64).sqrt());
                let at = format!("txt_enc.convs1.{}", k - 1);
                l.push(format!("{at}.weight"), &[d, 1, k, hidden], bound.clone(), Role::Weight);
                l.push(format!("{at}.bias"), &[d], bound, Role::Weight);
            }
            l.linear("txt_enc.mapping", 3 * d, d);
            for (layer, paths) in [4, 4, 1].into_iter().enumerate() {
                self.layer_parameters(l, layer, paths);
            }
            l.linear("itr_module.path_mapping", 36, self.path_hid);
            l.batch_norm("itr_module.bn", d);
            // Nothing reads these: last, so that the optimiser steps what is before them as one.
            for layer in 0..3 {
                l.linear(&format!("itr_module.dynamic_itr_l{layer}.glgc.fc_2"), d, d);
            }
        })
        .into_iter()
        .map(|mut spec| {
            if spec.name == "img_enc.fc.weight" {
                spec.init = Init::Uniform((6.0 / (self.img_dim + d) as f64).sqrt());
            }
            spec
        })
        .collect()
    }

    fn layer_parameters(&self, l: &mut crate::nn::Layout, layer: usize, paths: usize) {
        let d = self.options.embed_size;
        let at = format!("itr_module.dynamic_itr_l{layer}");
        l.together(format!("{at}.routers.mlp.0"), |l| {
            for cell in CELLS {
                l.linear(&format!("{at}.{cell}.router.mlp.0"), d, self.options.hid_router);
            }
        });
        l.together(format!("{at}.routers.mlp.2"), |l| {
            for cell in CELLS {
                l.linear(&format!("{at}.{cell}.router.mlp.2"), self.options.hid_router, paths);
                l.begin_last(Init::Const(1.5));
            }
        });
        let attention = format!("{at}.imrc.sa.att_layer.linears");
        l.together(&attention, |l| {
            for i in 0..3 {
                let bound = Init::Uniform(1.0 / (d as f64).sqrt());
                for (part, shape) in [("weight", vec![d, d]), ("bias", vec![d])] {
                    let init =
                        if i == 0 { bound.clone() } else { Init::Same(format!("{attention}.0.{part}")) };
                    l.push(format!("{attention}.{i}.{part}"), &shape, init, Role::Weight);
                }
            }
        });
        l.linear(&format!("{at}.imrc.sa.feed_forward_layer.fc1"), d, self.options.hid_IMRC);
        l.linear(&format!("{at}.imrc.sa.feed_forward_layer.fc2"), self.options.hid_IMRC, d);
        l.linear(&format!("{at}.glgc.fc_1"), d, d);
        let refine = format!("{at}.cmrc.refine");
        l.together(&refine, |l| {
            ["fc_scale", "fc_shift"].iter().for_each(|map| l.linear(&format!("{refine}.{map}"), d, d));
        });
        ["fc_1", "fc_2"].iter().for_each(|map| l.linear(&format!("{refine}.{map}"), d, d));
    }
}
