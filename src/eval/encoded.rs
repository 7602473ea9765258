//! A split encoded once, and all its pairs scored in tiles.

mod captions;
mod tiles;

use std::cell::Cell;

use super::Progress;
use super::model::Model;
use super::text_cache::TextCache;
use crate::data::batches::{BatchPlan, BoxRead, assemble};
use crate::data::dataset::Dataset;
use crate::data::tokenizer::TokenTable;
use crate::error::{Error, Kind, Result};
use crate::host::Columns;
use crate::systems::{Items, Pass, System};
use crate::tensor::Device;
use captions::Captions;
use tiles::Tiles;

/// Items encoded at a time.
const ENCODE: usize = 64;
/// Bytes of encoded images that the host holds at a time: all, but of systems whose images are large.
const HELD: usize = 1 << 30;

/// How often and how a split is scored: what boxes that are divided again on every read depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scored {
    /// In folds.
    pub folds: bool,
    /// So often before, by this process.
    pub before: u64,
}

/// Encodes images of a split: so many from the first.
type Encode<'a> = Box<dyn Fn(usize, usize) -> Result<Columns> + 'a>;

/// A split whose captions are encoded and kept on the host. Images are encoded when they are scored, as many at a time as
/// the host holds with ease, each once.
pub struct Encoded<'a> {
    encode: Encode<'a>,
    images: usize,
    captions: Captions,
    regions: usize,
    words: usize,
}

impl<'a> Encoded<'a> {
    /// Encodes every caption of a split, from `states` where those are kept, and says how images are, their boxes as
    /// `scored` says; `stop` ends it between batches.
    ///
    /// # Errors
    /// What the device reports, or `stop`.
    pub fn new(
        model: &'a Model,
        data: &'a Dataset,
        tokens: &'a TokenTable,
        states: Option<&TextCache>,
        scored: Scored,
        device: &'a Device,
        stop: &'a dyn Fn() -> bool,
    ) -> Result<Self> {
        let system = &*model.system;
        let pass = Pass::evaluation(model.params.root());
        let inputs = system.inputs();
        let reads = inputs.boxes_again.map_or_else(Vec::new, |batch| {
            BoxRead::of_split(data, batch, scored.folds, 2 * scored.before as usize)
        });
        let batch = move |captions, images: Vec<usize>| {
            interrupted(stop)?;
            let boxes = images.iter().filter_map(|&image| reads.get(image).copied()).collect();
            assemble(data, tokens, &inputs, &BatchPlan { captions, images, boxes }, None)
        };
        let mut captions = Captions::new(
            system.padded_columns(),
            tokens.words(),
            (0..data.captions()).map(|caption| tokens.length(caption)).sum(),
        );
        let mut most = ENCODE;
        while captions.len() < data.captions() {
            let start = captions.len();
            let batch = batch((start..data.captions().min(start + most)).collect(), Vec::new())?;
            let mut items = Items::upload(&batch.captions, device);
            if let Some(states) = states {
                items = items.with("states", states.upload(&batch.caption_ids, batch.words, device)?);
            }
            match system.captions(&pass, &items).to_host() {
                Err(e) if e.kind() == Kind::OutOfMemory && most > 1 => most = fewer(most, device)?,
                encoded => captions.extend(&encoded?),
            }
        }
        let most = Cell::new(ENCODE);
        let encode = move |start: usize, n: usize| {
            let pass = Pass::evaluation(model.params.root());
            let mut all = Columns::default();
            while all.len() < n {
                let first = start + all.len();
                let batch = batch(Vec::new(), (first..(start + n).min(first + most.get())).collect())?;
                match model.system.images(&pass, &Items::upload(&batch.images, device)).to_host() {
                    Err(e) if e.kind() == Kind::OutOfMemory && most.get() > 1 => {
                        most.set(fewer(most.get(), device)?);
                    }
                    encoded => all.extend(encoded?),
                }
            }
            Ok(all)
        };
        Ok(Self {
            encode: Box::new(encode),
            images: data.images(),
            captions,
            regions: data.regions(),
            words: tokens.words(),
        })
    }

