//! Rows of different lengths, one after another.

/// Rows of values, each of its own length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ragged<T> {
    values: Vec<T>,
    starts: Vec<usize>,
}

impl<T> Default for Ragged<T> {
    fn default() -> Self {
        Self { values: Vec::new(), starts: vec![0] }
    }
}

impl<T> Ragged<T> {
    /// Adds a row.
    pub fn push(&mut self, row: impl IntoIterator<Item = T>) {
        self.values.extend(row);
        self.starts.push(self.values.len());
    }

    /// Makes room for so many more values.
    pub fn reserve(&mut self, values: usize) {
        self.values.reserve_exact(values);
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[T] {
        &self.values[self.starts[i]..self.starts[i + 1]]
    }

    /// The rows in order.
    pub fn rows(&self) -> impl Iterator<Item = &[T]> {
        self.starts.windows(2).map(|ends| &self.values[ends[0]..ends[1]])
    }

    /// Keeps the first `n` rows.
    pub fn truncate(&mut self, n: usize) {
        self.starts.truncate(n + 1);
        self.values.truncate(self.starts[self.len()]);
    }

    /// The values of the longest row.
    pub fn longest(&self) -> usize {
        self.rows().map(<[T]>::len).max().unwrap_or(0)
    }
}
