//! `crossweave evaluate`.

use std::path::PathBuf;

use super::progress::Reporter;
use super::recall::{json, text};
use super::{Verdict, interrupt, note, show};
use crate::error::Result;
use crate::eval::sims::Matrix;
use crate::eval::{EvaluateOptions, score};

/// Evaluates runs or matrices.
///
/// # Errors
/// Options that contradict each other, files that are missing or wrong, and all that [`score::score`] reports.
pub fn run(options: &EvaluateOptions) -> Result<Verdict> {
    options.check()?;
    let members = if options.sims.is_empty() { scored(options)? } else { opened(options)? };
    let names: Vec<String> = sources(options).iter().map(|path| path.display().to_string()).collect();
    let sims = Matrix::ensemble(members)?;
    let (folds, tied) = sims.metrics(options.folds)?;
    if let Some(path) = &options.save_sims {
        sims.save(path)?;
        note("saved", &path.display().to_string());
    }
    if tied {
        note("notice", "equal scores decided a rank: among them the higher index ranks first");
    }
    match options.json {
        true => show(&format!("{}\n", json(&names, &sims, &folds, tied))),
        false => show(&text(&names, &sims, &folds)),
    }
    if options.show > 0 {
        show(&score::show(options, &sims, interrupt::watch()?)?);
    }
    Ok(Verdict::Good)
}

fn sources(options: &EvaluateOptions) -> &[PathBuf] {
    if options.sims.is_empty() { &options.runs } else { &options.sims }
}

fn scored(options: &EvaluateOptions) -> Result<Vec<Matrix>> {
    let mut reporter = Reporter::new();
    let scored = score::score(options, interrupt::watch()?, &mut |progress| reporter.progress(progress));
    reporter.finish();
    scored
}

fn opened(options: &EvaluateOptions) -> Result<Vec<Matrix>> {
    options.sims.iter().map(|path| Matrix::open(path, options.captions_per_image)).collect()
}
