//! Items on a device: what systems read and make.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::gpu::Reading;
use crate::host::{Column, Columns};
use crate::ops::materialize;
use crate::tensor::{Device, Tensor};

/// Named tensors with items (images, captions) as their leading axis.
#[derive(Clone, Debug, Default)]
pub struct Items(BTreeMap<String, Tensor>);

impl Items {
    /// Columns brought to a device.
    pub fn upload(columns: &Columns, device: &Device) -> Self {
        Self::upload_part(columns, 0, columns.len(), device)
    }

    /// `n` items of columns, from `start`, brought to a device.
    pub fn upload_part(columns: &Columns, start: usize, n: usize, device: &Device) -> Self {
        let tensor = |(name, column): (&str, &Column)| {
            let shape = [&[n], column.row.as_slice()].concat();
            let width = column.width();
            let values = &column.values[start * width..(start + n) * width];
            (name.to_string(), device.tensor(shape.as_slice(), values))
        };
        Self(columns.iter().map(tensor).collect())
    }

    /// Adds a tensor.
    pub fn with(mut self, name: &str, tensor: Tensor) -> Self {
        self.0.insert(name.to_string(), tensor);
        self
    }

    /// A tensor that must be there.
    #[track_caller]
    pub fn at(&self, name: &str) -> &Tensor {
        self.get(name).unwrap_or_else(|| panic!("the items have no {name}"))
    }

    /// A tensor that may be there.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.0.values().next().map_or(0, |t| t.shape()[0])
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `n` items from `start`.
    pub fn part(&self, start: usize, n: usize) -> Self {
        if n == self.len() {
            return self.clone();
        }
        let part = |(name, t): (&String, &Tensor)| (name.clone(), materialize(t.view().slice(0, start, n)));
        Self(self.0.iter().map(part).collect())
    }

    /// The items copied back.
    ///
    /// # Errors
    /// What the device reports.
    pub fn to_host(&self) -> Result<Columns> {
        let mut columns = Columns::new(self.len());
        let readings: Vec<Reading> = self.0.values().map(Tensor::begin_read).collect::<Result<_>>()?;
        for ((name, t), reading) in self.0.iter().zip(readings) {
            columns.insert(name, &t.dims()[1..], reading.finish()?);
        }
        Ok(columns)
    }
}
