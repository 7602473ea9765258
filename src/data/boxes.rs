//! Boxes of regions: `{split}_ims_bbx.npy` `[rows, regions, 4]` (x1, y1, x2, y2 in pixels) with `{split}_ims_size.npy`,
//! each row's `image_w` and `image_h`: a structured array, or a pickled array of dicts, which is read as plain values.
//!
//! A model reads a box as shares of the image's width and height. The published loader divides the array it keeps, so
//! that every later read is of a box divided once more: [`Boxes::read`] can do that too.

use std::path::{Path, PathBuf};

use npyz::{DType, Endianness, TypeChar, TypeStr};

use super::captions::read_limited;
use super::features::{Features, array_header};
use super::pickle::{self, Id, Node, Pickle};
use crate::{Error, Kind, Result};

/// The largest file read; COCO's boxes take 130 MB in f64.
pub(crate) const MAX_FILE: u64 = 1 << 30;
/// The most opcodes of pickled sizes: COCO's 113,000 dicts take some 2 million.
const MAX_STEPS: usize = 8_000_000;
/// Brackets of a structured array's header: enough for eight fields.
const BRACKETS: usize = 12;
/// How far a box may be outside its image, in pixels: rounding.
const TOLERANCE: f32 = 0.5;
/// The largest width or height, in pixels.
const LARGEST: f32 = 1e6;
/// How sizes are saved.
const CURE: &str = "numpy.save(file, numpy.array([(w, h), ..], [('image_w', '<i4'), ('image_h', '<i4')]))";
/// The fields of a size.
const FIELDS: [&str; 2] = ["image_w", "image_h"];

/// The boxes of a split, row by row as its features.
#[derive(Debug)]
pub struct Boxes {
    path: PathBuf,
    sizes_path: PathBuf,
    regions: usize,
    pixels: Vec<f32>,
    /// Width and height of each row's image.
    sizes: Vec<[f32; 2]>,
}

impl Boxes {
    /// Reads both files of a split and checks every box.
    ///
    /// # Errors
    /// Those of [`Boxes::read_files`]; the first of [`Boxes::faults`].
    pub fn open(boxes: &Path, sizes: &Path, features: &Features) -> Result<Self> {
        let all = Self::read_files(boxes, sizes, features)?;
        let fault = all.faults().next();
        fault.map_or(Ok(all), Err)
    }

    /// Reads both files of a split.
    ///
    /// # Errors
    /// Files that are missing, hold no such arrays, or are of another shape than the features.
    pub fn read_files(boxes: &Path, sizes: &Path, features: &Features) -> Result<Self> {
        let (rows, regions) = (features.len(), features.regions());
        let forms = [
            (boxes, "a box of each region, x1, y1, x2, y2 in pixels: [images, regions, 4]"),
            (sizes, "each image's size: fields image_w and image_h, in pixels"),
        ];
        if let Some((missing, form)) = forms.into_iter().find(|(path, _)| !path.exists()) {
            return Err(Error::new("a file that the model reads beside the features is missing")
                .at(missing.display())
                .expected(form)
                .cure("put it there; it comes from the detector that the features come from"));
        }
        let pixels = pixels(&read_limited(boxes, MAX_FILE, "the boxes")?, [rows, regions, 4])
            .map_err(|e| e.at(boxes.display()))?;
        let read = sizes_of(&read_limited(sizes, MAX_FILE, "the images' sizes")?);
        let read = read.map_err(|e| e.at(sizes.display()))?;
        if read.len() != rows {
            return Err(Error::new("the sizes are of another number of images than the features")
                .at(sizes.display())
                .expected(rows)
                .found(read.len())
                .cure("take the sizes and the features of one data set"));
        }
        if rows > 0 && pixels.iter().all(|value| *value <= 1.0) {
            return Err(Error::new("the boxes are no pixels: none is past 1")
                .at(boxes.display())
                .expected("x1, y1, x2, y2 in pixels, which are divided by the image's size here")
                .cure("multiply them by their images' sizes again"));
        }
        let (path, sizes_path) = (boxes.to_path_buf(), sizes.to_path_buf());
        Ok(Self { path, sizes_path, regions, pixels, sizes: read })
    }

    /// What is wrong, of each row the first thing: a size that is none, a box that is NaN, has no area or is outside its
    /// image by more than half a pixel.
    pub fn faults(&self) -> impl Iterator<Item = Error> {
        (0..self.sizes.len()).filter_map(|row| self.fault(row))
    }

