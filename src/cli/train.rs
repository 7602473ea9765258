//! `crossweave train`.

use std::sync::atomic::Ordering;

use super::progress::Reporter;
use super::{Verdict, interrupt, note};
use crate::error::Result;
use crate::train::options::TrainOptions;
use crate::train::run;

/// Trains.
///
/// # Errors
/// Options that contradict each other, and all that [`run::train`] reports.
pub fn run(options: TrainOptions) -> Result<Verdict> {
    let (options, warnings) = options.resolve()?;
    for warning in &warnings {
        note("warning", warning);
    }
    let stop = interrupt::watch()?;
    let mut reporter = Reporter::new();
    let trained = run::train(&options, stop, &mut |event| reporter.tell(event));
    reporter.finish();
    trained?;
    Ok(if stop.load(Ordering::Relaxed) { Verdict::Stopped } else { Verdict::Good })
}
