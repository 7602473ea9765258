//! Vocabularies of whole words (`{data_name}_vocab.json`), and how a caption is split into them.
//!
//! The splitting is that of the Penn Treebank, as NLTK's `word_tokenize` has it and vocabularies of this form are
//! built with, on the lower-cased caption:
//!
//! - Whitespace ends a word. Brackets, quotes, `; @ # $ % & ? ! *`, the typographic apostrophe, dashes and `--` are
//!   words of their own wherever they are; two full stops or more are one (`...`).
//! - A comma or a colon is a word of its own unless a digit follows it (`1,000`).
//! - A full stop is one at the end of the caption only (`mrs. claus` has two words).
//! - `'s 'm 'd 'll 're 've n't` are split off, and `cannot gimme gonna gotta lemme wanna` are two words each.
//! - All else stays in its word, hyphens above all (`high-speed`, `+1`).
//!
//! A word that the vocabulary does not have is `<unk>`.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::json;

use super::atomic;
use super::captions::read_limited;
use crate::{Error, Result};

/// The largest vocabulary file read; COCO's takes 0.4 MB.
const MAX_FILE: u64 = 64 << 20;
/// The most words: ids travel as f32, exact below 2^24.
const MAX_WORDS: usize = 4_000_000;
/// The words that every vocabulary begins with.
const SPECIAL: [&str; 4] = ["<pad>", "<start>", "<end>", "<unk>"];
const START: u32 = 1;
const END: u32 = 2;
/// The id of a word that the vocabulary does not have.
pub const UNKNOWN: u32 = 3;

/// Marks that are words wherever they are.
const ALONE: &str =
    ";@#$%&?!*()[]{}<>\"\u{201c}\u{201d}\u{2018}\u{2019}\u{ab}\u{bb}\u{201e}`\u{2013}\u{2014}";
/// What may follow a caption's final full stop.
const CLOSING: &str = ")]}>\"'\u{bb}\u{201d}\u{2019} ";
/// Endings that are split off their word.
const CLITICS: [&str; 7] = ["n't", "'ll", "'re", "'ve", "'s", "'m", "'d"];
/// Words that are two, and where the second begins.
const CONTRACTED: [(&str, usize); 6] =
    [("cannot", 3), ("gimme", 3), ("gonna", 3), ("gotta", 3), ("lemme", 3), ("wanna", 3)];

