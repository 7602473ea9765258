//! The names of the authors' `run.py with key=value ..`: which stand for options of ours, and which change nothing.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::error::{Error, Result};
use crate::systems::Sets;

/// Theirs, and the common option that it is.
pub(super) const ALIASES: &[(&str, &str)] = &[
    ("data_root", "data_path"),
    ("datasets", "data_name"),
    ("per_gpu_batchsize", "batch_size"),
    ("max_epoch", "num_epochs"),
    ("num_workers", "workers"),
];

const LOG_DIR: &str = "result";
const EXP_NAME: &str = "finetune_irtr_f30k";

/// Where `run.py` begins otherwise than we, and its one named set.
pub(super) const SETS: Sets = &[
    ("", &[("log_dir", LOG_DIR), ("exp_name", EXP_NAME), ("seed", "0"), ("num_workers", "8")]),
    ("coco_config", &[("exp_name", "finetune_irtr_coco"), ("datasets", "coco")]),
];

/// What a key is called on the command line where an option of another meaning has its name.
const BATCH_SIZE: &str = "their_batch_size";
const MAX_STEPS: &str = "their_max_steps";
const VOCAB_SIZE: &str = "their_vocab_size";
const PRECISION: &str = "their_precision";
const THEIR: &str = "their_";

/// The option that a key after `with` stands for, and its value.
pub(super) fn key<'a>(key: &'a str, value: &'a str) -> (&'a str, &'a str) {
    match (key, value) {
        ("precision", "32") => (key, "f32"),
        ("precision", "f32" | "f16") => (key, value),
        ("precision", _) => (PRECISION, value),
        ("batch_size", _) => (BATCH_SIZE, value),
        ("max_steps", _) => (MAX_STEPS, value),
        ("vocab_size", _) => (VOCAB_SIZE, value),
        _ => (key, value),
    }
}

/// What says no more than is so anyway: a key, the values that say it, and the cure of another.
const SETTLED: &[(&str, &[&str], &str)] = &[
    ("vit", &["swin_base_patch4_window7_224_in22k"], "leave it out: the Swin is that of --swin_path"),
    ("tokenizer", &["bert-base-uncased"], "leave it out: the tokenizer is that of the BERT in --bert_path"),
    (
        VOCAB_SIZE,
        &["30522"],
        "leave it out: the vocabulary is that of the BERT in --bert_path (a random BERT's is --vocab-size, before `with`)",
    ),
    ("input_image_embed_size", &["1024"], "leave it out: the width is that of the Swin in --swin_path"),
    ("input_text_embed_size", &["768"], "leave it out: the width is that of the BERT in --bert_path"),
    ("val_check_interval", &["1.0", "1"], "leave it out; --val_step STEPS validates within an epoch too"),
    ("num_gpus", &["1"], "leave it out: one device trains, and per_gpu_batchsize is what a step takes"),
    (PRECISION, &["16"], "give 16 or 32, or --precision f16 for products of f16 operands"),
];

/// What changes nothing, here and there: a key, and what does where something does.
const IDLE: &[(&str, &str)] = &[
    (BATCH_SIZE, "per_gpu_batchsize is what a step takes"),
    (MAX_STEPS, "max_epoch ends training, or --max-steps before `with`"),
    ("lr_update", "the learning rate falls every ten epochs, or every --lr-step"),
    ("warmup_steps", "--warmup is the number of steps in which the learning rate rises"),
    ("num_nodes", "one machine trains"),
    ("resume_from", "--resume RUN goes on with a run"),
    ("load_path", "checkpoint=.. with test_only=True evaluates one"),
    ("fast_dev_run", "--max-steps N ends a run early"),
    ("patch_size", ""),
    ("image_only", ""),
    ("whole_word_masking", ""),
    ("mlm_prob", ""),
    ("num_top_layer", ""),
    ("num_heads", ""),
    ("num_layers", ""),
    ("mlp_ratio", ""),
    ("drop_rate", ""),
    ("optim_type", ""),
    ("weight_decay", ""),
    ("decay_power", ""),
    ("end_lr", ""),
    ("lr_mult_head", ""),
    ("lr_mult_cross_modal", ""),
    ("get_recall_metric", ""),
];

