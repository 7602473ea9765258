//! Image features: a `.npy` array `[images, regions, dim]`, memory-mapped and read a row at a time.
//!
//! Flickr30K's training features are 8.5 GB, so a file is never read whole: opening one parses at most
//! 10 KB of header, and a row is converted to f32 when a batch asks for it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use half::f16;
use memmap2::Mmap;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};

use super::foreign;
use crate::{Error, Result};

/// The longest header text accepted, numpy's own limit.
const MAX_HEADER: usize = 10_000;
/// Magic, version and a 4-byte length: all that precedes the header text.
const MAX_PREAMBLE: usize = 12;
/// Brackets of a float array's header.
const FLOAT_BRACKETS: usize = 3;

/// Up to this many bytes rows are compared whole.
const SMALL_FILE: usize = 64 << 20;
/// Bytes compared at each of three places of a larger file's rows.
const COMPARED: usize = 512;

/// The float type of a file's elements, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    F32,
    F64,
}

impl Element {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    pub(crate) fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F16 => out.extend(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32())),
            Self::F32 => out.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
            Self::F64 => out.extend(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
        }
    }
}

/// What a checked header says; no product of its sizes overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    element: Element,
    pub(super) rows: usize,
    pub(super) regions: usize,
    pub(super) dim: usize,
    /// Bytes before the first element.
    pub(super) data: usize,
    /// Bytes of one row.
    pub(super) row: usize,
    /// Bytes a whole file has.
    pub(super) end: usize,
}

/// A value that no feature may have: the first such in its row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NonFinite {
    /// Row of the file, from 0.
    pub row: usize,
    /// Region in the row, from 0.
    pub region: usize,
    /// Column in the region, from 0.
    pub column: usize,
    /// NaN, an infinity, or a finite f64 beyond f32.
    pub value: f64,
}

/// A mapped `.npy` file of f16, f32 or f64 features, shape `[rows, regions, dim]`.
#[derive(Debug)]
pub struct Features {
    path: PathBuf,
    file: File,
    map: Mmap,
    header: Header,
}

impl Features {
    /// Maps a file after checking its header and length.
    ///
    /// # Errors
    /// No `.npy` file, another rank than 3, a zero dimension, Fortran order, big-endian, integer, object or
    /// structured elements, a file shorter or longer than its header says, or one that cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path)
            .map_err(|e| packed(path).unwrap_or_else(|| Error::io("open the features", path, &e)))?;
        if !about.is_file() {
            return Err(Error::new("this is no regular file").at(path.display()).expected("a .npy file"));
        }
        foreign::refuse(path)?;
        let file = File::open(path).map_err(|e| Error::io("open the features", path, &e))?;
        let head = read_head(&file).map_err(|e| Error::io("read the features", path, &e))?;
        let header = parse_header(&head).map_err(|e| e.at(path.display()))?;
        check_length(&file, path, header.end)?;
        // SAFETY: the map is read-only and every read rechecks the file's length first; what is left is a file
        // cut short by another process during a read, which ends this process with a signal, not with bad data.
        #[allow(unsafe_code, reason = "a map is unsafe as files change")]
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map the features", path, &e))?;
        if map.len() != header.end {
            return Err(wrong_length(path, header.end as u64, map.len() as u64));
        }
        Ok(Self { path: path.to_path_buf(), file, map, header })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rows: images, or images times their repeats.
    pub fn len(&self) -> usize {
        self.header.rows
    }

    /// Never: a file without rows is refused.
    pub fn is_empty(&self) -> bool {
        self.header.rows == 0
    }

    /// Regions a row.
    pub fn regions(&self) -> usize {
        self.header.regions
    }

    /// Numbers a region.
    pub fn dim(&self) -> usize {
        self.header.dim
    }

    /// Bytes of one row as stored.
    pub fn row_bytes(&self) -> usize {
        self.header.row
    }

    /// Appends a row, `regions * dim` numbers, to `out`.
    ///
    /// # Errors
    /// NaN or an infinity in the row, a file that shrank since it was opened, a row past the end. `out` is then
    /// as it was.
    pub fn read(&self, row: usize, out: &mut Vec<f32>) -> Result<()> {
        let start = out.len();
        self.header.element.decode(self.raw(row)?, out);
        match self.non_finite(row, out[start..].iter().copied()) {
            None => Ok(()),
            Some(bad) => {
                out.truncate(start);
                Err(self.non_finite_error(&bad))
            }
        }
    }

    /// Whether the file holds f32.
    pub(crate) fn is_f32(&self) -> bool {
        self.header.element == Element::F32
    }

