//! What a long command tells while it runs; who listens decides how to show it.

use std::path::PathBuf;

use crate::eval::Progress;
use crate::eval::rank::Metrics;

/// Why training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every epoch is done.
    Finished,
    /// `--max-steps` is reached.
    StepLimit,
    /// `--time-limit` is over.
    TimeLimit,
    /// The user asked to stop.
    Interrupted,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Work over a split goes on, or a sentence worth knowing.
    Progress(Progress),
    /// Training begins.
    Start {
        /// The run's folder.
        run: PathBuf,
        /// Where its metrics and curves are.
        logs: PathBuf,
        /// The adapter's name.
        device: String,
        /// The training split, in words.
        data: String,
        /// Trained numbers.
        parameters: usize,
        /// Epochs in all.
        epochs: u64,
        /// Steps in all.
        steps: u64,
        /// The step it goes on from.
        resumed_at: Option<u64>,
    },
    /// A step whose losses were read back.
    Step {
        /// Its epoch, from 1.
        epoch: u64,
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// The loss.
        loss: f64,
        /// Its terms by name.
        terms: Vec<(&'static str, f64)>,
        /// The gradient's norm before clipping.
        grad_norm: f64,
        /// The learning rate.
        lr: f64,
        /// Image-caption pairs scored a second.
        pairs_per_second: f64,
        /// Time left.
        eta_seconds: f64,
    },
    /// A validation.
    Validation {
        /// The split.
        split: String,
        /// Steps done.
        step: u64,
        /// The recalls.
        metrics: Metrics,
        /// Whether it is the best so far.
        best: bool,
    },
    /// A checkpoint is on disk.
    Saved {
        /// Where.
        path: PathBuf,
    },
    /// Training ended.
    Done {
        /// Why.
        ending: Ending,
        /// The run's folder.
        run: PathBuf,
        /// Steps done.
        step: u64,
        /// Seconds since the start.
        seconds: f64,
        /// The best validation and its step.
        best: Option<(u64, Metrics)>,
    },
}

impl Event {
    /// A sentence worth knowing.
    pub fn notice(text: impl Into<String>) -> Self {
        Self::Progress(Progress::Notice(text.into()))
    }
}