    fn fault(&self, row: usize) -> Option<Error> {
        let [width, height] = self.sizes[row];
        if !self.sizes[row].iter().all(|side| *side > 0.0 && *side <= LARGEST) {
            return Some(
                Error::new("an image has no size")
                    .at(format!("{}, row {row}", self.sizes_path.display()))
                    .expected(format!("a width and a height above 0, at most {LARGEST}"))
                    .found(format!("{width} x {height}"))
                    .cure("read the size of this image again"),
            );
        }
        let all = self.row(row).as_chunks::<4>().0.iter().enumerate();
        all.into_iter().find_map(|(region, at)| {
            let [x1, y1, x2, y2] = *at;
            let inside = |low: f32, high: f32, most: f32| low >= -TOLERANCE && high <= most + TOLERANCE;
            let (kind, what) = match () {
                () if !at.iter().all(|v| v.is_finite()) => (Kind::NonFinite, "a box is NaN or infinite"),
                () if x2 <= x1 || y2 <= y1 => (Kind::Input, "a box has no area"),
                () if !inside(x1, x2, width) || !inside(y1, y2, height) => {
                    (Kind::Input, "a box is outside its image")
                }
                () => return None,
            };
            Some(
                Error::of(kind, what)
                    .at(format!("{}, row {row}, region {region}", self.path.display()))
                    .expected(format!("x1 < x2 and y1 < y2 in pixels of an image of {width} x {height}"))
                    .found(format!("{x1}, {y1}, {x2}, {y2}"))
                    .cure("extract the boxes of this image again, or correct its size"),
            )
        })
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.pixels[4 * self.regions * row..4 * self.regions * (row + 1)]
    }

    /// Appends a row's boxes `[regions, 4]`, divided `times` over: x by the image's width, y by its height.
    pub fn read(&self, row: usize, times: usize, out: &mut Vec<f32>) {
        divide(self.row(row), self.sizes[row], times, out);
    }
}

/// Appends boxes `[.., 4]` of an image of a width and a height, divided by them so often.
pub fn divide(pixels: &[f32], size: [f32; 2], times: usize, out: &mut Vec<f32>) {
    let divided = |(i, value): (usize, &f32)| {
        let mut value = *value;
        for _ in 0..times {
            value /= size[i % 2];
            // It stays there.
            if value == 0.0 {
                break;
            }
        }
        value
    };
    out.extend(pixels.iter().enumerate().map(divided));
}

/// The boxes of a `.npy` file that must have this shape.
pub(super) fn pixels(bytes: &[u8], shape: [usize; 3]) -> Result<Vec<f32>> {
    let (header, start) = array_header(bytes, BRACKETS)?;
    let expected = format!("[{}, {}, {}], as the features", shape[0], shape[1], shape[2]);
    if header.shape() != shape.map(|n| n as u64) {
        return Err(Error::new("the boxes have another shape than the features")
            .expected(expected)
            .found(format!("{:?}", header.shape()))
            .cure("take the boxes and the features of one data set"));
    }
    let dtype = header.dtype();
    let number = match &dtype {
        DType::Plain(kind) => number(kind),
        _ => None,
    };
    let Some((width, decode)) = number else {
        return Err(Error::new("the boxes are no numbers")
            .expected("little-endian floats or integers")
            .found(dtype.descr())
            .cure("numpy.save(file, boxes.astype('<f4'))"));
    };
    let data = &bytes[start..];
    check_length(data, shape.iter().product(), width)?;
    Ok(data.chunks_exact(width).map(|value| decode(value) as f32).collect())
}

/// Widths and heights of a `.npy` file.
pub(super) fn sizes_of(bytes: &[u8]) -> Result<Vec<[f32; 2]>> {
    let (header, start) = array_header(bytes, BRACKETS)?;
    let expected = "one image_w and image_h an image: a structured array, or an array of dicts";
    let wrong = |what: &str, found: String| Error::new(what).expected(expected).found(found).cure(CURE);
    let &[rows] = header.shape() else {
        return Err(wrong("the images' sizes have a wrong shape", format!("{:?}", header.shape())));
    };
    let (dtype, data) = (header.dtype(), &bytes[start..]);
    match &dtype {
        DType::Plain(kind) if kind.type_char() == TypeChar::Object => {
            let pickle = pickle::read_within(data, MAX_STEPS).map_err(|e| e.cure(CURE))?;
            let (Some(items), true) = (array_items(&pickle), rows <= data.len() as u64) else {
                return Err(wrong("the pickled sizes are no array", pickle.type_name(pickle.root())));
            };
            if items.len() as u64 != rows {
                return Err(wrong(
                    "the pickled sizes are not as many as the header says",
                    items.len().to_string(),
                ));
            }
            let size = |(row, item): (usize, &Id)| {
                let sides = FIELDS.map(|name| side(&pickle, *item, name));
                let [Some(width), Some(height)] = sides else {
                    let found = format!("{} at row {row} without both numbers", pickle.type_name(*item));
                    return Err(wrong("an image's size is no dict of its width and height", found));
                };
                Ok([width as f32, height as f32])
            };
            items.iter().enumerate().map(size).collect()
        }
        DType::Record(fields) => {
            let (mut width, mut decoders) = (0, [None, None]);
            for field in fields {
                let number = match &field.dtype {
                    DType::Plain(kind) => number(kind),
                    _ => None,
                };
                if let Some(i) = FIELDS.iter().position(|name| *name == field.name) {
                    decoders[i] = number.map(|(_, decode)| (width, decode));
                }
                let bytes = field.dtype.num_bytes().and_then(|n| n.checked_add(width));
                width =
                    bytes.ok_or_else(|| wrong("the images' sizes hold no plain numbers", dtype.descr()))?;
            }
            let [Some(w), Some(h)] = decoders else {
                return Err(wrong("the images' sizes have no such fields", dtype.descr()));
            };
            let rows = usize::try_from(rows).unwrap_or(usize::MAX);
            check_length(data, rows, width)?;
            let side = |row: &[u8], (at, decode): (usize, Decode)| decode(&row[at..]) as f32;
            Ok(data.chunks_exact(width).map(|row| [side(row, w), side(row, h)]).collect())
        }
        _ => Err(wrong("the images' sizes hold no fields", dtype.descr())),
    }
}

