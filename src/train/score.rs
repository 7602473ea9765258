//! Encoding and scoring of a split with a run's weights.

use std::sync::atomic::AtomicBool;

use super::Event;
use super::options::EvaluateOptions;
use super::sims::Matrix;
use crate::error::{Error, Result};

/// Scores every pair of the split with each run, in the order of `options.runs`.
///
/// # Errors
/// Bad input, a device that fails; [`crate::Kind::Interrupted`] when `stop` is set.
pub fn score(
    _options: &EvaluateOptions,
    _stop: &AtomicBool,
    _tell: &mut dyn FnMut(Event),
) -> Result<Vec<Matrix>> {
    Err(Error::new("scoring runs is not built yet"))
}

/// For the first `options.show` captions: the images ranked first and the cells their paths took, as text.
///
/// # Errors
/// As [`score`].
pub fn show(_options: &EvaluateOptions, _sims: &Matrix, _stop: &AtomicBool) -> Result<String> {
    Err(Error::new("showing retrievals is not built yet"))
}
