//! The options of `crossweave features`.

use std::path::PathBuf;

use clap::Args;

use crate::error::{Error, Result};
use crate::nn::swin::STAGES;

/// Every option of `crossweave features`. Call [`FeaturesOptions::check`] before use.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(rename_all = "verbatim")]
pub struct FeaturesOptions {
    /// An imported Swin's folder, a safetensors file of one, or a run whose system has an image encoder
    #[arg(long, value_name = "ENCODER")]
    pub encoder: PathBuf,
    /// The folder of the pictures, with their captions
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// The folder to make; until it is whole it is called DATA.partial, and the same command goes on with that
    #[arg(long, value_name = "DATA")]
    pub out: PathBuf,
    /// The captions, where they are not in the folder of the pictures: a .tsv, .txt, .csv, .json or .jsonl
    #[arg(long, value_name = "FILE")]
    pub captions: Option<PathBuf>,
    /// Captions a picture [default: the number that keeps the most captions]
    #[arg(long = "captions-per-image", value_name = "N")]
    pub captions_per_image: Option<usize>,
    /// The stage whose grid of vectors the regions are, 1 to 4
    #[arg(long, value_name = "N", default_value_t = STAGES)]
    pub stage: usize,
    /// Width and height at which pictures are read, a multiple of 32 [default: the encoder's]
    #[arg(long, value_name = "N")]
    pub image_size: Option<usize>,
    /// Pictures read and written at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub batch: usize,
    /// Writes features in f32, not in f16
    #[arg(long)]
    pub f32: bool,
    /// How often a word is in the training captions at least to be in the vocabulary [default: 4, of up to 1,000 captions 1]
    #[arg(long = "min-count", value_name = "N")]
    pub min_count: Option<usize>,
    /// The adapter: an index of `crossweave devices`, or part of a name [default: the best]
    #[arg(long, value_name = "DEVICE", env = "CROSSWEAVE_DEVICE", hide_env_values = true)]
    pub device: Option<String>,
}

impl FeaturesOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// A stage that there is not, a zero.
    pub fn check(&self) -> Result<()> {
        if !(1..=STAGES).contains(&self.stage) {
            return Err(Error::new("there is no such stage")
                .at("--stage")
                .expected(format!("1 to {STAGES}"))
                .found(self.stage)
                .cure("leave out --stage to take the last"));
        }
        let counts = [
            ("captions-per-image", self.captions_per_image),
            ("batch", Some(self.batch)),
            ("min-count", self.min_count),
        ];
        match counts.iter().find(|(_, n)| *n == Some(0)) {
            Some((name, _)) => {
                Err(Error::new("a count is zero").at(format!("--{name}")).expected("at least 1").found(0))
            }
            None => Ok(()),
        }
    }
}
