//! A split of a SCAN "precomp" folder: `{split}_ims.npy` beside `{split}_caps.txt`, and beside those, for models that
//! read them, `{split}_precaps_stan.txt` (word ids), `{split}_caps.json` (dependency pairs), `{split}_ims_bbx.npy` and
//! `{split}_ims_size.npy` (boxes).
//!
//! Three layouts exist: one row an image with five captions each (`captions == 5 * rows`), the same with every row
//! stored five times (`captions == rows`, groups of five identical rows: SCAN's own dev and test files), and one
//! caption an image (`captions == rows`, rows differing).
//!
//! Or a split of a folder of pictures with their captions, see [`captioned`].

mod layout;
mod pictures;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

pub use layout::{Layout, layout};
use pictures::Files;
pub(super) use pictures::cores;

use super::boxes::Boxes;
use super::captioned;
use super::captions::{self, Captions};
use super::depends::{self, Pairs};
use super::features::{Features, packed};
use super::pictures::Asked;
use super::ragged::Ragged;
use super::recipe::Recipe;
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
    /// Images are pictures, not features of their regions.
    pub pictures: bool,
}

/// What images are read from.
#[derive(Debug)]
enum Source {
    Features(Features),
    Pictures(Box<Files>),
}

/// A split's images and captions; caption `c` describes image `c / captions_per_image`.
#[derive(Debug)]
pub struct Dataset {
    folder: PathBuf,
    split: String,
    source: Source,
    /// Empty where there are only ids, until these are spelled.
    texts: Vec<String>,
    /// The captions' word ids, if they were asked for and are there.
    ids: Option<Ragged<u32>>,
    captions: usize,
    /// Those of the split, whatever the limit.
    whole: usize,
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
    /// Missing or bad files (see [`Features::open`], [`captions::read`], [`word_ids::read`] and [`captioned::open`]), and
    /// counts that fit no layout.
    pub fn open(folder: &Path, split: &str, options: &Options) -> Result<Self> {
        match options.pictures {
            true => Self::of_pictures(folder, split, options),
            false => Self::of_features(folder, split, options),
        }
    }

    fn of_features(folder: &Path, split: &str, options: &Options) -> Result<Self> {
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
        let asked = match options.captions_per_image {
            Some(n) => Some(n),
            None => Recipe::open(folder)?.and_then(|recipe| recipe.captions_per_image(split)),
        };
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
        let (folder, split, source) = (folder.to_path_buf(), split.to_owned(), Source::Features(features));
        let (ids, whole, boxes, pairs) = (rows, captions, None, None);
        let data = Self { folder, split, source, texts, ids, captions, whole, boxes, pairs, notices, layout };
        Ok(data.limited(options.limit))
    }

    /// At most so many captions of whole images.
    fn limited(mut self, limit: Option<usize>) -> Self {
        if let Some(limit) = limit {
            let k = self.layout.captions_per_image;
            self.captions = self.captions.min((limit / k * k).max(k));
            self.texts.truncate(self.captions);
            self.ids.iter_mut().for_each(|rows| rows.truncate(self.captions));
            let images = self.images();
            if let Source::Pictures(files) = &mut self.source {
                files.truncate(images);
            }
        }
        self
    }

    /// Opens what else a model reads, boxes and dependency pairs, looks at pictures, and checks word ids against its
    /// tokenizer.
    ///
    /// # Errors
    /// Boxes that are missing or wrong, see [`Boxes::open`]; pairs that are wrong, see [`depends::read`]; pictures that are
    /// none, see [`super::pictures::Pictures::open`]; an id past the vocabulary; ids of another vocabulary, where the
    /// folder has its own.
    pub fn prepare(&mut self, inputs: &Inputs, tokenizer: &Tokenizer) -> Result<()> {
        if let Source::Pictures(files) = &mut self.source {
            files.open(inputs)?;
        }
        if let (Source::Features(features), true) = (&self.source, inputs.images.contains(&"bboxes")) {
            self.boxes = Some(Boxes::open(&self.file(BOXES), &self.file(SIZES), features)?);
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
        if pairs.len() != self.whole {
            return Err(other_count(&path, pairs.len(), self.whole));
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

    /// Whether images are pictures, not features.
    pub fn has_pictures(&self) -> bool {
        matches!(self.source, Source::Pictures(_))
    }

    /// Regions an image; none of a picture.
    pub fn regions(&self) -> usize {
        match &self.source {
            Source::Features(features) => features.regions(),
            Source::Pictures(_) => 0,
        }
    }

    /// Numbers a region, or a pixel.
    pub fn dim(&self) -> usize {
        match &self.source {
            Source::Features(features) => features.dim(),
            Source::Pictures(_) => 3,
        }
    }

    /// The image a caption describes.
    pub fn image_of(&self, caption: usize) -> usize {
        caption / self.layout.captions_per_image
    }

    /// Appends an image's features `[regions, dim]` to `out`; of a picture `[3, size, size]`, as evaluation sees it.
    ///
    /// # Errors
    /// As [`Features::read`] and [`Dataset::pictures`].
    pub fn image(&self, image: usize, out: &mut Vec<f32>) -> Result<()> {
        match &self.source {
            Source::Features(features) => features.read(image * self.layout.rows_per_image, out),
            Source::Pictures(_) => {
                out.extend(self.pictures(&[Asked { picture: image, draws: None }])?.1);
                Ok(())
            }
        }
    }

    /// An image's features, or a picture's file, as they are stored.
    ///
    /// # Errors
    /// A file that shrank since it was opened or cannot be read.
    pub(super) fn stored(&self, image: usize) -> Result<Cow<'_, [u8]>> {
        match &self.source {
            Source::Features(features) => features.raw(image * self.layout.rows_per_image).map(Cow::from),
            Source::Pictures(files) => files.bytes(image).map(Cow::from),
        }
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
        let (images, captions, k) = (self.images(), self.captions(), self.layout.captions_per_image);
        let plural = if k == 1 { "caption" } else { "captions" };
        let of = match &self.source {
            Source::Features(features) => {
                let rows = match self.layout.rows_per_image {
                    1 => "one row an image".to_owned(),
                    n => format!("{n} identical rows an image"),
                };
                format!("images of {} x {} ({rows})", features.regions(), features.dim())
            }
            Source::Pictures(files) => files.describe(),
        };
        format!("{images} {of}, {captions} captions ({k} {plural} an image)")
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
    let there = splits(folder, false);
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
        0 if captioned::is_known(folder) => error
            .found("pictures with captions")
            .cure("take a system that reads pictures, or extract features of them"),
        0 => error.cure("give the folder that holds {train,dev,test}_ims.npy and _caps.txt"),
        _ => error.cure(format!("splits begun in this folder: {}", there.join(", "))),
    }
}

/// The splits a folder holds, by name: of features, those that it has any file of.
pub fn splits(folder: &Path, pictures: bool) -> Vec<String> {
    if pictures {
        return captioned::splits(folder);
    }
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
