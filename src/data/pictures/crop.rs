//! The part of a picture that a model sees: the centre in evaluation, a random part in training.

use super::decode::Rgb;
use super::resize::{Area, crop_resize, resize_part};
use crate::host::Rng;

/// The mean of each channel, of values from 0 to 1.
pub const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// The spread of each channel.
pub const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// The least share of a picture that published training reads.
pub const LEAST_SHARE: f64 = 0.08;
/// Width over height of a random part.
const RATIOS: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];
/// Random parts drawn before the middle is taken.
const DRAWS: usize = 10;

/// The shorter side that a picture is resized to, for a model of some size: as 256 is to 224.
pub fn resized_to(size: usize) -> usize {
    size * 256 / 224
}

/// Width and height of a picture resized so that its shorter side is `short`; the longer one is rounded down.
pub fn evaluation_sides([width, height]: [usize; 2], short: usize) -> [usize; 2] {
    let scaled = |long: usize, of: usize| (short as f64 * long as f64 / of as f64) as usize;
    if width <= height { [short, scaled(height, width)] } else { [scaled(width, height), short] }
}

/// The middle `crop` x `crop` pixels; a half rounds to the even place. Panics if there are fewer.
#[track_caller]
pub fn middle(sides: [usize; 2], crop: usize) -> Area {
    assert!(sides.iter().all(|side| *side >= crop), "{crop} pixels of {sides:?}");
    let [left, top] = sides.map(|side| ((side - crop) as f64 / 2.0).round_ties_even() as usize);
    Area { left, top, width: crop, height: crop }
}

/// What evaluation sees: the picture resized to a shorter side of `resize_to`, and of that the middle. Only
/// the middle is computed, so a long, thin picture costs no more than another.
#[track_caller]
pub fn evaluation_view(picture: &Rgb, resize_to: usize, crop_to: usize) -> Rgb {
    let sides = evaluation_sides(picture.sides(), resize_to);
    resize_part(picture, Area::whole(picture.sides()), sides, middle(sides, crop_to))
}

/// What training sees of a picture: a random part resized to `size` x `size`, and whether it is mirrored.
pub fn training_view(picture: &Rgb, size: usize, least: f64, draws: &mut Rng) -> (Rgb, bool) {
    let part = training_area(picture.sides(), least, draws);
    let mirrored = draws.unit() < 0.5;
    (crop_resize(picture, part, [size, size]), mirrored)
}

/// A random part of at least this share: its area uniform, its shape log-uniform; after ten that do not fit, the middle in the
/// nearest shape.
pub fn training_area([width, height]: [usize; 2], least: f64, draws: &mut Rng) -> Area {
    let area = width as f64 * height as f64;
    for _ in 0..DRAWS {
        let target = area * draws.range(least, 1.0);
        let ratio = libm::exp(draws.range(libm::log(RATIOS[0]), libm::log(RATIOS[1])));
        let side = |squared: f64| squared.sqrt().round_ties_even() as usize;
        let [w, h] = [side(target * ratio), side(target / ratio)];
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = draws.below(height - h + 1);
            let left = draws.below(width - w + 1);
            return Area { left, top, width: w, height: h };
        }
    }
    let ratio = width as f64 / height as f64;
    let nearest = |side: f64, most: usize| (side.round_ties_even() as usize).clamp(1, most);
    let [w, h] = if ratio < RATIOS[0] {
        [width, nearest(width as f64 / RATIOS[0], height)]
    } else if ratio > RATIOS[1] {
        [nearest(height as f64 * RATIOS[1], width), height]
    } else {
        [width, height]
    };
    Area { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

/// The number that each byte of each channel becomes: `(byte / 255 - mean) / std`, each step in f32.
#[derive(Clone, Debug)]
pub struct Normal([[f32; 256]; 3]);

impl Normal {
    /// Of these means and spreads.
    pub fn new(mean: [f64; 3], std: [f64; 3]) -> Self {
        let of = |c: usize, byte: usize| (byte as f32 / 255.0 - mean[c] as f32) / std[c] as f32;
        Self(std::array::from_fn(|c| std::array::from_fn(|byte| of(c, byte))))
    }

    /// Writes pixels of `width` a row as three planes, each row backwards if `mirrored`.
    #[track_caller]
    pub fn write(&self, pixels: &[u8], width: usize, mirrored: bool, out: &mut [f32]) {
        assert_eq!(pixels.len(), out.len(), "a number a byte");
        let (pixels, _) = pixels.as_chunks::<3>();
        for (channel, plane) in out.chunks_exact_mut(pixels.len().max(1)).enumerate() {
            let table = &self.0[channel];
            for (row, out) in pixels.chunks_exact(width).zip(plane.chunks_exact_mut(width)) {
                let values = row.iter().map(|pixel| table[usize::from(pixel[channel])]);
                if mirrored {
                    out.iter_mut().zip(values.rev()).for_each(|(out, value)| *out = value);
                } else {
                    out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
                }
            }
        }
    }
}

impl Default for Normal {
    fn default() -> Self {
        Self::new(MEAN, STD)
    }
}
