//! The directory of a zip archive as PyTorch writes them: every entry stored as it is, no comment.
//!
//! This is a check before an archive is trusted, not a general reader. A compressed entry is refused (it can
//! expand a thousandfold, and PyTorch never writes one), as is anything that reaches outside the file, so
//! that what an archive holds is never larger than the archive. Layouts are those of PKWARE's APPNOTE.

use crate::{Error, Result};
use std::ops::Range;

/// The most entries of one archive.
pub const MAX_ENTRIES: usize = 200_000;

/// One file of an archive.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name, folders included.
    pub name: String,
    /// Where its bytes are in the archive.
    pub bytes: Range<usize>,
    crc: u32,
}

const END: u32 = 0x0605_4b50;
const END_64_LOCATOR: u32 = 0x0706_4b50;
const END_64: u32 = 0x0606_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;

/// Reads the directory and checks each entry's place and checksum.
pub fn entries(archive: &[u8]) -> Result<Vec<Entry>> {
    let refuse = |what: String| Error::new(format!("the zip archive is not sound: {what}"));
    let (count, mut at) = directory(archive).map_err(refuse)?;
    if count > MAX_ENTRIES as u64 {
        return Err(refuse(format!("it has {count} entries, more than {MAX_ENTRIES}")));
    }
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(central(archive, &mut at).map_err(refuse)?);
    }
    let mut order: Vec<&Entry> = found.iter().collect();
    order.sort_by_key(|entry| entry.bytes.start);
    if let Some(pair) = order.windows(2).find(|pair| pair[0].bytes.end > pair[1].bytes.start) {
        return Err(refuse(format!("`{}` and `{}` overlap", shown(&pair[0].name), shown(&pair[1].name))));
    }
    let mut names: Vec<&str> = found.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(refuse(format!("two entries are named `{}`", shown(pair[0]))));
    }
    // Only now: entries that overlap could make this as long as their number times the file.
    // PyTorch writes 0 where it was told not to compute checksums.
    let differs = |entry: &&Entry| entry.crc != 0 && crc32(&archive[entry.bytes.clone()]) != entry.crc;
    if let Some(entry) = found.iter().find(differs) {
        return Err(refuse(format!("`{}` was changed or damaged: its checksum differs", shown(&entry.name))));
    }
    Ok(found)
}

/// What a check reports: a reason to refuse the archive.
type Check<T> = std::result::Result<T, String>;

/// The number of entries and the offset of the first directory record.
fn directory(archive: &[u8]) -> Check<(u64, usize)> {
    let cut = "its directory is missing at the end: the file is cut off, or something was appended";
    let end = archive.len().checked_sub(22).ok_or(cut)?;
    if u32_at(archive, end)? != END {
        return Err(cut.into());
    }
    let (mut count, mut start) =
        (u64::from(u16_at(archive, end + 10)?), u64::from(u32_at(archive, end + 16)?));
    let locator = end.wrapping_sub(20);
    if u32_at(archive, locator).is_ok_and(|signature| signature == END_64_LOCATOR) {
        let record = usize::try_from(u64_at(archive, locator + 8)?).map_err(|_| cut)?;
        if u32_at(archive, record)? != END_64 {
            return Err("its 64-bit directory is not where it should be".into());
        }
        (count, start) = (u64_at(archive, record + 32)?, u64_at(archive, record + 48)?);
    }
    Ok((count, usize::try_from(start).map_err(|_| cut)?))
}