    /// A row of a file of f32 as it is stored, little-endian.
    ///
    /// # Errors
    /// As [`Features::read`].
    pub(crate) fn f32_bytes(&self, row: usize) -> Result<&[u8]> {
        assert!(self.is_f32(), "rows of another type are converted");
        let bytes = self.raw(row)?;
        match self.non_finite(row, bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))) {
            None => Ok(bytes),
            Some(bad) => Err(self.non_finite_error(&bad)),
        }
    }

    /// Whether two rows are the same, byte for byte; rows of large files are compared at their beginning, middle and
    /// end, so that a file is not read whole for the question.
    ///
    /// # Errors
    /// A file that shrank since it was opened, a row past the end.
    pub fn same(&self, a: usize, b: usize) -> Result<bool> {
        let (a, b) = (self.raw(a)?, self.raw(b)?);
        if self.len().saturating_mul(a.len()) <= SMALL_FILE {
            return Ok(a == b);
        }
        let part = COMPARED.min(a.len());
        let starts = [0, (a.len() - part) / 2, a.len() - part];
        Ok(starts.iter().all(|&start| a[start..start + part] == b[start..start + part]))
    }

    /// Reads every row and returns the first bad value of each row that has one. `progress` gets the rows done.
    ///
    /// # Errors
    /// A file that shrank since it was opened.
    pub fn verify_all(&self, mut progress: impl FnMut(usize)) -> Result<Vec<NonFinite>> {
        let mut bad = Vec::new();
        let mut values = Vec::with_capacity(self.regions() * self.dim());
        for row in 0..self.len() {
            values.clear();
            self.header.element.decode(self.raw(row)?, &mut values);
            bad.extend(self.non_finite(row, values.iter().copied()));
            progress(row + 1);
        }
        Ok(bad)
    }

    /// A row as it is stored.
    ///
    /// # Errors
    /// A file that shrank since it was opened, a row past the end.
    pub(super) fn raw(&self, row: usize) -> Result<&[u8]> {
        if row >= self.len() {
            let n = self.len();
            return Err(Error::new(format!("row {row} of {n} features")).at(self.path.display()));
        }
        check_length(&self.file, &self.path, self.header.end)?;
        let start = self.header.data + row * self.header.row;
        Ok(&self.map[start..start + self.header.row])
    }

    fn non_finite(&self, row: usize, values: impl Iterator<Item = f32>) -> Option<NonFinite> {
        let (i, value) = values.enumerate().find(|(_, v)| !v.is_finite())?;
        let value = match self.header.element {
            Element::F64 => {
                let bytes = self.raw(row).ok()?.as_chunks().0;
                bytes.get(i).map_or(f64::NAN, |bytes| f64::from_le_bytes(*bytes))
            }
            _ => value.into(),
        };
        Some(NonFinite { row, region: i / self.dim(), column: i % self.dim(), value })
    }

    fn non_finite_error(&self, bad: &NonFinite) -> Error {
        Error::of(crate::Kind::NonFinite, format!("the features hold {bad}"))
            .at(self.path.display())
            .expected(format!("numbers of at most {:e}", f32::MAX))
            .cure("run `crossweave check` on the folder for every such row, then extract those images again")
    }
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let beyond = if self.value.is_finite() { ", which is beyond f32," } else { "" };
        let Self { row, region, column, value } = self;
        write!(f, "{value:e}{beyond} in row {row}, region {region}, column {column}")
    }
}

/// For a file that is missing where its `.npz` is there: how to unpack it.
pub(super) fn packed(path: &Path) -> Option<Error> {
    let npz = path.with_extension("npz");
    let (from, to) = (npz.display(), path.display());
    npz.is_file().then(|| {
        Error::new("the features are packed in an .npz file")
            .at(&from)
            .expected(&to)
            .cure(format!("unpack them: unzip -p {from} > {to}"))
    })
}

fn check_length(file: &File, path: &Path, expected: usize) -> Result<()> {
    let about = file.metadata().map_err(|e| Error::io("look at the features", path, &e))?;
    if about.len() == expected as u64 {
        Ok(())
    } else {
        Err(wrong_length(path, expected as u64, about.len()))
    }
}

fn wrong_length(path: &Path, expected: u64, found: u64) -> Error {
    let what = if found < expected { "is cut short" } else { "is longer than its header says" };
    Error::new(format!("the features file {what}"))
        .at(path.display())
        .expected(format!("{expected} bytes, from the header's shape and type"))
        .found(format!("{found} bytes"))
        .cure("copy or download the file again")
}

