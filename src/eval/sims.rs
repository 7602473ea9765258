//! Similarity matrices `[images, captions]`, and their `.npy` files.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::rank::{self, Metrics, Sims};
use crate::data::atomic::Pending;
use crate::data::features::{Element, float_array, read_head};
use crate::error::{Error, Kind, Result};

/// Numbers converted at a time.
const CHUNK: usize = 1 << 16;

/// A matrix's numbers, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Scores {
    /// As the GPU gives them.
    F32(Vec<f32>),
    /// As an ensemble, or a file of f64.
    F64(Vec<f64>),
}

/// The similarity of every image to every caption; caption `c` belongs to image `c / captions_per_image`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows.
    pub images: usize,
    /// Columns a row's own captions take.
    pub captions_per_image: usize,
    /// `images * images * captions_per_image` numbers.
    pub scores: Scores,
}

impl Matrix {
    /// Opens a `.npy` file of f16, f32 or f64, shape `[images, captions]`. The captions an image has follow from
    /// the shape; `captions_per_image` insists on a number.
    ///
    /// # Errors
    /// No such file, another shape or type, captions that are no multiple of the images.
    pub fn open(path: &Path, captions_per_image: Option<usize>) -> Result<Self> {
        let io = |e| Error::io("read the similarity matrix", path, &e);
        let file = File::open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        if !about.is_file() {
            return Err(Error::new("this is no regular file").at(path.display()).expected("a .npy file"));
        }
        let (shape, element, start) =
            float_array(&read_head(&file).map_err(io)?).map_err(|e| e.at(path.display()))?;
        let (images, captions) = sizes(&shape, captions_per_image).map_err(|e| e.at(path.display()))?;
        let bytes = images.checked_mul(captions).and_then(|n| n.checked_mul(element.bytes()));
        let expected = bytes.and_then(|n| n.checked_add(start));
        if expected.map(|n| n as u64) != Some(about.len()) {
            return Err(Error::new("the file's length does not fit its header")
                .at(path.display())
                .expected(format!("{images} x {captions} numbers of {} bytes", element.bytes()))
                .found(format!("{} bytes after the header", about.len().saturating_sub(start as u64)))
                .cure("save the matrix again"));
        }
        let mut reader = BufReader::new(file);
        reader.seek(SeekFrom::Start(start as u64)).map_err(io)?;
        let scores = numbers(&mut reader, element, images * captions).map_err(io)?;
        let opened = Self { images, captions_per_image: captions / images, scores };
        match opened.non_finite() {
            None => Ok(opened),
            Some(at) => Err(Error::of(Kind::NonFinite, "a similarity is NaN or infinite")
                .at(path.display())
                .expected("a finite score for every pair")
                .found(format!("image {}, caption {}", at / captions, at % captions))
                .cure("save the matrix again, of weights and features without such numbers")),
        }
    }

    /// The place of the first score that is no finite number.
    fn non_finite(&self) -> Option<usize> {
        match &self.scores {
            Scores::F32(v) => v.iter().position(|v| !v.is_finite()),
            Scores::F64(v) => v.iter().position(|v| !v.is_finite()),
        }
    }

    /// Saves the matrix as `.npy`, atomically.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.save_to(Pending::begin(path)?)
    }

    /// Saves the matrix to a file whose place was found writable.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_to(&self, file: Pending) -> Result<()> {
        let (kind, captions) = match self.scores {
            Scores::F32(_) => ("<f4", self.captions()),
            Scores::F64(_) => ("<f8", self.captions()),
        };
        let header = npy_header(kind, &[self.images, captions]);
        file.write(|out| {
            out.write_all(&header)?;
            match &self.scores {
                Scores::F32(v) => write_chunks(out, v, |x| x.to_le_bytes()),
                Scores::F64(v) => write_chunks(out, v, |x| x.to_le_bytes()),
            }
        })
    }

    /// Columns.
    pub fn captions(&self) -> usize {
        self.images * self.captions_per_image
    }

    /// The recalls of the whole matrix, or of each of `folds` diagonal blocks, and whether ties decided a rank.
    ///
    /// # Errors
    /// A score that is not finite, folds that do not divide the images.
    pub fn metrics(&self, folds: Option<usize>) -> Result<(Vec<Metrics>, bool)> {
        match &self.scores {
            Scores::F32(v) => self.metrics_of(v, folds),
            Scores::F64(v) => self.metrics_of(v, folds),
        }
    }

    fn metrics_of<T: rank::Score>(&self, scores: &[T], folds: Option<usize>) -> Result<(Vec<Metrics>, bool)> {
        let sims = Sims::new(scores, self.images, self.captions_per_image)?;
        let ranks: Vec<_> = sims.folds(folds.unwrap_or(1))?.iter().map(Sims::ranks).collect();
        Ok((ranks.iter().map(rank::Ranks::metrics).collect(), ranks.iter().any(|r| r.tied)))
    }

    /// The mean of several matrices, in f64; a single one stays as it is.
    ///
    /// # Errors
    /// No matrix, or matrices of different data.
    pub fn ensemble(mut members: Vec<Self>) -> Result<Self> {
        if members.len() == 1 {
            return Ok(members.remove(0));
        }
        let sizes: Vec<_> = members.iter().map(|m| (m.images, m.captions_per_image)).collect();
        if let Some(at) = sizes.iter().position(|s| *s != sizes[0]) {
            let text = |(images, k): (usize, usize)| format!("{images} images with {k} captions each");
            return Err(Error::new("the members of the ensemble scored different data")
                .at(format!("matrix {}", at + 1))
                .expected(text(sizes[0]))
                .found(text(sizes[at]))
                .cure("evaluate all of them on the same split"));
        }
        let members: Vec<Vec<f64>> = members.into_iter().map(|m| m.scores.into_f64()).collect();
        let scores = rank::ensemble(&members.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        // An empty list is the ensemble's error above.
        let (images, captions_per_image) = sizes[0];
        Ok(Self { images, captions_per_image, scores: Scores::F64(scores) })
    }
}

