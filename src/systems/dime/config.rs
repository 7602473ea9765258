//! DIME's options, by the names of the authors' `train.py`, and its parameters.

use serde::{Deserialize, Serialize};

use super::cells::CELLS;
use crate::error::{Error, Result};
use crate::nn::{Init, ParamSpec, Role, bert, layout};

/// Which side's local features travel through the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Regions, guided by the sentence, with words as context.
    I2t,
    /// Words, guided by the image, with regions as context.
    T2i,
}

/// How cross-modal attention normalises its scores over the queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

/// What determines the model and its loss.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(non_snake_case, reason = "the authors' option names are the file format")]
pub struct Config {
    /// Which side travels.
    pub direction: Direction,
    /// Words of a caption, padding included.
    pub max_words: usize,
    /// Width of a region's features.
    pub img_dim: usize,
    /// Width of the joint embedding.
    pub embed_size: usize,
    /// Heads of the intra-modal cell; they divide the embedding.
    pub num_head_IMRC: usize,
    /// Hidden width of the intra-modal cell.
    pub hid_IMRC: usize,
    /// Hidden width of the routers.
    pub hid_router: usize,
    /// Normalisation of cross-modal scores.
    pub raw_feature_norm_CMRC: AttentionNorm,
    /// Inverse temperature of cross-modal attention.
    pub lambda_softmax_CMRC: f64,
    /// Absolute values of the image vector.
    pub use_abs: bool,
    /// The image vector is not normalised.
    pub no_imgnorm: bool,
    /// Margin of the hinge loss.
    #[serde(default = "margin")]
    pub margin: f64,
    /// Hardest negatives only.
    #[serde(default = "always")]
    pub max_violation: bool,
    /// Weight of the path regularisation.
    #[serde(default = "trade_off")]
    pub trade_off: f64,
    /// The option that divides the path loss.
    #[serde(default = "batch_size")]
    pub batch_size: usize,
    /// Width of the path embedding.
    #[serde(default = "path_hid")]
    pub path_hid: usize,
    /// Padded words take part in nothing; the authors let them into means, maxima and routers.
    #[serde(default)]
    pub mask_padding: bool,
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

fn path_hid() -> usize {
    128
}

impl Config {
    /// Whether the sizes make a model.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        self.bert_config.check()?;
        let sizes = [
            ("max_words", self.max_words),
            ("img_dim", self.img_dim),
            ("embed_size", self.embed_size),
            ("num_head_IMRC", self.num_head_IMRC),
            ("hid_IMRC", self.hid_IMRC),
            ("hid_router", self.hid_router),
            ("batch_size", self.batch_size),
            ("path_hid", self.path_hid),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return Err(Error::new("a size is zero").at(name).expected("at least 1").found(0));
        }
        if let Some((name, size)) = sizes.iter().find(|(_, n)| *n > MAX_SIZE) {
            return Err(Error::new("a size is too large")
                .at(name)
                .expected(format!("at most {MAX_SIZE}"))
                .found(size));
        }
        if !self.embed_size.is_multiple_of(self.num_head_IMRC) {
            return Err(Error::new("the heads do not divide the embedding")
                .at("num_head_IMRC")
                .expected(format!("a divisor of embed_size {}", self.embed_size))
                .found(self.num_head_IMRC));
        }
        if self.max_words > self.bert_config.max_position_embeddings {
            return Err(Error::new("captions are longer than the text encoder's position table")
                .at("max_words")
                .expected(format!("at most {}", self.bert_config.max_position_embeddings))
                .found(self.max_words)
                .cure("lower --max_words"));
        }
        Ok(())
    }

    /// Reads a configuration and checks it.
    ///
    /// # Errors
    /// An option that is missing or of another type, and as [`Config::check`].
    pub fn read(json: &serde_json::Value) -> Result<Self> {
        let config = Self::deserialize(json)
            .map_err(|e| Error::new(format!("the configuration is not understood: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// Every parameter, named as in the authors' state dicts behind `img_enc`, `txt_enc` and `itr_module`.
    /// Those without a use in the direction, or any (`fc_2` of the guidance cell), are there too.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        let d = self.embed_size;
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
        let d = self.embed_size;
        let at = format!("itr_module.dynamic_itr_l{layer}");
        l.together(format!("{at}.routers.mlp.0"), |l| {
            for cell in CELLS {
                l.linear(&format!("{at}.{cell}.router.mlp.0"), d, self.hid_router);
            }
        });
        l.together(format!("{at}.routers.mlp.2"), |l| {
            for cell in CELLS {
                l.linear(&format!("{at}.{cell}.router.mlp.2"), self.hid_router, paths);
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
        l.linear(&format!("{at}.imrc.sa.feed_forward_layer.fc1"), d, self.hid_IMRC);
        l.linear(&format!("{at}.imrc.sa.feed_forward_layer.fc2"), self.hid_IMRC, d);
        l.linear(&format!("{at}.glgc.fc_1"), d, d);
        let refine = format!("{at}.cmrc.refine");
        l.together(&refine, |l| {
            ["fc_scale", "fc_shift"].iter().for_each(|map| l.linear(&format!("{refine}.{map}"), d, d));
        });
        ["fc_1", "fc_2"].iter().for_each(|map| l.linear(&format!("{refine}.{map}"), d, d));
    }
}
