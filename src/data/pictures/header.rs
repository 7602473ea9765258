//! What a picture file says of itself before its pixels: enough to refuse it before any long work.

use std::io::{BufRead, BufReader, ErrorKind, Read, Seek};
use std::path::Path;

use image::metadata::Orientation;

use crate::data::foreign;
use crate::{Error, Kind, Result};

/// Pixels of a picture at most: where Pillow, too, takes a file for a decompression bomb.
pub const MAX_PIXELS: u64 = 178_956_970;
/// Bytes at most that a picture may take while it is decoded.
pub const MAX_BYTES: u64 = 1 << 30;
/// Bytes of a picture file at most.
pub const MAX_FILE: u64 = 1 << 29;

/// What helps against a file that is not as it was written.
pub(super) const AGAIN: &str = "copy or download the file again, or leave it out of the data";
/// What helps where the decoder gives up, which may be for either reason.
pub(super) const AGAIN_OR_CONVERT: &str =
    "copy or download the file again; if other programs show it, save it anew, as by `magick FILE FILE.png`";
/// What helps against a file that is sound but of a kind that is not read.
pub(super) const CONVERT: &str = "save it as a PNG or a JPEG, as by `magick FILE FILE.png`";
const SHRINK: &str = "make it smaller, as by `magick FILE -resize 2048x2048 FILE`";

/// Bytes that tell a format.
const BEGIN: u64 = 64;
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
/// The longest orientation record worth reading: a longer one is skipped.
const MAX_EXIF: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jpeg,
    Png,
}

/// A picture's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) format: Format,
    /// Width and height as stored.
    pub(super) stored: [usize; 2],
    pub(super) orientation: Orientation,
    /// Bytes that decoding takes, at most.
    pub(super) bytes: u64,
}

impl Header {
    /// Reads up to where the pixels begin: of a JPEG, up to its first scan's data.
    pub(super) fn read<R: Read + Seek>(source: &mut BufReader<R>) -> Result<Self> {
        let mut begin = Vec::new();
        source.by_ref().take(BEGIN).read_to_end(&mut begin).map_err(|e| unread(&e))?;
        source.seek_relative(-(begin.len() as i64)).map_err(|e| unread(&e))?;
        let header = match format_of(&begin)? {
            Format::Jpeg => jpeg(source)?,
            Format::Png => png(source)?,
        };
        header.bearable()
    }

    /// Width and height when turned upright.
    pub(super) fn upright(&self) -> [usize; 2] {
        let [width, height] = self.stored;
        if turns(self.orientation) { [height, width] } else { [width, height] }
    }

    fn bearable(self) -> Result<Self> {
        let [width, height] = self.stored;
        let pixels = width as u64 * height as u64;
        if pixels > MAX_PIXELS {
            return Err(Error::new("the picture is too large")
                .expected(format!("at most {MAX_PIXELS} pixels"))
                .found(format!("{width} x {height}, {pixels} pixels"))
                .cure(SHRINK));
        }
        if self.bytes > MAX_BYTES {
            return Err(Error::new("the picture takes too much memory to read")
                .expected(format!("at most {} MiB", MAX_BYTES >> 20))
                .found(format!("{} MiB, for {width} x {height} pixels", self.bytes >> 20))
                .cure(SHRINK));
        }
        Ok(self)
    }
}