/// Those of their keys that are no options of ours under another name.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(rename_all = "verbatim", next_help_heading = "HAT: as the authors' run.py has it")]
pub(super) struct RunPyOptions {
    /// The folder of runs: instead of --logger_name, the run is in LOG_DIR/EXP_NAME [default: result, beside --exp_name]
    #[arg(long, value_name = "LOG_DIR", overrides_with = "logger_name")]
    log_dir: Option<String>,
    /// The run's folder in --log_dir [default: finetune_irtr_f30k, beside --log_dir]
    #[arg(long, value_name = "EXP_NAME", overrides_with = "logger_name")]
    exp_name: Option<String>,
    /// Evaluates --checkpoint on the test split instead of training
    #[arg(long)]
    test_only: bool,
    /// A run's folder, or a checkpoint of the authors' (with the BERT in --bert_path), for --test_only
    #[arg(long, value_name = "PATH")]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    unused: Unused,
}

impl RunPyOptions {
    /// The run's folder, where they say.
    pub(super) fn run_folder(&self) -> Option<String> {
        let name = |given: &Option<String>, default: &str| given.as_deref().unwrap_or(default).to_owned();
        (self.log_dir.is_some() || self.exp_name.is_some())
            .then(|| format!("{}/{}", name(&self.log_dir, LOG_DIR), name(&self.exp_name, EXP_NAME)))
    }

    /// The checkpoint that is evaluated.
    pub(super) fn tested(&self) -> Option<&Path> {
        self.checkpoint.as_deref().filter(|_| self.test_only)
    }

    /// Warnings, a line each, of what does nothing.
    pub(super) fn check(&self) -> Result<Vec<String>> {
        if self.test_only && self.checkpoint.is_none() {
            return Err(Error::new("test_only needs a checkpoint")
                .cure("give checkpoint=RUN beside it (--checkpoint RUN): a run's folder, or a checkpoint of the authors'"));
        }
        let mut warnings = self.unused.check()?;
        if self.checkpoint.is_some() && !self.test_only {
            warnings.push(
                "checkpoint does nothing without test_only=True: --resume RUN goes on with a run".into(),
            );
        }
        Ok(warnings)
    }
}

/// Keys that change nothing, as they were given. Help does not list them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Unused(Vec<(&'static str, String)>);

impl Unused {
    fn names() -> impl Iterator<Item = &'static str> {
        SETTLED.iter().map(|(name, ..)| *name).chain(IDLE.iter().map(|(name, _)| *name))
    }

    fn check(&self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for (name, value) in &self.0 {
            let key = name.trim_start_matches(THEIR);
            let settled = SETTLED.iter().find(|(settled, ..)| settled == name);
            if let Some((_, values, cure)) =
                settled.filter(|(_, values, _)| !values.contains(&value.as_str()))
            {
                return Err(Error::new(format!("{key} cannot be chosen"))
                    .at(format!("{key}={value}"))
                    .expected(values[0])
                    .found(value)
                    .cure(cure));
            }
            let idle = IDLE.iter().find(|(idle, _)| idle == name);
            match idle {
                Some((_, "")) => warnings.push(format!("{key} does nothing, as in the authors' code")),
                Some((_, what)) => warnings.push(format!("{key} does nothing: {what}")),
                None if *name == PRECISION => warnings.push(
                    "precision=16 asks for mixed precision: here all is in f32, but with --precision f16 the operands \
                     of products"
                        .into(),
                ),
                None => {}
            }
        }
        Ok(warnings)
    }
}

impl Args for Unused {
    fn augment_args(command: Command) -> Command {
        command.args(Self::names().map(|name| Arg::new(name).long(name).value_name("VALUE").hide(true)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Unused {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let given = |name: &'static str| Some((name, matches.get_one::<String>(name)?.clone()));
        Ok(Self(Self::names().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
