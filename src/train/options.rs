//! What a user can ask of training: one declaration for the command line, the configuration file and the file in the
//! run's folder.
//!
//! Three owners: a run has options that decide its numbers and stay for its life ([`FixedOptions`]), and options that
//! may change when it goes on ([`RunOptions`]); the system has its own ([`crate::systems::Options`]). Every option can
//! be written with underscores or hyphens.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Args, Command, FromArgMatches, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::data::paths;
use crate::error::{Error, Result};
use crate::eval::model::run_folder;
use crate::eval::precisions;
use crate::gpu::Precision;
use crate::systems::{DEFAULT, Images, Kind, Options, Rates, Text, kind};

mod command;

pub use command::{both_spellings, command, owned_by_another, value_of};
use command::{of_bert, refuse_bert, refuse_ours, whose, with_defaults};

const DATA: &str = "Data";
const TRAINING: &str = "Training";
const TEXT: &str = "Text encoder";
const RULES: &str = "Where we differ from the authors";
const RUN: &str = "The run";

/// What a vocabulary needs besides `[PAD] [UNK] [CLS] [SEP]`: something to say.
const LEAST_VOCAB: usize = 5;
/// Sizes past this are slips, and their products would overflow.
const LARGEST: usize = 1 << 20;

/// Dropout inside BERT while training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BertDropout {
    /// Off.
    None,
    /// At the rates of BERT's configuration.
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
    /// R@1 both ways.
    R1,
    /// R@1 + R@5 both ways.
    R1r5,
}

/// What decides a run's numbers besides the system's own options: it stays for the run's life.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[command(rename_all = "verbatim")]
pub struct FixedOptions {
    /// The system to train; `--system NAME --help` shows its options
    #[arg(long, value_name = "NAME", default_value = DEFAULT, help_heading = RUN)]
    pub system: String,
    /// Start of every random number
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = RUN)]
    pub seed: u64,
    /// Captions of a step
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = TRAINING)]
    pub batch_size: usize,
    /// Captions an image, where the counts of rows and captions do not tell
    #[arg(long = "captions-per-image", value_name = "N", help_heading = DATA)]
    pub captions_per_image: Option<usize>,

    /// Where BERT's weights come from; random ones are trained along
    #[arg(long = "bert-init", value_enum, default_value_t = BertInit::Pretrained, help_heading = TEXT)]
    pub bert_init: BertInit,
    /// A BERT configuration for random weights
    #[arg(long = "bert-config", value_name = "FILE", help_heading = TEXT)]
    #[serde(serialize_with = "paths::serialize_some")]
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

    /// Takes the authors' side in every option of this group, and wherever else their code does something odd
    #[arg(long, help_heading = RULES)]
    pub faithful: bool,
    /// Dropout in BERT
    #[arg(long = "bert-dropout", value_enum, default_value_t = BertDropout::None, help_heading = RULES)]
    pub bert_dropout: BertDropout,
    /// Validates on the first N captions [default: all]
    #[arg(long = "dev-limit", value_name = "N", help_heading = RULES)]
    pub dev_limit: Option<usize>,
    /// The split that the best checkpoint is chosen on
    #[arg(long = "dev-split", value_name = "NAME", default_value = "dev", help_heading = RULES)]
    pub dev_split: String,
    /// What the best checkpoint is chosen by
    #[arg(long, value_enum, default_value_t = Select::Rsum, help_heading = RULES)]
    pub select: Select,

    /// Of products: f32, or f16 operands with f32 sums (needs cooperative matrices)
    #[arg(
        long,
        default_value = "f32",
        value_parser = precisions(),
        env = "CROSSWEAVE_PRECISION",
        hide_env_values = true,
        help_heading = RUN
    )]
    pub precision: Precision,
    /// Captions scored at a time in a step [default: as many as fit]
    #[arg(long, value_name = "N", help_heading = RUN)]
    pub tile: Option<usize>,
}

