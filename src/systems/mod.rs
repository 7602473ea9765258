//! The published systems, each a folder behind one trait: nothing outside this layer knows which there are.
//!
//! A system says what it reads of an image and a caption, what parameters it has, and how both are encoded, scored
//! and trained ([`System`]); its options, and how its authors' checkpoints are read, come with it ([`Kind`]).
//! Adding one is a folder, its name here and a line in [`kinds`]'s file; a program that has a system of its own calls [`register`].

pub mod contexts;
pub mod dime;
pub mod gsmn;
pub mod hat;
pub mod hinge;
pub mod hrem;
mod items;
mod kind;
mod pass;

pub use items::Items;
pub use kind::{
    BERT, Checkpoint, DEFAULT, Encoders, Family, Images, Kind, Options, Sets, Text, TextSide, kind, kinds,
    of_config, register,
};
pub use pass::{Form, Pass, Step, Taps};

pub use crate::host::Inputs;

use crate::nn::{ParamSpec, bert, swin};
use crate::ops::AdamStep;
use crate::tensor::Tensor;

/// One model of a published system, with its configuration; parameters come with each [`Pass`].
pub trait System {
    /// The configuration as plain data, under the authors' option names: what a run's folder keeps.
    fn config(&self) -> serde_json::Value;

    /// What it reads of an image and a caption, and how training varies that.
    fn inputs(&self) -> Inputs;

    /// Every parameter, named as in the authors' state dicts. Maps that one product takes follow each other.
    fn parameters(&self) -> Vec<ParamSpec>;

    /// The text encoder whose weights may come from another model, and whose states may be kept.
    fn text_encoder(&self) -> Option<TextEncoder<'_>> {
        None
    }

    /// The image encoder whose weights may come from another model.
    fn image_encoder(&self) -> Option<ImageEncoder<'_>> {
        None
    }

    /// Encodes images: the columns that [`System::score`] reads of each.
    fn images(&self, pass: &Pass, x: &Items) -> Items;

    /// Encodes captions: the columns that [`System::score`] reads of each.
    fn captions(&self, pass: &Pass, x: &Items) -> Items;

    /// Similarities `[images, captions]` of a tile of encoded items.
    fn score(&self, pass: &Pass, images: &Items, captions: &Items) -> Tensor;

    /// The values of a pair's largest tensor, for images of so many regions and captions of so many words: what
    /// decides the size of a tile. 0 where one product scores all pairs.
    fn pair_values(&self, regions: usize, words: usize) -> usize;

    /// The columns of encoded captions whose rows need only reach to the longest caption of a batch or a tile, where
    /// padding does not change a score; the column `lengths` says how long each is.
    fn padded_columns(&self) -> &'static [&'static str] {
        &[]
    }

    /// The values of a caption's largest tensor while it is encoded, for one of so many words: what bounds a batch. 0
    /// where nothing is known to.
    fn caption_values(&self, _: usize) -> usize {
        0
    }

    /// The form that training takes.
    fn form(&self) -> Form {
        Form::Fast
    }

    /// The loss of a batch of encoded items, and its terms.
    fn loss(&self, pass: &Pass, images: &Items, captions: &Items, batch: &Batch) -> Loss;

    /// How the step after `step` steps, in epoch `epoch` (both from 0), is taken.
    fn schedule(&self, rates: &Rates, epoch: u64, step: u64) -> Schedule;

    /// In words, why one image and one caption have their similarity; `None` where there is nothing to say.
    ///
    /// # Errors
    /// What the device reports.
    fn explain(&self, _: &Pass, _: &Items, _: &Items) -> crate::Result<Option<String>> {
        Ok(None)
    }

    /// What the words of [`System::explain`] mean, a sentence.
    fn explanation(&self) -> &'static str {
        ""
    }
}

/// A BERT inside a system.
#[derive(Clone, Copy)]
pub struct TextEncoder<'a> {
    /// What its parameters' names begin with, the dot included.
    pub prefix: &'static str,
    /// Its configuration.
    pub config: &'a bert::Config,
}

/// A Swin inside a system.
#[derive(Clone, Copy)]
pub struct ImageEncoder<'a> {
    /// What its parameters' names begin with, the dot included.
    pub prefix: &'static str,
    /// Its configuration.
    pub config: &'a swin::Config,
}

/// What a loss knows of its batch besides the encoded items.
pub struct Batch<'a> {
    /// Which image each sample belongs to, for the samples without the extras; equal numbers are one image.
    pub image_ids: &'a [usize],
    /// Tensors that replace what the loss would draw at random, by name: fixtures give their draws.
    pub given: Option<&'a Items>,
}

/// A loss and what it is made of.
pub struct Loss {
    /// What is differentiated, a scalar.
    pub total: Tensor,
    /// Its terms by name, scalars: at most [`Loss::TERMS`].
    pub terms: Vec<(&'static str, Tensor)>,
}

impl Loss {
    /// The most terms of a loss.
    pub const TERMS: usize = 8;
}

/// The rates that every system's training has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// The learning rate of the first epoch.
    pub learning_rate: f64,
    /// Largest norm of the gradient; 0 or less: no limit.
    pub grad_clip: f64,
}

/// How one step of Adam is taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The learning rate of each optimiser group; a group that is not listed is frozen.
    pub rates: Vec<(&'static str, f64)>,
    /// Largest norm of the gradient over all groups; 0 or less: no limit.
    pub clip: f64,
    /// Decoupled weight decay.
    pub decay: f64,
}

impl Schedule {
    /// The constants of the step; each group has its own rate.
    pub fn adam(&self) -> AdamStep {
        AdamStep { lr: 0.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: self.decay, clip: self.clip }
    }

    /// The learning rate of a group; `None` where it is frozen.
    pub fn rate(&self, group: &str) -> Option<f64> {
        self.rates.iter().find(|(name, _)| *name == group).map(|(_, rate)| *rate)
    }
}
