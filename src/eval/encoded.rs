//! A split encoded once, and all its pairs scored in tiles.

use super::Progress;
use super::model::Model;
use super::text_cache::TextCache;
use crate::data::batches::{BatchPlan, BoxRead, assemble};
use crate::data::dataset::Dataset;
use crate::data::tokenizer::TokenTable;
use crate::error::{Error, Kind, Result};
use crate::gpu::Class;
use crate::host::Columns;
use crate::systems::{Items, Pass, System};
use crate::tensor::Device;

/// Items encoded at a time.
const ENCODE: usize = 64;
/// Bytes of a tile's largest tensor: what stays near a CPU's caches, and what keeps a GPU busy.
const SOFTWARE_TILE: usize = 8 << 20;
const HARDWARE_TILE: usize = 64 << 20;

/// How often and how a split is scored: what boxes that are divided again on every read depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scored {
    /// In folds.
    pub folds: bool,
    /// So often before, by this process.
    pub before: u64,
}

/// Encoded images and captions, kept on the host: a tile's worth goes to the device at a time.
pub struct Encoded {
    images: Columns,
    captions: Columns,
    regions: usize,
    words: usize,
}

impl Encoded {
    /// Encodes every image and caption of a split, captions from `states` where those are kept, boxes as `scored` says;
    /// `stop` ends it between batches.
    ///
    /// # Errors
    /// Features that cannot be read, what the device reports, or `stop`.
    pub fn new(
        model: &Model,
        data: &Dataset,
        tokens: &TokenTable,
        states: Option<&TextCache>,
        scored: Scored,
        device: &Device,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let system = &*model.system;
        let pass = Pass::evaluation(model.params.root());
        let inputs = system.inputs();
        let reads = inputs.boxes_again.map_or_else(Vec::new, |batch| {
            BoxRead::of_split(data, batch, scored.folds, 2 * scored.before as usize)
        });
        let batch = |captions, images: Vec<usize>| {
            interrupted(stop)?;
            let boxes = images.iter().filter_map(|&image| reads.get(image).copied()).collect();
            assemble(data, tokens, &inputs, &BatchPlan { captions, images, boxes }, None)
        };
        let mut all = Self::of(Columns::default(), Columns::default(), data.regions(), tokens.words());
        let (mut start, mut most) = (0, ENCODE);
        while start < data.images() {
            let batch = batch(Vec::new(), (start..data.images().min(start + most)).collect())?;
            match system.images(&pass, &Items::upload(&batch.images, device)).to_host() {
                Err(e) if e.kind() == Kind::OutOfMemory && most > 1 => most = most.div_ceil(2),
                encoded => {
                    all.images.extend(encoded?);
                    start += batch.image_ids.len();
                }
            }
        }
        let (mut start, mut most) = (0, ENCODE);
        while start < data.captions() {
            let batch = batch((start..data.captions().min(start + most)).collect(), Vec::new())?;
            let mut items = Items::upload(&batch.captions, device);
            if let Some(states) = states {
                items = items.with("states", states.upload(&batch.caption_ids, batch.words, device)?);
            }
            let encoded = match system.captions(&pass, &items).to_host() {
                Err(e) if e.kind() == Kind::OutOfMemory && most > 1 => {
                    most = most.div_ceil(2);
                    continue;
                }
                other => other?,
            };
            // Columns that a tile will cut to its longest caption have rows of one length until then.
            let names = system.padded_columns().iter();
            all.captions.extend(names.fold(encoded, |all, name| all.lengthened(name, tokens.words())));
            start += batch.caption_ids.len();
        }
        Ok(all)
    }

    /// Items that are encoded already, from images of so many regions and captions of so many words at most.
    pub fn of(images: Columns, captions: Columns, regions: usize, words: usize) -> Self {
        Self { images, captions, regions, words }
    }

