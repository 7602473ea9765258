//! DIME's options on the command line and in a run's folder, and how its authors' checkpoints tell them.

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::config::path_hid;
use super::{Config, Dime, Direction, ModelOptions};
use crate::error::{Error, Result};
use crate::systems::{Checkpoint, Encoders, Family, System, Text};

/// Captions that the authors' validation uses at most.
const THEIR_DEV: &str = "5000";

/// DIME's options: those of the published `train.py` under their names and with their defaults, and ours.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    #[serde(flatten)]
    training: TrainingOptions,
    #[command(flatten)]
    #[serde(flatten)]
    schedule: ScheduleOptions,
    #[command(flatten)]
    #[serde(skip)]
    idle: IdleOptions,
}

/// What decides a run's numbers besides the model.
#[derive(Args, Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[command(rename_all = "verbatim", next_help_heading = "DIME: training")]
#[serde(default)]
pub(super) struct TrainingOptions {
    /// Random captions added for each sample, as negatives
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) extra_stc: usize,
    /// Random images added for each sample, as negatives (extra_stc wins if both are given)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) extra_img: usize,
    /// Runs the cells again on the way back instead of keeping what their gradients read: less memory, more time
    #[arg(long = "checkpoint-cells")]
    pub(super) checkpoint_cells: bool,
}

/// What may change when a run goes on.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[command(rename_all = "verbatim", next_help_heading = "DIME: training")]
#[serde(default)]
struct ScheduleOptions {
    /// Epochs after which the learning rate is divided by ten
    #[arg(long, value_name = "N", default_value_t = 15)]
    lr_update: usize,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self { lr_update: 15 }
    }
}

/// What changes nothing.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(rename_all = "verbatim", next_help_heading = "DIME: options that do nothing")]
struct IdleOptions {
    /// Hardest negatives only: always on, as in the authors' code (see --no-max-violation)
    #[arg(long = "max_violation")]
    always_max_violation: bool,
    /// Does nothing, as in the authors' code
    #[arg(long, value_name = "X")]
    drop: Option<f64>,
    /// Does nothing, as in the authors' code with precomputed features (see --finetune-bert)
    #[arg(long)]
    finetune: bool,
    /// Does nothing, as in the authors' code
    #[arg(long)]
    use_restval: bool,
    /// Does nothing, as in the authors' code
    #[arg(long, value_name = "NAME")]
    measure: Option<String>,
    /// Does nothing, as in the authors' code
    #[arg(long)]
    reset_train: bool,
}

fn clash(one: &str, other: &str, why: &str) -> Error {
    Error::new(format!("{one} contradicts {other}: {why}")).cure(format!("leave out {one} or {other}"))
}

impl Options {
    /// The path loss compares the side that travels with the captions' labels one by one.
    fn check_extras(&self) -> Result<()> {
        let TrainingOptions { extra_stc, extra_img, .. } = self.training;
        let (given, option, other, direction) = match self.model.direction {
            Direction::T2i => (extra_stc, "extra_stc", "extra_img", "t2i"),
            Direction::I2t if extra_stc > 0 => return Ok(()),
            Direction::I2t => (extra_img, "extra_img", "extra_stc", "i2t"),
        };
        if given == 0 {
            return Ok(());
        }
        let why = "the path loss has no labels for them, the authors' code stops at it";
        Err(clash(&format!("--{option}"), &format!("--direction {direction}"), why)
            .cure(format!("use --{other} with this direction")))
    }
}

