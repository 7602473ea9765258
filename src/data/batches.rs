//! Training batches, a pure function of (seed, epoch, step): a stopped run finds its place again.
//!
//! An epoch is one shuffle of all captions; a sample is a caption with its image, so an image comes up once for
//! each of its captions. A batch is sorted by the number of tokens, longest first (stable); extra captions or
//! images follow unsorted, sample by sample in that order, all extras of a sample together. The last batch of an
//! epoch is what is left over.

use std::sync::Arc;

use super::dataset::Dataset;
use super::tokenizer::TokenTable;
use crate::host::Rng;
use crate::{Error, Result};

/// What a [`Sampler`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerOptions {
    /// Samples a batch.
    pub batch_size: usize,
    /// Random captions added for each sample.
    pub extra_stc: usize,
    /// Random images added for each sample; none if `extra_stc` is set, as in the published code.
    pub extra_img: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Extras never belong to the sample's own image. The published code draws from all.
    pub exclude_own: bool,
}

/// Which captions and images make a batch; either list may repeat an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchPlan {
    /// Captions: the samples', then the extras.
    pub captions: Vec<usize>,
    /// Images: the samples', then the extras.
    pub images: Vec<usize>,
}

/// Chooses the samples of each step.
#[derive(Clone, Debug)]
pub struct Sampler {
    tokens: Arc<TokenTable>,
    per_image: usize,
    options: SamplerOptions,
    /// The shuffle of the epoch asked for last.
    order: Option<(u64, Vec<u32>)>,
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
        let extras = options.extra_stc.max(options.extra_img);
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

    /// Steps an epoch, the short last one included.
    pub fn steps_per_epoch(&self) -> u64 {
        self.tokens.len().div_ceil(self.options.batch_size) as u64
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
        let order = self.shuffled(epoch);
        // A sample's place in the epoch keys its extras, so the sort cannot change them.
        let mut samples: Vec<(usize, usize)> =
            (begin..end).map(|place| (place, order[place] as usize)).collect();
        samples.sort_by_key(|&(_, caption)| std::cmp::Reverse(self.tokens.length(caption)));
        let captions: Vec<usize> = samples.iter().map(|&(_, caption)| caption).collect();
        let images = captions.iter().map(|caption| caption / self.per_image).collect();
        let mut plan = BatchPlan { captions, images };
        if self.options.extra_stc > 0 {
            plan.captions.extend(self.extras(epoch, &samples, self.options.extra_stc));
        } else {
            let drawn = self.extras(epoch, &samples, self.options.extra_img);
            plan.images.extend(drawn.iter().map(|caption| caption / self.per_image));
        }
        plan
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

    fn shuffled(&mut self, epoch: u64) -> &[u32] {
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let draws = Draws::new(self.options.seed, Stream::Shuffle, epoch);
            // The constructor made sure that captions count in u32.
            let mut order: Vec<u32> = (0..self.tokens.len() as u32).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, draws.below(i as u64, i + 1));
            }
            self.order = Some((epoch, order));
        }
        self.order.as_ref().map(|(_, order)| order.as_slice()).unwrap_or_default()
    }
}

/// A batch as the engine takes it: row-major f32 throughout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Features `[n_images, regions, dim]`.
    pub images: Vec<f32>,
    /// Images, extras included.
    pub n_images: usize,
    /// Regions an image.
    pub regions: usize,
    /// Numbers a region.
    pub dim: usize,
    /// Token ids `[n_captions, words]`, padded with 0.
    pub ids: Vec<f32>,
    /// 1 for a token, 0 for padding, `[n_captions, words]`.
    pub mask: Vec<f32>,
    /// Tokens of each caption `[n_captions]`.
    pub lengths: Vec<f32>,
    /// Captions, extras included.
    pub n_captions: usize,
    /// Padded length of a caption.
    pub words: usize,
    /// Which captions of the data set, for messages.
    pub caption_ids: Vec<usize>,
    /// Which images of the data set, for messages.
    pub image_ids: Vec<usize>,
}

