//! A split of a SCAN "precomp" folder: `{split}_ims.npy` beside `{split}_caps.txt`, and beside those, for models that
//! read them, `{split}_precaps_stan.txt` (word ids), `{split}_caps.json` (dependency pairs), `{split}_ims_bbx.npy` and
//! `{split}_ims_size.npy` (boxes).
//!
//! Three layouts exist: one row an image with five captions each (`captions == 5 * rows`), the same with every row
//! stored five times (`captions == rows`, groups of five identical rows: SCAN's own dev and test files), and one
//! caption an image (`captions == rows`, rows differing).

use std::path::{Path, PathBuf};

use super::boxes::Boxes;
use super::captions::{self, Captions};
use super::depends::{self, Pairs};
use super::features::{Features, packed};
use super::ragged::Ragged;
use super::tokenizer::{TokenTable, Tokenizer};
use super::word_ids;
use super::words::{self, Vocabulary};
use crate::host::Inputs;
use crate::{Error, Result};

/// The files of a split, after its name.
pub(super) const IMAGES: &str = "_ims.npy";
pub(super) const CAPTIONS: &str = "_caps.txt";
pub(super) const WORD_IDS: &str = "_precaps_stan.txt";
pub(super) const PAIRS: &str = "_caps.json";
pub(super) const BOXES: &str = "_ims_bbx.npy";
pub(super) const SIZES: &str = "_ims_size.npy";
/// Captions an image in every published data set.
pub(crate) const PER_IMAGE: usize = 5;
/// What is said where boxes are read as the published code does.
const BOXES_AGAIN: &str = "boxes are those that the published numbers were computed with: divided by the image's size \
    again on every read, and, scored without --folds, image i with the boxes of caption i";

/// How to read a split.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Captions an image, where the counts do not tell.
    pub captions_per_image: Option<usize>,
    /// Odd captions are errors.
    pub strict: bool,
    /// At most this many captions, rounded down to whole images (but at least one image).
    pub limit: Option<usize>,
    /// Captions are ids of whole words, where `{split}_precaps_stan.txt` has them.
    pub words: bool,
}

/// How rows and captions belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Captions an image.
    pub captions_per_image: usize,
    /// Rows an image, all the same.
    pub rows_per_image: usize,
}

/// A split's images and captions; caption `c` describes image `c / captions_per_image`.
#[derive(Debug)]
pub struct Dataset {
    folder: PathBuf,
    split: String,
    features: Features,
    /// Empty where there are only ids, until these are spelled.
    texts: Vec<String>,
    /// The captions' word ids, if they were asked for and are there.
    ids: Option<Ragged<u32>>,
    captions: usize,
    boxes: Option<Boxes>,
    /// Nothing where there is no file.
    pairs: Option<Pairs>,
    notices: Vec<String>,
    layout: Layout,
}

impl Dataset {
    /// Opens a split of a folder.
    ///
    /// # Errors
    /// Missing or bad files (see [`Features::open`], [`captions::read`] and [`word_ids::read`]), and counts that fit no
    /// layout.
    pub fn open(folder: &Path, split: &str, options: &Options) -> Result<Self> {
        let [ims, caps, ids] = [IMAGES, CAPTIONS, WORD_IDS].map(|file| folder.join(format!("{split}{file}")));
        let given = options.words && ids.exists();
        let missing: Vec<String> = [(&ims, true), (&caps, !given)]
            .into_iter()
            .filter(|(path, needed)| *needed && !path.exists())
            .map(|(path, _)| path.display().to_string())
            .collect();
        if !missing.is_empty() {
            return Err(missing_files(folder, split, &missing));
        }
        let features = Features::open(&ims)?;
        let rows = if given { Some(word_ids::read(&ids)?) } else { None };
        let Captions { mut texts, notices } = match caps.exists() {
            true => captions::read(&caps, options.strict)?,
            false => Captions::default(),
        };
        let mut notices: Vec<String> =
            notices.into_iter().map(|notice| format!("{}: {notice}", caps.display())).collect();
        let asked = options.captions_per_image;
        let fits =
            |n: usize| rows.as_ref().map_or(layout(&features, n, asked).is_ok(), |rows| rows.len() == n);
        if leave_out_blank_end(&mut texts, fits) {
            notices.push(format!("{}: {BLANK_END}", caps.display()));
        }
        if let Some(rows) = rows.as_ref().filter(|rows| caps.exists() && rows.len() != texts.len()) {
            return Err(other_count(&ids, rows.len(), texts.len()));
        }
        if options.words && !given {
            let (from, none) = (caps.display(), ids.display());
            notices.push(format!("{from} is split into the vocabulary's words, as there is no {none}"));
        }
        let captions = rows.as_ref().map_or(texts.len(), Ragged::len);
        let layout = layout(&features, captions, asked).map_err(|e| {
            let e = e.at(folder.display());
            match texts.last().is_some_and(|text| captions::is_blank(text)) {
                true => e.cure(format!("delete the empty last lines of {}, if that is all", caps.display())),
                false => e,
            }
        })?;
        let (folder, split) = (folder.to_path_buf(), split.to_owned());
        let (ids, boxes, pairs) = (rows, None, None);
        let mut data = Self { folder, split, features, texts, ids, captions, boxes, pairs, notices, layout };
        if let Some(limit) = options.limit {
            let k = layout.captions_per_image;
            data.captions = captions.min((limit / k * k).max(k));
            data.texts.truncate(data.captions);
            data.ids.iter_mut().for_each(|rows| rows.truncate(data.captions));
        }
        Ok(data)
    }

