//! Caption files: one caption a line, read as the published code reads them.
//!
//! Bytes are split at `\n`, ASCII whitespace is stripped at both ends, and what is left is decoded as UTF-8 with
//! invalid bytes dropped. Empty captions and CR LF line ends are legal.

use std::io::Read;
use std::path::Path;

use super::foreign;
use crate::{Error, Result};

/// The largest caption file read; COCO's 566,000 training captions take 30 MB.
pub(super) const MAX_FILE: u64 = 1 << 30;
/// The most captions in a file: an empty line costs its reader 24 bytes.
pub(super) const MAX_CAPTIONS: usize = 4_000_000;
/// The longest line in bytes: a tokenizer needs some hundred times its text.
pub(super) const MAX_LINE: usize = 64 * 1024;
/// Line numbers a notice names before it only counts.
const LINES_NAMED: usize = 10;

/// The captions of a file and what was odd about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captions {
    /// One text a line, in order; may be empty.
    pub texts: Vec<String>,
    /// One sentence for each kind of oddity, counted, with line numbers.
    pub notices: Vec<String>,
}

/// Reads a caption file; with `strict`, what would be a notice is an error.
///
/// # Errors
/// A file that cannot be read, holds no caption, is no text, or is past the limits (1 GB, 4 million captions,
/// 64 KB a line).
pub fn read(path: &Path, strict: bool) -> Result<Captions> {
    parse(&read_limited(path, MAX_FILE, "the captions")?, strict).map_err(|e| e.at(path.display()))
}

/// Parses the bytes of a caption file, as [`read`] does.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8], strict: bool) -> Result<Captions> {
    refuse_no_text(bytes)?;
    let mut texts = Vec::new();
    let (mut empty, mut invalid) = (Lines::default(), Lines::default());
    // A final newline ends the last caption and starts none.
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    for (i, line) in body.split(|&b| b == b'\n').enumerate() {
        if i == MAX_CAPTIONS || line.len() > MAX_LINE {
            return Err(too_much(i, line.len()));
        }
        let line = strip(line);
        let text = decode(line);
        if text.len() != line.len() {
            invalid.add(i + 1);
        }
        if is_blank(&text) {
            empty.add(i + 1);
        }
        texts.push(text);
    }
    let notices: Vec<String> = [
        empty.sentence("empty caption", "empty captions"),
        invalid.sentence(
            "caption with invalid UTF-8 (bytes dropped)",
            "captions with invalid UTF-8 (bytes dropped)",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    if strict && !notices.is_empty() {
        return Err(Error::new("the captions are not clean")
            .expected("non-empty captions in UTF-8")
            .found(notices.join("; "))
            .cure("correct these lines, or leave out --strict"));
    }
    Ok(Captions { texts, notices })
}

/// Reads a regular file of at most `limit` bytes; `what` completes "could not read ..".
pub(crate) fn read_limited(path: &Path, limit: u64, what: &str) -> Result<Vec<u8>> {
    let io = |e: std::io::Error| Error::io(&format!("read {what}"), path, &e);
    let about = std::fs::metadata(path).map_err(io)?;
    if !about.is_file() {
        return Err(Error::new("this is no regular file").at(path.display()).expected(what));
    }
    let mut bytes = Vec::new();
    // The limit holds even if the file grows meanwhile.
    let file = std::fs::File::open(path).map_err(io)?;
    if about.len() <= limit {
        file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    }
    if about.len() > limit || bytes.len() as u64 > limit {
        return Err(Error::new(format!("the file is too large for {what}"))
            .at(path.display())
            .expected(format!("at most {limit} bytes"))
            .found(format!("{} bytes", about.len().max(bytes.len() as u64)))
            .cure("check that this is the file you meant"));
    }
    foreign::refuse_bytes(&bytes, path)?;
    Ok(bytes)
}

/// Strips what Python 2's `bytes.strip()` strips, which includes the vertical tab.
pub(super) fn strip(mut line: &[u8]) -> &[u8] {
    let space = |b: &u8| matches!(b, b' ' | b'\t'..=b'\r');
    while let [first, rest @ ..] = line
        && space(first)
    {
        line = rest;
    }
    while let [rest @ .., last] = line
        && space(last)
    {
        line = rest;
    }
    line
}

/// Whether a caption says nothing: no character, or spaces of any width and characters that are not shown.
pub(super) fn is_blank(text: &str) -> bool {
    let unseen = |c| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}');
    text.chars().all(|c| c.is_whitespace() || c.is_control() || unseen(c))
}

/// UTF-8 with invalid bytes dropped.
pub(super) fn decode(line: &[u8]) -> String {
    line.utf8_chunks().map(|chunk| chunk.valid()).collect()
}