/// Reads the features and tokens of a plan; any lists will do, one of them may be empty.
///
/// # Errors
/// Features that cannot be read or hold NaN or infinity; a caption that the table does not have.
pub fn assemble(data: &Dataset, tokens: &TokenTable, plan: &BatchPlan) -> Result<Batch> {
    let words = tokens.batch_words(&plan.captions);
    let (n_captions, n_images) = (plan.captions.len(), plan.images.len());
    let mut batch = Batch {
        images: Vec::with_capacity(n_images * data.regions() * data.dim()),
        n_images,
        regions: data.regions(),
        dim: data.dim(),
        ids: vec![0.0; n_captions * words],
        mask: vec![0.0; n_captions * words],
        lengths: Vec::with_capacity(n_captions),
        n_captions,
        words,
        caption_ids: plan.captions.clone(),
        image_ids: plan.images.clone(),
    };
    for &image in &plan.images {
        data.image(image, &mut batch.images)?;
    }
    let rows = batch.ids.chunks_exact_mut(words.max(1)).zip(batch.mask.chunks_exact_mut(words.max(1)));
    for (&caption, (ids, mask)) in plan.captions.iter().zip(rows) {
        if caption >= tokens.len() {
            return Err(Error::new(format!("caption {caption} of {} is asked for", tokens.len())));
        }
        let row = tokens.ids(caption);
        for (i, &id) in row.iter().enumerate() {
            (ids[i], mask[i]) = (id as f32, 1.0);
        }
        batch.lengths.push(row.len() as f32);
    }
    Ok(batch)
}

/// What random words are drawn for: the streams of one seed and epoch are unrelated.
#[derive(Clone, Copy)]
enum Stream {
    Shuffle = 1,
    Extras = 2,
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
mod tests {
    use super::*;
    use crate::data::tokenizer::{WordPiece, build_vocab};

    /// `n` captions of 0 to 6 words each.
    fn table(n: usize) -> Arc<TokenTable> {
        let texts: Vec<String> = (0..n).map(|i| "dog ".repeat(i * 31 % 7)).collect();
        let pieces = WordPiece::from_vocab(build_vocab(&texts, 100)).unwrap();
        Arc::new(TokenTable::new(&pieces, &texts, 8))
    }

    fn options(batch_size: usize) -> SamplerOptions {
        SamplerOptions { batch_size, extra_stc: 0, extra_img: 0, seed: 7, exclude_own: true }
    }

    fn epoch_of(sampler: &mut Sampler, epoch: u64) -> Vec<BatchPlan> {
        (0..sampler.steps_per_epoch()).map(|step| sampler.plan(epoch, step)).collect()
    }

    #[test]
    fn draws_never_change() {
        // What runs of earlier versions drew: a resumed run must draw the same.
        let draws = Draws::new(7, Stream::Extras, 3);
        assert_eq!([0, 1, 1000].map(|i| draws.below(i, 1_000_000)), [883255, 725697, 999640]);
    }

