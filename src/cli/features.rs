//! `crossweave features`.

use super::progress::Reporter;
use super::{Verdict, interrupt, show};
use crate::error::Result;
use crate::eval::FeaturesOptions;
use crate::eval::features::make;

/// Makes a folder of features.
///
/// # Errors
/// All that [`make`] reports.
pub fn run(options: &FeaturesOptions) -> Result<Verdict> {
    let stop = interrupt::watch()?;
    let mut reporter = Reporter::new();
    let made = make(options, stop, &mut |progress| reporter.progress(progress));
    reporter.finish();
    show(&text(&made?, options))?;
    Ok(Verdict::Good)
}

/// What was made, and how it is given to training.
fn text(splits: &[String], options: &FeaturesOptions) -> String {
    let mut out: String = splits.iter().map(|line| format!("{line}\n")).collect();
    let parent = options.out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.map_or_else(|| ".".to_owned(), |parent| parent.display().to_string());
    let name = options.out.file_name().unwrap_or_default().to_string_lossy();
    out += &format!("to train on them: crossweave train --data_path {parent} --data_name {name} ..\n");
    out
}