    /// Opens what else a model reads, boxes and dependency pairs, and checks word ids against its tokenizer.
    ///
    /// # Errors
    /// Boxes that are missing or wrong, see [`Boxes::open`]; pairs that are wrong, see [`depends::read`]; an id past the
    /// vocabulary; ids of another vocabulary, where the folder has its own.
    pub fn prepare(&mut self, inputs: &Inputs, tokenizer: &Tokenizer) -> Result<()> {
        if inputs.images.contains(&"bboxes") {
            self.boxes = Some(Boxes::open(&self.file(BOXES), &self.file(SIZES), &self.features)?);
            if inputs.boxes_again.is_some() {
                self.notices.push(BOXES_AGAIN.to_owned());
            }
        }
        if inputs.captions.contains(&"depends") {
            self.pairs = self.open_pairs()?;
        }
        if let (Tokenizer::Words(vocabulary), None) = (tokenizer, &self.ids) {
            let all: Vec<u32> = self.texts.iter().flat_map(|text| vocabulary.encode(text)).collect();
            let unknown = all.iter().filter(|id| **id == words::UNKNOWN).count();
            if unknown > 0 {
                let words = all.len() - 2 * self.texts.len();
                self.notices
                    .push(format!("{unknown} of {words} words are not in the vocabulary: read as <unk>"));
            }
        }
        self.check_words(tokenizer)
    }

    fn open_pairs(&mut self) -> Result<Option<Pairs>> {
        let path = self.file(PAIRS);
        if !path.exists() {
            self.notices.push(format!(
                "there is no {}: captions have no dependency pairs; scores are the same where no word depends on itself",
                path.display()
            ));
            return Ok(None);
        }
        let mut pairs = depends::read(&path)?;
        // Those before a limit.
        let captions = self.features.len() * self.captions_per_row();
        if pairs.len() != captions {
            return Err(other_count(&path, pairs.len(), captions));
        }
        pairs.truncate(self.captions);
        Ok(Some(pairs))
    }

    fn check_words(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        let (Tokenizer::Words(vocabulary), Some(rows)) = (tokenizer, &self.ids) else { return Ok(()) };
        let path = self.file(WORD_IDS);
        if let Some(own) = words::find(&self.folder, None).filter(|own| own.starts_with(&self.folder))
            && Vocabulary::open(&own)? != *vocabulary
        {
            return Err(Error::new("the captions' word ids are those of another vocabulary")
                .at(path.display())
                .expected("ids of the model's vocabulary")
                .found(format!("ids of {}", own.display()))
                .cure(format!(
                    "take the data that the model's words come from, or move {} away: then the words of _caps.txt are taken",
                    path.display()
                )));
        }
        word_ids::check(rows, vocabulary, &path)?;
        if self.texts.is_empty() {
            self.texts = rows.rows().map(|ids| vocabulary.spell(ids)).collect();
        }
        Ok(())
    }

    /// All captions as a model's tokenizer reads them; `max_words` is for pieces.
    ///
    /// # Errors
    /// A caption that is too long.
    pub fn tokens(&self, tokenizer: &Tokenizer, max_words: usize) -> Result<TokenTable> {
        match (tokenizer, &self.ids) {
            (Tokenizer::Pieces(pieces), _) => Ok(TokenTable::new(pieces, &self.texts, max_words)),
            (Tokenizer::Words(_), Some(rows)) => Ok(TokenTable::of_ids(rows.clone())),
            (Tokenizer::Words(vocabulary), None) => {
                TokenTable::of_words(vocabulary, &self.texts).map_err(|e| e.at(self.file(CAPTIONS).display()))
            }
        }
    }