    /// The captions `[at]` on the device; where padding does not count, cut to the longest of them.
    fn caption_tile(&self, system: &dyn System, at: &[usize], device: &Device) -> Items {
        let captions = self.captions.select(at);
        let names = system.padded_columns();
        if names.is_empty() {
            return Items::upload(&captions, device);
        }
        let longest = captions.at("lengths").values.iter().fold(0.0f32, |most, l| most.max(*l));
        let cut = |captions: Columns, name: &&str| {
            let most = captions.at(name).row[0];
            captions.shortened(name, (longest as usize).next_multiple_of(4).min(most))
        };
        Items::upload(&names.iter().fold(captions, cut), device)
    }

    /// The captions in the order they are scored: by length where a tile is cut to its longest.
    fn order(&self, system: &dyn System) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.captions.len()).collect();
        if !system.padded_columns().is_empty() {
            let lengths = &self.captions.at("lengths").values;
            order.sort_by(|a, b| lengths[*b].total_cmp(&lengths[*a]));
        }
        order
    }

    /// Similarities `[images, captions]`, row-major, in tiles that fit the adapter; a tile that the device
    /// has no memory for is halved. `tell` hears of pairs done, and of a smaller tile.
    ///
    /// # Errors
    /// What the device reports, or `stop`.
    pub fn score(
        &self,
        model: &Model,
        device: &Device,
        tile: Option<usize>,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Vec<f32>> {
        let system = &*model.system;
        let pass = Pass::evaluation(model.params.root());
        let (images, captions) = (self.images.len(), self.captions.len());
        let order = self.order(system);
        let mut sims = vec![0.0; images * captions];
        let (mut down, mut across) = tile_of(system, self.regions, self.words, device, tile);
        let (mut image, mut caption) = (0, 0);
        let mut done = 0;
        while caption < captions {
            interrupted(stop)?;
            let (n, m) = (down.min(images - image), across.min(captions - caption));
            let scored = &order[caption..caption + m];
            let rows = Items::upload_part(&self.images, image, n, device);
            let part = system.score(&pass, &rows, &self.caption_tile(system, scored, device)).to_vec();
            let values = match part {
                Err(e) if e.kind() == Kind::OutOfMemory && down.max(across) > 1 => {
                    if let Some(gpu) = device.gpu() {
                        gpu.trim();
                    }
                    (down, across) =
                        if down >= across { (down.div_ceil(2), across) } else { (down, across.div_ceil(2)) };
                    let text = format!("too little device memory: scoring in tiles of {down} x {across}");
                    tell(Progress::Notice(text));
                    continue;
                }
                other => other?,
            };
            for (i, row) in values.chunks(m).enumerate() {
                scored.iter().zip(row).for_each(|(c, s)| sims[(image + i) * captions + c] = *s);
            }
            done += n * m;
            tell(Progress::Evaluating { done: done as u64, total: (images * captions) as u64 });
            image += n;
            if image == images {
                (image, caption) = (0, caption + m);
            }
        }
        Ok(sims)
    }

    /// In words, why an image and a caption have their similarity, where the system says.
    ///
    /// # Errors
    /// What the device reports.
    pub fn explain(
        &self,
        model: &Model,
        device: &Device,
        image: usize,
        caption: usize,
    ) -> Result<Option<String>> {
        let system = &*model.system;
        let captions = self.caption_tile(system, &[caption], device);
        let images = Items::upload_part(&self.images, image, 1, device);
        system.explain(&Pass::evaluation(model.params.root()), &images, &captions)
    }
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

/// Images and captions of a scoring tile.
fn tile_of(
    system: &dyn System,
    regions: usize,
    words: usize,
    device: &Device,
    asked: Option<usize>,
) -> (usize, usize) {
    let budget = match device.gpu().map(|g| g.facts()) {
        Some(facts) if facts.class == Class::Hardware => HARDWARE_TILE.min(facts.max_binding as usize),
        _ => SOFTWARE_TILE,
    };
    let pairs = (budget / (4 * system.pair_values(regions, words).max(1))).max(1);
    let across = asked.unwrap_or_else(|| pairs.isqrt().max(1));
    ((pairs / across).max(1), across)
}

pub(super) fn interrupted(stop: &dyn Fn() -> bool) -> Result<()> {
    if stop() { Err(Error::of(Kind::Interrupted, "interrupted")) } else { Ok(()) }
}
