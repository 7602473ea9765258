//! Bilinear resizing as Pillow does it, to the bit: a triangle filter that widens when a picture shrinks, its
//! weights in fixed point, across first and then down, rounded to 8 bits between.

use std::ops::Range;

use super::decode::Rgb;

/// Bits after the point of a weight: 32 less those of a pixel and two spare.
const BITS: u32 = 22;
const HALF: i32 = 1 << (BITS - 1);

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The first column.
    pub left: usize,
    /// The first row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Area {
    /// All of a picture of this width and height.
    pub fn whole([width, height]: [usize; 2]) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// Whether it has pixels and all of them lie in a picture of this width and height.
    pub fn lies_in(&self, [width, height]: [usize; 2]) -> bool {
        let within =
            |start: usize, n: usize, all| n > 0 && start.checked_add(n).is_some_and(|end| end <= all);
        within(self.left, self.width, width) && within(self.top, self.height, height)
    }
}

/// A picture made `to` wide and high.
#[track_caller]
pub fn resize(picture: &Rgb, to: [usize; 2]) -> Rgb {
    crop_resize(picture, Area::whole(picture.sides()), to)
}

/// A part of a picture made `to` wide and high; pixels outside the part have no influence. Panics if the part
/// does not lie in the picture.
#[track_caller]
pub fn crop_resize(picture: &Rgb, part: Area, to: [usize; 2]) -> Rgb {
    resize_part(picture, part, to, Area::whole(to))
}

/// Of what [`crop_resize`] gives only `wanted`, at the cost of that alone. Panics if a part does not lie in
/// its whole.
#[track_caller]
pub fn resize_part(picture: &Rgb, part: Area, to: [usize; 2], wanted: Area) -> Rgb {
    assert!(part.lies_in(picture.sides()), "{part:?} in a picture of {:?}", picture.sides());
    assert!(wanted.lies_in(to), "{wanted:?} of a picture of {to:?}");
    let across = Taps::new(part.width, to[0], wanted.left..wanted.left + wanted.width);
    let down = Taps::new(part.height, to[1], wanted.top..wanted.top + wanted.height);
    let rows = down.reach();
    let line = 3 * wanted.width;
    let mut narrow = vec![0; rows.len() * line];
    for (row, out) in rows.clone().zip(narrow.chunks_exact_mut(line)) {
        let start = 3 * ((part.top + row) * picture.width + part.left);
        across.across(&picture.pixels[start..start + 3 * part.width], out);
    }
    let mut pixels = vec![0; line * wanted.height];
    let mut sums = vec![0; line];
    for (i, out) in pixels.chunks_exact_mut(line).enumerate() {
        let (first, weights) = down.of(i);
        let start = (first - rows.start) * line;
        sums.fill(HALF);
        for (weight, row) in weights.iter().zip(narrow[start..].chunks_exact(line)) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(*value);
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = rounded(*sum);
        }
    }
    Rgb::new(wanted.width, wanted.height, pixels)
}

fn rounded(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The weighted inputs of each output along one side.
struct Taps {
    /// Of each output: its first input, and where its weights start.
    outputs: Vec<(usize, usize)>,
    weights: Vec<i32>,
}

impl Taps {
    /// From `input` pixels to `output`, of which only some are wanted.
    fn new(input: usize, output: usize, wanted: Range<usize>) -> Self {
        let scale = input as f64 / output as f64;
        let support = scale.max(1.0);
        let mut taps = Self { outputs: Vec::with_capacity(wanted.len()), weights: Vec::new() };
        let mut shares = Vec::new();
        for i in wanted {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(input);
            let share = |x: usize| (1.0 - ((x as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
            shares.clear();
            shares.extend((first..end).map(share));
            let sum: f64 = shares.iter().sum();
            taps.outputs.push((first, taps.weights.len()));
            let fixed = |share: &f64| (0.5 + share / sum * f64::from(1 << BITS)) as i32;
            taps.weights.extend(shares.iter().map(fixed));
        }
        taps
    }

    /// The first input of an output and the weights from there on.
    fn of(&self, i: usize) -> (usize, &[i32]) {
        let (first, start) = self.outputs[i];
        let end = self.outputs.get(i + 1).map_or(self.weights.len(), |next| next.1);
        (first, &self.weights[start..end])
    }

    /// The inputs that any output reads.
    fn reach(&self) -> Range<usize> {
        let (first, _) = self.of(0);
        let (last, weights) = self.of(self.outputs.len() - 1);
        first..last + weights.len()
    }

    fn across(&self, row: &[u8], out: &mut [u8]) {
        let (row, _) = row.as_chunks::<3>();
        for (i, out) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (first, weights) = self.of(i);
            let mut sums = [HALF; 3];
            for (weight, pixel) in weights.iter().zip(&row[first..]) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += weight * i32::from(*value);
                }
            }
            *out = sums.map(rounded);
        }
    }
}
