//! What a user can ask of training and evaluation: one declaration for the command line, the configuration file
//! and the file in the run's folder.
//!
//! Training takes the options of DIME's published `train.py`, under their names and with their defaults, then
//! ours. Every option can be written with underscores or hyphens.

mod evaluate;
mod resolve;
mod resume;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

pub use evaluate::EvaluateOptions;

use crate::gpu::Precision;

const THEIRS: &str = "The authors' options";
const DATA: &str = "Data";
const TEXT: &str = "Text encoder";
const RULES: &str = "Where we differ from the authors";
const RUN: &str = "The run";

/// Dropout inside BERT while training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BertDropout {
    /// Off.
    None,
    /// At the rates of BERT's configuration, as the authors' code has it even for a frozen encoder.
    Auto,
}

/// Where the text encoder's weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BertInit {
    /// From the folder of `--bert_path`.
    Pretrained,
    /// Random, and trained along; the vocabulary is built from the training captions.
    Random,
}

/// What the best checkpoint is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// The sum of all six recalls.
    Rsum,
    /// R@1 + R@5 both ways.
    R1r5,
}

/// Every option of `crossweave train`. Call [`TrainOptions::resolve`] before use.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[command(rename_all = "verbatim")]
#[serde(default)]
#[allow(non_snake_case, reason = "the authors' option names are the interface")]
pub struct TrainOptions {
    /// The run's folder: weights, configuration, metrics, TensorBoard events, curves
    #[arg(long, value_name = "DIR", default_value = "runs/runX", help_heading = THEIRS)]
    pub logger_name: PathBuf,
    /// The folder that holds the data folders
    #[arg(long, value_name = "DIR", default_value = "/data", help_heading = THEIRS)]
    pub data_path: PathBuf,
    /// The data folder: {train,dev,test}_ims.npy and _caps.txt
    #[arg(long, value_name = "NAME", default_value = "precomp", help_heading = THEIRS)]
    pub data_name: String,
    /// An imported BERT: model.safetensors, config.json, vocab.txt
    #[arg(long, value_name = "DIR", default_value = "./", help_heading = THEIRS)]
    pub bert_path: PathBuf,
    /// Pieces of a caption, its two marks and padding included
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = THEIRS)]
    pub max_words: usize,
    /// Random captions added for each sample, as negatives
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = THEIRS)]
    pub extra_stc: usize,
    /// Random images added for each sample, as negatives (extra_stc wins if both are given)
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = THEIRS)]
    pub extra_img: usize,
    /// Passes over the training captions
    #[arg(long, value_name = "N", default_value_t = 30, help_heading = THEIRS)]
    pub num_epochs: usize,
    /// Captions of a step; also divides the path loss
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = THEIRS)]
    pub batch_size: usize,
    /// Adam's learning rate
    #[arg(long, value_name = "RATE", default_value_t = 2e-4, help_heading = THEIRS)]
    pub learning_rate: f64,
    /// Epochs after which the learning rate is divided by ten
    #[arg(long, value_name = "N", default_value_t = 15, help_heading = THEIRS)]
    pub lr_update: usize,
    /// Largest norm of the gradient; 0 or less: no limit
    #[arg(long, value_name = "NORM", default_value_t = 2.0, allow_negative_numbers = true, help_heading = THEIRS)]
    pub grad_clip: f64,
    /// Margin of the hinge loss
    #[arg(long, value_name = "X", default_value_t = 0.2, allow_negative_numbers = true, help_heading = THEIRS)]
    pub margin: f64,
    /// Hardest negatives only: always on, as in the authors' code (see --no-max-violation)
    #[arg(long, help_heading = THEIRS)]
    pub max_violation: bool,
    /// Weight of the path loss
    #[arg(long, value_name = "X", default_value_t = 0.5, allow_negative_numbers = true, help_heading = THEIRS)]
    pub trade_off: f64,
    /// Numbers of a region's features, for data that must have so many [default: as many as the data have]
    #[arg(long, value_name = "N", help_heading = THEIRS)]
    pub img_dim: Option<usize>,
    /// Width of the joint embedding
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = THEIRS)]
    pub embed_size: usize,
    /// Which side travels through the cells: regions (i2t) or words (t2i)
    #[arg(long, default_value = "i2t", value_parser = ["i2t", "t2i"], help_heading = THEIRS)]
    pub direction: String,
    /// Steps between two lines of metrics
    #[arg(long, value_name = "STEPS", default_value_t = 10, help_heading = THEIRS)]
    pub log_step: usize,
    /// Steps between two validations (there is one after every epoch too)
    #[arg(long, value_name = "STEPS", default_value_t = 2000, help_heading = THEIRS)]
    pub val_step: usize,
    /// A run's folder: goes on where its last checkpoint is, bit for bit
    #[arg(long, value_name = "DIR", help_heading = THEIRS)]
    pub resume: Option<PathBuf>,
    /// Takes absolute values of the image vector
    #[arg(long, help_heading = THEIRS)]
    pub use_abs: bool,
    /// Leaves the image vector unnormalised
    #[arg(long, help_heading = THEIRS)]
    pub no_imgnorm: bool,
    /// Heads of the intra-modal reasoning cell
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = THEIRS)]
    pub num_head_IMRC: usize,
    /// Hidden width of the intra-modal reasoning cell
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = THEIRS)]
    pub hid_IMRC: usize,
    /// Hidden width of the routers
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = THEIRS)]
    pub hid_router: usize,
    /// Norm of the cross-modal attention: clipped_l2norm, l2norm, softmax, clipped, no_norm
    #[arg(long, value_name = "NORM", default_value = "clipped_l2norm", help_heading = THEIRS)]
    pub raw_feature_norm_CMRC: String,
    /// Inverse temperature of the cross-modal attention; --lambda_softmax for short
    #[arg(
        long,
        value_name = "X",
        aliases = ["lambda_softmax", "lambda-softmax"],
        default_value_t = 4.0,
        allow_negative_numbers = true,
        help_heading = THEIRS
    )]
    pub lambda_softmax_CMRC: f64,
    /// Batches made ahead of the GPU
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = THEIRS)]
    pub workers: usize,
    /// Does nothing, as in the authors' code
    #[arg(long, value_name = "X", help_heading = THEIRS)]
    pub drop: Option<f64>,
    /// Does nothing, as in the authors' code with precomputed features (see --finetune-bert)
    #[arg(long, help_heading = THEIRS)]
    pub finetune: bool,
    /// Does nothing, as in the authors' code
    #[arg(long, help_heading = THEIRS)]
    pub use_restval: bool,
    /// Does nothing, as in the authors' code
    #[arg(long, value_name = "NAME", help_heading = THEIRS)]
    pub measure: Option<String>,
    /// Does nothing, as in the authors' code
    #[arg(long, help_heading = THEIRS)]
    pub reset_train: bool,

    /// Captions an image, where the counts of rows and captions do not tell
    #[arg(long = "captions-per-image", value_name = "N", help_heading = DATA)]
    pub captions_per_image: Option<usize>,
    /// Odd captions (empty, CR LF, no UTF-8) are errors
    #[arg(long, help_heading = DATA)]
    pub strict: bool,

    /// Where BERT's weights come from; random ones are trained along
    #[arg(long = "bert-init", value_enum, default_value_t = BertInit::Pretrained, help_heading = TEXT)]
    pub bert_init: BertInit,
    /// A BERT configuration for random weights
    #[arg(long = "bert-config", value_name = "FILE", help_heading = TEXT)]
    pub bert_config: Option<PathBuf>,
    /// Layers of a random BERT [default: 2]
    #[arg(long = "bert-layers", value_name = "N", help_heading = TEXT)]
    pub bert_layers: Option<usize>,
    /// Width of a random BERT [default: 64]
    #[arg(long = "bert-hidden", value_name = "N", help_heading = TEXT)]
    pub bert_hidden: Option<usize>,
    /// Heads of a random BERT [default: 4]
    #[arg(long = "bert-heads", value_name = "N", help_heading = TEXT)]
    pub bert_heads: Option<usize>,
    /// Width inside a random BERT's feed-forward layers [default: 4 x width]
    #[arg(long = "bert-intermediate", value_name = "N", help_heading = TEXT)]
    pub bert_intermediate: Option<usize>,
    /// Pieces of the vocabulary built for a random BERT [default: 2000]
    #[arg(long = "vocab-size", value_name = "N", help_heading = TEXT)]
    pub vocab_size: Option<usize>,
    /// Trains a pretrained BERT along
    #[arg(long = "finetune-bert", help_heading = TEXT)]
    pub finetune_bert: bool,
    /// Runs a frozen BERT once per caption and keeps its states in a file
    #[arg(long = "cache-text", help_heading = TEXT)]
    pub cache_text: bool,

    /// Takes the authors' side in every option of this group
    #[arg(long, help_heading = RULES)]
    pub faithful: bool,
    /// Dropout in BERT [default: none; with --faithful: auto]
    #[arg(long = "bert-dropout", value_enum, help_heading = RULES)]
    pub bert_dropout: Option<BertDropout>,
    /// Validates on the first N captions of dev [default: all; with --faithful: 5000]
    #[arg(long = "dev-limit", value_name = "N", help_heading = RULES)]
    pub dev_limit: Option<usize>,
    /// Sums all violations in the hinge loss, not the hardest alone
    #[arg(long = "no-max-violation", help_heading = RULES)]
    pub no_max_violation: bool,
    /// Padded words take part in nothing, for new models; the authors let them into means, maxima and routers
    #[arg(long = "mask-padding", help_heading = RULES)]
    pub mask_padding: bool,
    /// What the best checkpoint is chosen by [default: rsum; with --faithful: r1r5]
    #[arg(long, value_enum, help_heading = RULES)]
    pub select: Option<Select>,

    /// A file of options, `name = value` a line; the command line goes before it
    #[arg(long, value_name = "FILE", help_heading = RUN)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// The system to train
    #[arg(long, default_value = "dime", value_parser = ["dime"], help_heading = RUN)]
    pub system: String,
    /// Start of every random number
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = RUN)]
    pub seed: u64,
    /// The adapter: an index of `crossweave devices`, or part of a name [default: the best]
    #[arg(long, value_name = "DEVICE", env = "CROSSWEAVE_DEVICE", hide_env_values = true, help_heading = RUN)]
    #[serde(skip)]
    pub device: Option<String>,
    /// Of products in the forward pass: f32, or f16 operands with f32 sums (needs cooperative matrices)
    #[arg(
        long,
        default_value = "f32",
        value_parser = precisions(),
        env = "CROSSWEAVE_PRECISION",
        hide_env_values = true,
        help_heading = RUN
    )]
    pub precision: Precision,
    /// Captions scored at a time in a step, fixed for the run [default: as many as fit]
    #[arg(long, value_name = "N", help_heading = RUN)]
    pub tile: Option<usize>,
    /// Runs the cells again on the way back instead of keeping what their gradients read: less memory, more time
    #[arg(long = "checkpoint-cells", help_heading = RUN)]
    pub checkpoint_cells: bool,
    /// Leaves out steps whose loss or gradient is NaN or infinite, instead of stopping
    #[arg(long = "skip-nonfinite", help_heading = RUN)]
    pub skip_nonfinite: bool,
    /// Ends training after so many seconds, as if it were done
    #[arg(long = "time-limit", value_name = "SECONDS", help_heading = RUN)]
    #[serde(skip)]
    pub time_limit: Option<f64>,
    /// Ends training after so many steps in all
    #[arg(long = "max-steps", value_name = "N", help_heading = RUN)]
    #[serde(skip)]
    pub max_steps: Option<u64>,
    /// Prints memory, dispatches and pipelines at the end
    #[arg(long, help_heading = RUN)]
    #[serde(skip)]
    pub stats: bool,
    /// Loses the device after each of these steps in turn, for tests of recovery
    #[arg(long = "lose-device", value_delimiter = ',', hide = true)]
    #[serde(skip)]
    pub lose_device: Vec<u64>,
}

