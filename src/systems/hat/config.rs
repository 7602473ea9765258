//! What makes a HAT, by the names of the authors' `config.py`, and its parameters.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::encode::{LAYERS, STAGES};
use super::{IMAGE, LEVELS, TEXT};
use crate::error::{Error, Result};
use crate::nn::{Init, ParamSpec, Role, bert, layout, swin};

/// Sizes past this are slips or hostile, and their products would overflow.
const MAX_SIZE: usize = 1 << 20;
/// Deviation of the maps' random beginnings.
const DEVIATION: f64 = 0.02;

/// Which side's rows ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Parts of images attend to words.
    I2t,
    /// Words attend to parts of images.
    T2i,
}

/// The options that make the model and its loss.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[command(rename_all = "verbatim", next_help_heading = "HAT: the model")]
#[serde(default)]
pub struct ModelOptions {
    /// Which side attends to the other
    #[arg(long, value_enum, default_value_t = Direction::I2t)]
    pub direction: Direction,
    /// Width at which images and captions are aligned
    #[arg(long, value_name = "N", default_value_t = 768)]
    pub hidden_size: usize,
    /// Pieces of a caption at most, its two marks included
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub max_text_len: usize,
    /// Inverse temperature of the attention
    #[arg(long, value_name = "X", default_value_t = 9.0)]
    pub lambda_softmax: f64,
    /// Margin of the hinge loss, of the sum of the three levels
    #[arg(long, value_name = "X", default_value_t = 0.2)]
    pub margin: f64,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            direction: Direction::I2t,
            hidden_size: 768,
            max_text_len: 32,
            lambda_softmax: 9.0,
            margin: 0.2,
        }
    }
}

/// What determines the model and its loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The options.
    #[serde(flatten)]
    pub options: ModelOptions,
    /// The image encoder.
    pub swin: swin::Config,
    /// The text encoder.
    #[serde(rename = "bert_config", alias = "bert")]
    pub bert: bert::Config,
    /// Pictures are read as they are stored, as the authors' code reads them: not turned as their EXIF data say.
    #[serde(default = "yes")]
    pub faithful: bool,
}

fn yes() -> bool {
    true
}

pub(super) fn out_of_range(option: &str, expected: &str, found: impl ToString) -> Error {
    Error::new("the value is out of range")
        .at(format!("--{option}"))
        .expected(expected)
        .found(found.to_string())
        .cure(format!("give another --{option}"))
}

impl ModelOptions {
    pub(super) fn is_i2t(&self) -> bool {
        self.direction == Direction::I2t
    }

    /// Whether the options make a model, as far as they tell.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        // Both marks and a piece.
        for (name, size, least) in
            [("hidden_size", self.hidden_size, 1), ("max_text_len", self.max_text_len, 3)]
        {
            if !(least..=MAX_SIZE).contains(&size) {
                return Err(out_of_range(name, &format!("{least} to {MAX_SIZE}"), size));
            }
        }
        let numbers = [("lambda_softmax", self.lambda_softmax), ("margin", self.margin)];
        match numbers.iter().find(|(_, v)| !v.is_finite()) {
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
        self.swin.check()?;
        self.bert.check()?;
        let (layers, needed) = (self.bert.num_hidden_layers, LAYERS[2] + 1);
        if layers < needed {
            return Err(Error::new("the text encoder has too few layers: the tenth is aligned")
                .expected(format!("at least {needed} layers"))
                .found(layers)
                .cure(format!("give another BERT, or --bert-layers {needed} for a random one")));
        }
        Ok(())
    }

    /// Pieces of a caption at most.
    pub(super) fn max_words(&self) -> usize {
        self.options.max_text_len.min(self.bert.max_position_embeddings)
    }

    /// Every parameter, named as in the authors' state dict.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        layout(|l| {
            l.extend(self.swin.parameters(IMAGE));
            l.extend(self.bert.parameters(TEXT));
            let hidden = self.options.hidden_size;
            for (suffix, stage) in LEVELS.iter().zip(STAGES) {
                let sides = [("text", self.bert.hidden_size), ("image", self.swin.width(stage))];
                for (side, from) in sides {
                    let at = format!("cross_modal_{side}_transform{suffix}");
                    l.push(format!("{at}.weight"), &[hidden, from], Init::Normal(DEVIATION), Role::Weight);
                    l.push(format!("{at}.bias"), &[hidden], Init::Const(0.0), Role::Weight);
                }
            }
        })
    }
}
