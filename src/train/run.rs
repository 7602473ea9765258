//! The training loop.

use std::sync::atomic::AtomicBool;

use super::Event;
use super::options::TrainOptions;
use crate::error::{Error, Result};

/// Trains as the (resolved) options say, telling what happens; ends after the step during which `stop` is set.
///
/// # Errors
/// Bad input, a device that fails, a loss that is not finite.
pub fn train(_options: &TrainOptions, _stop: &AtomicBool, _tell: &mut dyn FnMut(Event)) -> Result<()> {
    Err(Error::new("training is not built yet"))
}