    #[test]
    fn an_epoch_takes_every_caption_once_with_its_image() {
        let mut sampler = Sampler::new(5, table(65), options(8)).unwrap();
        let plans = epoch_of(&mut sampler, 3);
        let sizes: Vec<usize> = plans.iter().map(|plan| plan.captions.len()).collect();
        assert_eq!(sizes, [8, 8, 8, 8, 8, 8, 8, 8, 1]);
        let mut all: Vec<usize> = plans.iter().flat_map(|plan| plan.captions.clone()).collect();
        assert_ne!(all[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        all.sort_unstable();
        assert_eq!(all, (0..65).collect::<Vec<_>>());
        for plan in &plans {
            assert!(plan.captions.iter().zip(&plan.images).all(|(c, i)| c / 5 == *i));
            let lengths: Vec<usize> = plan.captions.iter().map(|&c| sampler.tokens.length(c)).collect();
            assert!(lengths.is_sorted_by(|a, b| a >= b), "{lengths:?}");
        }
        assert_eq!(sampler.plan(3, 9), BatchPlan::default());
        assert_eq!(sampler.plan(3, u64::MAX), BatchPlan::default());
    }

    #[test]
    fn a_plan_depends_on_seed_epoch_and_step_alone() {
        let wanted = SamplerOptions { extra_stc: 2, ..options(8) };
        let mut sampler = Sampler::new(5, table(65), wanted).unwrap();
        let (first, second) = (epoch_of(&mut sampler, 0), epoch_of(&mut sampler, 1));
        assert_ne!(first, second);
        let mut resumed = Sampler::new(5, table(65), wanted).unwrap();
        assert_eq!(resumed.plan(1, 4), second[4]);
        assert_eq!(resumed.plan(0, 2), first[2]);
        let mut other = Sampler::new(5, table(65), SamplerOptions { seed: 8, ..wanted }).unwrap();
        assert_ne!(other.plan(0, 2), first[2]);
    }

    #[test]
    fn equal_lengths_keep_the_shuffled_order() {
        let mut sampler = Sampler::new(1, table(64), options(64)).unwrap();
        let order: Vec<usize> = sampler.shuffled(0).iter().map(|&c| c as usize).collect();
        let plan = sampler.plan(0, 0);
        for length in 0..9 {
            let of_length = |list: &[usize]| -> Vec<usize> {
                list.iter().copied().filter(|&c| sampler.tokens.length(c) == length).collect()
            };
            assert_eq!(of_length(&plan.captions), of_length(&order));
        }
    }

    #[test]
    fn extras_follow_their_samples_and_spare_the_own_image() {
        let k = 3;
        let mut sampler =
            Sampler::new(5, table(20), SamplerOptions { extra_stc: k, extra_img: 9, ..options(6) }).unwrap();
        let mut drawn = [0; 20];
        for plan in (0..200).flat_map(|epoch| epoch_of(&mut sampler, epoch)) {
            let n = plan.images.len();
            assert_eq!(plan.captions.len(), n * (1 + k), "extra_stc wins over extra_img");
            for (i, &extra) in plan.captions[n..].iter().enumerate() {
                assert_ne!(extra / 5, plan.images[i / k]);
                drawn[extra] += 1;
            }
        }
        // 200 epochs x 20 samples x 3 over 20 captions: 600 each, standard deviation 24.
        assert!(drawn.iter().all(|n| (480..720).contains(n)), "{drawn:?}");
    }

    #[test]
    fn faithful_extras_come_from_all_captions() {
        let wanted = SamplerOptions { extra_img: 1, exclude_own: false, ..options(6) };
        let mut sampler = Sampler::new(5, table(10), wanted).unwrap();
        let plans: Vec<_> = (0..100).flat_map(|epoch| epoch_of(&mut sampler, epoch)).collect();
        let own = plans
            .iter()
            .flat_map(|p| (0..p.captions.len()).map(|i| p.images[i] == p.images[p.captions.len() + i]));
        let share = own.clone().filter(|&same| same).count() as f64 / own.count() as f64;
        // Of two images, half the draws are the own one; 1,000 draws.
        assert!((0.43..0.57).contains(&share), "{share}");
    }

    #[test]
    fn impossible_samplers_are_refused() {
        assert!(Sampler::new(5, table(10), options(0)).is_err());
        assert!(Sampler::new(5, table(11), options(2)).is_err());
        assert!(Sampler::new(5, table(0), options(2)).is_err());
        assert!(Sampler::new(5, table(5), SamplerOptions { extra_stc: 1, ..options(2) }).is_err());
        assert!(Sampler::new(5, table(10), SamplerOptions { extra_stc: usize::MAX, ..options(2) }).is_err());
    }
}
