//! Named arrays with items (images, captions) as their leading axis, and what a model reads of them.

use std::collections::BTreeMap;

/// One array: a row of the same shape for every item.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Column {
    /// The shape of a row.
    pub row: Vec<usize>,
    /// The rows, one after another.
    pub values: Vec<f32>,
}

impl Column {
    /// The number of values of a row.
    pub fn width(&self) -> usize {
        self.row.iter().product()
    }
}

/// Columns of as many items each, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    items: usize,
    columns: BTreeMap<String, Column>,
}

impl Columns {
    /// No column yet, of this many items.
    pub fn new(items: usize) -> Self {
        Self { items, columns: BTreeMap::new() }
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.items
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Adds a column. Panics if its values are not those of all items.
    #[track_caller]
    pub fn insert(&mut self, name: &str, row: &[usize], values: Vec<f32>) {
        let column = Column { row: row.to_vec(), values };
        let expected = self.items * column.width();
        assert_eq!(column.values.len(), expected, "column {name} of {} rows of {row:?}", self.items);
        self.columns.insert(name.to_string(), column);
    }

    /// A column that must be there.
    #[track_caller]
    pub fn at(&self, name: &str) -> &Column {
        self.columns.get(name).unwrap_or_else(|| panic!("no column {name}"))
    }

    /// Every column with its name, in the names' order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Column)> {
        self.columns.iter().map(|(name, column)| (name.as_str(), column))
    }

    /// Appends items that have the same columns; the first ones decide what columns there are.
    #[track_caller]
    pub fn extend(&mut self, other: Self) {
        if self.columns.is_empty() && self.items == 0 {
            *self = other;
            return;
        }
        assert!(self.columns.keys().eq(other.columns.keys()), "items of other columns");
        for (name, column) in other.columns {
            let own = self.columns.get_mut(&name).expect("both have the same names");
            assert_eq!(own.row, column.row, "column {name}");
            own.values.extend(column.values);
        }
        self.items += other.items;
    }

    /// Some of the items, in the order asked for.
    #[track_caller]
    pub fn select(&self, items: &[usize]) -> Self {
        let rows = |column: &Column| {
            let n = column.width();
            items.iter().flat_map(|i| &column.values[i * n..(i + 1) * n]).copied().collect()
        };
        let columns = self
            .columns
            .iter()
            .map(|(name, column)| (name.clone(), Column { row: column.row.clone(), values: rows(column) }));
        Self { items: items.len(), columns: columns.collect() }
    }

    /// The same items with the first `n` entries of every row of a column.
    #[track_caller]
    pub fn shortened(mut self, name: &str, n: usize) -> Self {
        let column = self.columns.get_mut(name).unwrap_or_else(|| panic!("no column {name}"));
        let width = column.width();
        let rest: usize = column.row[1..].iter().product();
        let rows = column.values.chunks(width.max(1)).flat_map(|row| &row[..n * rest]);
        column.values = rows.copied().collect();
        column.row[0] = n;
        self
    }
}

/// What a model reads of an image and of a caption, and how training varies it: batches are built from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    /// The columns it reads of an image: `image` (a picture `[3, image_size, image_size]`), `images` (features `[regions, dim]`), `image_lengths` (regions), `bboxes`
    /// `[regions, 4]` (x1, y1, x2, y2 as shares of the image's width and height).
    pub images: &'static [&'static str],
    /// The columns it reads of a caption: `input_ids` or `captions` (ids), `attention_mask` or `input_mask`, `lengths` or `cap_lens` (how
    /// many ids), `depends` `[pairs, 2]` (head and dependent, the root's own pair first) with `depends_len` (pairs, at
    /// least one).
    pub captions: &'static [&'static str],
    /// Width of a region's features; 0 where pictures are read.
    pub dim: usize,
    /// Width and height of a picture as it is read; 0 where features are.
    pub image_size: usize,
    /// Training reads random parts of pictures, of at least this share of them, half of them mirrored; 0: whole ones.
    pub crop: f64,
    /// Pictures are read as they are stored, whatever their EXIF orientation says.
    pub as_stored: bool,
    /// Pieces of a caption at most, its two marks included; captions in whole words are never cut.
    pub max_words: usize,
    /// Ids of whole words that it has rows for; 0 for a system with a text encoder.
    pub vocabulary: usize,
    /// Captions are padded to `max_words`, not to the longest of the batch.
    pub pad_to_max: bool,
    /// Words and regions that a batch is padded to at least.
    pub least: usize,
    /// Boxes are divided by the image's size again on every read, as the published loader does with this batch size.
    pub boxes_again: Option<usize>,
    /// Random captions added to a batch for each sample, as negatives.
    pub extra_captions: usize,
    /// Random images added to a batch for each sample, as negatives.
    pub extra_images: usize,
    /// Extras never belong to the sample's own image.
    pub exclude_own: bool,
    /// What is left over at an epoch's end makes no batch.
    pub drop_last: bool,
    /// The chance that training leaves a region out.
    pub drop_regions: f64,
    /// The chance that training changes a word: half of those become `[MASK]`, a tenth random pieces, the rest is
    /// deleted.
    pub mask_words: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Columns {
        let mut columns = Columns::new(2);
        columns.insert("words", &[3, 2], (0..12).map(|v| v as f32).collect());
        columns.insert("lengths", &[], vec![3.0, 1.0]);
        columns
    }

    #[test]
    fn items_are_selected_appended_and_shortened() {
        let mut all = Columns::default();
        all.extend(columns());
        all.extend(columns());
        assert_eq!((all.len(), all.at("lengths").values.as_slice()), (4, &[3.0, 1.0, 3.0, 1.0][..]));
        let some = all.select(&[3, 0]).shortened("words", 1);
        assert_eq!(some.at("words").values, [6.0, 7.0, 0.0, 1.0]);
        assert_eq!((some.at("words").row.as_slice(), some.len()), (&[1, 2][..], 2));
    }

    #[test]
    #[should_panic(expected = "column words")]
    fn a_column_of_another_length_is_refused() {
        Columns::new(3).insert("words", &[2], vec![0.0; 4]);
    }
}