/// A file of which three tenths are control characters or invalid UTF-8 is no text: random bytes have six tenths,
/// UTF-16 five, Latin-1 in any language that uses it under two.
pub(super) fn refuse_no_text(bytes: &[u8]) -> Result<()> {
    let expected = "text in UTF-8, one caption a line";
    if bytes.is_empty() {
        return Err(Error::new("the caption file is empty").expected(expected));
    }
    let control = |b: &&u8| matches!(b, 0..=8 | 14..=31 | 127);
    let bad: usize = bytes
        .utf8_chunks()
        .map(|chunk| chunk.invalid().len() + chunk.valid().as_bytes().iter().filter(control).count())
        .sum();
    if bad.saturating_mul(10) <= bytes.len().saturating_mul(3) {
        return Ok(());
    }
    Err(Error::new("the caption file is no text")
        .expected(expected)
        .found(format!("{bad} of {} bytes are control characters or no UTF-8", bytes.len()))
        .cure("check that this is the caption file; one in another encoding must be converted to UTF-8"))
}

pub(super) fn too_much(line: usize, length: usize) -> Error {
    let error = if length > MAX_LINE {
        let found = format!("{length} bytes on line {}", line + 1);
        Error::new("a caption is too long").expected(format!("at most {MAX_LINE} bytes a line")).found(found)
    } else {
        Error::new("the file holds too many captions").expected(format!("at most {MAX_CAPTIONS}"))
    };
    error.cure("check that this is the caption file")
}

/// Lines of one kind: their count and the first few numbers.
#[derive(Default)]
pub(super) struct Lines {
    count: usize,
    first: Vec<usize>,
}

impl Lines {
    pub(super) fn add(&mut self, line: usize) {
        self.count += 1;
        if self.first.len() < LINES_NAMED {
            self.first.push(line);
        }
    }

    pub(super) fn sentence(&self, one: &str, many: &str) -> Option<String> {
        let named: Vec<String> = self.first.iter().map(usize::to_string).collect();
        let rest = if self.count > self.first.len() { ", .." } else { "" };
        match self.count {
            0 => None,
            1 => Some(format!("1 {one}: line {}", named[0])),
            n => Some(format!("{n} {many}: lines {}{rest}", named.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(bytes: &[u8]) -> Vec<String> {
        parse(bytes, false).unwrap().texts
    }

    #[test]
    fn lines_are_split_and_stripped_as_python_2_does() {
        assert_eq!(texts(b"a dog\r\n \x0b\x0ca cat\t\nlast"), ["a dog", "a cat", "last"]);
        assert_eq!(texts(b"a\n\nb\n"), ["a", "", "b"]);
        assert_eq!(texts(b"a\n\n"), ["a", ""]);
        // U+00A0 is no ASCII whitespace: it stays.
        assert_eq!(texts("\u{a0}dog\u{a0}\n".as_bytes()), ["\u{a0}dog\u{a0}"]);
    }

    #[test]
    fn invalid_bytes_are_dropped_and_counted() {
        let c = parse(b"caf\xc3\nall is well here\n\xff\xfe dog \xc3( cat\n\n", false).unwrap();
        assert_eq!(c.texts, ["caf", "all is well here", " dog ( cat", ""]);
        assert_eq!(c.notices[0], "1 empty caption: line 4");
        assert_eq!(c.notices[1], "2 captions with invalid UTF-8 (bytes dropped): lines 1, 3");
    }

    #[test]
    fn a_caption_of_spaces_of_any_kind_is_empty_and_stays() {
        let c = parse("a\n\u{a0}\n\u{3000} \u{200b}\n\u{a0}b\n".as_bytes(), false).unwrap();
        assert_eq!(c.notices, ["2 empty captions: lines 2, 3"]);
        assert_eq!(c.texts[1], "\u{a0}", "a caption stays as it is read");
    }

    #[test]
    fn many_oddities_make_one_short_notice() {
        let c = parse("a dog\n\n".repeat(500).as_bytes(), false).unwrap();
        assert_eq!(c.notices, ["500 empty captions: lines 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, .."]);
    }

    #[test]
    fn strict_refuses_what_is_otherwise_a_notice() {
        let e = parse(b"a\n\nb\n", true).unwrap_err().to_string();
        assert!(e.contains("line 2") && e.contains("--strict"), "{e}");
        assert!(parse(b"a\r\nb\r\n", true).is_ok());
    }

    #[test]
    fn files_that_are_no_text_are_refused() {
        let mut state = 1u32;
        let random: Vec<u8> = (0..4000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        let utf16: Vec<u8> = "a dog and a cat\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for bytes in [&random[..], &utf16, &[0; 100], b"", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x40\0\0"] {
            assert!(parse(bytes, false).is_err(), "{:?}", &bytes[..bytes.len().min(20)]);
        }
        assert!(parse(&vec![b'a'; MAX_LINE + 1], false).is_err());
        assert!(parse(&vec![b'\n'; MAX_CAPTIONS + 2], false).is_err());
    }
}
