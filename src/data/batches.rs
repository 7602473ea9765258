//! Training batches, a pure function of (seed, epoch, step): a stopped run finds its place again.
//!
//! An epoch is one shuffle of all captions; a sample is a caption with its image, so an image comes up once for
//! each of its captions. A batch is sorted by the number of tokens, longest first (stable); extra captions or
//! images follow unsorted, sample by sample in that order, all extras of a sample together. The last batch of an
//! epoch is what is left over.

use std::borrow::Cow;
use std::sync::Arc;

use super::dataset::Dataset;
use super::pictures::Asked;
use super::tokenizer::TokenTable;
use crate::host::{Columns, Inputs, Rng};
use crate::{Error, Result};

/// What a [`Sampler`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerOptions {
    /// Samples a batch.
    pub batch_size: usize,
    /// Random captions added for each sample.
    pub extra_captions: usize,
    /// Random images added for each sample; none if there are extra captions.
    pub extra_images: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Extras never belong to the sample's own image.
    pub exclude_own: bool,
    /// What is left over at an epoch's end makes no batch.
    pub drop_last: bool,
    /// Captions that share the boxes of a row, where these are divided again on every read.
    pub boxes_again: Option<usize>,
}

impl SamplerOptions {
    /// Batches of `batch_size` samples as a model wants them.
    pub fn new(inputs: &Inputs, batch_size: usize, seed: u64) -> Self {
        let Inputs { extra_captions, extra_images, exclude_own, drop_last, .. } = *inputs;
        Self { batch_size, extra_captions, extra_images, seed, exclude_own, drop_last, boxes_again: None }
    }
}

/// Which captions and images make a batch; either list may repeat an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchPlan {
    /// Captions: the samples', then the extras.
    pub captions: Vec<usize>,
    /// Images: the samples', then the extras.
    pub images: Vec<usize>,
    /// Which boxes each image gets; none said: its own, divided once.
    pub boxes: Vec<BoxRead>,
}

/// Boxes as the published loader, which divides what it keeps, has them after some of its reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoxRead {
    /// The caption with which they are read.
    pub caption: usize,
    /// How often they have been divided by their image's size.
    pub times: usize,
}

impl BoxRead {
    /// What a split is scored with: its loader has been walked `walked` times before and is walked twice, in batches of
    /// `batch`; where scores are not of folds, image `i` gets the boxes read with caption `i`. All captions of a row that
    /// fall in one batch see its last read.
    pub fn of_split(data: &Dataset, batch: usize, folds: bool, walked: usize) -> Vec<Self> {
        let (captions, row) = (data.captions(), data.captions_per_row());
        let read = |image: usize| {
            let caption = if folds { image * data.captions_per_image() } else { image };
            Self::with(caption, captions, row, batch, walked)
        };
        (0..data.images()).map(read).collect()
    }

    /// What is read with a caption of so many, `row` of them for each row of boxes.
    pub fn with(caption: usize, captions: usize, row: usize, batch: usize, walked: usize) -> Self {
        let batch = batch.max(1);
        let end = ((caption / batch + 1) * batch).min(captions);
        let last = (caption / row + 1) * row;
        let times = row * (walked + 1) + end.min(last) - (last - row);
        Self { caption, times }
    }
}

/// Chooses the samples of each step.
#[derive(Clone, Debug)]
pub struct Sampler {
    tokens: Arc<TokenTable>,
    per_image: usize,
    options: SamplerOptions,
    /// The shuffle of the epoch asked for last.
    order: Option<Shuffle>,
}

/// An epoch's order.
#[derive(Clone, Debug)]
struct Shuffle {
    epoch: u64,
    captions: Vec<u32>,
    /// Each caption's place in the order; empty where nothing asks for it.
    places: Vec<u32>,
}

impl Sampler {
    /// A sampler over all captions of a table, `captions_per_image` of them for each image in turn.
    ///
    /// # Errors
    /// A batch size of 0, no caption, captions that do not divide into images, or a single image where extras of
    /// other images are wanted.
    pub fn new(captions_per_image: usize, tokens: Arc<TokenTable>, options: SamplerOptions) -> Result<Self> {
        let captions = tokens.len();
        if options.batch_size == 0 {
            return Err(Error::new("a batch needs a sample")
                .at("--batch-size")
                .expected("1 or more")
                .found(0));
        }
        if captions == 0 || captions_per_image == 0 || !captions.is_multiple_of(captions_per_image) {
            return Err(Error::new("no batches can be made of these captions")
                .expected("whole images, one or more")
                .found(format!("{captions} captions, {captions_per_image} an image")));
        }
        if options.drop_last && captions < options.batch_size {
            return Err(Error::new("not one whole batch can be made of these captions")
                .at("--batch_size")
                .expected(format!("at most {captions}"))
                .found(options.batch_size));
        }
        let extras = options.extra_captions.max(options.extra_images);
        if options.exclude_own && extras > 0 && captions == captions_per_image {
            return Err(Error::new("there is no other image to draw extra captions or images from")
                .found("one image")
                .cure("use more images, or no extras"));
        }
        if u32::try_from(captions).is_err()
            || options.batch_size.checked_mul(extras.saturating_add(1)).is_none()
        {
            return Err(Error::new("the batch or the data is too large to count")
                .found(format!("{captions} captions, batch {}, {extras} extras", options.batch_size)));
        }
        Ok(Self { tokens, per_image: captions_per_image, options, order: None })
    }

