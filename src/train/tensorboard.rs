//! TensorBoard event files: scalars in the TFRecord framing, written with the standard library alone.
//!
//! A record is its length (u64), a checksum of the length, the bytes, a checksum of the bytes; the checksum
//! is CRC-32C, rotated and offset. The bytes are an `Event` protobuf message: field 1 wall time (double),
//! 2 step (int64), 3 file version (string), 5 summary, 7 session log.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

const PREFIX: &str = "events.out.tfevents.";

/// An open event file. Every call is one record on disk when it returns.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts a new file in `folder` (made if absent); files of earlier runs stay as they are.
    ///
    /// The name sorts after every event file already there, which is the order TensorBoard reads them in.
    /// `resume_at`: the first step this run is going to log; TensorBoard then drops what an earlier file
    /// logged at or past it.
    ///
    /// Errors: the folder or the file cannot be written.
    pub fn create(folder: &Path, resume_at: Option<u64>) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("make the folder", folder, &e))?;
        let mut stamp = seconds().max(latest_stamp(folder)?.map_or(0, |last| last.saturating_add(1)));
        let (path, file) = loop {
            let path = folder.join(format!("{PREFIX}{stamp:010}.crossweave"));
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => stamp = stamp.saturating_add(1),
                Err(e) => return Err(Error::io("create the event file", &path, &e)),
            }
        };
        let mut writer = Self { path, file };
        writer.record(&event(0, &bytes_field(3, b"brain.Event:2")))?;
        if let Some(step) = resume_at {
            // Status START of a session log.
            writer.record(&event(step, &bytes_field(7, &varint_field(1, 1))))?;
        }
        Ok(writer)
    }

    /// Logs values under their tags (`loss/total`) at one step.
    ///
    /// Errors: the file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(impl AsRef<str>, f32)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = bytes_field(1, tag.as_ref().as_bytes());
            entry.push(2 << 3 | FIXED32);
            entry.extend(value.to_le_bytes());
            summary.extend(bytes_field(1, &entry));
        }
        self.record(&event(step, &bytes_field(5, &summary)))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn record(&mut self, message: &[u8]) -> Result<()> {
        let written = self.file.write_all(&frame(message)).and_then(|()| self.file.flush());
        written.map_err(|e| Error::io("write the event file", &self.path, &e))
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The largest time stamp among the event files of a folder.
fn latest_stamp(folder: &Path) -> Result<Option<u64>> {
    let fail = |e| Error::io("list the folder", folder, &e);
    let mut latest = None;
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let stamp = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.get(..10));
        latest = latest.max(stamp.and_then(|s| s.parse().ok()));
    }
    Ok(latest)
}

const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn varint_field(field: u8, value: u64) -> Vec<u8> {
    [vec![field << 3], varint(value)].concat()
}

fn bytes_field(field: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![field << 3 | BYTES], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn event(step: u64, content: &[u8]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let mut message = vec![1 << 3 | FIXED64];
    message.extend(now.to_le_bytes());
    message.extend(varint_field(2, step));
    message.extend(content);
    message
}

fn frame(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), message, &masked_crc(message).to_le_bytes()].concat()
}

/// The checksum as TFRecord stores it, so that a checksum of checksummed data is not degenerate.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected), a bit at a time: records are some hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages of a file; every length and checksum must hold.
    fn messages(path: &Path) -> Vec<Vec<u8>> {
        let bytes = std::fs::read(path).expect("the event file reads");
        let (mut rest, mut found) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().expect("8 bytes")) as usize;
            let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("4 bytes"));
            assert_eq!(crc(8), masked_crc(&rest[..8]));
            assert_eq!(crc(12 + n), masked_crc(&rest[12..12 + n]));
            found.push(rest[12..12 + n].to_vec());
            rest = &rest[16 + n..];
        }
        found
    }

    #[test]
    fn checksums_match_the_published_vectors() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn a_file_holds_its_version_and_scalars() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = EventWriter::create(&folder.path().join("run"), None).expect("created");
        writer.scalars(300, &[("loss/total", 1.5), ("lr", f32::MIN_POSITIVE)]).expect("written");
        let found = messages(writer.path());
        assert_eq!(found.len(), 2);
        assert!(found[0].ends_with(b"\x1a\x0dbrain.Event:2"));
        let mut expected = vec![0x10, 0xac, 0x02, 0x2a, 30, 0x0a, 17, 0x0a, 10];
        expected.extend(b"loss/total\x15");
        expected.extend(1.5f32.to_le_bytes());
        expected.extend([0x0a, 9, 0x0a, 2]);
        expected.extend(b"lr\x15");
        expected.extend(f32::MIN_POSITIVE.to_le_bytes());
        // Behind the wall time: a tag and eight bytes.
        assert_eq!(found[1][9..], expected);
    }

    #[test]
    fn a_later_file_sorts_behind_and_marks_where_it_resumes() {
        let folder = tempfile::tempdir().expect("a folder");
        let earlier: Vec<_> =
            (0..3).map(|_| EventWriter::create(folder.path(), None).expect("created").path).collect();
        assert!(earlier.is_sorted() && earlier[0] != earlier[1]);
        let resumed = EventWriter::create(folder.path(), Some(41)).expect("created");
        assert!(*resumed.path() > *earlier[2]);
        assert_eq!(messages(resumed.path())[1][9..], [0x10, 41, 0x3a, 2, 0x08, 1]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "x").expect("written");
        let error = EventWriter::create(&file.join("run"), None).expect_err("refused");
        assert!(error.to_string().contains("run"), "{error}");
    }
}
