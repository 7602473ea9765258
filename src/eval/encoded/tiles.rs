//! The pairs of a split in tiles: the device scores one while the one before is read.

use std::collections::BTreeMap;

use super::captions::Captions;
use super::{fewer, interrupted};
use crate::error::{Error, Kind, Result};
use crate::eval::Progress;
use crate::eval::model::Model;
use crate::gpu::{Class, Reading};
use crate::host::Columns;
use crate::systems::{Items, Pass};
use crate::tensor::Device;

/// Bytes of a tile's largest tensor on a software driver: what stays near the caches.
const SOFTWARE: usize = 8 << 20;
/// On a GPU: what keeps it busy, and what is never too much; between them a sixth of what it binds, as a tile takes
/// several such tensors.
const HARDWARE: [usize; 2] = [64 << 20, 640 << 20];
const SHARE: usize = 6;
/// Pairs of a tile at most, where a pair takes little.
const PAIRS: usize = 1 << 24;
/// Encoded captions may stay on the device up to this part of what it binds.
const KEPT_SHARE: usize = 4;

/// So many images of a block and captions of the order they are scored in, from these on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    image: usize,
    images: usize,
    caption: usize,
    captions: usize,
}

/// Scores blocks of images with every caption of a split.
pub(super) struct Tiles<'a> {
    model: &'a Model,
    device: &'a Device,
    captions: &'a Captions,
    /// The captions in the order they are scored.
    order: Vec<usize>,
    /// Images and captions of a tile at most.
    down: usize,
    across: usize,
    /// A tile's captions on the device, by the first, and the bytes that more may take.
    kept: BTreeMap<usize, Items>,
    room: usize,
}

impl<'a> Tiles<'a> {
    /// For pairs of so many values, of so many images in all, and `asked` captions at a time or as many as fit.
    pub(super) fn new(
        model: &'a Model,
        device: &'a Device,
        captions: &'a Captions,
        images: usize,
        pair_values: usize,
        asked: Option<usize>,
    ) -> Self {
        let facts = device.gpu().map(|gpu| gpu.facts());
        let limit = facts.map_or(usize::MAX, |f| f.max_binding.min(f.max_buffer) as usize);
        let budget = budget(facts.map(|f| f.class), limit);
        let (down, across) = size(budget, pair_values, asked, captions.len());
        // One row of tiles reads each caption once.
        let room = if images > down && facts.is_some() { limit / KEPT_SHARE } else { 0 };
        Self { model, device, captions, order: captions.order(), down, across, kept: BTreeMap::new(), room }
    }

    /// Scores a block's images: each is brought to the device once. `stop` is asked between tiles; a tile that the device
    /// has no memory for is made smaller, and those after it.
    pub(super) fn score(
        &mut self,
        images: &Columns,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(Progress),
        sims: &mut [f32],
    ) -> Result<()> {
        let captions = self.order.len();
        let mut row = None;
        let mut next = self.tile(images.len(), 0, 0);
        let mut behind: Option<(Tile, Reading)> = None;
        while next.is_some() || behind.is_some() {
            let begun = next.map(|tile| (tile, self.begin(tile, images, &mut row)));
            interrupted(stop)?;
            if let Some((tile, reading)) = behind.take() {
                let values = match reading.finish() {
                    Ok(values) => values,
                    Err(e) => {
                        let (image, caption) = self.shrink(e, tile, tell)?;
                        next = self.tile(images.len(), image, caption);
                        continue;
                    }
                };
                let scored = &self.order[tile.caption..][..tile.captions];
                for (row, values) in values.chunks(tile.captions).enumerate() {
                    let to = &mut sims[(tile.image + row) * captions..][..captions];
                    scored.iter().zip(values).for_each(|(caption, value)| to[*caption] = *value);
                }
                let done = tile.image * captions + tile.images * (tile.caption + tile.captions);
                tell(Progress::Evaluating { done: done as u64, total: 0 });
            }
            let (image, caption) = match begun {
                None => continue,
                Some((tile, Ok(reading))) => {
                    behind = Some((tile, reading));
                    match tile.caption + tile.captions {
                        end if end < captions => (tile.image, end),
                        _ => (tile.image + tile.images, 0),
                    }
                }
                Some((tile, Err(e))) => self.shrink(e, tile, tell)?,
            };
            next = self.tile(images.len(), image, caption);
        }
        Ok(())
    }

    /// The tile from an image of a block of so many and a caption on; `None` past the last.
    fn tile(&self, images: usize, image: usize, caption: usize) -> Option<Tile> {
        let (images, captions) = (self.down.min(images - image), self.across.min(self.order.len() - caption));
        (images > 0 && captions > 0).then_some(Tile { image, images, caption, captions })
    }

    /// Submits a tile and the copy of its scores; `row` has the images of the last one.
    fn begin(
        &mut self,
        tile: Tile,
        images: &Columns,
        row: &mut Option<((usize, usize), Items)>,
    ) -> Result<Reading> {
        let range = (tile.image, tile.images);
        let rows = match row.take() {
            Some((at, rows)) if at == range => rows,
            _ => Items::upload_part(images, tile.image, tile.images, self.device),
        };
        let columns = self.columns(tile);
        let pass = Pass::evaluation(self.model.params.root());
        let reading = self.model.system.score(&pass, &rows, &columns).begin_read();
        // What did not reach the device is no row to score again.
        *row = reading.is_ok().then_some((range, rows));
        reading
    }

    /// A tile's captions on the device.
    fn columns(&mut self, tile: Tile) -> Items {
        if let Some(kept) = self.kept.get(&tile.caption) {
            return kept.clone();
        }
        let columns = self.captions.select(&self.order[tile.caption..][..tile.captions]);
        let items = Items::upload(&columns, self.device);
        let bytes = 4 * columns.iter().map(|(_, column)| column.values.len()).sum::<usize>();
        if bytes <= self.room {
            self.room -= bytes;
            self.kept.insert(tile.caption, items.clone());
        }
        items
    }

    /// Makes tiles smaller after one that the device had no memory for, and says from which image and caption to go on.
    fn shrink(&mut self, e: Error, failed: Tile, tell: &mut dyn FnMut(Progress)) -> Result<(usize, usize)> {
        if e.kind() != Kind::OutOfMemory || self.down.max(self.across) == 1 {
            return Err(e);
        }
        self.kept.clear();
        self.room = 0;
        let fewer_images = self.down > self.across;
        let smaller = if fewer_images { &mut self.down } else { &mut self.across };
        *smaller = fewer(*smaller, self.device)?;
        let (down, across) = (self.down, self.across);
        let text = format!("too little device memory: scoring in tiles of {down} x {across}");
        tell(Progress::Notice(text));
        Ok((failed.image, if fewer_images { 0 } else { failed.caption }))
    }
}

/// Bytes of a tile's largest tensor, on an adapter that binds so many, or on the host.
fn budget(class: Option<Class>, limit: usize) -> usize {
    let [least, most] = HARDWARE;
    match class {
        Some(Class::Hardware) => (limit / SHARE).clamp(least, most).min(limit),
        _ => SOFTWARE,
    }
}

/// Images and captions of a tile whose pairs take so many values each, where there are so many captions.
fn size(budget: usize, pair_values: usize, asked: Option<usize>, captions: usize) -> (usize, usize) {
    let pairs = (budget / (4 * pair_values.max(1))).clamp(1, PAIRS);
    let across = asked.unwrap_or_else(|| pairs.isqrt()).min(captions.max(1));
    ((pairs / across).max(1), across)
}

#[cfg(test)]
mod tests;