fn check_length(data: &[u8], items: usize, width: usize) -> Result<()> {
    match items.checked_mul(width) {
        Some(expected) if expected == data.len() => Ok(()),
        expected => Err(Error::new("the file's length does not fit its header")
            .expected(expected.map_or_else(|| "less".into(), |n| format!("{n} bytes after the header")))
            .found(format!("{} bytes", data.len()))
            .cure("copy or make the file again")),
    }
}

/// What reads a number from its first bytes.
type Decode = fn(&[u8]) -> f64;

/// How a numeric type is read, and its bytes; `None` for another type, and for big-endian numbers.
fn number(kind: &TypeStr) -> Option<(usize, Decode)> {
    macro_rules! of {
        ($type:ty) => {
            (size_of::<$type>(), |bytes: &[u8]| {
                <$type>::from_le_bytes(*bytes.first_chunk().expect("a whole number")).into()
            })
        };
        ($type:ty, wide) => {
            (size_of::<$type>(), |bytes: &[u8]| {
                <$type>::from_le_bytes(*bytes.first_chunk().expect("a whole number")) as f64
            })
        };
    }
    if kind.endianness() == Endianness::Big {
        return None;
    }
    Some(match (kind.type_char(), kind.size_field()) {
        (TypeChar::Float, 2) => of!(half::f16),
        (TypeChar::Float, 4) => of!(f32),
        (TypeChar::Float, 8) => of!(f64),
        (TypeChar::Int, 1) => of!(i8),
        (TypeChar::Int, 2) => of!(i16),
        (TypeChar::Int, 4) => of!(i32),
        (TypeChar::Int, 8) => of!(i64, wide),
        (TypeChar::Uint, 1) => of!(u8),
        (TypeChar::Uint, 2) => of!(u16),
        (TypeChar::Uint, 4) => of!(u32),
        (TypeChar::Uint, 8) => of!(u64, wide),
        _ => return None,
    })
}

/// The items of a pickled numpy array of objects: its state is (version, shape, dtype, order, items).
fn array_items<'p>(pickle: &'p Pickle) -> Option<&'p [Id]> {
    let Node::Object(array) = pickle.node(pickle.root()) else { return None };
    let &[_, _, _, _, items] = pickle.sequence(array.state?)? else { return None };
    pickle.sequence(items)
}

/// A number of a dict.
fn side(pickle: &Pickle, dict: Id, name: &str) -> Option<f64> {
    let items = pickle.items(dict)?;
    let (_, value) = items.iter().rev().find(|(key, _)| pickle.text(*key) == Some(name))?;
    match pickle.node(*value) {
        Node::Int(value) => Some(*value as f64),
        Node::Float(value) => Some(*value),
        Node::Object(scalar) => {
            // numpy's own number: scalar(dtype("i4", ..), its bytes).
            let &[dtype, bytes] = pickle.sequence(scalar.args)? else { return None };
            let Node::Object(dtype) = pickle.node(dtype) else { return None };
            let name = pickle.text(*pickle.sequence(dtype.args)?.first()?)?;
            let bytes = match pickle.node(bytes) {
                Node::Bytes(bytes) => bytes,
                Node::Text(text) => text.as_bytes(),
                _ => return None,
            };
            let (width, decode) = number(&format!("<{name}").parse().ok()?)?;
            (bytes.len() == width).then(|| decode(bytes))
        }
        _ => None,
    }
}