/// What may change when a run goes on.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[command(rename_all = "verbatim")]
pub struct RunOptions {
    /// The run's folder: weights, configuration, metrics, TensorBoard events, curves
    #[arg(long, value_name = "DIR", default_value = "runs/runX", help_heading = RUN)]
    #[serde(serialize_with = "paths::serialize")]
    pub logger_name: PathBuf,
    /// A folder of its own for weights, checkpoints and configuration; it is the run's then [default: that of
    /// --logger_name]
    #[arg(long, value_name = "DIR", help_heading = RUN)]
    #[serde(serialize_with = "paths::serialize_some")]
    pub model_name: Option<PathBuf>,
    /// The folder that holds the data folders
    #[arg(long, value_name = "DIR", default_value = "/data", help_heading = DATA)]
    #[serde(serialize_with = "paths::serialize")]
    pub data_path: PathBuf,
    /// The data folder: {train,dev,test}_ims.npy and _caps.txt, or pictures with captions for systems that read these
    #[arg(long, value_name = "NAME", default_value = "precomp", help_heading = DATA)]
    #[serde(serialize_with = "paths::serialize_name")]
    pub data_name: PathBuf,
    /// Numbers of a region's features, for data that must have so many [default: as many as the data have]
    #[arg(long, value_name = "N", help_heading = DATA)]
    pub img_dim: Option<usize>,
    /// Odd captions (empty, CR LF, no UTF-8) are errors
    #[arg(long, help_heading = DATA)]
    pub strict: bool,
    /// Batches made ahead of the GPU
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = DATA)]
    pub workers: usize,
    /// An imported BERT: model.safetensors, config.json, vocab.txt
    #[arg(long, value_name = "DIR", default_value = "./", help_heading = TEXT)]
    #[serde(serialize_with = "paths::serialize")]
    pub bert_path: PathBuf,

    /// Passes over the training captions
    #[arg(long, value_name = "N", default_value_t = 30, help_heading = TRAINING)]
    pub num_epochs: usize,
    /// Adam's learning rate
    #[arg(long, value_name = "RATE", default_value_t = 2e-4, help_heading = TRAINING)]
    pub learning_rate: f64,
    /// Largest norm of the gradient; 0 or less: no limit
    #[arg(long, value_name = "NORM", default_value_t = 2.0, allow_negative_numbers = true, help_heading = TRAINING)]
    pub grad_clip: f64,
    /// Steps between two lines of metrics
    #[arg(long, value_name = "STEPS", default_value_t = 10, help_heading = TRAINING)]
    pub log_step: usize,
    /// Steps between two validations (there is one after every epoch too)
    #[arg(long, value_name = "STEPS", default_value_t = 2000, help_heading = TRAINING)]
    pub val_step: usize,

    /// A run's folder: goes on where its last checkpoint is, bit for bit
    #[arg(long, value_name = "DIR", help_heading = RUN)]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// A file of options, `name = value` a line; the command line goes before it
    #[arg(long, value_name = "FILE", help_heading = RUN)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// The adapter: an index of `crossweave devices`, or part of a name [default: the best]
    #[arg(long, value_name = "DEVICE", env = "CROSSWEAVE_DEVICE", hide_env_values = true, help_heading = RUN)]
    #[serde(skip)]
    pub device: Option<String>,
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
    /// Tells steps a second, memory, dispatches and pipelines at the end
    #[arg(long, help_heading = RUN)]
    #[serde(skip)]
    pub stats: bool,
    /// Loses the device after each of these steps in turn, for tests of recovery
    #[arg(long = "lose-device", value_delimiter = ',', hide = true)]
    #[serde(skip)]
    pub lose_device: Vec<u64>,
}

/// Every option of `crossweave train`, checked against each other.
pub struct TrainOptions {
    /// The system.
    pub kind: Kind,
    /// Its own options.
    pub own: Box<dyn Options>,
    /// What stays for the run's life.
    pub fixed: FixedOptions,
    /// What may change when the run goes on.
    pub run: RunOptions,
    /// What does nothing, a line each.
    pub warnings: Vec<String>,
    /// The options that the arguments name, by their ids.
    pub given: Vec<String>,
}