    /// Items that are encoded already, from images of so many regions and captions of so many words at most, whose columns
    /// `padded` need only reach to a caption's length.
    pub fn of(
        images: Columns,
        captions: &Columns,
        padded: &[&'static str],
        regions: usize,
        words: usize,
    ) -> Self {
        let mut kept = Captions::new(padded, words, words * captions.len());
        kept.extend(captions);
        let count = images.len();
        let encode = move |start: usize, n: usize| Ok(images.select(&(start..start + n).collect::<Vec<_>>()));
        Self { encode: Box::new(encode), images: count, captions: kept, regions, words }
    }

    /// Similarities `[images, captions]`, row-major, in tiles that fit the adapter; a tile that the device
    /// has no memory for is made smaller. `tell` hears of pairs done, and of a smaller tile.
    ///
    /// # Errors
    /// Images that cannot be read, what the device reports, or `stop`.
    pub fn score(
        &self,
        model: &Model,
        device: &Device,
        tile: Option<usize>,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Vec<f32>> {
        let captions = self.captions.len();
        let mut sims = vec![0.0; self.images * captions];
        let values = model.system.pair_values(self.regions, self.words);
        let mut tiles = Tiles::new(model, device, &self.captions, self.images, values, tile);
        let mut first = 0;
        while first < self.images {
            let block = self.block(first)?;
            let done = first * captions;
            let mut tell = |p| match p {
                Progress::Evaluating { done: more, .. } => {
                    let (done, total) = (done as u64 + more, (self.images * captions) as u64);
                    tell(Progress::Evaluating { done, total });
                }
                other => tell(other),
            };
            tiles.score(&block, stop, &mut tell, &mut sims[done..done + block.len() * captions])?;
            first += block.len();
        }
        Ok(sims)
    }

    /// Images from the first on, as many as a block of the host's memory holds.
    fn block(&self, first: usize) -> Result<Columns> {
        let mut block = Columns::default();
        loop {
            let n = ENCODE.min(self.images - first - block.len());
            block.extend((self.encode)(first + block.len(), n)?);
            let values: usize = block.iter().map(|(_, column)| column.values.len()).sum();
            let full = 4 * (values + values / block.len().max(1) * ENCODE) > HELD;
            if full || first + block.len() == self.images {
                return Ok(block);
            }
        }
    }

    /// In words, why an image and a caption have their similarity, where the system says.
    ///
    /// # Errors
    /// An image that cannot be read, what the device reports.
    pub fn explain(
        &self,
        model: &Model,
        device: &Device,
        image: usize,
        caption: usize,
    ) -> Result<Option<String>> {
        let captions = Items::upload(&self.captions.select(&[caption]), device);
        let images = Items::upload(&(self.encode)(image, 1)?, device);
        model.system.explain(&Pass::evaluation(model.params.root()), &images, &captions)
    }
}

/// Half as many items at a time, and the memory of the attempt that failed given back.
///
/// # Errors
/// What the device reports besides.
fn fewer(most: usize, device: &Device) -> Result<usize> {
    if let Some(gpu) = device.gpu() {
        gpu.trim();
        // The driver has it once no submission reads it.
        gpu.wait()?;
    }
    Ok(most.div_ceil(2))
}

/// Whether the captions of a batch, of so many words at most, can be encoded at once.
///
/// # Errors
/// A tensor that would exceed what the adapter binds.
pub fn check_batch(system: &dyn System, captions: usize, words: usize, device: &Device) -> Result<()> {
    let values = 4 * system.caption_values(words);
    let limit = device.gpu().map_or(usize::MAX, |g| g.facts().max_binding as usize);
    if captions.saturating_mul(values) <= limit {
        return Ok(());
    }
    let most = limit / values;
    let error = Error::new("a batch of captions as long as the longest is more than this adapter can bind")
        .at("--batch_size")
        .expected(format!("at most {most} captions of {words} words"))
        .found(captions);
    Err(match most {
        0 => error.cure("leave out or shorten the longest captions"),
        _ => error.cure(format!("give --batch_size {most}, or shorten the longest captions")),
    })
}

/// Captions scored at a time in a training step, of so many words at most, so that no tensor of the pairs exceeds what
/// the adapter binds.
pub fn training_tile(
    system: &dyn System,
    images: usize,
    captions: usize,
    regions: usize,
    words: usize,
    device: &Device,
) -> usize {
    let limit = device.gpu().map_or(usize::MAX, |g| g.facts().max_binding as usize);
    let caption = 4 * images * system.pair_values(regions, words);
    (limit / caption.max(1)).clamp(1, captions.max(1))
}

pub(super) fn interrupted(stop: &dyn Fn() -> bool) -> Result<()> {
    if stop() { Err(Error::of(Kind::Interrupted, "interrupted")) } else { Ok(()) }
}