/// Whether sides change places.
fn turns(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// The format by the first bytes; the name of the file does not count.
fn format_of(begin: &[u8]) -> Result<Format> {
    if begin.starts_with(b"\xff\xd8\xff") {
        return Ok(Format::Jpeg);
    }
    if begin.starts_with(PNG) {
        return Ok(Format::Png);
    }
    if begin.is_empty() {
        return Err(Error::new("the picture file is empty").cure(AGAIN));
    }
    foreign::refuse_bytes(begin, Path::new("the picture"))?;
    if let Some(name) = other_format(begin) {
        let what = format!("this is a {name} file, which is not read");
        return Err(Error::new(what).expected("a JPEG or a PNG").cure(CONVERT));
    }
    let shown = begin[..begin.len().min(16)].escape_ascii();
    Err(Error::new("this is no picture")
        .expected("a JPEG or a PNG")
        .found(format!("a file that starts with {shown}"))
        .cure(AGAIN))
}

/// Formats of pictures, and what is often met in their place, by their first bytes.
fn other_format(begin: &[u8]) -> Option<&'static str> {
    const AT_START: [(&[u8], &str); 13] = [
        (b"GIF8", "GIF"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"8BPS", "Photoshop"),
        (b"\0\0\x01\0", "Windows icon"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"%PDF", "PDF"),
        (b"<svg", "SVG"),
        (b"<?xml", "SVG or other XML"),
        (b"PK\x03\x04", "ZIP"),
    ];
    if let Some((_, name)) = AT_START.iter().find(|(magic, _)| begin.starts_with(magic)) {
        return Some(name);
    }
    let part = |from: usize, to: usize| begin.get(from..to).unwrap_or_default();
    match (part(0, 4), part(4, 8), part(8, 12)) {
        (b"RIFF", _, b"WEBP") => Some("WebP"),
        (_, b"ftyp", b"avif" | b"avis") => Some("AVIF"),
        (_, b"ftyp", b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1") => Some("HEIC"),
        (_, b"ftyp", _) => Some("MP4 or related"),
        ([b'B', b'M', ..], ..) if part(6, 10) == [0; 4] => Some("BMP"),
        _ => None,
    }
}

fn unread(e: &std::io::Error) -> Error {
    match e.kind() {
        ErrorKind::UnexpectedEof => cut_short(),
        _ => Error::of(Kind::Io, format!("could not read the picture: {e}"))
            .cure("check the file and its disk"),
    }
}

pub(super) fn cut_short() -> Error {
    Error::new("the picture is cut short or damaged").found("a file that ends within the picture").cure(AGAIN)
}

fn broken(found: impl std::fmt::Display) -> Error {
    Error::new("the picture is damaged").found(found).cure(AGAIN)
}

fn unsupported(what: &str) -> Error {
    Error::new(format!("this is a {what} JPEG, which is not read"))
        .expected(
            "a JPEG as cameras and browsers have it: 8 bits, grey, RGB or CMYK, baseline or progressive",
        )
        .cure(CONVERT)
}

fn array<const N: usize>(source: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes).map_err(|e| unread(&e))?;
    Ok(bytes)
}

fn vector(source: &mut impl Read, length: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(length as u64).read_to_end(&mut bytes).map_err(|e| unread(&e))?;
    if bytes.len() == length { Ok(bytes) } else { Err(cut_short()) }
}

fn skip<R: Read + Seek>(source: &mut BufReader<R>, length: usize) -> Result<()> {
    source.seek_relative(length as i64).map_err(|e| unread(&e))
}

/// What the frame header of a JPEG says.
struct Frame {
    sides: [usize; 2],
    components: usize,
    progressive: bool,
    /// Whether every component has a value of its own for every pixel.
    full: bool,
}

fn jpeg<R: Read + Seek>(source: &mut BufReader<R>) -> Result<Header> {
    let (mut frame, mut orientation): (Option<Frame>, Option<Orientation>) = (None, None);
    skip(source, 2)?;
    let in_one_scan = loop {
        let marker = marker(source)?;
        if matches!(marker, 0x00 | 0x01 | 0xd0..=0xd8) {
            continue;
        }
        if marker == 0xd9 {
            return Err(broken("a JPEG that ends before its picture"));
        }
        let Some(length) = usize::from(u16::from_be_bytes(array(source)?)).checked_sub(2) else {
            return Err(broken("a part shorter than its own length"));
        };
        match marker {
            0xda => {
                let body = vector(source, length)?;
                break frame
                    .as_ref()
                    .is_some_and(|f| body.first().copied().map(usize::from) == Some(f.components));
            }
            0xc0..=0xcf if ![0xc4, 0xc8, 0xcc].contains(&marker) => {
                frame = Some(frame_of(marker, &vector(source, length)?)?);
            }
            0xe1 if orientation.is_none() => {
                let body = vector(source, length)?;
                let exif = body.strip_prefix(b"Exif\0\0");
                orientation = exif.and_then(Orientation::from_exif_chunk);
            }
            _ => skip(source, length)?,
        }
    };
    let frame = frame.ok_or_else(|| broken("a JPEG whose picture has no size"))?;
    if !(in_one_scan || frame.progressive || frame.full) {
        // The decoder reads these, and gives another picture.
        return Err(unsupported("baseline, subsampled, many-scan"));
    }
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    let pixels = frame.sides[0] as u64 * frame.sides[1] as u64;
    // Coefficients are kept where no scan has all of a pixel.
    let kept = if frame.progressive || !in_one_scan { 2 * frame.components as u64 } else { 0 };
    let each = kept + if frame.components == 1 { 4 } else { 3 } + if turns(orientation) { 3 } else { 0 };
    Ok(Header { format: Format::Jpeg, stored: frame.sides, orientation, bytes: pixels * each })
}

