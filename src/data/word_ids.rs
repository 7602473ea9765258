//! Captions as word ids (`{split}_precaps_stan.txt`): one caption a line, its ids with commas between them.

use std::path::Path;

use super::captions::read_limited;
use super::ragged::Ragged;
use super::words::Vocabulary;
use crate::{Error, Result};

/// The largest file read; COCO's 566,000 training captions take 40 MB.
const MAX_FILE: u64 = 1 << 30;
/// The most ids of a caption: its words are read one after another, and batches are padded to their longest.
pub(super) const MAX_WORDS: usize = 1000;

/// Reads a file of word ids.
///
/// # Errors
/// A file that cannot be read or is past the limits (1 GB, 1,000 ids a caption), a caption without ids, an id that
/// is no number.
pub fn read(path: &Path) -> Result<Ragged<u32>> {
    let mut first = None;
    let rows = scan(path, &mut |e| {
        first.get_or_insert(e);
    })?;
    first.map_or(Ok(rows), Err)
}

/// As [`read`], but what is wrong with a line is told, and the line counts as a caption without words.
///
/// # Errors
/// A file that cannot be read or is past the limits.
pub fn scan(path: &Path, tell: &mut dyn FnMut(Error)) -> Result<Ragged<u32>> {
    let bytes = read_limited(path, MAX_FILE, "the captions' word ids")?;
    let mut rows = Ragged::default();
    let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    for (i, line) in body.split(|&b| b == b'\n').enumerate() {
        rows.push(parse(line.trim_ascii()).unwrap_or_else(|e| {
            tell(e.at(format!("{}, line {}", path.display(), i + 1)));
            Vec::new()
        }));
    }
    Ok(rows)
}

/// A caption's line.
///
/// # Errors
/// More ids than a caption may have.
pub fn line(ids: &[u32]) -> Result<String> {
    if ids.len() > MAX_WORDS {
        return Err(too_long());
    }
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    Ok(ids.join(",") + "\n")
}

pub(super) fn parse(line: &[u8]) -> Result<Vec<u32>> {
    let expected = "word ids with commas between them: 1,14,5,2";
    if line.is_empty() {
        return Err(Error::new("the caption has no words")
            .expected(expected)
            .cure("give it at least <start> and <end>: 1,2"));
    }
    let id = |text: &[u8]| {
        let text = text.trim_ascii();
        std::str::from_utf8(text).ok().and_then(|id| id.parse().ok()).ok_or_else(|| {
            let shown: String = text[..text.len().min(40)].escape_ascii().to_string();
            Error::new("a word id is no number").expected(expected).found(format!("\"{shown}\"")).cure(
                "make the ids again with the data's vocabulary, or remove the file: then the words of _caps.txt are taken",
            )
        })
    };
    let ids: Vec<u32> = line.split(|&b| b == b',').take(MAX_WORDS + 1).map(id).collect::<Result<_>>()?;
    if ids.len() > MAX_WORDS { Err(too_long()) } else { Ok(ids) }
}

/// A caption of more words than any sentence.
pub(super) fn too_long() -> Error {
    Error::new("a caption has too many words")
        .expected(format!("at most {MAX_WORDS} ids"))
        .cure("shorten it, or check that each line is one caption")
}

/// Checks that a vocabulary has every id of a file.
///
/// # Errors
/// An id past the vocabulary; the first is named.
pub fn check(rows: &Ragged<u32>, vocabulary: &Vocabulary, path: &Path) -> Result<()> {
    past(rows, vocabulary, path).next().map_or(Ok(()), Err)
}

/// The captions with an id past the vocabulary, of each the first.
pub fn past<'a>(
    rows: &'a Ragged<u32>,
    vocabulary: &'a Vocabulary,
    path: &'a Path,
) -> impl Iterator<Item = Error> + 'a {
    let past = |row: &[u32]| row.iter().copied().find(|id| *id as usize >= vocabulary.size());
    rows.rows().zip(1..).filter_map(move |(row, line)| Some((line, past(row)?))).map(move |(line, id)| {
        Error::new("a word id is past the vocabulary")
            .at(format!("{}, line {line}", path.display()))
            .expected(format!("ids below {}, the vocabulary's words", vocabulary.size()))
            .found(id)
            .cure("give the vocabulary that the ids were made with: --vocab_path DIR in training, --vocab FILE after it")
    })
}