    /// One of the split's files.
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}{name}", self.split))
    }

    /// The number of different images (repeated rows counted once).
    pub fn images(&self) -> usize {
        self.captions / self.layout.captions_per_image
    }

    /// The number of captions.
    pub fn captions(&self) -> usize {
        self.captions
    }

    /// Captions an image.
    pub fn captions_per_image(&self) -> usize {
        self.layout.captions_per_image
    }

    /// Regions an image.
    pub fn regions(&self) -> usize {
        self.features.regions()
    }

    /// Numbers a region.
    pub fn dim(&self) -> usize {
        self.features.dim()
    }

    /// The image a caption describes.
    pub fn image_of(&self, caption: usize) -> usize {
        caption / self.layout.captions_per_image
    }

    /// Appends an image's features `[regions, dim]` to `out`.
    ///
    /// # Errors
    /// As [`Features::read`].
    pub fn image(&self, image: usize, out: &mut Vec<f32>) -> Result<()> {
        self.features.read(image * self.layout.rows_per_image, out)
    }

    /// An image's features as they are stored.
    ///
    /// # Errors
    /// A file that shrank since it was opened.
    pub(super) fn stored_row(&self, image: usize) -> Result<&[u8]> {
        self.features.raw(image * self.layout.rows_per_image)
    }

    /// The files besides features and captions that were opened for a model.
    pub(super) fn more_files(&self) -> Vec<PathBuf> {
        let opened = [
            (WORD_IDS, self.ids.is_some()),
            (PAIRS, self.pairs.is_some()),
            (BOXES, self.boxes.is_some()),
            (SIZES, self.boxes.is_some()),
        ];
        opened.iter().filter(|(_, open)| *open).map(|(name, _)| self.file(name)).collect()
    }

    /// Appends an image's boxes `[regions, 4]` as shares of its width and height. Panics if they are not open.
    pub fn boxes(&self, image: usize, out: &mut Vec<f32>) {
        self.read_boxes(image * self.layout.rows_per_image, 1, out);
    }

    /// Appends the boxes of a caption's row, divided so often. Panics if they are not open.
    pub fn boxes_again(&self, caption: usize, times: usize, out: &mut Vec<f32>) {
        self.read_boxes(caption / self.captions_per_row(), times, out);
    }

    fn read_boxes(&self, row: usize, times: usize, out: &mut Vec<f32>) {
        self.boxes.as_ref().expect("boxes of a model that reads them are open").read(row, times, out);
    }

    /// Captions that one row of the files belongs to.
    pub fn captions_per_row(&self) -> usize {
        self.layout.captions_per_image / self.layout.rows_per_image
    }

    /// A caption's dependency pairs; empty where there are none.
    pub fn pairs(&self, caption: usize) -> &[[u32; 2]] {
        self.pairs.as_ref().map_or(&[], |pairs| pairs.row(caption))
    }

    /// The most pairs of a caption.
    pub fn most_pairs(&self) -> usize {
        self.pairs.as_ref().map_or(0, Ragged::longest)
    }

    /// A caption. Panics past [`Dataset::captions`].
    pub fn text(&self, caption: usize) -> &str {
        &self.texts[caption]
    }

    /// All captions in order.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// What was odd about the captions, a sentence each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// One line on what was found and which layout was taken.
    pub fn describe(&self) -> String {
        let rows = match self.layout.rows_per_image {
            1 => "one row an image".to_owned(),
            n => format!("{n} identical rows an image"),
        };
        let (images, captions, k) = (self.images(), self.captions(), self.layout.captions_per_image);
        let plural = if k == 1 { "caption" } else { "captions" };
        let (regions, dim) = (self.regions(), self.dim());
        format!("{images} images of {regions} x {dim} ({rows}), {captions} captions ({k} {plural} an image)")
    }
}

/// What is said of captions whose blank end was left out.
pub(super) const BLANK_END: &str =
    "the empty last line is left out: without it the captions match the images";

/// Leaves out blank captions at the end, if the number does not fit with them and does without.
pub(super) fn leave_out_blank_end(texts: &mut Vec<String>, fits: impl Fn(usize) -> bool) -> bool {
    let kept = texts.iter().rposition(|text| !captions::is_blank(text)).map_or(0, |last| last + 1);
    if kept == texts.len() || fits(texts.len()) {
        return false;
    }
    match (kept..texts.len()).rev().find(|n| fits(*n)) {
        Some(n) => texts.truncate(n),
        None => return false,
    }
    true
}