impl super::super::Options for Options {
    fn check(&self, faithful: bool) -> Result<Vec<String>> {
        self.model.check()?;
        self.check_extras()?;
        if self.schedule.lr_update == 0 {
            return Err(Error::new("the number is out of range")
                .at("--lr_update")
                .expected("at least 1")
                .found(0));
        }
        if self.idle.always_max_violation && !self.model.max_violation {
            return Err(clash("--max_violation", "--no-max-violation", "one of them"));
        }
        let ours =
            [("--no-max-violation", !self.model.max_violation), ("--mask-padding", self.model.mask_padding)];
        if let Some((option, _)) = ours.iter().find(|(_, given)| faithful && *given) {
            return Err(clash(option, "--faithful", "--faithful takes the authors' side"));
        }
        let idle = [
            ("--drop", self.idle.drop.is_some()),
            ("--finetune", self.idle.finetune),
            ("--use_restval", self.idle.use_restval),
            ("--measure", self.idle.measure.is_some()),
            ("--reset_train", self.idle.reset_train),
        ];
        let said =
            |(option, _): &(&str, bool)| format!("{option} does nothing: nor does it in the authors' code");
        let mut warnings: Vec<String> = idle.iter().filter(|(_, given)| *given).map(said).collect();
        if self.training.extra_stc > 0 && self.training.extra_img > 0 {
            warnings.push("--extra_img does nothing beside --extra_stc, which wins".into());
        }
        Ok(warnings)
    }

    fn common(&self, faithful: bool) -> Vec<(&'static str, String)> {
        if !faithful {
            return Vec::new();
        }
        [("bert_dropout", "auto"), ("select", "r1r5"), ("dev_limit", THEIR_DEV)]
            .map(|(name, value)| (name, value.to_string()))
            .to_vec()
    }

    fn all(&self) -> Json {
        let mut all = serde_json::to_value(self).expect("options are plain data");
        // As the option is called: the model keeps what it decides.
        all["no_max_violation"] = json!(!self.model.max_violation);
        all
    }

    fn free(&self) -> Json {
        serde_json::to_value(&self.schedule).expect("options are plain data")
    }

    fn max_words(&self) -> Option<usize> {
        Some(self.model.max_words)
    }

    fn system(&self, encoders: &Encoders) -> Result<Box<dyn System>> {
        let config = Config {
            options: self.model.clone(),
            img_dim: encoders.dim,
            batch_size: encoders.batch_size,
            path_hid: path_hid(),
            bert_config: encoders.bert().clone(),
        };
        config.check()?;
        Ok(Box::new(Dime {
            config,
            training: self.training.clone(),
            lr_update: self.schedule.lr_update as u64,
            exclude_own: !encoders.faithful,
        }))
    }
}

/// The options without which DIME cannot be built, and that no shape tells.
const NEEDED: [&str; 7] = [
    "direction",
    "max_words",
    "num_head_IMRC",
    "raw_feature_norm_CMRC",
    "lambda_softmax_CMRC",
    "use_abs",
    "no_imgnorm",
];

/// The options that a weight's shape tells: the weight and its axis.
const TOLD: [(&str, &str, usize); 4] = [
    ("embed_size", "img_enc.fc.weight", 0),
    ("img_dim", "img_enc.fc.weight", 1),
    ("hid_IMRC", "itr_module.dynamic_itr_l0.imrc.sa.feed_forward_layer.fc1.weight", 0),
    ("hid_router", "itr_module.dynamic_itr_l0.ric.router.mlp.0.weight", 0),
];

impl Family for Options {
    const NAME: &'static str = "dime";
    const EXAMPLES: &'static str = "\
  crossweave train --data_path data --data_name f30k_precomp --bert_path bert --logger_name runs/i2t \\
      --direction i2t --extra_stc 1 --lambda_softmax 4
  crossweave train --data_path data --data_name f30k_precomp --bert_path bert --logger_name runs/t2i \\
      --direction t2i --extra_img 1 --lambda_softmax 9 --cache-text
  crossweave train --config tools/demo-dime.toml --seed 2";
    const TITLE: &'static str = "DIME (SIGIR 2021)";
    const MODULES: &'static [&'static str] = &["img_enc", "txt_enc", "itr_module"];
    const TEXT: Text = Text::Bert { trained: false };

    fn open(config: &Json) -> Result<Box<dyn System>> {
        let not_understood =
            |e: serde_json::Error| Error::new(format!("the configuration is not understood: {e}"));
        let config = Config::deserialize(config).map_err(not_understood)?;
        config.check()?;
        let training = TrainingOptions::default();
        let lr_update = ScheduleOptions::default().lr_update as u64;
        Ok(Box::new(Dime { config, training, lr_update, exclude_own: true }))
    }

    fn import(checkpoint: Checkpoint) -> Result<Json> {
        checkpoint.config(&TOLD, &NEEDED)
    }
}
