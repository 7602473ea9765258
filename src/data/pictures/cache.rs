//! What evaluation sees of every picture, in one mapped file, so that a second evaluation decodes nothing.
//!
//! 32 bytes (a mark, a hash of what the pictures were, their number, their size), then for each picture a
//! hash of its bytes and `[size, size, 3]` bytes.

use std::fs::File;
use std::hash::Hasher;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use memmap2::Mmap;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::{Error, Result};

/// Changes with the form of the file and with what is seen of a picture.
const MARK: &[u8; 8] = b"CWVIEWS1";
const HEAD: usize = 32;
const HASH: usize = 8;
/// Pictures checked when a file is opened, spread from the first to the last; the others are when they are
/// read.
const CHECKED: usize = 64;

/// What a file was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About {
    key: u64,
    pictures: usize,
    size: usize,
}

impl About {
    /// Looks at the files.
    pub(super) fn of(files: &[PathBuf], size: usize, as_stored: bool) -> Result<Self> {
        let mut key = Xxh3::new();
        key.write_u8(as_stored.into());
        for path in files {
            let io = |e| Error::io("look at the picture", path, &e);
            let about = std::fs::metadata(path).map_err(io)?;
            // Where a system keeps no times, lengths must do.
            let changed = about.modified().unwrap_or(UNIX_EPOCH).duration_since(UNIX_EPOCH);
            let changed = changed.unwrap_or_else(|before| before.duration());
            let name = path.as_os_str().as_encoded_bytes();
            // Little-endian words are the same on every machine, which the hasher's own are not.
            let words = [name.len() as u64, about.len(), changed.as_secs(), changed.subsec_nanos().into()];
            words.iter().for_each(|word| key.write(&word.to_le_bytes()));
            key.write(name);
        }
        Ok(Self { key: key.digest(), pictures: files.len(), size })
    }

    fn bytes(&self) -> usize {
        3 * self.size * self.size
    }

    fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let words = [self.key, self.pictures as u64, self.size as u64];
        head[..8].copy_from_slice(MARK);
        for (at, word) in head[8..].chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        head
    }

    /// Writes what stands before the pictures.
    pub(super) fn begin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(&self.head())
    }

    /// Writes picture `i`, in order.
    pub(super) fn write(&self, i: usize, pixels: &[u8], out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(&self.hash(i, pixels).to_le_bytes())?;
        out.write_all(pixels)
    }

    /// Another for each place, so that pictures that changed places are found.
    fn hash(&self, i: usize, pixels: &[u8]) -> u64 {
        xxh3_64_with_seed(pixels, self.key.wrapping_add(i as u64))
    }
}

/// A mapped file of what evaluation sees.
#[derive(Debug)]
pub(super) struct Cache {
    file: File,
    map: Mmap,
    about: About,
}

impl Cache {
    /// Maps a file if it is one, of these pictures, and whole as far as a look tells.
    pub(super) fn open(path: &Path, about: About) -> Option<Self> {
        if !std::fs::metadata(path).ok()?.is_file() {
            return None;
        }
        let file = File::open(path).ok()?;
        // SAFETY: the map is read-only and every read rechecks the file's length first; what is left is a
        // file cut short by another process during a read, which ends this process with a signal, not with
        // bad data.
        #[allow(unsafe_code, reason = "a map is unsafe as files change")]
        let map = unsafe { Mmap::map(&file) }.ok()?;
        let cache = Self { file, map, about };
        let whole = HEAD + about.pictures * (HASH + about.bytes());
        if cache.map.len() != whole || cache.map[..HEAD] != about.head() {
            return None;
        }
        let n = about.pictures;
        let checked = n.min(CHECKED);
        let place = |i: usize| if checked == n { i } else { i * (n - 1) / (checked - 1) };
        (0..checked).all(|i| cache.picture(place(i)).is_some()).then_some(cache)
    }

    /// The bytes of a picture; nothing if they are not those that were written.
    pub(super) fn picture(&self, i: usize) -> Option<&[u8]> {
        if self.file.metadata().ok()?.len() != self.map.len() as u64 {
            return None;
        }
        let bytes = self.about.bytes();
        let record = self.map.get(HEAD + i * (HASH + bytes)..)?.get(..HASH + bytes)?;
        let (hash, pixels) = record.split_at(HASH);
        (hash == self.about.hash(i, pixels).to_le_bytes()).then_some(pixels)
    }
}
