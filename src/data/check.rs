//! Scans a data folder whole and reports everything wrong with it, not just the first thing.

mod pictures;

use std::path::{Path, PathBuf};

use super::boxes::Boxes;
use super::captioned;
use super::captions;
use super::dataset::{
    BLANK_END, BOXES, CAPTIONS, IMAGES, Layout, PAIRS, SIZES, WORD_IDS, layout, leave_out_blank_end,
    other_count, splits,
};
use super::depends;
use super::features::Features;
use super::ids;
use super::recipe::{self, Recipe};
use super::word_ids;
use super::words::Vocabulary;
use crate::{Error, Result};

/// Bad rows of a file that are listed one by one.
const ROWS_LISTED: usize = 20;
/// The splits that training and evaluation use by default.
const USUAL: [&str; 3] = ["train", "dev", "test"];

/// How far a scan is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The split under way.
    pub split: &'a str,
    /// Rows of features, or pictures, read.
    pub done: usize,
    /// Rows of features, or pictures, in all.
    pub rows: usize,
}

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A line for each split that can be used.
    pub splits: Vec<String>,
    /// What must be put right, each in the form of an error.
    pub problems: Vec<String>,
    /// What is odd but legal.
    pub notices: Vec<String>,
}

impl Report {
    /// Whether nothing must be put right.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }

    /// Says which of the usual splits are not there.
    fn without_usual(&mut self, found: &[String]) {
        for split in USUAL.iter().filter(|split| !found.iter().any(|name| name == *split)) {
            self.notices.push(format!("there is no {split} split"));
        }
    }

    /// Takes up what is wrong with a file: so many things, and then only how many.
    fn problems_of(&mut self, wrong: &[Error], all: impl Fn(usize) -> String) {
        self.problems.extend(wrong.iter().take(ROWS_LISTED).map(ToString::to_string));
        if wrong.len() > ROWS_LISTED {
            self.problems.push(all(wrong.len()));
        }
    }
}