impl TrainOptions {
    /// The options that these arguments ask for; without a program's name before them.
    ///
    /// # Errors
    /// An unknown option or system, a value that does not parse, options that contradict each other.
    pub fn of(args: &[&str]) -> Result<Self> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let system =
            value_of(&args, "system").map_or(DEFAULT.into(), |name| name.to_string_lossy().into_owned());
        let failed =
            |e: clap::Error| Error::new(e.to_string().trim().trim_start_matches("error: ").to_owned());
        let options = Self::parse(kind(&system)?, &args, failed)?;
        match options.own.tested() {
            Some(_) => Err(Error::new("these options evaluate a checkpoint and train nothing")
                .cure("leave out --test_only, or use `crossweave train`")),
            None => Ok(options),
        }
    }

    /// As [`TrainOptions::of`], for a system that is known; `failed` says what to do with clap's own errors.
    ///
    /// # Errors
    /// As [`TrainOptions::of`].
    pub fn parse(kind: Kind, args: &[OsString], failed: impl Fn(clap::Error) -> Error) -> Result<Self> {
        let matches = |command: Command| {
            command
                .no_binary_name(true)
                .try_get_matches_from(args)
                .map_err(|e| whose(&e, kind).unwrap_or_else(|| failed(e)))
        };
        let first = matches(command(kind))?;
        if kind.text == Text::Words {
            refuse_bert(&command(kind), &first, kind)?;
        }
        let own = (kind.parse)(&first).map_err(&failed)?;
        let faithful = first.get_flag("faithful");
        let defaults = own.common(faithful);
        if faithful {
            refuse_ours(&command(kind), &first, &defaults)?;
        }
        let matches = matches(with_defaults(command(kind), &defaults))?;
        let given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let mut options = Self {
            given: command(kind)
                .get_arguments()
                .map(|arg| arg.get_id().as_str())
                .filter(given)
                .map(Into::into)
                .collect(),
            kind,
            own,
            fixed: FixedOptions::from_arg_matches(&matches).map_err(&failed)?,
            run: RunOptions::from_arg_matches(&matches).map_err(&failed)?,
            warnings: Vec::new(),
        };
        options.check()?;
        Ok(options)
    }

    /// `data_path/data_name`.
    pub fn data_folder(&self) -> PathBuf {
        self.run.data_path.join(&self.run.data_name)
    }

    /// The run's folder: the one to go on with, else the one to begin.
    pub fn run_folder(&self) -> PathBuf {
        let run = &self.run;
        run.resume.as_ref().or(run.model_name.as_ref()).unwrap_or(&run.logger_name).clone()
    }

    /// Where metrics, events and curves go.
    pub fn log_folder(&self) -> PathBuf {
        if self.run.model_name.is_some() { self.run.logger_name.clone() } else { self.run_folder() }
    }

    /// Whether all that reads text is trained.
    pub fn trains_text(&self) -> bool {
        self.kind.text.trained() || self.fixed.finetune_bert || self.fixed.bert_init == BertInit::Random
    }

    /// The rates of the first epoch.
    pub fn rates(&self) -> Rates {
        Rates { learning_rate: self.run.learning_rate, grad_clip: self.run.grad_clip }
    }

    /// All options as a run's folder keeps them; none of BERT's where there is none.
    pub fn stored(&self) -> Json {
        // A run that goes on is where it is, whatever --logger_name says.
        let mut all = plain(&RunOptions {
            logger_name: self.log_folder(),
            model_name: self.run.model_name.as_ref().map(|_| self.run_folder()),
            ..self.run.clone()
        });
        all.extend(plain(&self.fixed));
        if self.kind.text == Text::Words {
            of_bert().iter().for_each(|id| drop(all.remove(id.as_str())));
        }
        all.extend(object(self.own.all()));
        Json::Object(all)
    }

    /// Checks that these options go on with the run that was begun with those (a `config.json`'s `options`).
    ///
    /// # Errors
    /// Options that differ where a resumed run has no choice, all of them named.
    pub fn goes_on(&self, begun: &Json) -> Result<()> {
        let mut fixed = plain(&self.fixed);
        fixed.extend(object(self.own.fixed()));
        let changed = |(name, own): &(&String, &Json)| begun.get(*name).is_some_and(|before| before != *own);
        let changed: Vec<(&String, &Json)> = fixed.iter().filter(changed).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let list = |value: &dyn Fn(&str) -> Json| {
            let row = |(name, _): &(&String, &Json)| {
                format!("--{name} {}", value(name).to_string().trim_matches('"'))
            };
            changed.iter().map(row).collect::<Vec<_>>().join(", ")
        };
        Err(Error::new("the run was begun with other options")
            .expected(list(&|name| begun[name].clone()))
            .found(list(&|name| fixed[name].clone()))
            .cure("leave these options out to go on with the run, or begin a new one"))
    }

    fn check(&mut self) -> Result<()> {
        if self.fixed.system != self.kind.name {
            return Err(Error::new("the system is not clear")
                .at("--system")
                .expected(self.kind.name)
                .found(&self.fixed.system)
                .cure("write --system out"));
        }
        if let Some(resumed) = &self.run.resume {
            self.run.resume = Some(run_folder(resumed)?);
        }
        if self.kind.images == Images::Pictures && self.run.img_dim.is_some() {
            return Err(Error::new(format!(
                "--img_dim is about features, and {} reads pictures",
                self.kind.name
            ))
            .cure("leave out --img_dim"));
        }
        let own = [self.own.vocabulary(), self.own.image_encoder()];
        if let Some(path) = own.into_iter().flatten().find(|path| path.to_str().is_none()) {
            return Err(Error::new("a run cannot keep this path: it is no UTF-8 text")
                .at(path.display())
                .cure("give it another name"));
        }
        self.check_sizes()?;
        self.check_numbers()?;
        self.check_text()?;
        self.warnings = self.own.check(self.fixed.faithful)?;
        let trained_anyway = match self.fixed.bert_init {
            _ if self.kind.text.trained() => Some(format!("--system {}", self.kind.name)),
            BertInit::Random => Some("--bert-init random".into()),
            BertInit::Pretrained => None,
        };
        if let Some(what) = trained_anyway.filter(|_| self.fixed.finetune_bert) {
            self.warnings.push(format!("--finetune-bert adds nothing to {what}, which trains BERT"));
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<()> {
        let (fixed, run) = (&self.fixed, &self.run);
        let sizes = [
            ("num_epochs", Some(run.num_epochs), 1),
            ("batch_size", Some(fixed.batch_size), 1),
            ("img_dim", run.img_dim, 1),
            ("log_step", Some(run.log_step), 1),
            ("val_step", Some(run.val_step), 1),
            ("workers", Some(run.workers), 0),
            ("captions-per-image", fixed.captions_per_image, 1),
            ("bert-layers", fixed.bert_layers, 1),
            ("bert-hidden", fixed.bert_hidden, 1),
            ("bert-heads", fixed.bert_heads, 1),
            ("bert-intermediate", fixed.bert_intermediate, 1),
            ("vocab-size", fixed.vocab_size, LEAST_VOCAB),
            ("dev-limit", fixed.dev_limit, 1),
            ("tile", fixed.tile, 1),
        ];
        for (name, value, least) in sizes {
            if value.is_some_and(|n| n < least || n > LARGEST) {
                return Err(Error::new("the number is out of range")
                    .at(format!("--{name}"))
                    .expected(format!("{least} to {LARGEST}"))
                    .found(value.unwrap_or_default()));
            }
        }
        if run.max_steps == Some(0) {
            return Err(Error::new("there is nothing to train")
                .at("--max-steps")
                .expected("at least 1")
                .found(0));
        }
        let (heads, width) = (fixed.bert_heads.unwrap_or(1), fixed.bert_hidden.unwrap_or(0));
        if !width.is_multiple_of(heads) {
            return Err(Error::new("the heads do not divide the width")
                .at("--bert-heads, --bert-hidden")
                .expected(format!("--bert-heads to be a divisor of --bert-hidden {width}"))
                .found(heads));
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        let run = &self.run;
        let wrong = |name: &str, value: f64, expected: &str| {
            Err(Error::new("the number is out of range")
                .at(format!("--{name}"))
                .expected(expected)
                .found(value))
        };
        let positive = [("learning_rate", Some(run.learning_rate)), ("time-limit", run.time_limit)];
        for (name, value) in positive {
            if let Some(value) = value.filter(|v| !(v.is_finite() && *v > 0.0)) {
                return wrong(name, value, "a number above 0");
            }
        }
        if run.grad_clip.is_finite() { Ok(()) } else { wrong("grad_clip", run.grad_clip, "a number") }
    }

    fn check_text(&self) -> Result<()> {
        let fixed = &self.fixed;
        let random = fixed.bert_init == BertInit::Random;
        if fixed.cache_text {
            let frozen = "cached states are those of a frozen encoder without dropout";
            let theirs = "the authors' BERT has dropout, its states differ each time";
            let system = format!("--system {}", self.kind.name);
            let against = [
                (system.as_str(), self.kind.text.trained(), "it trains its text encoder"),
                ("--faithful", fixed.faithful, theirs),
                ("--finetune-bert", fixed.finetune_bert, frozen),
                ("--bert-dropout auto", fixed.bert_dropout == BertDropout::Auto, frozen),
                ("--bert-init random", random, frozen),
            ];
            if let Some((option, _, why)) = against.iter().find(|(_, given, _)| *given) {
                return Err(clash("--cache-text", option, why));
            }
        }
        let sizes = [
            ("--bert-layers", fixed.bert_layers.is_some()),
            ("--bert-hidden", fixed.bert_hidden.is_some()),
            ("--bert-heads", fixed.bert_heads.is_some()),
            ("--bert-intermediate", fixed.bert_intermediate.is_some()),
        ];
        let sized = sizes.iter().find(|(_, given)| *given).map(|(name, _)| *name);
        if let (Some(size), true) = (sized, fixed.bert_config.is_some()) {
            return Err(clash("--bert-config", size, "the file says the sizes"));
        }
        let of_random = [
            ("--bert-config", fixed.bert_config.is_some()),
            ("--vocab-size", fixed.vocab_size.is_some()),
            (sized.unwrap_or_default(), sized.is_some()),
        ];
        match of_random.iter().find(|(_, given)| *given && !random) {
            Some((option, _)) => Err(Error::new(format!("{option} is for a BERT made from random weights"))
                .cure(
                    "add --bert-init random; a pretrained BERT brings its own configuration and vocabulary",
                )),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for TrainOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrainOptions {}", self.stored())
    }
}

fn clash(one: &str, other: &str, why: &str) -> Error {
    Error::new(format!("{one} contradicts {other}: {why}")).cure(format!("leave out {one} or {other}"))
}

fn plain(options: &impl Serialize) -> Map<String, Json> {
    object(serde_json::to_value(options).expect("options are plain data"))
}

fn object(value: Json) -> Map<String, Json> {
    match value {
        Json::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests;
