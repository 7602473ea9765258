//! The options of `crossweave evaluate`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::error::{Error, Result};
use crate::gpu::Precision;

const SAVED: &str = "Similarity matrices";
const MODEL: &str = "Data and weights";
const TABLE: &str = "Result";

/// Every option of `crossweave evaluate`. Call [`EvaluateOptions::check`] before use.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(rename_all = "verbatim")]
pub struct EvaluateOptions {
    /// Folders of runs (their best weights) or of imported checkpoints; several make an ensemble
    #[arg(value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The folder that holds the data folders [default: as in training]
    #[arg(long, value_name = "DIR", help_heading = MODEL)]
    pub data_path: Option<PathBuf>,
    /// The data folder [default: as in training]
    #[arg(long, value_name = "NAME", help_heading = MODEL)]
    pub data_name: Option<PathBuf>,
    /// The split
    #[arg(long, value_name = "NAME", default_value = "test", help_heading = MODEL)]
    pub split: String,
    /// Captions an image, where the counts of rows and captions do not tell
    #[arg(long = "captions-per-image", value_name = "N", help_heading = MODEL)]
    pub captions_per_image: Option<usize>,
    /// The model's vocabulary (a vocab.txt of pieces, a vocab.json of words), where the folder does not hold one
    #[arg(long, value_name = "FILE", help_heading = MODEL)]
    pub vocab: Option<PathBuf>,
    /// The adapter: an index of `crossweave devices`, or part of a name [default: the best]
    #[arg(long, value_name = "DEVICE", env = "CROSSWEAVE_DEVICE", hide_env_values = true, help_heading = MODEL)]
    pub device: Option<String>,
    /// Of products: f32, or f16 operands with f32 sums (needs cooperative matrices)
    #[arg(
        long,
        default_value = "f32",
        value_parser = precisions(),
        env = "CROSSWEAVE_PRECISION",
        hide_env_values = true,
        help_heading = MODEL
    )]
    pub precision: Precision,
    /// Captions scored at a time [default: as many as fit]
    #[arg(long, value_name = "N", help_heading = MODEL)]
    pub tile: Option<usize>,
    /// Saves the similarities (of an ensemble: their mean) for --sims
    #[arg(long = "save-sims", value_name = "FILE", help_heading = SAVED)]
    pub save_sims: Option<PathBuf>,
    /// Evaluates saved similarities, without a GPU; several are averaged
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = SAVED)]
    pub sims: Vec<PathBuf>,
    /// Cuts the images into N folds and gives the mean: 5 on COCO's test is its 1K protocol
    #[arg(long, value_name = "N", help_heading = TABLE)]
    pub folds: Option<usize>,
    /// Shows, for the first caption of each of the first N images, the images ranked first and why
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = TABLE)]
    pub show: usize,
    /// Tells how many pairs a second were scored, memory, dispatches and pipelines
    #[arg(long, help_heading = TABLE)]
    pub stats: bool,
    /// Prints one JSON object instead of the table
    #[arg(long, help_heading = TABLE)]
    pub json: bool,
}

impl EvaluateOptions {
    /// Checks the options against each other.
    ///
    /// # Errors
    /// Nothing to evaluate, matrices and runs at once, options that a matrix cannot serve, a zero.
    pub fn check(&self) -> Result<()> {
        match (self.runs.is_empty(), self.sims.is_empty()) {
            (true, true) => {
                return Err(Error::new("there is nothing to evaluate")
                    .expected("folders of runs, or --sims with saved matrices")
                    .cure("`crossweave evaluate --help` has examples"));
            }
            (false, false) => {
                return Err(Error::new("runs and --sims contradict each other").cure(
                    "save the runs' similarities with --save-sims, then average the files with --sims",
                ));
            }
            _ => {}
        }
        let of_runs = [
            ("--data_path", self.data_path.is_some()),
            ("--data_name", self.data_name.is_some()),
            ("--vocab", self.vocab.is_some()),
            ("--tile", self.tile.is_some()),
            ("--show", self.show > 0),
            ("--stats", self.stats),
        ];
        if let Some((option, _)) = of_runs.iter().find(|(_, given)| *given && !self.sims.is_empty()) {
            return Err(Error::new(format!(
                "{option} contradicts --sims: a matrix knows no data and no weights"
            ))
            .cure(format!("leave out {option}")));
        }
        if self.show > 0 && (self.json || self.runs.len() > 1) {
            return Err(Error::new("--show is for a table of one run").cure("leave out --show"));
        }
        let counts =
            [("folds", self.folds), ("captions-per-image", self.captions_per_image), ("tile", self.tile)];
        match counts.iter().find(|(_, n)| *n == Some(0)) {
            Some((name, _)) => {
                Err(Error::new("a count is zero").at(format!("--{name}")).expected("at least 1").found(0))
            }
            None => Ok(()),
        }
    }
}

/// Reads a `--precision`.
pub fn precisions() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::NAMES).map(|name| name.parse().expect("a name of the list"))
}