impl Scores {
    fn into_f64(self) -> Vec<f64> {
        match self {
            Self::F32(v) => v.into_iter().map(f64::from).collect(),
            Self::F64(v) => v,
        }
    }
}

fn sizes(shape: &[u64], asked: Option<usize>) -> Result<(usize, usize)> {
    let found = format!("{shape:?}");
    let wrong = || Error::new("the array is no similarity matrix").found(&found);
    let &[images, captions] = shape else {
        return Err(wrong().expected("two dimensions: images, captions"));
    };
    let (Ok(images), Ok(captions)) = (usize::try_from(images), usize::try_from(captions)) else {
        return Err(wrong().expected("a shape that fits the memory"));
    };
    let divides = images > 0 && captions > 0 && captions.is_multiple_of(images);
    match asked {
        _ if !divides => Err(wrong()
            .expected("captions that are a multiple of the images")
            .cure("images are rows, captions columns; keep one row of each image")),
        Some(k) if Some(captions) != images.checked_mul(k) => Err(wrong()
            .expected(format!("{k} captions an image"))
            .cure("leave out --captions-per-image, or correct it")),
        _ => Ok((images, captions)),
    }
}

fn numbers(reader: &mut impl Read, element: Element, n: usize) -> std::io::Result<Scores> {
    let mut chunk = vec![0; CHUNK * element.bytes()];
    let (mut narrow, mut wide) = (Vec::new(), Vec::new());
    let mut left = n;
    while left > 0 {
        let now = left.min(CHUNK);
        let bytes = &mut chunk[..now * element.bytes()];
        reader.read_exact(bytes)?;
        match element {
            Element::F64 => wide.extend(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b))),
            _ => element.decode(bytes, &mut narrow),
        }
        left -= now;
    }
    Ok(if element == Element::F64 { Scores::F64(wide) } else { Scores::F32(narrow) })
}

/// A version 1 header of an array, padded so that the values start at a multiple of 64 bytes; `kind` is a number type, or
/// a list of fields.
pub(super) fn npy_header(kind: &str, shape: &[usize]) -> Vec<u8> {
    let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
    let shape = shape.join(", ") + if shape.len() == 1 { "," } else { "" };
    let kind = if kind.starts_with('[') { kind.to_owned() } else { format!("'{kind}'") };
    let text = format!("{{'descr': {kind}, 'fortran_order': False, 'shape': ({shape}), }}");
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    // The text is far below the 65,535 bytes that two bytes can say.
    header.extend((length as u16).to_le_bytes());
    header.extend(format!("{text:<width$}\n", width = length - 1).bytes());
    header
}

fn write_chunks<T: Copy, const N: usize>(
    out: &mut dyn Write,
    values: &[T],
    bytes: fn(T) -> [u8; N],
) -> std::io::Result<()> {
    for chunk in values.chunks(CHUNK) {
        out.write_all(&chunk.iter().flat_map(|&v| bytes(v)).collect::<Vec<_>>())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(scores: Scores) -> Matrix {
        Matrix { images: 2, captions_per_image: 3, scores }
    }

    #[test]
    fn saved_matrices_open_as_they_were() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sims.npy");
        let wide: Vec<f64> = (0..12).map(|i| f64::from(i) / 3.0).collect();
        for scores in [Scores::F32(wide.iter().map(|&v| v as f32).collect()), Scores::F64(wide)] {
            let saved = matrix(scores);
            saved.save(&path).expect("it saves");
            assert_eq!(Matrix::open(&path, None).expect("it opens"), saved);
            assert!(Matrix::open(&path, Some(2)).is_err());
            let bytes = std::fs::read(&path).expect("bytes");
            assert_eq!(bytes.len() % 64, (12 * if bytes[20..40].contains(&b'8') { 8 } else { 4 }) % 64);
            std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("it writes");
            let error = Matrix::open(&path, None).expect_err("it is cut short").to_string();
            assert!(error.contains("length") && error.contains("sims.npy"), "{error}");
        }
    }

    #[test]
    fn an_ensemble_is_the_mean_and_wants_one_size() {
        let a = matrix(Scores::F32(vec![1.0; 12]));
        let b = matrix(Scores::F64(vec![2.0; 12]));
        let mean = Matrix::ensemble(vec![a.clone(), b]).expect("one size");
        assert_eq!(mean.scores, Scores::F64(vec![1.5; 12]));
        let other = Matrix { images: 3, captions_per_image: 1, scores: Scores::F32(vec![0.0; 9]) };
        assert!(Matrix::ensemble(vec![a.clone(), other]).is_err());
        assert_eq!(Matrix::ensemble(vec![a.clone()]).expect("one"), a);
    }
}