/// Reads the directory record at `at`, moves `at` past it, and checks what it points to.
fn central(archive: &[u8], at: &mut usize) -> Check<Entry> {
    let record = *at;
    if u32_at(archive, record)? != CENTRAL {
        return Err("its directory is damaged".into());
    }
    let (flags, method) = (u16_at(archive, record + 8)?, u16_at(archive, record + 10)?);
    let crc = u32_at(archive, record + 16)?;
    let [packed, size, offset] = [20, 24, 42].map(|field| u32_at(archive, record + field).map(u64::from));
    let [name, extra, comment] = [28, 30, 32].map(|field| u16_at(archive, record + field).map(usize::from));
    let (mut packed, mut size, mut offset) = (packed?, size?, offset?);
    let (name_end, extra) = (record + 46 + name?, extra?);
    let name = slice(archive, record + 46..name_end)?;
    let name = std::str::from_utf8(name).map_err(|_| "an entry's name is not UTF-8")?.to_string();
    widen(slice(archive, name_end..name_end + extra)?, [&mut size, &mut packed, &mut offset])?;
    *at = name_end + extra + comment?;
    if method != 0 || packed != size {
        return Err(format!(
            "`{}` is compressed (from {size} bytes to {packed}), which PyTorch never does",
            shown(&name)
        ));
    }
    if flags & 1 != 0 {
        return Err(format!("`{}` is encrypted", shown(&name)));
    }
    let bytes = data(archive, offset, size).map_err(|e| format!("`{}`: {e}", shown(&name)))?;
    Ok(Entry { name, bytes, crc })
}

/// Where an entry's bytes are, by its local header.
fn data(archive: &[u8], offset: u64, size: u64) -> Check<Range<usize>> {
    let outside = "it reaches outside the file";
    let local = usize::try_from(offset).map_err(|_| outside)?;
    if u32_at(archive, local)? != LOCAL {
        return Err("its header is not where the directory says".into());
    }
    let (name, extra) = (u16_at(archive, local + 26)?, u16_at(archive, local + 28)?);
    let start = local + 30 + usize::from(name) + usize::from(extra);
    let size = usize::try_from(size).map_err(|_| outside)?;
    let end = start.checked_add(size).filter(|&end| end <= archive.len()).ok_or(outside)?;
    Ok(start..end)
}

/// Replaces the fields that are all ones by their 64-bit values in the extra field 1, in order.
fn widen(mut extra: &[u8], fields: [&mut u64; 3]) -> Check<()> {
    let mut wide: &[u8] = &[];
    while let Some((head, rest)) = extra.split_first_chunk::<4>() {
        let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let body = rest.get(..length).ok_or("an entry's extra field is cut off")?;
        if head[..2] == [1, 0] {
            wide = body;
        }
        extra = &rest[length..];
    }
    for field in fields {
        if *field == u64::from(u32::MAX) {
            let (value, rest) = wide.split_first_chunk().ok_or("a 64-bit size is missing")?;
            *field = u64::from_le_bytes(*value);
            wide = rest;
        }
    }
    Ok(())
}

fn slice(archive: &[u8], range: Range<usize>) -> Check<&[u8]> {
    archive.get(range).ok_or_else(|| "its directory reaches outside the file".into())
}

fn array<const N: usize>(archive: &[u8], at: usize) -> Check<[u8; N]> {
    let bytes = archive.get(at..).and_then(|rest| rest.first_chunk());
    bytes.copied().ok_or_else(|| "its directory reaches outside the file".into())
}

fn u16_at(archive: &[u8], at: usize) -> Check<u16> {
    array(archive, at).map(u16::from_le_bytes)
}

fn u32_at(archive: &[u8], at: usize) -> Check<u32> {
    array(archive, at).map(u32::from_le_bytes)
}

fn u64_at(archive: &[u8], at: usize) -> Check<u64> {
    array(archive, at).map(u64::from_le_bytes)
}

/// A name as an error shows it: short, and without control characters.
pub(crate) fn shown(name: &str) -> String {
    name.chars().take(120).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// For each byte, its remainder: the table of the CRC-32 of zip (reversed polynomial 0xEDB88320).
const REMAINDERS: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut remainder = i as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = (remainder >> 1) ^ (0xedb8_8320 * (remainder & 1));
            bit += 1;
        }
        table[i] = remainder;
        i += 1;
    }
    table
};

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| REMAINDERS[(crc as u8 ^ byte) as usize] ^ (crc >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standard_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn no_prefix_of_an_archive_is_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ckpt_odd_tensors_zip.bin");
        let archive = std::fs::read(path).expect("the fixture");
        assert!(entries(&archive).expect("a sound archive").len() > 5);
        for length in 0..archive.len() {
            assert!(entries(&archive[..length]).is_err(), "{length}");
        }
    }
}
