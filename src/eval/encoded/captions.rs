//! Encoded captions on the host: where padding does not count, only the words that they have.

use std::collections::BTreeMap;

use crate::data::ragged::Ragged;
use crate::host::Columns;

/// Captions of at most so many words.
pub(super) struct Captions {
    /// The columns whose rows are of one length.
    plain: Columns,
    /// The others: the shape of an entry, and each caption's entries.
    ragged: BTreeMap<&'static str, (Vec<usize>, Ragged<f32>)>,
    words: usize,
    /// Words of all captions together.
    total: usize,
}

impl Captions {
    /// None yet, of so many words at most and `total` in all; `padded` names the columns that need only reach to a caption's
    /// length.
    pub(super) fn new(padded: &[&'static str], words: usize, total: usize) -> Self {
        let ragged = padded.iter().map(|name| (*name, (Vec::new(), Ragged::default()))).collect();
        Self { plain: Columns::default(), ragged, words, total }
    }

    pub(super) fn len(&self) -> usize {
        self.plain.len()
    }

    /// Appends captions.
    pub(super) fn extend(&mut self, captions: &Columns) {
        let mut plain = Columns::new(captions.len());
        for (name, column) in captions.iter() {
            let Some((entry, rows)) = self.ragged.get_mut(name) else {
                plain.insert(name, &column.row, column.values.clone());
                continue;
            };
            *entry = column.row[1..].to_vec();
            let width = entry.iter().product::<usize>();
            if rows.is_empty() {
                rows.reserve(self.total * width);
            }
            let lengths = &captions.at("lengths").values;
            for (row, length) in column.values.chunks(column.width().max(1)).zip(lengths) {
                rows.push(row[..(*length as usize * width).min(row.len())].iter().copied());
            }
        }
        self.plain.extend(plain);
    }

    /// The captions in the order they are scored: by length where a tile is cut to its longest.
    pub(super) fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        if !self.ragged.is_empty() {
            let lengths = &self.plain.at("lengths").values;
            order.sort_by(|a, b| lengths[*b].total_cmp(&lengths[*a]));
        }
        order
    }

    /// Some captions, padded with zeros to the longest of them; in fours, so that shapes repeat.
    pub(super) fn select(&self, captions: &[usize]) -> Columns {
        let mut columns = self.plain.select(captions);
        let longest = match self.ragged.is_empty() {
            true => 0.0,
            false => columns.at("lengths").values.iter().fold(0.0f32, |most, l| most.max(*l)),
        };
        let words = (longest as usize).next_multiple_of(4).min(self.words);
        for (name, (entry, rows)) in &self.ragged {
            let all = words * entry.iter().product::<usize>();
            let mut values = Vec::with_capacity(captions.len() * all);
            for (done, caption) in captions.iter().enumerate() {
                values.extend(rows.row(*caption));
                values.resize((done + 1) * all, 0.0);
            }
            columns.insert(name, &[&[words], entry.as_slice()].concat(), values);
        }
        columns
    }
}
