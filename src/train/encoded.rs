//! A split encoded once, and all its pairs scored in tiles.

use super::model::Model;
use super::textcache::TextCache;
use crate::data::batches::{Batch, BatchPlan, assemble};
use crate::data::dataset::Dataset;
use crate::data::tokenizer::TokenTable;
use crate::error::{Error, Kind, Result};
use crate::gpu::Class;
use crate::nn::Dropouts;
use crate::nn::bert::Tokens;
use crate::systems::dime::{self, Captions, Config, Direction, Images, Path, Run, Taps};
use crate::tensor::{Device, Tensor};

/// Items encoded at a time.
const ENCODE: usize = 64;
/// Bytes of a tile's largest tensor: what stays near a CPU's caches, and what keeps a GPU busy.
const SOFTWARE_TILE: usize = 8 << 20;
const HARDWARE_TILE: usize = 64 << 20;

/// Encoded images and captions, kept on the host: a tile's worth goes to the device at a time.
pub struct Encoded {
    regions: Vec<f32>,
    vectors: Vec<f32>,
    words: Vec<f32>,
    sentences: Vec<f32>,
    lengths: Vec<f32>,
    rows: usize,
    max_words: usize,
    /// Whether padding takes part in nothing, so that a tile of captions can do without.
    cut: bool,
    width: usize,
}

/// A model in evaluation.
pub fn evaluation<'a>(model: &'a Model, taps: Option<&'a Taps>) -> Run<'a> {
    Run { scope: model.params.root(), config: &model.config, path: Path::Fast, train: false, taps }
}

impl Encoded {
    /// Encodes every image and caption of a split, captions from `states` where those are kept; `stop` ends it
    /// between batches.
    ///
    /// # Errors
    /// Features that cannot be read, what the device reports, or `stop`.
    pub fn new(
        model: &Model,
        data: &Dataset,
        tokens: &TokenTable,
        states: Option<&TextCache>,
        device: &Device,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let run = evaluation(model, None);
        let mut all = Self::none(&model.config, data.regions(), tokens.words());
        for start in (0..data.images()).step_by(ENCODE) {
            interrupted(stop)?;
            let images: Vec<usize> = (start..data.images().min(start + ENCODE)).collect();
            let batch = assemble(data, tokens, &BatchPlan { captions: Vec::new(), images })?;
            let features = device.tensor([batch.n_images, batch.regions, batch.dim], &batch.images);
            all.add_images(&dime::encode_images(&run, &features))?;
        }
        for start in (0..data.captions()).step_by(ENCODE) {
            interrupted(stop)?;
            let captions: Vec<usize> = (start..data.captions().min(start + ENCODE)).collect();
            let batch = assemble(data, tokens, &BatchPlan { captions, images: Vec::new() })?;
            all.add_captions(&captions_of(&run, &batch, states, None, device)?)?;
        }
        Ok(all)
    }

    /// Nothing yet, of images with `rows` regions and captions padded to `max_words`.
    pub fn none(config: &Config, rows: usize, max_words: usize) -> Self {
        Self {
            regions: Vec::new(),
            vectors: Vec::new(),
            words: Vec::new(),
            sentences: Vec::new(),
            lengths: Vec::new(),
            rows,
            max_words,
            cut: config.mask_padding,
            width: config.embed_size,
        }
    }

    /// Adds encoded images behind those that are there.
    ///
    /// # Errors
    /// What the device reports.
    pub fn add_images(&mut self, images: &Images) -> Result<()> {
        self.regions.extend(images.regions.to_vec()?);
        self.vectors.extend(images.global.to_vec()?);
        Ok(())
    }

    /// Adds encoded captions behind those that are there.
    ///
    /// # Errors
    /// What the device reports.
    pub fn add_captions(&mut self, captions: &Captions) -> Result<()> {
        self.words.extend(captions.words.to_vec()?);
        self.sentences.extend(captions.sentence.to_vec()?);
        self.lengths.extend(captions.lengths.to_vec()?);
        Ok(())
    }

    fn images(&self) -> usize {
        self.vectors.len() / self.width
    }

    fn captions(&self) -> usize {
        self.lengths.len()
    }

    fn image_tile(&self, device: &Device, start: usize, n: usize) -> Images {
        let (d, item) = (self.width, self.rows * self.width);
        Images {
            regions: device.tensor([n, self.rows, d], &self.regions[start * item..(start + n) * item]),
            global: device.tensor([n, d], &self.vectors[start * d..(start + n) * d]),
            running: None,
        }
    }

    fn caption_tile(&self, device: &Device, captions: &[usize]) -> Captions {
        let (d, item, n) = (self.width, self.max_words * self.width, captions.len());
        let lengths: Vec<f32> = captions.iter().map(|c| self.lengths[*c]).collect();
        let longest = lengths.iter().fold(0.0f32, |most, l| most.max(*l)) as usize;
        let rows = if self.cut { longest.next_multiple_of(4).min(self.max_words) } else { self.max_words };
        let words: Vec<f32> =
            captions.iter().flat_map(|c| &self.words[c * item..][..rows * d]).copied().collect();
        let sentences: Vec<f32> =
            captions.iter().flat_map(|c| &self.sentences[c * d..][..d]).copied().collect();
        let lengths = device.tensor([n], &lengths);
        Captions {
            words: device.tensor([n, rows, d], &words),
            sentence: device.tensor([n, d], &sentences),
            label: lengths.clone(),
            lengths,
        }
    }

