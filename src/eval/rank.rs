//! Recall from a matrix of similarities, as the image-text matching papers report it.
//!
//! Caption `c` belongs to image `c / captions_per_image`. A rank counts from 0. Equal scores rank the
//! higher index first, which is a stable ascending sort read backwards: unlike the unstable sort of the
//! published evaluations it gives one answer everywhere. No row is sorted: a rank is the number of
//! competitors that come first, so a matrix costs two passes over its rows.

use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

mod check;
#[cfg(test)]
mod tests;

pub use check::{Compared, Tensors, parity};

/// A score type: `f32` or `f64`.
pub trait Score: Copy + PartialOrd + Into<f64> {}
impl Score for f32 {}
impl Score for f64 {}

/// A borrowed `[images, captions]` similarity matrix, or one diagonal block of it.
#[derive(Clone, Copy, Debug)]
pub struct Sims<'a, T> {
    scores: &'a [T],
    stride: usize,
    images: usize,
    captions_per_image: usize,
}

/// Where each query's match ranks (0 is first), and what ranks first for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// Per image: the best rank among its captions.
    pub i2t: Vec<u32>,
    /// Per caption: the rank of its image.
    pub t2i: Vec<u32>,
    /// Per image: the caption that ranks first.
    pub top1_i2t: Vec<u32>,
    /// Per caption: the image that ranks first.
    pub top1_t2i: Vec<u32>,
    /// Whether a wrong match scores exactly what a right one does, so that the tie rule decided a rank.
    pub tied: bool,
}

/// The recalls of one direction, in percent, and its median and mean rank counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Percentage of queries whose match ranks first.
    pub r1: f64,
    /// Percentage of queries whose match is among the first 5.
    pub r5: f64,
    /// Percentage of queries whose match is among the first 10.
    pub r10: f64,
    /// Median rank: `floor(median) + 1`.
    pub medr: f64,
    /// Mean rank plus 1.
    pub meanr: f64,
}

/// The recalls of both directions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Image queries, captions ranked.
    pub i2t: Recall,
    /// Caption queries, images ranked.
    pub t2i: Recall,
}

impl<'a, T: Score> Sims<'a, T> {
    /// A row-major matrix of `images` rows and `images * captions_per_image` columns.
    ///
    /// Errors: no image, a length that does not fit, or a score that is NaN or infinite (the pair is named).
    pub fn new(scores: &'a [T], images: usize, captions_per_image: usize) -> Result<Self> {
        let captions = images.checked_mul(captions_per_image);
        let cells = captions.and_then(|c| c.checked_mul(images));
        if cells != Some(scores.len()) || scores.is_empty() || captions > Some(u32::MAX as usize) {
            return Err(Error::new("the similarity matrix does not fit its images and captions")
                .expected(format!("{images} images with {captions_per_image} captions each"))
                .found(format!("{} scores", scores.len()))
                .cure("check the matrix and --captions-per-image"));
        }
        let columns = images * captions_per_image;
        if let Some(at) = scores.iter().position(|&s| !s.into().is_finite()) {
            let score: f64 = scores[at].into();
            return Err(Error::of(Kind::NonFinite, "a similarity is not a finite number")
                .at(format!("image {}, caption {}", at / columns, at % columns))
                .expected("a finite score for every pair")
                .found(score)
                .cure(
                    "check the weights and the features of that pair: `crossweave check` scans a data folder",
                ));
        }
        Ok(Self { scores, stride: columns, images, captions_per_image })
    }

    /// The number of images.
    pub fn images(&self) -> usize {
        self.images
    }

    /// The number of captions.
    pub fn captions(&self) -> usize {
        self.images * self.captions_per_image
    }