/// The words that captions are made of, each with its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    words: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    /// Reads a vocabulary: a JSON object whose `word2idx` gives every word its id.
    ///
    /// # Errors
    /// A file that cannot be read or is past the limits (64 MB, 4 million words); ids that are not 0, 1, 2 ..;
    /// a word that is there twice; `<pad> <start> <end> <unk>` not at 0 to 3; an `idx2word` or `idx` that says
    /// otherwise.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = read_limited(path, MAX_FILE, "the vocabulary")?;
        Self::parse(&bytes).map_err(|e| {
            e.at(path.display()).cure("give the {data_name}_vocab.json that the captions' ids were made with")
        })
    }

    /// Of the words that captions have at least so often, the most frequent first, equal ones by their letters.
    pub fn of_captions<'a>(captions: impl Iterator<Item = &'a str>, least: usize) -> Self {
        let mut counts: HashMap<String, usize> = HashMap::new();
        captions.flat_map(split).for_each(|word| *counts.entry(word).or_default() += 1);
        let mut kept: Vec<_> = counts.into_iter().filter(|(_, n)| *n >= least).collect();
        kept.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
        kept.truncate(MAX_WORDS - SPECIAL.len());
        let words = SPECIAL.iter().map(ToString::to_string).chain(kept.into_iter().map(|(word, _)| word));
        let words: Vec<String> = words.collect();
        let ids = words.iter().cloned().zip(0..).collect();
        Self { words, ids }
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let expected = "{\"word2idx\": {\"<pad>\": 0, ..}, \"idx2word\": {\"0\": \"<pad>\", ..}, \"idx\": N}";
        let file: File = serde_json::from_slice(bytes).map_err(|e| {
            Error::new("the vocabulary is not understood").expected(expected).found(shorten(&e.to_string()))
        })?;
        let Pairs(pairs) = file.word2idx;
        let n = pairs.len();
        if n > MAX_WORDS {
            return Err(Error::new("the vocabulary is too large")
                .expected(format!("at most {MAX_WORDS} words"))
                .found(n));
        }
        let mut words: Vec<Option<String>> = vec![None; n];
        let mut ids = HashMap::with_capacity(n);
        for (word, id) in pairs {
            let shown = shorten(&word);
            let place = usize::try_from(id).ok().and_then(|id| words.get_mut(id));
            let Some(place) = place else {
                return Err(Error::new("the ids of the vocabulary are not dense")
                    .expected(format!("0 to {} for its {n} words", n - 1))
                    .found(format!("{id} for \"{shown}\"")));
            };
            if let Some(other) = place {
                return Err(Error::new("two words of the vocabulary have one id")
                    .found(format!("{id} for \"{}\" and \"{shown}\"", shorten(other))));
            }
            // An id below the number of words fits: there are at most 4 million.
            if ids.insert(word.clone(), id as u32).is_some() {
                return Err(Error::new("a word is in the vocabulary twice").found(format!("\"{shown}\"")));
            }
            *place = Some(word);
        }
        // As many words as places, no place taken twice: none is empty.
        let words: Vec<String> = words.into_iter().flatten().collect();
        for (id, special) in SPECIAL.iter().enumerate() {
            if words.get(id).map(String::as_str) != Some(special) {
                return Err(Error::new("the vocabulary does not begin as it must")
                    .expected(SPECIAL.join(", "))
                    .found(words.iter().take(4).map(|word| shorten(word)).collect::<Vec<_>>().join(", ")));
            }
        }
        let agrees =
            |(id, word): &(String, String)| id.parse().ok().and_then(|id: usize| words.get(id)) == Some(word);
        if let Some((id, word)) = file.idx2word.0.iter().find(|pair| !agrees(pair)) {
            return Err(Error::new("word2idx and idx2word disagree").found(format!(
                "\"{}\" at {} of idx2word",
                shorten(word),
                shorten(id)
            )));
        }
        match file.idx {
            Some(idx) if idx != n as u64 => Err(Error::new("the vocabulary is not whole")
                .expected(format!("{idx} words, as its idx says"))
                .found(n)),
            _ => Ok(Self { words, ids }),
        }
    }

    /// The vocabulary of a data folder: in the folder `given`, or, without one, in the data's own or in `./vocab`.
    ///
    /// # Errors
    /// No such file; those of [`Vocabulary::open`].
    pub fn of_data(data: &Path, given: Option<&Path>) -> Result<Self> {
        match find(data, given) {
            Some(path) => Self::open(&path),
            None => {
                let places: Vec<String> =
                    places(data, given).iter().map(|place| place.display().to_string()).collect();
                Err(Error::new("the vocabulary of the captions is missing")
                    .expected(places.join(" or "))
                    .cure("give the folder that holds it: --vocab_path DIR"))
            }
        }
    }

    /// The number of words, so the rows an embedding table needs.
    pub fn size(&self) -> usize {
        self.words.len()
    }

    /// A word by its id.
    pub fn word(&self, id: u32) -> Option<&str> {
        self.words.get(id as usize).map(String::as_str)
    }

    /// A caption's ids: `<start>`, its words, `<end>`.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let id = |word: String| self.ids.get(&word).copied().unwrap_or(UNKNOWN);
        [START].into_iter().chain(split(text).into_iter().map(id)).chain([END]).collect()
    }

    /// What ids say, without `<start>`, `<end>` and `<pad>`.
    pub fn spell(&self, ids: &[u32]) -> String {
        let words = ids.iter().filter(|id| **id >= UNKNOWN).filter_map(|id| self.word(*id));
        words.collect::<Vec<_>>().join(" ")
    }

    /// Writes the vocabulary as [`Vocabulary::open`] reads it, whole or not at all.
    ///
    /// # Errors
    /// A failed write.
    pub fn save(&self, path: &Path) -> Result<()> {
        let by_word: serde_json::Map<_, _> =
            self.words.iter().cloned().zip((0..).map(|id: u32| json!(id))).collect();
        let by_id: serde_json::Map<_, _> =
            self.words.iter().enumerate().map(|(id, word)| (id.to_string(), json!(word))).collect();
        let all = json!({"word2idx": by_word, "idx2word": by_id, "idx": self.size()});
        atomic::file(path, |out| out.write_all(all.to_string().as_bytes()))
    }
}