    /// Steps an epoch, the short last one included unless it is dropped.
    pub fn steps_per_epoch(&self) -> u64 {
        let (n, batch) = (self.tokens.len(), self.options.batch_size);
        (if self.options.drop_last { n / batch } else { n.div_ceil(batch) }) as u64
    }

    /// The seed of every draw.
    pub fn seed(&self) -> u64 {
        self.options.seed
    }

    /// The tokens of all captions.
    pub fn tokens(&self) -> &Arc<TokenTable> {
        &self.tokens
    }

    /// The batch of a step; empty past the epoch's last step. Steps of one epoch in a row are cheapest: a new
    /// epoch costs a shuffle.
    pub fn plan(&mut self, epoch: u64, step: u64) -> BatchPlan {
        let n = self.tokens.len();
        let begin = usize::try_from(step).ok().and_then(|step| step.checked_mul(self.options.batch_size));
        let begin = begin.map_or(n, |begin| begin.min(n));
        let end = begin.saturating_add(self.options.batch_size).min(n);
        let order = &self.shuffled(epoch).captions;
        // A sample's place in the epoch keys its extras, so the sort cannot change them.
        let mut samples: Vec<(usize, usize)> =
            (begin..end).map(|place| (place, order[place] as usize)).collect();
        samples.sort_by_key(|&(_, caption)| std::cmp::Reverse(self.tokens.length(caption)));
        let captions: Vec<usize> = samples.iter().map(|&(_, caption)| caption).collect();
        let mut plan = BatchPlan { captions, ..BatchPlan::default() };
        let mut shown = plan.captions.clone();
        if self.options.extra_captions > 0 {
            plan.captions.extend(self.extras(epoch, &samples, self.options.extra_captions));
        } else {
            shown.extend(self.extras(epoch, &samples, self.options.extra_images));
        }
        plan.images = shown.iter().map(|caption| caption / self.per_image).collect();
        if let Some(row) = self.options.boxes_again {
            plan.boxes = shown.iter().map(|caption| self.box_read(*caption, row, epoch, end)).collect();
        }
        plan
    }

    /// The boxes of a caption's row once the first `end` captions of an epoch have been read.
    fn box_read(&self, caption: usize, row: usize, epoch: u64, end: usize) -> BoxRead {
        let places = self.order.as_ref().map_or(&[][..], |order| &order.places);
        let first = caption / row * row;
        let read = places[first..first + row].iter().filter(|place| (**place as usize) < end).count();
        let before = usize::try_from(epoch).unwrap_or(usize::MAX).saturating_mul(row);
        BoxRead { caption, times: before.saturating_add(read) }
    }

    /// `k` random captions for each sample.
    fn extras(&self, epoch: u64, samples: &[(usize, usize)], k: usize) -> Vec<usize> {
        let draws = Draws::new(self.options.seed, Stream::Extras, epoch);
        let own = if self.options.exclude_own { self.per_image } else { 0 };
        let mut drawn = Vec::with_capacity(samples.len() * k);
        for &(place, caption) in samples {
            let first_own = caption / self.per_image * self.per_image;
            for i in 0..k {
                let other = draws.below((place * k + i) as u64, self.tokens.len() - own);
                drawn.push(if other < first_own { other } else { other + own });
            }
        }
        drawn
    }

    fn shuffled(&mut self, epoch: u64) -> &Shuffle {
        let kept = self.order.take().filter(|order| order.epoch == epoch);
        let order = kept.unwrap_or_else(|| {
            let draws = Draws::new(self.options.seed, Stream::Shuffle, epoch);
            // The constructor made sure that captions count in u32.
            let mut captions: Vec<u32> = (0..self.tokens.len() as u32).collect();
            for i in (1..captions.len()).rev() {
                captions.swap(i, draws.below(i as u64, i + 1));
            }
            let mut places = Vec::new();
            if self.options.boxes_again.is_some() {
                places.resize(captions.len(), 0);
                captions.iter().zip(0..).for_each(|(caption, place)| places[*caption as usize] = place);
            }
            Shuffle { epoch, captions, places }
        });
        self.order.insert(order)
    }
}

