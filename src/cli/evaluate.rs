//! `crossweave evaluate`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::progress::Reporter;
use super::recall::{Source, json, text};
use super::{Verdict, interrupt, note, show};
use crate::data::atomic::Pending;
use crate::error::Result;
use crate::eval::score::Members;
use crate::eval::sims::Matrix;
use crate::eval::{EvaluateOptions, rank};

/// Evaluates runs or matrices.
///
/// # Errors
/// Options that contradict each other, files that are missing or wrong, and all that [`Members::score`] reports.
pub fn run(options: &EvaluateOptions) -> Result<Verdict> {
    options.check()?;
    let stop = interrupt::watch()?;
    let mut reporter = Reporter::new();
    let members = Members::open(options, &mut |progress| reporter.progress(progress))?;
    let place = options.save_sims.as_deref().map(Pending::begin).transpose()?;
    let matrices = match options.sims.is_empty() {
        true => scored(&members, stop, &mut reporter)?,
        false => opened(options)?,
    };
    let sims = Matrix::ensemble(matrices)?;
    let saved = options.save_sims.as_deref().zip(place).map(|(path, place)| {
        sims.save_to(place)?;
        note("saved", &path.display().to_string());
        Ok(())
    });
    let told = tell(options, &members, &sims, stop);
    let kept = !options.sims.is_empty() || matches!(saved, Some(Ok(())));
    if !kept && (told.is_err() || saved.is_some()) {
        rescue(std::slice::from_ref(&sims));
    }
    saved.transpose()?;
    told
}

/// Prints the result.
fn tell(options: &EvaluateOptions, members: &Members, sims: &Matrix, stop: &AtomicBool) -> Result<Verdict> {
    let (folds, tied) = sims.metrics(options.folds)?;
    if tied {
        note("notice", "equal scores decided a rank: among them the higher index ranks first");
    }
    let source = source(options, members);
    show(&match options.json {
        true => format!("{}\n", json(&source, sims, &folds, tied)),
        false => text(&source, sims, &folds),
    })?;
    if options.show > 0 {
        show(&members.show(sims, stop)?)?;
    }
    Ok(Verdict::Good)
}

/// What the result is about.
fn source(options: &EvaluateOptions, members: &Members) -> Source {
    let shown = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect();
    if !options.sims.is_empty() {
        return Source { names: shown(&options.sims), split: None, data: Vec::new() };
    }
    let folders = members.folders();
    // SCAN's COCO has its 1K test set as `test` and the 5K one as `testall`: the two are easily taken for each other.
    for folder in &folders {
        if !options.split.starts_with("test") {
            continue;
        }
        let there = members.splits(folder);
        let alike = |name: &&String| **name != options.split && name.starts_with("test");
        if let Some(other) = there.iter().find(alike) {
            let (folder, split) = (folder.display(), &options.split);
            note(
                "notice",
                &format!("{folder} has a split {other} besides {split}: --split {other} scores that one"),
            );
        }
    }
    Source {
        names: shown(&options.runs),
        split: Some(options.split.clone()),
        data: folders.iter().map(|folder| folder.display().to_string()).collect(),
    }
}

fn scored(members: &Members, stop: &AtomicBool, reporter: &mut Reporter) -> Result<Vec<Matrix>> {
    let mut done = Vec::new();
    let scored = members.score(stop, &mut |progress| reporter.progress(progress), &mut done);
    reporter.finish();
    match scored {
        Ok(()) => Ok(done),
        Err(e) => {
            rescue(&done);
            Err(e)
        }
    }
}

fn opened(options: &EvaluateOptions) -> Result<Vec<Matrix>> {
    let open = |path: &PathBuf| Matrix::open(path, options.captions_per_image);
    let matrices: Vec<Matrix> = options.sims.iter().map(open).collect::<Result<_>>()?;
    if let (Some(folds), Some(first)) = (options.folds, matrices.first()) {
        rank::check_folds(first.images, folds)?;
    }
    Ok(matrices)
}

/// Keeps scores that an error would lose: they may have taken hours.
fn rescue(scored: &[Matrix]) {
    for (i, sims) in scored.iter().enumerate() {
        let name = format!("crossweave-{}-{}.npy", std::process::id(), i + 1);
        let places = [PathBuf::from(&name), std::env::temp_dir().join(&name)];
        match places.iter().find(|path| sims.save(path).is_ok()) {
            Some(path) => note("saved", &format!("{}: evaluate it with --sims", path.display())),
            None => note(
                "warning",
                "scores are lost: they can be written neither here nor in the temporary folder",
            ),
        }
    }
}