/// Scans a folder's features if it holds any, and its pictures with captions if it holds these, as [`scan_for`] does.
///
/// # Errors
/// Only a folder that cannot be listed; all else goes into the report.
pub fn scan(
    folder: &Path,
    captions_per_image: Option<usize>,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Report> {
    let features = !splits(folder, false).is_empty();
    // Beside features, captions alone are no pictures.
    let pictures = captioned::is_known(folder) && (!features || folder.join(captioned::IMAGES).is_dir());
    if !(features && pictures) {
        return scan_for(pictures, folder, captions_per_image, progress);
    }
    let mut report = scan_for(false, folder, captions_per_image, progress)?;
    let of_pictures = scan_for(true, folder, captions_per_image, progress)?;
    report.splits.extend(of_pictures.splits);
    report.problems.extend(of_pictures.problems);
    report
        .notices
        .extend(of_pictures.notices.into_iter().filter(|n| !report.notices.contains(n)).collect::<Vec<_>>());
    Ok(report)
}

/// Scans a folder for systems that read features, or for those that read pictures.
///
/// Of pictures: that captions are understood, that every picture is there once and decodes. Of features every split
/// that a folder holds a file of: both files there, their form, every number of the features, every caption, counts
/// (`captions_per_image` where they do not tell), groups of repeated rows, and that all splits have images of one
/// shape. Word ids (against the folder's vocabulary, if it has one), dependency pairs and boxes with the images' sizes
/// are scanned where they are there.
///
/// # Errors
/// Only a folder that cannot be listed; all else goes into the report.
pub fn scan_for(
    pictures: bool,
    folder: &Path,
    captions_per_image: Option<usize>,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Report> {
    std::fs::read_dir(folder).map_err(|e| {
        let error = Error::io("list the data folder", folder, &e);
        match folder.parent().filter(|_| folder.is_file()) {
            Some(parent) => error.cure(format!("give the folder that holds this file: {}", parent.display())),
            None => error,
        }
    })?;
    let found = splits(folder, false);
    let mut report = Report::default();
    if pictures {
        pictures::scan(folder, captions_per_image, &mut report, progress);
        return Ok(report);
    }
    if found.is_empty() {
        let error = Error::new("the folder holds no split").at(folder.display()).expected(
            "train_ims.npy with train_caps.txt, and the same for dev and test; or pictures with captions.tsv",
        );
        report.problems.push(error.to_string());
        return Ok(report);
    }
    report.without_usual(&found);
    let vocabulary = scan_vocabulary(folder, &mut report);
    let recipe = Recipe::open(folder).unwrap_or_else(|e| {
        report.problems.push(e.to_string());
        None
    });
    let mut shapes = Vec::new();
    for split in &found {
        let told = || recipe.as_ref().and_then(|recipe| recipe.captions_per_image(split));
        let asked = captions_per_image.or_else(told);
        let shape = scan_split(folder, split, asked, vocabulary.as_ref(), &mut report, progress);
        shapes.extend(shape.map(|shape| (split, shape)));
    }
    if let [(first, shape), rest @ ..] = shapes.as_slice() {
        for (split, other) in rest {
            if other.1 != shape.1 {
                let error =
                    Error::new(format!("the {split} split's features are not as wide as those of {first}"))
                        .at(folder.display())
                        .expected(format!("{} numbers a region", shape.1))
                        .found(other.1)
                        .cure("extract both with the same detector");
                report.problems.push(error.to_string());
            } else if other.0 != shape.0 {
                report.notices.push(format!(
                    "{split} has {} regions an image and {first} {}: models read either, but were mostly trained on one",
                    other.0, shape.0
                ));
            }
        }
    }
    Ok(report)
}

/// Scans one split and returns its images' shape (regions, dim), if they could be opened.
fn scan_split(
    folder: &Path,
    split: &str,
    asked: Option<usize>,
    vocabulary: Option<&Vocabulary>,
    report: &mut Report,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Option<(usize, usize)> {
    let file = |name: &str| folder.join(format!("{split}{name}"));
    let (ims, caps) = (file(IMAGES), file(CAPTIONS));
    let word_ids = scan_ids(&file(WORD_IDS), vocabulary, report);
    let mut texts = match captions::read(&caps, false) {
        Err(_) if word_ids.is_some() && !caps.exists() => {
            report
                .notices
                .push(format!("{split}: captions are word ids only, there is no {}", caps.display()));
            None
        }
        Ok(captions) => {
            report
                .notices
                .extend(captions.notices.iter().map(|notice| format!("{}: {notice}", caps.display())));
            Some(captions.texts)
        }
        Err(e) => {
            report.problems.push(e.to_string());
            None
        }
    };
    let features = Features::open(&ims).map_err(|e| report.problems.push(e.to_string())).ok();
    if let (Some(features), Some(texts)) = (&features, &mut texts) {
        let fits = |n: usize| word_ids.map_or(layout(features, n, asked).is_ok(), |lines| lines == n);
        if leave_out_blank_end(texts, fits) {
            report.notices.push(format!("{}: {BLANK_END}", caps.display()));
        }
    }
    let captions = texts.map(|texts| texts.len()).or(word_ids.filter(|_| !caps.exists()));
    let counted = [(file(WORD_IDS), word_ids), (file(PAIRS), scan_pairs(&file(PAIRS), report))];
    for (path, found) in counted {
        if let (Some(found), Some(captions)) = (found, captions)
            && found != captions
        {
            report.problems.push(other_count(&path, found, captions).to_string());
        }
    }
    report.notices.extend(incomplete(folder, split, vocabulary.is_some()));
    let features = features?;
    scan_boxes(&file(BOXES), &file(SIZES), &features, report);
    scan_rows(&features, report, |done| progress(&Progress { split, done, rows: features.len() }));
    if let Some(captions) = captions {
        match layout(&features, captions, asked).map_err(|e| e.at(format!("{}, {split}", folder.display()))) {
            Ok(Layout { captions_per_image: k, rows_per_image: n }) => {
                let rows = features.len();
                report.splits.push(format!(
                    "{split}: {} images, {rows} rows ({n} an image), {captions} captions ({k} an image)",
                    rows / n
                ));
                if let Err(e) = ids::names(folder, split, rows / n, captions) {
                    report.problems.push(e.to_string());
                }
            }
            Err(e) => report.problems.push(e.to_string()),
        }
    }
    Some((features.regions(), features.dim()))
}

fn scan_rows(features: &Features, report: &mut Report, progress: impl FnMut(usize)) {
    match features.verify_all(progress) {
        Err(e) => report.problems.push(e.to_string()),
        Ok(bad) => {
            let path = features.path().display();
            report.problems.extend(bad.iter().take(ROWS_LISTED).map(|value| format!("{path}: {value}")));
            if bad.len() > ROWS_LISTED {
                report.problems.push(format!("{path}: {} rows with NaN or infinity in all", bad.len()));
            }
        }
    }
}

/// What is missing of the files of systems that read words and boxes, where a split has some of them.
fn incomplete(folder: &Path, split: &str, vocabulary: bool) -> Option<String> {
    let there = |name: &&&str| folder.join(format!("{split}{name}")).exists();
    let (held, missing): (Vec<&str>, Vec<&str>) = [WORD_IDS, PAIRS, BOXES, SIZES].iter().partition(there);
    // Features that were made here have none: nothing parses their captions.
    let made = folder.join(recipe::FILE).exists();
    let missing = missing.iter().filter(|name| !made || **name != PAIRS).map(|name| format!("{split}{name}"));
    let missing: Vec<String> = missing
        .chain((!vocabulary).then(|| "*_vocab.json (unless --vocab_path names its folder)".into()))
        .collect();
    let incomplete = !held.is_empty() && !missing.is_empty();
    incomplete.then(|| {
        format!("{split}: for systems that read words and boxes there is no {}", missing.join(", no "))
    })
}

/// The folder's vocabulary of whole words, if it has one.
fn scan_vocabulary(folder: &Path, report: &mut Report) -> Option<Vocabulary> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is = |path: &PathBuf| path.to_string_lossy().ends_with("_vocab.json");
    let path = entries.filter(is).min()?;
    Vocabulary::open(&path).map_err(|e| report.problems.push(e.to_string())).ok()
}

/// Scans word ids and returns the number of captions.
fn scan_ids(path: &Path, vocabulary: Option<&Vocabulary>, report: &mut Report) -> Option<usize> {
    if !path.exists() {
        return None;
    }
    let mut wrong = Vec::new();
    let rows =
        word_ids::scan(path, &mut |e| wrong.push(e)).map_err(|e| report.problems.push(e.to_string())).ok()?;
    wrong.extend(vocabulary.into_iter().flat_map(|vocabulary| word_ids::past(&rows, vocabulary, path)));
    report.problems_of(&wrong, |n| format!("{}: {n} captions are wrong in all", path.display()));
    Some(rows.len())
}

/// Scans dependency pairs and returns the number of captions.
fn scan_pairs(path: &Path, report: &mut Report) -> Option<usize> {
    if !path.exists() {
        return None;
    }
    let pairs = depends::read(path).map_err(|e| report.problems.push(e.to_string())).ok()?;
    Some(pairs.len())
}

fn scan_boxes(boxes: &Path, sizes: &Path, features: &Features, report: &mut Report) {
    if !boxes.exists() && !sizes.exists() {
        return;
    }
    let faults = match Boxes::read_files(boxes, sizes, features) {
        Ok(all) => all.faults().collect(),
        Err(e) => vec![e],
    };
    report.problems_of(&faults, |n| format!("{}: {n} rows with such boxes in all", boxes.display()));
}