/// A batch as the engine takes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// What the model reads of the images, extras included: `images` `[regions, dim]`, `image_lengths` (regions), `bboxes`
    /// `[regions, 4]`; or `image` `[3, size, size]`, a picture.
    pub images: Columns,
    /// What it reads of the captions, extras included: `input_ids` (or `captions`) and `attention_mask` (or
    /// `input_mask`) `[words]`, padded with 0, `lengths` or `cap_lens` (how many ids), `depends` `[pairs, 2]`, padded with 0, and `depends_len`.
    pub captions: Columns,
    /// Padded length of a caption.
    pub words: usize,
    /// Which captions of the data set.
    pub caption_ids: Vec<usize>,
    /// Which images of the data set.
    pub image_ids: Vec<usize>,
}

/// The training epoch whose random changes a batch gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Varied {
    /// The run's seed.
    pub seed: u64,
    /// Epochs done.
    pub epoch: u64,
}

/// Reads the features and tokens of a plan as a model wants them; any lists will do, one of them may be empty.
/// `varied` says whose changes training makes, if it does.
///
/// # Errors
/// Features or pictures that cannot be read, features that hold NaN or infinity; a caption that the table does not have; a column that the
/// data do not have.
pub fn assemble(
    data: &Dataset,
    tokens: &TokenTable,
    inputs: &Inputs,
    plan: &BatchPlan,
    varied: Option<Varied>,
) -> Result<Batch> {
    let (captions, words) = caption_columns(data, tokens, inputs, plan, varied)?;
    Ok(Batch {
        images: image_columns(data, inputs, plan, varied)?,
        captions,
        words,
        caption_ids: plan.captions.clone(),
        image_ids: plan.images.clone(),
    })
}

fn unknown_column(name: &str) -> Error {
    Error::new(format!("the data have no column {name}"))
}

fn image_columns(
    data: &Dataset,
    inputs: &Inputs,
    plan: &BatchPlan,
    varied: Option<Varied>,
) -> Result<Columns> {
    if data.has_pictures() {
        return picture_columns(data, inputs, plan, varied);
    }
    let (regions, dim, n) = (data.regions(), data.dim(), plan.images.len());
    let mut values = Vec::with_capacity(n * regions * dim);
    let mut lengths = vec![regions; n];
    let dropped = varied.filter(|_| inputs.drop_regions > 0.0);
    for (i, &image) in plan.images.iter().enumerate() {
        let begin = values.len();
        data.image(image, &mut values)?;
        if let Some(varied) = dropped {
            // An image comes up once for each of its captions, each time with other regions.
            let sample = plan.captions.get(i).copied().unwrap_or(i);
            let mut draws = varied.draws(Stream::Regions, sample);
            lengths[i] = keep_rows(&mut values, begin, dim, |_| draws.unit() >= inputs.drop_regions);
            values.resize(begin + regions * dim, 0.0);
        }
    }
    let mut columns = Columns::new(n);
    let longest = lengths.iter().copied().max().unwrap_or(regions).max(inputs.least).min(regions);
    for name in inputs.images {
        match *name {
            "images" => columns.insert(name, &[regions, dim], std::mem::take(&mut values)),
            "bboxes" => columns.insert(name, &[regions, 4], boxes(data, plan)),
            "image_lengths" => columns.insert(name, &[], lengths.iter().map(|n| *n as f32).collect()),
            other => return Err(unknown_column(other)),
        }
    }
    Ok(if dropped.is_some() { columns.shortened("images", longest) } else { columns })
}

/// Pictures as evaluation sees them; in training, where the model wants it, random parts of them.
fn picture_columns(
    data: &Dataset,
    inputs: &Inputs,
    plan: &BatchPlan,
    varied: Option<Varied>,
) -> Result<Columns> {
    let asked = |(i, &picture): (usize, &usize)| {
        // A picture comes up once for each of its captions, each time another part of it.
        let sample = plan.captions.get(i).copied().unwrap_or(i);
        let draws = varied.filter(|_| inputs.crop > 0.0).map(|varied| varied.draws(Stream::Crop, sample));
        Asked { picture, draws }
    };
    let mut columns = Columns::new(plan.images.len());
    for name in inputs.images {
        match *name {
            "image" => {
                let (size, values) =
                    data.pictures(&plan.images.iter().enumerate().map(asked).collect::<Vec<_>>())?;
                columns.insert(name, &[3, size, size], values);
            }
            other => return Err(unknown_column(other)),
        }
    }
    Ok(columns)
}

fn boxes(data: &Dataset, plan: &BatchPlan) -> Vec<f32> {
    let mut values = Vec::with_capacity(4 * data.regions() * plan.images.len());
    for (i, image) in plan.images.iter().enumerate() {
        match plan.boxes.get(i) {
            Some(read) => data.boxes_again(read.caption, read.times, &mut values),
            None => data.boxes(*image, &mut values),
        }
    }
    values
}