    /// The scores of one image with every caption.
    pub fn row(&self, image: usize) -> &'a [T] {
        &self.scores[image * self.stride..][..self.captions()]
    }

    /// The matrix cut into `k` diagonal blocks of consecutive images and their own captions, as COCO's
    /// 1K protocol has it with `k = 5`.
    ///
    /// Errors: `k` is 0 or does not divide the number of images.
    pub fn folds(&self, k: usize) -> Result<Vec<Self>> {
        check_folds(self.images, k)?;
        let images = self.images / k;
        let corner = |fold: usize| fold * images * (self.stride + self.captions_per_image);
        Ok((0..k).map(|fold| Self { scores: &self.scores[corner(fold)..], images, ..*self }).collect())
    }

    /// Every rank, both ways.
    pub fn ranks(&self) -> Ranks {
        let (i2t, top1_i2t, tied_i2t) = self.rank_images();
        let (t2i, top1_t2i, tied_t2i) = self.rank_captions();
        Ranks { i2t, t2i, top1_i2t, top1_t2i, tied: tied_i2t || tied_t2i }
    }

    /// The recalls of the whole matrix.
    pub fn metrics(&self) -> Metrics {
        self.ranks().metrics()
    }

    fn rank_images(&self) -> (Vec<u32>, Vec<u32>, bool) {
        let (mut ranks, mut top, mut tied) = (Vec::new(), Vec::new(), false);
        for image in 0..self.images {
            let row = self.row(image);
            let first = image * self.captions_per_image;
            let own = first..first + self.captions_per_image;
            let best = last_largest(&row[own.clone()]) + first;
            let score = row[best];
            let before = row[..best].iter().filter(|&&s| s > score).count();
            let after = row[best + 1..].iter().filter(|&&s| s >= score).count();
            ranks.push((before + after) as u32);
            top.push(last_largest(row) as u32);
            tied |= row[..own.start].contains(&score) || row[own.end..].contains(&score);
        }
        (ranks, top, tied)
    }

    /// Counts along rows, so that the matrix is read in memory order.
    fn rank_captions(&self) -> (Vec<u32>, Vec<u32>, bool) {
        let per_image = self.captions_per_image;
        let own: Vec<T> = (0..self.captions()).map(|c| self.row(c / per_image)[c]).collect();
        let mut ranks = vec![0u32; own.len()];
        let mut largest = self.row(0).to_vec();
        let mut top = vec![0u32; own.len()];
        let mut tied = false;
        for image in 0..self.images {
            let row = self.row(image);
            // This image is the later one, which wins a tie, for the captions of the images before it.
            let (start, end) = (image * per_image, (image + 1) * per_image);
            for c in 0..start {
                ranks[c] += u32::from(row[c] >= own[c]);
                tied |= row[c] == own[c];
            }
            for c in end..row.len() {
                ranks[c] += u32::from(row[c] > own[c]);
                tied |= row[c] == own[c];
            }
            for (c, &score) in row.iter().enumerate() {
                if score >= largest[c] {
                    (largest[c], top[c]) = (score, image as u32);
                }
            }
        }
        (ranks, top, tied)
    }
}

/// The index of the largest value, the last one among equals.
fn last_largest<T: Score>(row: &[T]) -> usize {
    let mut best = 0;
    for (i, score) in row.iter().enumerate() {
        if *score >= row[best] {
            best = i;
        }
    }
    best
}

impl Ranks {
    /// The recalls of both directions.
    pub fn metrics(&self) -> Metrics {
        Metrics { i2t: Recall::of(&self.i2t), t2i: Recall::of(&self.t2i) }
    }
}

impl Recall {
    /// The recalls of these ranks (counted from 0, at least one).
    #[track_caller]
    pub fn of(ranks: &[u32]) -> Self {
        assert!(!ranks.is_empty(), "recall of no query");
        let n = ranks.len();
        let within = |k: u32| 100.0 * ranks.iter().filter(|&&r| r < k).count() as f64 / n as f64;
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        // floor((a + b) / 2) is the floor of the median for odd and even n alike.
        let median = (u64::from(sorted[(n - 1) / 2]) + u64::from(sorted[n / 2])) / 2;
        let mean = ranks.iter().map(|&r| f64::from(r)).sum::<f64>() / n as f64;
        Self { r1: within(1), r5: within(5), r10: within(10), medr: median as f64 + 1.0, meanr: mean + 1.0 }
    }