/// The byte after the next `0xff`, fill bytes aside.
fn marker<R: Read + Seek>(source: &mut BufReader<R>) -> Result<u8> {
    if source.skip_until(0xff).map_err(|e| unread(&e))? == 0 {
        return Err(cut_short());
    }
    loop {
        match array(source)? {
            [0xff] => {}
            [marker] => return Ok(marker),
        }
    }
}

fn frame_of(marker: u8, body: &[u8]) -> Result<Frame> {
    let [precision, h1, h0, w1, w0, components, ..] = *body else {
        return Err(broken("a frame header that is too short"));
    };
    match marker {
        0xc0..=0xc2 => {}
        0xc9..=0xcb => return Err(unsupported("arithmetic-coded")),
        _ => return Err(unsupported("lossless or hierarchical")),
    }
    if precision != 8 {
        return Err(unsupported(&format!("{precision}-bit")));
    }
    // Two have no meaning that readers agree on.
    if ![1, 3, 4].contains(&components) {
        return Err(unsupported(&format!("{components}-component")));
    }
    let sides = [u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0])].map(usize::from);
    if sides.contains(&0) {
        return Err(broken(format!("a picture of {} x {} pixels", sides[0], sides[1])));
    }
    let (sampling, _) = body[6..].as_chunks::<3>();
    if sampling.len() != usize::from(components) {
        return Err(broken("a frame header of another length"));
    }
    let full = components == 1 || sampling.iter().all(|component| component[1] == 0x11);
    Ok(Frame { sides, components: components.into(), progressive: marker == 0xc2, full })
}

fn png<R: Read + Seek>(source: &mut BufReader<R>) -> Result<Header> {
    let mut orientation = None;
    let mut about = None;
    skip(source, PNG.len())?;
    loop {
        let length = u32::from_be_bytes(array(source)?) as usize;
        let name: [u8; 4] = array(source)?;
        match (&name, about) {
            (b"IHDR", None) if length == 13 => {
                about = Some(array::<13>(source)?);
                skip(source, 4)?;
            }
            (_, None) => return Err(broken("a PNG that does not start with its size")),
            (b"IDAT" | b"IEND", _) => break,
            (b"eXIf", _) if orientation.is_none() && length <= MAX_EXIF => {
                orientation = Orientation::from_exif_chunk(&vector(source, length)?);
                skip(source, 4)?;
            }
            _ => skip(source, length + 4)?,
        }
    }
    let [w3, w2, w1, w0, h3, h2, h1, h0, depth, colour, ..] = about.expect("the loop ends after it is set");
    let sides = [[w3, w2, w1, w0], [h3, h2, h1, h0]].map(u32::from_be_bytes);
    if sides.iter().any(|s| *s == 0 || *s > i32::MAX as u32) {
        return Err(broken(format!("a picture of {} x {} pixels", sides[0], sides[1])));
    }
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    // A transparent colour makes alpha of its own; grey pictures are held twice.
    let sample = if depth == 16 { 2 } else { 1 };
    let each = if [0, 4].contains(&colour) { 2 * sample + 3 } else { 4 * sample };
    let each = each + if turns(orientation) { 3 } else { 0 };
    let pixels = u64::from(sides[0]) * u64::from(sides[1]);
    let bytes = pixels.saturating_mul(each);
    Ok(Header { format: Format::Png, stored: sides.map(|s| s as usize), orientation, bytes })
}

/// Whether the scans of a JPEG, from the first one's data on, come to its end.
pub(super) fn has_end(mut rest: &[u8]) -> bool {
    loop {
        let Some(at) = rest.iter().position(|b| *b == 0xff) else { return false };
        rest = &rest[at + 1..];
        match rest {
            [] => return false,
            [0xd9, ..] => return true,
            // A fill byte starts a marker of its own.
            [0xff, ..] => {}
            [0x00 | 0x01 | 0xd0..=0xd8, ..] => rest = &rest[1..],
            [_, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let Some(after) = rest.get(1 + length.max(2)..) else { return false };
                rest = after;
            }
            _ => return false,
        }
    }
}