/// The start of a `.npy` file that holds its header: all of it if it is shorter.
pub(crate) fn read_head(file: &File) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.take((MAX_PREAMBLE + MAX_HEADER) as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// Parses what [`read_head`] gives.
pub(super) fn parse_header(head: &[u8]) -> Result<Header> {
    let (shape, element, data) = float_array(head)?;
    sizes(&shape, element, data)
}

/// The shape and type of a C-ordered array of floats, and where its numbers start.
pub(crate) fn float_array(head: &[u8]) -> Result<(Vec<u64>, Element, usize)> {
    let (npy, data) = array_header(head, FLOAT_BRACKETS)?;
    Ok((npy.shape().to_vec(), element_of(&npy.dtype())?, data))
}

/// The header of a C-ordered array, and where its values start; with at most so many brackets.
pub(super) fn array_header(head: &[u8], brackets: usize) -> Result<(NpyHeader, usize)> {
    let data = header_end(head)?;
    let text = &head[..data];
    refuse_odd_header(text, brackets)?;
    let npy = NpyHeader::from_reader(text).map_err(|e| {
        let what = format!("the .npy header cannot be read: {}", first_line(&e.to_string()));
        Error::new(what).found(show(text)).cure("write the array again with numpy.save")
    })?;
    if npy.order() == Order::Fortran {
        return Err(Error::new("the array is in Fortran order")
            .expected("C order")
            .cure("numpy.save(file, numpy.ascontiguousarray(array))"));
    }
    Ok((npy, data))
}

fn sizes(shape: &[u64], element: Element, data: usize) -> Result<Header> {
    let expected = "three dimensions (images, regions, dim), none of them zero";
    let wrong = || Error::new("the array has a wrong shape").expected(expected).found(format!("{shape:?}"));
    let &[rows, regions, dim] = shape else {
        return Err(wrong().cure("reshape it: one vector an image is (images, 1, dim)"));
    };
    if shape.contains(&0) {
        return Err(wrong());
    }
    let size = |n: u64| usize::try_from(n).ok();
    let checked = || {
        let (rows, regions, dim) = (size(rows)?, size(regions)?, size(dim)?);
        let row = regions.checked_mul(dim)?.checked_mul(element.bytes())?;
        let end = row.checked_mul(rows)?.checked_add(data)?;
        Some(Header { element, rows, regions, dim, data, row, end })
    };
    checked().ok_or_else(|| wrong().cure("the file is damaged or hostile: no memory holds such an array"))
}

/// Where the data starts, from the magic, version and length.
fn header_end(head: &[u8]) -> Result<usize> {
    let no_npy = |found: &str| {
        Error::new("this is no .npy file")
            .expected("a file that starts with \\x93NUMPY")
            .found(found)
            .cure("write the array with numpy.save; of an .npz: unzip -p FILE.npz > FILE.npy")
    };
    let Some((magic, rest)) = head.split_at_checked(8) else {
        return Err(no_npy(&format!("{} bytes in all", head.len())));
    };
    if &magic[..6] != b"\x93NUMPY" {
        return Err(no_npy(&format!("a file that starts with {}", show(magic))));
    }
    let (start, length) = match (magic[6], rest) {
        (1, [a, b, ..]) => (10, u16::from_le_bytes([*a, *b]) as usize),
        (2 | 3, [a, b, c, d, ..]) => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        (1..=3, _) => return Err(no_npy("a file that ends in its first bytes")),
        (version, _) => return Err(no_npy(&format!("format version {version}"))),
    };
    if length > MAX_HEADER {
        let found = format!("{length} bytes");
        return Err(Error::new("the .npy header is too long").expected("10000 bytes at most").found(found));
    }
    match start + length {
        end if end <= head.len() => Ok(end),
        _ => Err(Error::new("the .npy file ends within its header").cure("copy or download the file again")),
    }
}

/// The header parser recurses with brackets, multiplies sizes unchecked and knows escapes; a few brackets, 19 digits
/// in all (a product below 2^64) and plain characters are all that an array of numbers needs.
fn refuse_odd_header(text: &[u8], most: usize) -> Result<()> {
    let body = &text[8..];
    let body = &body[if text[6] == 1 { 2 } else { 4 }..];
    let plain = |b: &u8| b.is_ascii_graphic() && !b"\\xX".contains(b) || b" \n".contains(b);
    let brackets = body.iter().filter(|b| b"([{".contains(b)).count();
    let digits = body.iter().filter(|b| b.is_ascii_digit()).count();
    if body.iter().all(plain) && brackets <= most && digits <= 19 {
        return Ok(());
    }
    Err(Error::new("the .npy header describes no plain float array")
        .expected("a header like {'descr': '<f4', 'fortran_order': False, 'shape': (1000, 36, 2048), }")
        .found(show(body))
        .cure("numpy.save(file, array.astype('<f4'))"))
}

fn element_of(dtype: &DType) -> Result<Element> {
    let found = dtype.descr();
    let wrong = |what: &str, cure: &str| {
        Err(Error::new(format!("the array holds {what}"))
            .expected("little-endian floats: '<f2', '<f4' or '<f8'")
            .found(&found)
            .cure(cure))
    };
    let float = "numpy.save(file, array.astype('<f4'))";
    let DType::Plain(kind) = dtype else { return wrong("records", float) };
    match (kind.type_char(), kind.endianness(), kind.size_field()) {
        (TypeChar::Float, Endianness::Little, 2) => Ok(Element::F16),
        (TypeChar::Float, Endianness::Little, 4) => Ok(Element::F32),
        (TypeChar::Float, Endianness::Little, 8) => Ok(Element::F64),
        (TypeChar::Float, Endianness::Big, _) => wrong("big-endian numbers", float),
        (TypeChar::Object, ..) => wrong(
            "pickled Python objects",
            "stack the rows: numpy.stack(list(array)).astype('<f4'); rows of different lengths are cut or padded to one first",
        ),
        (TypeChar::Int | TypeChar::Uint | TypeChar::Bool, ..) => wrong("integers", float),
        _ => wrong("elements of another type", float),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// At most 120 characters of untrusted bytes, escaped.
fn show(bytes: &[u8]) -> String {
    let short = &bytes[..bytes.len().min(120)];
    short.trim_ascii_end().escape_ascii().to_string()
}
