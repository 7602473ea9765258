//! Weights files in the safetensors format: opened by memory map, written atomically, checked by name.
//!
//! The format (<https://github.com/huggingface/safetensors>) is a `u64` header length, a JSON header that
//! gives each tensor's type, shape and byte range, and the little-endian bytes.

use crate::data::{atomic, foreign};
use crate::{Error, Kind, Result};
use half::{bf16, f16};
use memmap2::Mmap;
pub use safetensors::Dtype;
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The longest JSON header read, in bytes: 100,000 tensors need about 12 MB.
pub const MAX_HEADER: u64 = 16 << 20;

/// The most tensors of one file.
pub const MAX_TENSORS: usize = 100_000;

/// Bytes looked at together, a multiple of every type's.
const BLOCK: usize = 1 << 16;

/// How many differences an error lists before it only counts them.
const MAX_LISTED: usize = 40;

/// An open safetensors file. Its bytes stay on the disk until they are asked for.
pub struct Weights {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, Info>,
    metadata: HashMap<String, String>,
}

struct Info {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Weights {
    /// Opens a file and checks its header: sizes, offsets, and that they cover the file exactly.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io("open the weights", path, &e);
        foreign::refuse(path)?;
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length < 8 {
            return Err(
                damaged(path, "it is shorter than a safetensors header").found(format!("{length} bytes"))
            );
        }
        let map = map(&file).map_err(io)?;
        let header = u64::from_le_bytes(*map.first_chunk().ok_or_else(|| damaged(path, "it shrank"))?);
        if header > MAX_HEADER || header > length - 8 {
            let error = damaged(path, "the header length is not that of a safetensors file");
            let most = MAX_HEADER.min(length - 8);
            return Err(error.expected(format!("at most {most} bytes")).found(format!("{header} bytes")));
        }
        let (header, parsed) = SafeTensors::read_metadata(&map).map_err(|e| damaged(path, &e.to_string()))?;
        let listed = parsed.tensors();
        if listed.len() > MAX_TENSORS {
            let error = damaged(path, "it has too many tensors");
            return Err(error.expected(format!("at most {MAX_TENSORS}")).found(listed.len()));
        }
        let start = 8 + header;
        let tensors = listed.into_iter().map(|(name, info)| {
            let (from, to) = info.data_offsets;
            (name, Info { dtype: info.dtype, shape: info.shape.clone(), bytes: start + from..start + to })
        });
        let tensors = tensors.collect();
        let metadata = parsed.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.to_path_buf(), map, tensors, metadata })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All names with their shapes, sorted by name: what [`check`] takes.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), &info.shape[..]))
    }

    /// A tensor's shape, of any rank.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|info| &info.shape[..])
    }

    /// A tensor's element type.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|info| info.dtype)
    }

    /// The file's own notes.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// A tensor's bytes as they are stored: row-major, little-endian.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let info = self.info(name)?;
        Ok(&self.map[info.bytes.clone()])
    }

    /// A float tensor's values, row-major; f16, bf16 and f64 are converted. An error for other types.
    pub fn f32s(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        widen(info.dtype, self.bytes(name)?).ok_or_else(|| self.mistyped(name, "a float tensor", info.dtype))
    }

    /// An integer or bool tensor's values, row-major. An error for other types, and for a u64 past `i64`.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>> {
        let info = self.info(name)?;
        ints(info.dtype, self.bytes(name)?)
            .ok_or_else(|| self.mistyped(name, "an integer tensor within i64", info.dtype))
    }

    /// An error that lists every float tensor holding a NaN or an infinity.
    pub fn check_finite(&self) -> Result<()> {
        let mut bad = Vec::new();
        for (name, info) in &self.tensors {
            let blocks = self.map[info.bytes.clone()].chunks(BLOCK);
            bad.extend(non_finite(name, blocks.flat_map(|b| widen(info.dtype, b).unwrap_or_default())));
        }
        refuse_non_finite(self.path.display(), &bad)
    }

    fn info(&self, name: &str) -> Result<&Info> {
        self.tensors.get(name).ok_or_else(|| {
            let error = Error::new(format!("there is no tensor `{name}`")).at(self.path.display());
            error.cure("check that the file belongs to this model")
        })
    }

    fn mistyped(&self, name: &str, expected: &str, found: Dtype) -> Error {
        let error = Error::new(format!("tensor `{name}` has the wrong type")).at(self.path.display());
        error.expected(expected).found(found)
    }
}

/// Maps a file for reading.
#[allow(unsafe_code, reason = "a map is unsafe as files change; what keeps it sound is below")]
pub(crate) fn map(file: &File) -> std::io::Result<Mmap> {
    // Sound as long as nobody shortens the file meanwhile: the offsets used are checked against the map's own
    // length, and our own writers replace files by renaming, which leaves an open map's file alone.
    unsafe { Mmap::map(file) }
}

fn damaged(path: &Path, what: &str) -> Error {
    let error = Error::new(format!("this is not a sound safetensors file: {what}")).at(path.display());
    error.cure("fetch or write the file again; PyTorch files go through the import binary first")
}

/// Float bytes as f32; `None` for other types.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        _ => return None,
    })
}