    /// The captions in the order they are scored: by length where a tile is cut to its longest.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.captions()).collect();
        if self.cut {
            order.sort_by(|a, b| self.lengths[*b].total_cmp(&self.lengths[*a]));
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
        let (images, captions) = (self.images(), self.captions());
        let order = self.order();
        let mut sims = vec![0.0; images * captions];
        let (mut down, mut across) = tile_of(&model.config, self.rows, self.max_words, device, tile);
        let (mut image, mut caption) = (0, 0);
        let mut done = 0;
        while caption < captions {
            interrupted(stop)?;
            let (n, m) = (down.min(images - image), across.min(captions - caption));
            let scored = &order[caption..caption + m];
            let part = self.tile(model, device, (image, n), scored);
            let values = match part {
                Err(e) if e.kind() == Kind::OutOfMemory && down.max(across) > 1 => {
                    if let Some(gpu) = device.gpu() {
                        gpu.trim();
                    }
                    (down, across) =
                        if down >= across { (down.div_ceil(2), across) } else { (down, across.div_ceil(2)) };
                    tell(Progress::Smaller { images: down, captions: across });
                    continue;
                }
                other => other?,
            };
            for (i, row) in values.chunks(m).enumerate() {
                scored.iter().zip(row).for_each(|(c, s)| sims[(image + i) * captions + c] = *s);
            }
            done += n * m;
            tell(Progress::Pairs { done, total: images * captions });
            image += n;
            if image == images {
                (image, caption) = (0, caption + m);
            }
        }
        Ok(sims)
    }

    fn tile(
        &self,
        model: &Model,
        device: &Device,
        (image, n): (usize, usize),
        captions: &[usize],
    ) -> Result<Vec<f32>> {
        let run = evaluation(model, None);
        let pairs =
            dime::interact(&run, &self.image_tile(device, image, n), &self.caption_tile(device, captions));
        dime::score(&run, &[pairs]).sims.to_vec()
    }

    /// The share of each cell in each layer's path probabilities for one pair.
    ///
    /// # Errors
    /// What the device reports.
    pub fn paths(
        &self,
        model: &Model,
        device: &Device,
        image: usize,
        caption: usize,
    ) -> Result<[[f32; 4]; 3]> {
        let taps = Taps::default();
        let run = evaluation(model, Some(&taps));
        dime::interact(&run, &self.image_tile(device, image, 1), &self.caption_tile(device, &[caption]));
        drop(run);
        let noted = taps.take();
        let mut shares = [[0.0; 4]; 3];
        for (layer, share) in shares.iter_mut().enumerate() {
            let p: &Tensor = &noted[&format!("path_l{layer}")];
            let values = p.to_vec()?;
            let total: f32 = values.iter().sum();
            for (i, v) in values.iter().enumerate() {
                share[i % 4] += v / total.max(f32::MIN_POSITIVE);
            }
        }
        Ok(shares)
    }
}

/// A batch's captions, encoded from their tokens or from the states kept of them.
///
/// # Errors
/// States that cannot be read.
pub fn captions_of(
    run: &Run,
    batch: &Batch,
    states: Option<&TextCache>,
    dropouts: Option<&Dropouts>,
    device: &Device,
) -> Result<Captions> {
    let lengths = device.tensor([batch.n_captions], &batch.lengths);
    if let Some(states) = states {
        return Ok(dime::encode_states(
            run,
            &states.upload(&batch.caption_ids, batch.words, device)?,
            &lengths,
        ));
    }
    let shape = [batch.n_captions, batch.words];
    let tokens = Tokens {
        ids: device.tensor(shape, &batch.ids),
        mask: device.tensor(shape, &batch.mask),
        types: None,
    };
    Ok(dime::encode_captions(run, &tokens, &lengths, dropouts))
}

/// What scoring tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// Pairs scored.
    Pairs {
        /// So far.
        done: usize,
        /// In all.
        total: usize,
    },
    /// The device had too little memory for a tile.
    Smaller {
        /// Images of the next tile.
        images: usize,
        /// Captions of the next tile.
        captions: usize,
    },
}

/// The values of a pair's largest tensor.
fn pair_values(config: &Config, regions: usize, words: usize) -> usize {
    let (rows, context) = match config.direction {
        Direction::I2t => (regions, words),
        Direction::T2i => (words, regions),
    };
    let widest = (4 * config.embed_size).max(config.hid_IMRC).max(config.num_head_IMRC * rows).max(context);
    rows * widest
}

/// Captions scored at a time in a training step, so that no tensor of the pairs exceeds what the adapter
/// binds.
pub fn training_tile(
    config: &Config,
    images: usize,
    captions: usize,
    regions: usize,
    device: &Device,
) -> usize {
    let limit = device.gpu().map_or(usize::MAX, |g| g.facts().max_binding as usize);
    let caption = 4 * images * pair_values(config, regions, config.max_words);
    (limit / caption.max(1)).clamp(1, captions.max(1))
}

/// Images and captions of a scoring tile.
fn tile_of(
    config: &Config,
    regions: usize,
    words: usize,
    device: &Device,
    asked: Option<usize>,
) -> (usize, usize) {
    let budget = match device.gpu().map(|g| g.facts()) {
        Some(facts) if facts.class == Class::Hardware => HARDWARE_TILE.min(facts.max_binding as usize),
        _ => SOFTWARE_TILE,
    };
    let pairs = (budget / (4 * pair_values(config, regions, words))).max(1);
    let across = asked.unwrap_or_else(|| pairs.isqrt().max(1));
    ((pairs / across).max(1), across)
}

fn interrupted(stop: &dyn Fn() -> bool) -> Result<()> {
    if stop() { Err(Error::of(Kind::Interrupted, "interrupted")) } else { Ok(()) }
}
