//! Files that are another thing than their name says: what a download left in place of the file itself.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// Bytes that tell.
const BEGIN: u64 = 64;

/// Refuses a file that is a Git LFS pointer, a web page or an archive, by its first bytes.
///
/// # Errors
/// It is one of these; the cure says how to come by the file. What cannot be read is left to the reader's own error.
pub(crate) fn refuse(path: &Path) -> Result<()> {
    let mut begin = Vec::new();
    let _ = File::open(path).and_then(|file| file.take(BEGIN).read_to_end(&mut begin));
    refuse_bytes(&begin, path)
}

/// As [`refuse`], of a file whose bytes are there.
///
/// # Errors
/// As [`refuse`].
pub(crate) fn refuse_bytes(bytes: &[u8], path: &Path) -> Result<()> {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(BEGIN as usize)]).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let wrong = |what: &str, cure: &str| Err(Error::new(what.to_owned()).at(path.display()).cure(cure));
    if text.starts_with("version https://git-lfs") {
        return wrong(
            "this is a Git LFS pointer: the file it stands for was not downloaded",
            "`git lfs install && git lfs pull` in the repository, or download the file itself",
        );
    }
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        return wrong(
            "this is a web page, not the file",
            "download the file itself (a page's raw or download link), logged in if the site asks for it",
        );
    }
    if bytes.starts_with(b"\x1f\x8b") {
        return wrong("this file is compressed by gzip", "unpack it: mv FILE FILE.gz && gunzip FILE.gz");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_download_left_is_named() {
        let refused = |bytes: &[u8]| refuse_bytes(bytes, Path::new("f")).err().map(|e| e.to_string());
        let cases: [(&[u8], &str); 5] = [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
            (b"<!DOCTYPE html>\n<html>", "web page"),
            (b"\xef\xbb\xbf\r\n  <!doctype HTML>", "web page"),
            (b"<html lang=\"en\">", "web page"),
            (b"\x1f\x8b\x08\0", "gunzip"),
        ];
        for (bytes, part) in cases {
            assert!(refused(bytes).is_some_and(|e| e.contains(part)), "{part}");
        }
        for bytes in [&b""[..], b"a dog\n", b"\x93NUMPY", b"PK\x03\x04", b"version two of a dog\n"] {
            assert_eq!(refused(bytes), None);
        }
    }
}
