//! Scans a folder of pictures with captions.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{Progress, Report};
use crate::Error;
use crate::data::captioned::{self, Captioned};
use crate::data::dataset::cores;
use crate::data::pictures;

/// Pictures that each thread decodes between two reports.
const EACH: usize = 16;

pub(super) fn scan(
    folder: &Path,
    asked: Option<usize>,
    report: &mut Report,
    progress: &mut dyn FnMut(&Progress<'_>),
) {
    let found = captioned::splits(folder);
    if found.is_empty() {
        // Whatever split is asked for, the reason is the same.
        let reason = captioned::open(folder, "train", asked).err();
        report.problems.extend(reason.map(|e| e.to_string()));
        return;
    }
    report.without_usual(&found);
    let mut homes: HashMap<PathBuf, &str> = HashMap::new();
    for split in &found {
        let read = match captioned::open(folder, split, asked) {
            Ok(read) => read,
            Err(e) => {
                report.problems.push(e.to_string());
                continue;
            }
        };
        let Captioned { files, texts, captions_per_image: k, notices, .. } = read;
        // How one caption file is divided is the same for all.
        let new: Vec<String> = notices.into_iter().filter(|n| !report.notices.contains(n)).collect();
        report.notices.extend(new);
        let (sides, wrong) = decode(&files, |done| progress(&Progress { split, done, rows: files.len() }));
        report.problems_of(&wrong, |n| format!("{split}: {n} pictures cannot be read in all"));
        let (pictures, captions) = (files.len(), texts.len());
        let sizes = match sides {
            Some([least, most]) if least < most => format!(" of {least} to {most} pixels a side"),
            Some([side, _]) => format!(" of {side} x {side} pixels"),
            None => String::new(),
        };
        report
            .splits
            .push(format!("{split}: {pictures} pictures{sizes}, {captions} captions ({k} a picture)"));
        for file in files {
            if let Some(other) = homes.get(&file) {
                let error = Error::new(format!("a picture of the {split} split is in {other} too"))
                    .at(file.display())
                    .cure("keep it in one of them: scores of what was trained on say nothing");
                report.problems.push(error.to_string());
            } else {
                homes.insert(file, split);
            }
        }
    }
}

/// Decodes every picture: the shortest and the longest side of all, and what is wrong.
fn decode(files: &[PathBuf], mut progress: impl FnMut(usize)) -> (Option<[usize; 2]>, Vec<Error>) {
    let threads = cores();
    let (mut sides, mut wrong) = (None, Vec::new());
    let mut done = 0;
    for part in files.chunks(EACH * threads) {
        let read = |files: &[PathBuf]| -> Vec<_> {
            let sides = |path: &PathBuf| pictures::read_file(path, true).map(|p| [p.width, p.height]);
            files.iter().map(sides).collect()
        };
        let found: Vec<_> = std::thread::scope(|scope| {
            let shares = part.chunks(part.len().div_ceil(threads));
            let running: Vec<_> = shares.map(|share| scope.spawn(move || read(share))).collect();
            running.into_iter().flat_map(|thread| thread.join().expect("decoding does not panic")).collect()
        });
        for one in found {
            match one {
                Ok([w, h]) => {
                    let [least, most] = sides.unwrap_or([w, w]);
                    sides = Some([least.min(w).min(h), most.max(w).max(h)]);
                }
                Err(e) => wrong.push(e),
            }
        }
        done += part.len();
        progress(done);
    }
    (sides, wrong)
}