/// Keeps some of the rows from `begin` on, at least one, and returns how many.
fn keep_rows(
    values: &mut Vec<f32>,
    begin: usize,
    width: usize,
    mut keep: impl FnMut(usize) -> bool,
) -> usize {
    let rows = (values.len() - begin) / width.max(1);
    let mut kept = 0;
    for row in 0..rows {
        if keep(row) || (kept == 0 && row + 1 == rows) {
            values.copy_within(begin + row * width..begin + (row + 1) * width, begin + kept * width);
            kept += 1;
        }
    }
    values.truncate(begin + kept * width);
    kept
}

fn caption_columns(
    data: &Dataset,
    tokens: &TokenTable,
    inputs: &Inputs,
    plan: &BatchPlan,
    varied: Option<Varied>,
) -> Result<(Columns, usize)> {
    if let Some(caption) = plan.captions.iter().find(|c| **c >= tokens.len()) {
        return Err(Error::new(format!("caption {caption} of {} is asked for", tokens.len())));
    }
    let changed = varied.filter(|_| inputs.mask_words > 0.0);
    let rows: Vec<Cow<[u32]>> = plan
        .captions
        .iter()
        .map(|&caption| match changed {
            Some(v) => {
                tokens.changed(caption, inputs.mask_words, &mut v.draws(Stream::Words, caption)).into()
            }
            None => tokens.ids(caption).into(),
        })
        .collect();
    let n = rows.len();
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0).max(inputs.least);
    // In fours, so that shapes repeat.
    let words =
        if inputs.pad_to_max { tokens.words() } else { longest.next_multiple_of(4).min(tokens.words()) };
    let padded = |value: &dyn Fn(u32) -> f32| {
        let mut values = vec![0.0; n * words];
        for (row, to) in rows.iter().zip(values.chunks_exact_mut(words.max(1))) {
            row.iter().zip(to).for_each(|(id, to)| *to = value(*id));
        }
        values
    };
    let mut columns = Columns::new(n);
    for name in inputs.captions {
        match *name {
            "input_ids" | "captions" => columns.insert(name, &[words], padded(&|id| id as f32)),
            "attention_mask" | "input_mask" => columns.insert(name, &[words], padded(&|_| 1.0)),
            "lengths" | "cap_lens" => {
                columns.insert(name, &[], rows.iter().map(|row| row.len() as f32).collect())
            }
            "depends" => {
                let (pairs, values) = depends(data, inputs, plan);
                columns.insert(name, &[pairs, 2], values);
            }
            "depends_len" => {
                let counts = plan.captions.iter().map(|&caption| data.pairs(caption).len().max(1) as f32);
                columns.insert(name, &[], counts.collect());
            }
            other => return Err(unknown_column(other)),
        }
    }
    Ok((columns, words))
}

/// The padded number of pairs and the pairs of a plan's captions; one of zeros stands for none.
fn depends(data: &Dataset, inputs: &Inputs, plan: &BatchPlan) -> (usize, Vec<f32>) {
    let most = data.most_pairs().max(1);
    let longest = plan.captions.iter().map(|&caption| data.pairs(caption).len()).max().unwrap_or(0).max(1);
    let pairs = if inputs.pad_to_max { most } else { longest.next_multiple_of(4).min(most) };
    let mut values = vec![0.0; 2 * pairs * plan.captions.len()];
    for (&caption, to) in plan.captions.iter().zip(values.chunks_exact_mut(2 * pairs)) {
        data.pairs(caption).iter().flatten().zip(to).for_each(|(word, to)| *to = *word as f32);
    }
    (pairs, values)
}

impl Varied {
    fn draws(self, stream: Stream, sample: usize) -> Rng {
        Rng::of(self.seed, &[stream as u64, self.epoch, sample as u64])
    }
}

/// What random words are drawn for: the streams of one seed and epoch are unrelated.
#[derive(Clone, Copy)]
enum Stream {
    Shuffle = 1,
    Extras = 2,
    Regions = 3,
    Words = 4,
    Crop = 5,
}

/// Random numbers by their place: number `i` of a (seed, stream, epoch) needs no earlier one.
struct Draws(Rng);

impl Draws {
    fn new(seed: u64, stream: Stream, epoch: u64) -> Self {
        let mixed = |x: u64| Rng::new(x).next_u64();
        Self(Rng::new(mixed(mixed(mixed(seed) ^ stream as u64) ^ epoch)))
    }

    /// Number `i`, below `n`.
    fn below(&self, i: u64, n: usize) -> usize {
        self.0.skip(i).below(n)
    }
}

#[cfg(test)]
mod tests;
