//! Finds how rows of features and captions belong together.

use super::PER_IMAGE;
use crate::data::features::Features;
use crate::{Error, Result};

/// How rows and captions belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Captions an image.
    pub captions_per_image: usize,
    /// Rows an image, all the same.
    pub rows_per_image: usize,
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