/// The file of a data folder's vocabulary, if it is there; where it is looked for as in [`Vocabulary::of_data`].
pub fn find(data: &Path, given: Option<&Path>) -> Option<PathBuf> {
    places(data, given).into_iter().find(|place| place.exists())
}

fn places(data: &Path, given: Option<&Path>) -> Vec<PathBuf> {
    let mut name = data.file_name().unwrap_or_default().to_owned();
    name.push("_vocab.json");
    match given {
        Some(folder) => vec![folder.join(name)],
        None => [data, Path::new("vocab")].map(|folder| folder.join(&name)).to_vec(),
    }
}

/// A caption's words, as the head of this file says.
pub(super) fn split(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let spoken = text.trim_end().trim_end_matches(|c| CLOSING.contains(c));
    let full_stop = spoken.strip_suffix('.').map(str::len);
    let (mut words, mut word, mut rest) = (Vec::new(), String::new(), text.as_str());
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let dots = rest.len() - rest.trim_start_matches('.').len();
        let alone = ALONE.contains(c)
            || (",:".contains(c) && !after.starts_with(char::is_numeric))
            || full_stop == Some(text.len() - rest.len());
        let mark = match () {
            () if dots > 1 => dots,
            () if rest.starts_with("--") => 2,
            () if alone => c.len_utf8(),
            () => 0,
        };
        if mark == 0 && !c.is_whitespace() {
            word.push(c);
            rest = after;
            continue;
        }
        split_word(&std::mem::take(&mut word), &mut words);
        if mark > 0 {
            words.push(rest[..mark].to_owned());
        }
        rest = &rest[mark.max(c.len_utf8())..];
    }
    split_word(&word, &mut words);
    words
}

/// Splits off what clings to a word.
fn split_word(mut word: &str, words: &mut Vec<String>) {
    let mut after = Vec::new();
    loop {
        let ending =
            CLITICS.iter().chain(&["'"]).find(|ending| word.len() > ending.len() && word.ends_with(**ending));
        if CLITICS.contains(&word) {
            break;
        } else if let Some((_, at)) = CONTRACTED.iter().find(|(whole, _)| *whole == word) {
            words.push(word[..*at].to_owned());
            word = &word[*at..];
            break;
        } else if let Some(ending) = ending {
            after.push(*ending);
            word = &word[..word.len() - ending.len()];
        } else if word.len() > 1 && word.starts_with('\'') {
            words.push("'".to_owned());
            word = &word[1..];
        } else {
            break;
        }
    }
    words.extend(
        [word].into_iter().filter(|word| !word.is_empty()).chain(after.into_iter().rev()).map(str::to_owned),
    );
}

/// A vocabulary's file.
#[derive(Deserialize)]
struct File {
    word2idx: Pairs<u64>,
    #[serde(default)]
    idx2word: Pairs<String>,
    idx: Option<u64>,
}

/// A JSON object in its order, with keys that are there twice.
struct Pairs<T>(Vec<(String, T)>);