/// Integer and bool bytes as i64; `None` for other types and for values past `i64`.
fn ints(dtype: Dtype, bytes: &[u8]) -> Option<Vec<i64>> {
    Some(match dtype {
        Dtype::I64 => each(bytes, i64::from_le_bytes),
        Dtype::I32 => each(bytes, |b| i32::from_le_bytes(b).into()),
        Dtype::I16 => each(bytes, |b| i16::from_le_bytes(b).into()),
        Dtype::I8 => each(bytes, |b| i8::from_le_bytes(b).into()),
        Dtype::U32 => each(bytes, |b| u32::from_le_bytes(b).into()),
        Dtype::U16 => each(bytes, |b| u16::from_le_bytes(b).into()),
        Dtype::U8 | Dtype::BOOL => each(bytes, |[b]| b.into()),
        Dtype::U64 => {
            let wide = bytes.as_chunks::<8>().0.iter();
            wide.map(|b| i64::try_from(u64::from_le_bytes(*b)).ok()).collect::<Option<_>>()?
        }
        _ => return None,
    })
}

fn each<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|b| value(*b)).collect()
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its full name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, of any rank.
    pub shape: Vec<usize>,
    /// Its elements, row-major and little-endian.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Entry<'a> {
    /// An f32 tensor.
    pub fn f32s(name: impl Into<String>, shape: &[usize], values: &'a [f32]) -> Self {
        let bytes = if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(values))
        } else {
            Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect())
        };
        Self { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }
}

/// Writes a safetensors file atomically: a failure (a full disk, say) leaves a former file as it was.
///
/// Tensors are stored wide types first, then by name, so that every one is aligned to its type. Names must
/// be unique and byte lengths fit shapes; anything else is reported before the disk is touched.
pub fn write(path: &Path, tensors: &[Entry], metadata: &HashMap<String, String>) -> Result<()> {
    let mut order: Vec<&Entry> = tensors.iter().collect();
    order.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0;
    for entry in &order {
        let bits = entry.shape.iter().try_fold(entry.dtype.bitsize(), |n, &d| n.checked_mul(d));
        if bits != Some(entry.bytes.len() * 8) {
            let error = Error::new(format!("tensor `{}` has bytes that do not fit its shape", entry.name));
            let found = format!("{} bytes for {:?} of {}", entry.bytes.len(), entry.shape, entry.dtype);
            return Err(error.at(path.display()).found(found));
        }
        let end = offset + entry.bytes.len();
        let about = json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offset, end]});
        if entry.name == "__metadata__" || header.insert(entry.name.clone(), about).is_some() {
            return Err(Error::new(format!("two tensors are named `{}`", entry.name)).at(path.display()));
        }
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    // The data starts at a multiple of eight; the format pads its header with spaces.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    atomic::file(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        order.iter().try_for_each(|entry| out.write_all(&entry.bytes))
    })
}

/// Compares the weights found with those a model expects; one error lists all that are missing, not expected
/// or of another shape (past forty, their number). `place` is the file they were read from.
pub fn check<'a>(
    place: impl Display,
    expected: &[(String, Vec<usize>)],
    found: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> Result<()> {
    let mut found: BTreeMap<&str, &[usize]> = found.into_iter().collect();
    let mut missing = Vec::new();
    let mut misshaped = Vec::new();
    for (name, shape) in expected {
        match found.remove(name.as_str()) {
            None => missing.push(format!("missing: {name} {shape:?}")),
            Some(other) if other != shape => {
                misshaped.push(format!("wrong shape: {name} is {other:?}, expected {shape:?}"));
            }
            Some(_) => {}
        }
    }
    let extra = found.iter().map(|(name, shape)| format!("not expected: {name} {shape:?}"));
    let (m, s, e) = (missing.len(), misshaped.len(), found.len());
    if m + s + e == 0 {
        return Ok(());
    }
    let lines: Vec<_> = missing.into_iter().chain(misshaped).chain(extra).collect();
    let error = Error::new(format!(
        "the weights are not those of this configuration: {m} missing, {s} of another shape, {e} not expected"
    ));
    Err(error
        .at(place)
        .found(listing(&lines))
        .cure("give the configuration that the weights were trained with"))
}

/// Names a tensor and its first value that is NaN or infinite, if it has one.
pub(crate) fn non_finite(name: &str, values: impl IntoIterator<Item = f32>) -> Option<String> {
    let (mut all, mut bad, mut first) = (0, 0, None);
    for value in values {
        if !value.is_finite() {
            bad += 1;
            first.get_or_insert((all, value));
        }
        all += 1;
    }
    let (at, value) = first?;
    Some(format!("{name}: {bad} of {all} values, the first at {at} ({value})"))
}

/// An error of kind [`Kind::NonFinite`] unless the list is empty.
pub(crate) fn refuse_non_finite(place: impl Display, bad: &[String]) -> Result<()> {
    if bad.is_empty() {
        return Ok(());
    }
    let error = Error::of(Kind::NonFinite, format!("{} weights hold NaN or infinite values", bad.len()));
    Err(error
        .at(place)
        .found(listing(bad))
        .cure("take an earlier checkpoint: this one is of a run that diverged"))
}

/// Up to forty lines, then how many more there are.
pub(crate) fn listing(lines: &[String]) -> String {
    let mut text: String = lines.iter().take(MAX_LISTED).map(|line| format!("\n    {line}")).collect();
    if lines.len() > MAX_LISTED {
        text.push_str(&format!("\n    .. and {} more", lines.len() - MAX_LISTED));
    }
    text
}
