//! Pixels of PNG and JPEG files, as 8-bit RGB.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::panic::AssertUnwindSafe;
use std::path::Path;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, Limits, RgbImage};

use super::header::{AGAIN, AGAIN_OR_CONVERT, CONVERT, Format, Header, MAX_FILE, cut_short, has_end};
use crate::{Error, Result};

/// What a PNG's text, profile and rows may take besides its pixels.
const BESIDES: u64 = 64 << 20;

/// A picture in 8-bit RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Row after row, three bytes a pixel.
    pub pixels: Vec<u8>,
}

impl Rgb {
    /// A picture of these bytes. Panics if they are not three a pixel.
    #[track_caller]
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Self {
        assert_eq!(pixels.len(), 3 * width * height, "the bytes of {width} x {height} pixels");
        Self { width, height, pixels }
    }

    /// Width and height.
    pub fn sides(&self) -> [usize; 2] {
        [self.width, self.height]
    }
}

/// Reads a picture file, as [`decode`] does.
///
/// # Errors
/// As [`decode`], or a file that cannot be read; each names the file.
pub fn read_file(path: &Path, as_stored: bool) -> Result<Rgb> {
    let io = |e| Error::io("read the picture", path, &e);
    let file = open(path)?;
    let mut bytes = Vec::new();
    // The length may have changed since it was looked at.
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
    check_length(bytes.len() as u64)
        .and_then(|()| decode(&bytes, as_stored))
        .map_err(|e| e.at(path.display()))
}

/// Opens a picture file of bearable length.
pub(super) fn open(path: &Path) -> Result<File> {
    let io = |e| Error::io("read the picture", path, &e);
    let about = std::fs::metadata(path).map_err(io)?;
    if !about.is_file() {
        let what = if about.is_dir() { "this is a folder" } else { "this is a pipe or a device, no file" };
        return Err(Error::new(what)
            .at(path.display())
            .expected("a JPEG or a PNG")
            .cure("give the name of a picture file"));
    }
    check_length(about.len()).map_err(|e| e.at(path.display()))?;
    File::open(path).map_err(io)
}

fn check_length(bytes: u64) -> Result<()> {
    if bytes <= MAX_FILE {
        return Ok(());
    }
    Err(Error::new("the picture file is too long")
        .expected(format!("at most {} MiB", MAX_FILE >> 20))
        .found(format!("{} MiB", bytes >> 20))
        .cure("make the picture smaller, or leave it out of the data"))
}

/// The pixels of a PNG or JPEG, whatever its name was. Alpha is dropped, with the colours below it kept, grey
/// becomes three times the same, of 16 bits the upper eight stay, inks are mixed as viewers do (stored
/// inverted, as Adobe's programs write them). Turned upright by its EXIF orientation unless `as_stored`.
///
/// # Errors
/// Another format, a picture that is cut short, damaged or of a kind that is not read, or one of more than
/// [`super::MAX_PIXELS`] pixels or [`super::MAX_BYTES`] of memory. The error has no place.
pub fn decode(bytes: &[u8], as_stored: bool) -> Result<Rgb> {
    let mut source = BufReader::new(Cursor::new(bytes));
    let header = Header::read(&mut source)?;
    // The decoder fills what is missing with grey.
    if header.format == Format::Jpeg {
        let scan = source.stream_position().map_or(bytes.len(), |at| (at as usize).min(bytes.len()));
        if !has_end(&bytes[scan..]) {
            return Err(cut_short());
        }
    }
    let stored = unless_it_panics(|| match header.format {
        Format::Jpeg => pixels(JpegDecoder::new(Cursor::new(bytes)).map_err(undecoded)?, &header),
        Format::Png => {
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(header.bytes + BESIDES);
            pixels(PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(undecoded)?, &header)
        }
    })?;
    Ok(if as_stored { stored } else { upright(stored, header.orientation) })
}

/// What a decoder gives. One that panics, as the JPEG decoder does on some damaged files, must not end a long
/// run without a word on which file it was.
fn unless_it_panics(decode: impl FnOnce() -> Result<Rgb>) -> Result<Rgb> {
    std::panic::catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        Err(Error::new("the picture is damaged")
            .found("a file that its decoder panics on")
            .cure(AGAIN_OR_CONVERT))
    })
}

fn undecoded(e: ImageError) -> Error {
    match e {
        ImageError::Unsupported(e) => Error::new("this kind of picture is not read").found(e).cure(CONVERT),
        ImageError::Limits(e) => {
            Error::new("the picture takes too much memory to read").found(e).cure(CONVERT)
        }
        e => Error::new("the picture is damaged").found(e).cure(AGAIN_OR_CONVERT),
    }
}

fn pixels(decoder: impl ImageDecoder, header: &Header) -> Result<Rgb> {
    let (width, height) = decoder.dimensions();
    let [width, height] = [width as usize, height as usize];
    let kind = decoder.color_type();
    let (channels, each) = (usize::from(kind.channel_count()), usize::from(kind.bytes_per_pixel()));
    let bytes = decoder.total_bytes();
    if [width, height] != header.stored || bytes != (each * width * height) as u64 {
        let found = format!("{width} x {height} and {:?} pixels", header.stored);
        return Err(Error::new("the picture has two sizes").found(found).cure(AGAIN));
    }
    let mut raw = vec![0; each * width * height];
    decoder.read_image(&mut raw).map_err(undecoded)?;
    let rgb = match (channels, each / channels) {
        (3, 1) => raw,
        (4, 1) => three_of(raw, each, |sample| sample[0], 1),
        (3 | 4, 2) => three_of(raw, each, upper, 2),
        (1 | 2, 1) => raw.chunks_exact(each).flat_map(|pixel| [pixel[0]; 3]).collect(),
        (1 | 2, 2) => raw.chunks_exact(each).flat_map(|pixel| [upper(pixel); 3]).collect(),
        _ => {
            return Err(Error::new("this kind of picture is not read")
                .found(format!("{kind:?}"))
                .cure(CONVERT));
        }
    };
    Ok(Rgb::new(width, height, rgb))
}

/// The upper eight of sixteen bits, which the decoder stores as this machine does.
fn upper(sample: &[u8]) -> u8 {
    (u16::from_ne_bytes([sample[0], sample[1]]) >> 8) as u8
}

/// The first three samples of every pixel of `each` bytes, in place: a second copy of a large picture is
/// dear.
fn three_of(mut raw: Vec<u8>, each: usize, sample: impl Fn(&[u8]) -> u8, bytes: usize) -> Vec<u8> {
    let pixels = raw.len() / each;
    for pixel in 0..pixels {
        for channel in 0..3 {
            let at = pixel * each + channel * bytes;
            raw[3 * pixel + channel] = sample(&raw[at..at + bytes]);
        }
    }
    raw.truncate(3 * pixels);
    raw
}

fn upright(stored: Rgb, orientation: Orientation) -> Rgb {
    if orientation == Orientation::NoTransforms {
        return stored;
    }
    let image = RgbImage::from_raw(stored.width as u32, stored.height as u32, stored.pixels);
    let mut image = DynamicImage::ImageRgb8(image.expect("its bytes are three a pixel"));
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    Rgb::new(image.width() as usize, image.height() as usize, image.into_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_decoder_is_an_error() {
        let error = unless_it_panics(|| panic!("an index out of range")).expect_err("a panic").to_string();
        assert!(error.contains("is damaged") && error.contains("cure:"), "{error}");
        let one = Rgb::new(1, 1, vec![1, 2, 3]);
        assert_eq!(unless_it_panics(|| Ok(one.clone())).expect("no panic"), one);
    }
}