    /// `r1, r5, r10, medr, meanr`: the order of the published tables.
    pub fn values(&self) -> [f64; 5] {
        [self.r1, self.r5, self.r10, self.medr, self.meanr]
    }

    /// The mean of the three recalls.
    pub fn average(&self) -> f64 {
        (self.r1 + self.r5 + self.r10) / 3.0
    }

    fn from_values([r1, r5, r10, medr, meanr]: [f64; 5]) -> Self {
        Self { r1, r5, r10, medr, meanr }
    }
}

impl Metrics {
    /// The sum of all six recalls.
    pub fn rsum(&self) -> f64 {
        let sum = |r: &Recall| r.r1 + r.r5 + r.r10;
        sum(&self.i2t) + sum(&self.t2i)
    }

    /// `r1` both ways: what some published training selects its best weights by.
    pub fn r1(&self) -> f64 {
        self.i2t.r1 + self.t2i.r1
    }

    /// `r1 + r5` both ways: what other published training selects by.
    pub fn r1r5(&self) -> f64 {
        self.i2t.r1 + self.i2t.r5 + self.t2i.r1 + self.t2i.r5
    }

    /// `i2t`'s five values, `t2i`'s five, the average recall each way, rsum: a row of the fold tables.
    pub fn columns(&self) -> [f64; 13] {
        let mut row = [0.0; 13];
        row[..5].copy_from_slice(&self.i2t.values());
        row[5..10].copy_from_slice(&self.t2i.values());
        row[10..].copy_from_slice(&[self.i2t.average(), self.t2i.average(), self.rsum()]);
        row
    }

    /// The mean of each metric over folds (at least one).
    #[track_caller]
    pub fn mean(folds: &[Self]) -> Self {
        assert!(!folds.is_empty(), "mean over no fold");
        let mean = |pick: fn(&Self) -> Recall| {
            let mut sum = [0.0; 5];
            for fold in folds {
                for (s, v) in sum.iter_mut().zip(pick(fold).values()) {
                    *s += v;
                }
            }
            Recall::from_values(sum.map(|s| s / folds.len() as f64))
        };
        Self { i2t: mean(|m| m.i2t), t2i: mean(|m| m.t2i) }
    }
}

/// The element-wise mean of several models' matrices, in f64.
///
/// Errors: no matrix, or matrices of different lengths.
pub fn ensemble<T: Score>(members: &[&[T]]) -> Result<Vec<f64>> {
    let Some((first, others)) = members.split_first() else {
        return Err(Error::new("an ensemble needs at least one similarity matrix"));
    };
    let mut sum: Vec<f64> = first.iter().map(|&s| s.into()).collect();
    for (i, other) in others.iter().enumerate() {
        if other.len() != sum.len() {
            return Err(Error::new("the runs of the ensemble scored different data")
                .at(format!("matrix {}", i + 2))
                .expected(format!("{} scores, as the first has", sum.len()))
                .found(other.len())
                .cure("evaluate all runs on the same split"));
        }
        for (total, &score) in sum.iter_mut().zip(*other) {
            *total += score.into();
        }
    }
    for total in &mut sum {
        *total /= members.len() as f64;
    }
    Ok(sum)
}

/// Whether so many images divide into folds.
///
/// # Errors
/// They do not; a number of folds that is near is named.
pub fn check_folds(images: usize, folds: usize) -> Result<()> {
    if folds > 0 && images.is_multiple_of(folds) {
        return Ok(());
    }
    let near = (1..=images).filter(|n| images.is_multiple_of(*n)).min_by_key(|n| n.abs_diff(folds));
    Err(Error::new("the images do not divide into equal folds")
        .at("--folds")
        .expected(format!("a divisor of {images} images"))
        .found(folds)
        .cure(format!("use --folds {}, say", near.unwrap_or(1))))
}