impl<T> Default for Pairs<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct All<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for All<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        from.deserialize_map(All(std::marker::PhantomData))
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(words: &[&str]) -> Vocabulary {
        let words: Vec<String> = SPECIAL.iter().chain(words).map(ToString::to_string).collect();
        let ids = words.iter().cloned().zip(0..).collect();
        Vocabulary { words, ids }
    }

    #[test]
    fn a_vocabulary_has_the_words_seen_often_enough() {
        let captions = ["A dog's bone.", "a cat", "the dog <pad>"];
        let of = |least| Vocabulary::of_captions(captions.into_iter(), least);
        assert_eq!(of(2), vocabulary(&["a", "dog"]));
        assert_eq!(of(1), vocabulary(&["a", "dog", "'s", ".", "<", ">", "bone", "cat", "pad", "the"]));
        assert_eq!(of(2).encode("A dog bone"), [1, 4, 5, 3, 2]);
        assert_eq!(of(4), vocabulary(&[]));
    }

    #[test]
    fn captions_are_split_as_the_treebank_does() {
        let cases = [
            ("High-speed train: 1,000 km, 5\u{2013}0", "high-speed|train|:|1,000|km|,|5|\u{2013}|0"),
            ("Mrs. Claus (a lady).", "mrs.|claus|(|a|lady|)|."),
            ("jelly and ... <3", "jelly|and|...|<|3"),
            (
                "ma\u{2019}am isn't gonna, the dogs' mcdonald's",
                "ma|\u{2019}|am|is|n't|gon|na|,|the|dogs|'|mcdonald|'s",
            ),
            ("'tis +1 a+ -1 --", "'|tis|+1|a+|-1|--"),
            ("a dog.\"", "a|dog|.|\""),
            ("Ünï Ōsaka\t二 \u{a0}x", "ünï|ōsaka|二|x"),
            ("'' 's", "'|'|'s"),
            (" ", ""),
        ];
        for (text, words) in cases {
            assert_eq!(split(text).join("|"), words, "{text}");
        }
        // Nothing recurses on a word's length.
        assert_eq!(split(&"'".repeat(60_000)).len(), 60_000);
    }

    #[test]
    fn ids_are_framed_and_spelled_again() {
        let own = vocabulary(&["a", "dog", "."]);
        assert_eq!(own.encode("A dog, a Dog."), [1, 4, 5, 3, 4, 5, 6, 2]);
        assert_eq!(own.encode(""), [1, 2]);
        assert_eq!(own.spell(&[1, 4, 5, 3, 2, 0, 99]), "a dog <unk>");
        assert_eq!((own.size(), own.word(5), own.word(7)), (7, Some("dog"), None));
    }

    #[test]
    fn a_file_gives_back_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vocab.json");
        let own = vocabulary(&["a", "\"", "\u{1f600}"]);
        own.save(&path).unwrap();
        assert_eq!(Vocabulary::open(&path).unwrap(), own);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
        assert!(own.save(&folder.path().join("no/vocab.json")).is_err());
    }

    #[test]
    fn vocabularies_that_are_none_are_refused() {
        let start = r#""<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3"#;
        let cases = [
            ("[]".to_string(), "not understood"),
            (r#"{"idx": 4}"#.into(), "word2idx"),
            (format!(r#"{{"word2idx": {{{start}, "a": -4}}}}"#), "not understood"),
            (format!(r#"{{"word2idx": {{{start}, "a": 5}}}}"#), "not dense"),
            (format!(r#"{{"word2idx": {{{start}, "a": 18446744073709551615}}}}"#), "not dense"),
            (format!(r#"{{"word2idx": {{{start}, "a": 3}}}}"#), "one id"),
            (format!(r#"{{"word2idx": {{{start}, "a": 4, "a": 5}}}}"#), "twice"),
            (r#"{"word2idx": {"<start>": 0, "<pad>": 1, "<end>": 2, "<unk>": 3}}"#.into(), "does not begin"),
            (r#"{"word2idx": {}}"#.into(), "does not begin"),
            (format!(r#"{{"word2idx": {{{start}}}, "idx2word": {{"0": "<end>"}}}}"#), "disagree"),
            (format!(r#"{{"word2idx": {{{start}}}, "idx2word": {{"7": "<end>"}}}}"#), "disagree"),
            (format!(r#"{{"word2idx": {{{start}}}, "idx": 5}}"#), "not whole"),
        ];
        for (text, reason) in cases {
            let error = Vocabulary::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: wanted \"{reason}\": {error}");
        }
        assert_eq!(
            Vocabulary::parse(format!(r#"{{"word2idx": {{{start}}}}}"#).as_bytes()).unwrap().size(),
            4
        );
    }
}
