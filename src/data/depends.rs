//! Dependency pairs (`{split}_caps.json`): for each caption a list of [head, dependent], its words counted from 1 and
//! the root 0, the root's own pair first.

use std::cell::Cell;
use std::fmt;
use std::path::Path;

use serde::Deserializer;
use serde::de::{DeserializeSeed, SeqAccess, Visitor};

use super::captions::read_limited;
use super::ragged::Ragged;
use super::word_ids::MAX_WORDS;
use crate::{Error, Result};

/// The largest file read; COCO's takes 80 MB.
const MAX_FILE: u64 = 1 << 30;

/// The pairs of every caption.
pub type Pairs = Ragged<[u32; 2]>;

/// Reads a file of pairs.
///
/// # Errors
/// A file that cannot be read or is past the limits (1 GB, 1,000 pairs a caption, words counted below 1,000); pairs
/// that are none.
pub fn read(path: &Path) -> Result<Pairs> {
    parse(&read_limited(path, MAX_FILE, "the dependency pairs")?).map_err(|e| e.at(path.display()))
}

pub(super) fn parse(bytes: &[u8]) -> Result<Pairs> {
    let done = Cell::new(0);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = All(&done).deserialize(&mut reader).and_then(|pairs| reader.end().map(|()| pairs));
    read.map_err(|e| {
        let found: String = e.to_string().chars().take(160).collect();
        Error::new(format!("the dependency pairs are not understood: caption {}", done.get() + 1))
            .expected("a JSON list with a list of [head, dependent] for each caption")
            .found(found)
            .cure("parse the captions again, or remove the file to go without pairs")
    })
}

/// Reads the list, counting the captions that are done.
struct All<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for All<'_> {
    type Value = Pairs;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<Pairs, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for All<'_> {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of pairs for each caption")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut captions: A) -> std::result::Result<Pairs, A::Error> {
        let mut all = Pairs::default();
        while let Some(pairs) = captions.next_element::<Vec<[u32; 2]>>()? {
            if pairs.len() > MAX_WORDS || pairs.iter().flatten().any(|word| *word as usize >= MAX_WORDS) {
                return Err(serde::de::Error::custom(format!("more than {MAX_WORDS} pairs or words")));
            }
            all.push(pairs);
            self.0.set(all.len());
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_caption_by_caption() {
        let pairs = parse(b"[[[0, 2], [2, 1]], [], [[0, 1]]]").unwrap();
        assert_eq!(pairs.rows().collect::<Vec<_>>(), [&[[0, 2], [2, 1]][..], &[], &[[0, 1]]]);
    }

    #[test]
    fn what_is_no_pair_names_its_caption() {
        let many = format!("[[{}]]", vec!["[1,2]"; MAX_WORDS + 1].join(","));
        let cases = [
            ("{}", "caption 1"),
            ("[[[0, 1]], 7]", "caption 2"),
            ("[[[0, 1]], [[0, 1, 2]]]", "caption 2"),
            ("[[[0]]]", "caption 1"),
            ("[[[0, -1]]]", "caption 1"),
            ("[[[0, 1.5]]]", "caption 1"),
            ("[[[0, \"a\"]]]", "caption 1"),
            ("[[[0, 1]], [[0, 5000]]]", "caption 2"),
            ("[[[0, 1]]", "caption 2"),
            ("[[[0, 1]]] x", "trailing"),
            (many.as_str(), "more than 1000"),
        ];
        for (text, part) in cases {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
