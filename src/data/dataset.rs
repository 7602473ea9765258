//! A split of a SCAN "precomp" folder: `{split}_ims.npy` beside `{split}_caps.txt`.
//!
//! Three layouts exist: one row an image with five captions each (`captions == 5 * rows`), the same with every row
//! stored five times (`captions == rows`, groups of five identical rows: SCAN's own dev and test files), and one
//! caption an image (`captions == rows`, rows differing).

use std::path::Path;

use super::captions::{self, Captions};
use super::features::Features;
use crate::{Error, Result};

/// Captions an image in every published data set.
pub(crate) const PER_IMAGE: usize = 5;

/// How to read a split.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Captions an image, where the counts do not tell.
    pub captions_per_image: Option<usize>,
    /// Odd captions are errors.
    pub strict: bool,
    /// At most this many captions, rounded down to whole images (but at least one image).
    pub limit: Option<usize>,
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
    features: Features,
    texts: Vec<String>,
    notices: Vec<String>,
    layout: Layout,
}

impl Dataset {
    /// Opens a split of a folder.
    ///
    /// # Errors
    /// Missing or bad files (see [`Features::open`] and [`captions::read`]), and counts that fit no layout.
    pub fn open(folder: &Path, split: &str, options: &Options) -> Result<Self> {
        let (ims, caps) = (folder.join(format!("{split}_ims.npy")), folder.join(format!("{split}_caps.txt")));
        let missing: Vec<String> = [&ims, &caps]
            .into_iter()
            .filter(|path| !path.exists())
            .map(|path| path.display().to_string())
            .collect();
        if !missing.is_empty() {
            return Err(missing_files(folder, split, &missing));
        }
        let features = Features::open(&ims)?;
        let Captions { texts, notices } = captions::read(&caps, options.strict)?;
        let layout =
            layout(&features, texts.len(), options.captions_per_image).map_err(|e| e.at(folder.display()))?;
        let notices = notices.into_iter().map(|notice| format!("{}: {notice}", caps.display())).collect();
        let mut data = Self { features, texts, notices, layout };
        if let Some(limit) = options.limit {
            let k = layout.captions_per_image;
            data.texts.truncate((limit / k * k).max(k));
        }
        Ok(data)
    }

    /// The number of different images (repeated rows counted once).
    pub fn images(&self) -> usize {
        self.texts.len() / self.layout.captions_per_image
    }

    /// The number of captions.
    pub fn captions(&self) -> usize {
        self.texts.len()
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

fn missing_files(folder: &Path, split: &str, missing: &[String]) -> Error {
    let there = splits(folder);
    let error = Error::new(format!("the \"{split}\" split is not complete"))
        .at(folder.display())
        .expected(format!("{split}_ims.npy and {split}_caps.txt"))
        .found(format!("no {}", missing.join(", no ")));
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