impl TrainOptions {
    /// `data_path/data_name`.
    pub fn data_folder(&self) -> PathBuf {
        self.data_path.join(&self.data_name)
    }

    /// The run's folder: the one to go on with, else the one to begin.
    pub fn run_folder(&self) -> PathBuf {
        self.resume.as_ref().unwrap_or(&self.logger_name).clone()
    }

    /// Whether extra captions and images leave out the sample's own matches.
    pub fn exclude_own(&self) -> bool {
        !self.faithful
    }

    /// Whether BERT's weights are trained.
    pub fn trains_bert(&self) -> bool {
        self.finetune_bert || self.bert_init == BertInit::Random
    }
}

/// Reads a `--precision`.
pub fn precisions() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::NAMES).map(|name| name.parse().expect("a name of the list"))
}

/// Gives every option of a command its other spelling: `data_path` and `data-path`, lower case too.
pub fn both_spellings(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let Some(long) = arg.get_long().map(str::to_owned) else { return arg };
        let mut taken: Vec<String> =
            arg.get_all_aliases().unwrap_or_default().iter().map(|a| (*a).into()).collect();
        taken.push(long.clone());
        let mut others = Vec::new();
        for spelling in [long.replace('_', "-"), long.replace('-', "_")] {
            for name in [spelling.to_lowercase(), spelling] {
                if !taken.contains(&name) {
                    taken.push(name.clone());
                    others.push(name);
                }
            }
        }
        arg.aliases(others)
    })
}