/// Finds the layout from the counts and, where they are equal, from the rows themselves. Without being asked, rows
/// repeat in groups of five or not at all: anything between would be scored as another task.
///
/// # Errors
/// Counts that fit no layout, or not the one asked for; rows that repeat in part; a file that shrank.
pub fn layout(features: &Features, captions: usize, asked: Option<usize>) -> Result<Layout> {
    let rows = features.len();
    let one_row = |captions_per_image| Ok(Layout { captions_per_image, rows_per_image: 1 });
    let repeated = |n| Ok(Layout { captions_per_image: n, rows_per_image: n });
    match asked {
        Some(1) if captions == rows => one_row(1),
        None if captions == rows => match first_break(features, PER_IMAGE)? {
            None => repeated(PER_IMAGE),
            Some(_) if !repeats(features)? => one_row(1),
            Some(row) => Err(half_met(features, row, PER_IMAGE)),
        },
        None if rows.checked_mul(PER_IMAGE) == Some(captions) => one_row(PER_IMAGE),
        Some(k) if k > 0 && rows.checked_mul(k) == Some(captions) => one_row(k),
        Some(k) if k > 1 && captions == rows => match first_break(features, k)? {
            None => repeated(k),
            Some(row) => Err(half_met(features, row, k)),
        },
        _ => Err(wrong_counts(rows, captions, asked)),
    }
}

/// The first row that is unlike the one before it in its group of `n`, or that has no whole group.
fn first_break(features: &Features, n: usize) -> Result<Option<usize>> {
    let rows = features.len();
    for row in (1..rows / n * n).filter(|row| !row.is_multiple_of(n)) {
        if !features.same(row - 1, row)? {
            return Ok(Some(row));
        }
    }
    Ok((!rows.is_multiple_of(n)).then_some(rows / n * n))
}

/// Whether any row is like the one before it.
fn repeats(features: &Features) -> Result<bool> {
    for row in 1..features.len() {
        if features.same(row - 1, row)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn half_met(features: &Features, row: usize, n: usize) -> Error {
    let (rows, start) = (features.len(), row / n * n);
    let found = if row == start {
        format!("{rows} rows, of which those from row {row} on are no whole group")
    } else {
        let (before, end) = (row - 1, start + n - 1);
        format!("row {row} is unlike row {before}, though rows {start} to {end} would be one image")
    };
    let other = (2..=rows)
        .rev()
        .find(|k| *k != n && rows.is_multiple_of(*k) && first_break(features, *k).is_ok_and(|b| b.is_none()));
    let cure = match other {
        Some(k) => format!("if each image has {k} captions, say --captions-per-image {k}"),
        None => {
            "write each image's row as often as it has captions, the same number for all; if every row is an \
                 image of its own, say --captions-per-image 1"
                .into()
        }
    };
    Error::new("only some of the rows repeat: it is not clear which rows are one image")
        .expected(format!("rows in groups of {n} identical ones, or no row like the one before it"))
        .found(found)
        .cure(cure)
}

fn wrong_counts(rows: usize, captions: usize, asked: Option<usize>) -> Error {
    let expected = match asked {
        None => "as many captions as rows, or five times as many".to_owned(),
        Some(k) => format!(
            "{k} captions a row, or as many captions as rows with rows in groups of {k} identical ones"
        ),
    };
    let fits = captions.checked_div(rows).filter(|k| captions.is_multiple_of(rows) && *k > 0);
    let cure = match (asked, fits) {
        (None, Some(k)) => format!("if each row has {k} captions, say --captions-per-image {k}"),
        (Some(_), Some(_)) => "leave out --captions-per-image, or correct it".to_owned(),
        _ => "one of the two files is incomplete, or they belong to different splits".to_owned(),
    };
    Error::new("images and captions do not match in number")
        .expected(expected)
        .found(format!("{rows} rows of features, {captions} captions"))
        .cure(cure)
}

pub(super) fn other_count(path: &Path, found: usize, captions: usize) -> Error {
    Error::new("the file is of another number of captions")
        .at(path.display())
        .expected(captions)
        .found(found)
        .cure("make it again from these captions, or take the files of one data set")
}

fn missing_files(folder: &Path, split: &str, missing: &[String]) -> Error {
    if let Some(error) = packed(&folder.join(format!("{split}{IMAGES}"))).filter(|_| missing.len() == 1) {
        return error;
    }
    let there = splits(folder);
    let error = Error::new(format!("the \"{split}\" split is not complete"))
        .at(folder.display())
        .expected(format!("{split}_ims.npy and {split}_caps.txt"))
        .found(format!("no {}", missing.join(", no ")));
    if !folder.is_dir() {
        return error
            .found("no such folder")
            .cure("say where the data are: --data_path DIR --data_name NAME, for the folder DIR/NAME");
    }
    match there.len() {
        0 => error.cure("give the folder that holds {train,dev,test}_ims.npy and _caps.txt"),
        _ => error.cure(format!("splits begun in this folder: {}", there.join(", "))),
    }
}

/// The splits a folder holds any file of, by name.
pub fn splits(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let split = |name: String| {
        let split = name.strip_suffix("_ims.npy").or_else(|| name.strip_suffix("_caps.txt"))?;
        (!split.is_empty()).then(|| split.to_owned())
    };
    let mut found: Vec<String> = names.filter_map(split).collect();
    found.sort_unstable();
    found.dedup();
    found
}
