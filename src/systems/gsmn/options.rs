//! GSMN's options on the command line and in a run's folder, and how its authors' checkpoints tell them.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Config, Gsmn, ModelOptions};
use crate::error::{Error, Result};
use crate::systems::{Checkpoint, Encoders, Family, System, Text};

/// GSMN's options: those of the published `train.py` under their names and with their defaults.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    #[serde(flatten)]
    schedule: ScheduleOptions,
    #[command(flatten)]
    #[serde(skip)]
    words: WordOptions,
}

/// Where the words are.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(rename_all = "verbatim", next_help_heading = "GSMN: the data")]
struct WordOptions {
    /// The folder of {data_name}_vocab.json [default: the data's folder, else ./vocab/]
    #[arg(long, value_name = "DIR")]
    vocab_path: Option<PathBuf>,
}

/// What may change when a run goes on.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[command(rename_all = "verbatim", next_help_heading = "GSMN: training")]
#[serde(default)]
pub(super) struct ScheduleOptions {
    /// Epochs after which the learning rate falls to a tenth, again and again
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub(super) lr_update: u64,
}

impl ScheduleOptions {
    fn check(&self) -> Result<()> {
        match self.lr_update {
            0 => Err(Error::new("the number is out of range")
                .at("--lr_update")
                .expected("at least 1")
                .found(0)
                .cure("give an --lr_update past --num_epochs to keep the learning rate")),
            _ => Ok(()),
        }
    }
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self { lr_update: 15 }
    }
}

impl super::super::Options for Options {
    fn check(&self, _: bool) -> Result<Vec<String>> {
        self.model.check()?;
        self.schedule.check()?;
        Ok(Vec::new())
    }

    fn common(&self, faithful: bool) -> Vec<(&'static str, String)> {
        let ours = [("batch_size", "128"), ("log_step", "100"), ("val_step", "15000")];
        let theirs = [("dev_limit", "5000")];
        let all = ours.into_iter().chain(theirs.into_iter().filter(|_| faithful));
        all.map(|(name, value)| (name, value.to_string())).collect()
    }

    fn all(&self) -> Json {
        serde_json::to_value(self).expect("options are plain data")
    }

    fn free(&self) -> Json {
        serde_json::to_value(&self.schedule).expect("options are plain data")
    }

    fn max_words(&self) -> Option<usize> {
        None
    }

    fn vocabulary(&self) -> Option<&Path> {
        self.words.vocab_path.as_deref()
    }

    fn system(&self, encoders: &Encoders) -> Result<Box<dyn System>> {
        let config = Config {
            options: self.model.clone(),
            img_dim: encoders.dim,
            vocab_size: encoders.words(),
            batch_size: encoders.batch_size,
            faithful: encoders.faithful,
        };
        config.check()?;
        Ok(Box::new(Gsmn { config, lr_update: self.schedule.lr_update }))
    }
}

/// The options that a weight's shape tells: the weight and its axis.
const TOLD: [(&str, &str, usize); 7] = [
    ("embed_size", "img_enc.fc.weight", 0),
    ("img_dim", "img_enc.fc.weight", 1),
    ("vocab_size", "txt_enc.embed.weight", 0),
    ("word_dim", "txt_enc.embed.weight", 1),
    ("hid_dim", "i2t_match_G.out_1.weight_v", 0),
    ("out_dim", "i2t_match_G.out_2.weight_v", 0),
    ("feat_dim", "i2t_match_G.graph_convolution_1.conv_weights.0.weight", 1),
];

/// The options without which scores are others, and that no shape tells.
const NEEDED: [&str; 6] = ["num_block", "lambda_softmax", "bi_gru", "is_sparse", "no_imgnorm", "no_txtnorm"];

impl Family for Options {
    const NAME: &'static str = "gsmn";
    const EXAMPLES: &'static str = "\
  crossweave train --system gsmn --data_path data/ --data_name f30k_precomp --vocab_path vocab/ \\
      --logger_name runs/log --bi_gru --max_violation --lambda_softmax 20 --batch_size 64
  crossweave train --config tools/demo-gsmn.toml --seed 2";
    const TITLE: &'static str = "GSMN (CVPR 2020)";
    const MODULES: &'static [&'static str] = &["img_enc", "txt_enc", "i2t_match_G", "t2i_match_G"];
    const TEXT: Text = Text::Words;

    fn open(config: &Json) -> Result<Box<dyn System>> {
        let not_understood =
            |e: serde_json::Error| Error::new(format!("the configuration is not understood: {e}"));
        let schedule = ScheduleOptions::deserialize(config).map_err(not_understood)?;
        let config = Config::deserialize(config).map_err(not_understood)?;
        config.check()?;
        schedule.check()?;
        Ok(Box::new(Gsmn { config, lr_update: schedule.lr_update }))
    }

    fn import(checkpoint: Checkpoint) -> Result<Json> {
        checkpoint.config(&TOLD, &NEEDED)
    }
}
