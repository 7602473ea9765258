//! BERT's WordPiece, as the published code splits captions, on the `tokenizers` crate's parts.
//!
//! Clean (control characters dropped), lower-case and accents stripped unless the tokenizer's files say otherwise
//! ([`Settings`]), split at whitespace and around punctuation, then greedy pieces. Two settings differ from the crate's
//! defaults because the published code does: Chinese characters are not split apart unless the files say so, and a
//! literal `[CLS]` in a caption is three ordinary pieces.

mod settings;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use tokenizers::models::wordpiece::WordPiece as Model;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    Model as _, NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer as _,
};

use super::atomic;
use super::captions::read_limited;
use super::ragged::Ragged;
use super::word_ids;
use super::words::Vocabulary;
use crate::host::Rng;
use crate::{Error, Result};

pub use settings::{Settings, WHOLE};

/// The largest vocabulary file read; BERT's multilingual ones take 1 MB.
const MAX_FILE: u64 = 64 << 20;
/// The most pieces: ids travel as f32, exact below 2^24.
const MAX_PIECES: usize = 4_000_000;
/// A word of more characters becomes `[UNK]`.
const MAX_WORD: usize = 100;
/// The file of pieces in a model's folder.
pub const PIECES: &str = "vocab.txt";
/// The file of whole words in a model's folder.
pub const WORDS: &str = "vocab.json";
/// What every vocabulary made here starts with.
const SPECIAL: [&str; 4] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];

/// A caption's pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Piece ids `[max_words]`: `[CLS]`, pieces, `[SEP]`, then 0.
    pub ids: Vec<u32>,
    /// How many of them are no padding.
    pub length: usize,
}

/// A vocabulary and the splitting that goes with it.
#[derive(Debug)]
pub struct WordPiece {
    vocab: Vec<String>,
    model: Model,
    cls: u32,
    sep: u32,
    notices: Vec<String>,
    settings: Settings,
    said_by: &'static str,
}

impl WordPiece {
    /// Reads a `vocab.txt`, one piece a line, its number from 0 being its id, or a `tokenizer.json`; how captions are
    /// cleaned as the files beside it say ([`Settings::beside`]).
    ///
    /// # Errors
    /// A file that cannot be read, is not UTF-8, is past the limits (64 MB, 4 million pieces), or lacks `[CLS]`,
    /// `[SEP]` or `[UNK]`; settings that cannot be followed.
    pub fn open(path: &Path) -> Result<Self> {
        let vocab = if path.extension().is_some_and(|extension| extension == "json") {
            settings::vocabulary(path, MAX_PIECES)?
        } else {
            let bytes = read_limited(path, MAX_FILE, "the vocabulary")?;
            parse_vocab(&bytes).map_err(|e| e.at(path.display()))?
        };
        let (settings, said_by) = Settings::beside(path.parent().unwrap_or(Path::new("")), &vocab)?;
        let pieces = Self::from_vocab(vocab).map_err(|e| e.at(path.display()))?;
        Ok(Self { settings, said_by, ..pieces })
    }

    /// How captions are cleaned, and who says so.
    pub fn settings(&self) -> (Settings, &'static str) {
        (self.settings, self.said_by)
    }

    /// The same pieces for captions cleaned in another way.
    pub fn with_settings(self, settings: Settings, said_by: &'static str) -> Self {
        Self { settings, said_by, ..self }
    }

    /// A tokenizer from pieces in the order of their ids. Of equal pieces the last counts, as in the original.
    ///
    /// # Errors
    /// No `[CLS]`, `[SEP]` or `[UNK]`; more than 4 million pieces.
    pub fn from_vocab(vocab: Vec<String>) -> Result<Self> {
        if vocab.len() > MAX_PIECES {
            let found = format!("{} lines", vocab.len());
            return Err(Error::new("the vocabulary is too large")
                .expected("at most 4 million lines")
                .found(found));
        }
        // The crate names its map type nowhere else in its interface.
        let mut ids = Model::read_bytes(b"").map_err(internal)?;
        ids.extend(vocab.iter().zip(0..).map(|(piece, id)| (piece.clone(), id)));
        let special = [ids.get("[CLS]").copied(), ids.get("[SEP]").copied(), ids.get("[UNK]").copied()];
        let [Some(cls), Some(sep), Some(_)] = special else { return Err(lacking(&vocab, special)) };
        let notices = match vocab.first().map(String::as_str) {
            Some("[PAD]") => Vec::new(),
            Some(first) if !ids.contains_key("[PAD]") => {
                vec![format!(
                    "the vocabulary has no [PAD]: captions are padded with id 0, \"{}\"",
                    shorten(first)
                )]
            }
            _ => vec![
                "[PAD] is not the vocabulary's first line: captions are padded with id 0 all the same".into(),
            ],
        };
        let model =
            Model::builder().vocab(ids).max_input_chars_per_word(MAX_WORD).build().map_err(internal)?;
        Ok(Self { vocab, model, cls, sep, notices, settings: Settings::default(), said_by: "BERT's default" })
    }

    /// Splits a caption: its first `max_words - 2` pieces between `[CLS]` and `[SEP]`, padded with 0 to
    /// `max_words` (which counts as 2 if it is less).
    pub fn encode(&self, text: &str, max_words: usize) -> Tokens {
        let mut ids = self.ids(text, max_words);
        let length = ids.len();
        ids.resize(max_words.max(2), 0);
        Tokens { ids, length }
    }

    /// The number of pieces, so the rows an embedding table needs.
    pub fn size(&self) -> usize {
        self.vocab.len()
    }

    /// The pieces, by id.
    pub fn vocab(&self) -> &[String] {
        &self.vocab
    }

    /// What is odd about the vocabulary, though it works.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Writes `vocab.txt` and `tokenizer_config.json` as [`WordPiece::open`] reads them, each whole or not at all.
    ///
    /// # Errors
    /// A failed write.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.settings.save(folder)?;
        let text = self.vocab.iter().flat_map(|piece| [piece.as_str(), "\n"]).collect::<String>();
        atomic::file(&folder.join(PIECES), |out| out.write_all(text.as_bytes()))
    }

    /// The ids of a caption without padding.
    fn ids(&self, text: &str, max_words: usize) -> Vec<u32> {
        let room = max_words.saturating_sub(2);
        let mut ids = vec![self.cls];
        for word in words(text, self.settings) {
            if ids.len() > room {
                break;
            }
            let pieces =
                self.model.tokenize(&word).expect("only a vocabulary without [UNK] fails, refused above");
            ids.extend(pieces.iter().map(|piece| piece.id));
        }
        ids.truncate(room + 1);
        ids.push(self.sep);
        ids
    }
}

/// What a model reads captions with.
#[derive(Debug)]
pub enum Tokenizer {
    /// The pieces of a BERT: `vocab.txt` in a model's folder.
    Pieces(WordPiece),
    /// Whole words: `vocab.json` in a model's folder.
    Words(Vocabulary),
}

impl Tokenizer {
    /// The number of ids.
    pub fn size(&self) -> usize {
        match self {
            Self::Pieces(pieces) => pieces.size(),
            Self::Words(vocabulary) => vocabulary.size(),
        }
    }

    /// What its file in a model's folder is called.
    pub fn file(&self) -> &'static str {
        match self {
            Self::Pieces(_) => PIECES,
            Self::Words(_) => WORDS,
        }
    }

    /// Writes that file, whole or not at all.
    ///
    /// # Errors
    /// A failed write.
    pub fn save(&self, folder: &Path) -> Result<()> {
        match self {
            Self::Pieces(pieces) => pieces.save(folder),
            Self::Words(vocabulary) => vocabulary.save(&folder.join(self.file())),
        }
    }
}

/// All captions of a split as ids, tokenized once. Unpadded, so COCO's 566,000 captions take about 40 MB.
#[derive(Clone, Debug)]
pub struct TokenTable {
    rows: Ragged<u32>,
    words: usize,
    /// Whether a piece goes on a word, by id.
    continues: Vec<bool>,
    /// The id of `[MASK]`, or of `[UNK]` where the vocabulary has none.
    mask: u32,
}

impl TokenTable {
    /// Tokenizes captions on all cores; `max_words` as in [`WordPiece::encode`].
    pub fn new(pieces: &WordPiece, texts: &[String], max_words: usize) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = texts.len().div_ceil(threads).max(1);
        let encode =
            |part: &[String]| part.iter().map(|text| pieces.ids(text, max_words)).collect::<Vec<_>>();
        let parts = std::thread::scope(|scope| {
            let running: Vec<_> = texts.chunks(share).map(|part| scope.spawn(move || encode(part))).collect();
            let join = |part: std::thread::ScopedJoinHandle<'_, Vec<Vec<u32>>>| {
                part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            running.into_iter().map(join).collect::<Vec<_>>()
        });
        let id = |name: &str| pieces.vocab().iter().rposition(|piece| piece == name);
        let mask = id("[MASK]").or_else(|| id("[UNK]")).unwrap_or_default() as u32;
        let continues = pieces.vocab().iter().map(|piece| piece.starts_with("##")).collect();
        let mut rows = Ragged::default();
        parts.into_iter().flatten().for_each(|caption| rows.push(caption));
        Self { rows, words: max_words.max(2), continues, mask }
    }

    /// Captions in whole words, each in full.
    ///
    /// # Errors
    /// A caption of more than 1,000 words.
    pub fn of_words(vocabulary: &Vocabulary, texts: &[String]) -> Result<Self> {
        let mut rows = Ragged::default();
        for (i, text) in texts.iter().enumerate() {
            let ids = vocabulary.encode(text);
            if ids.len() > word_ids::MAX_WORDS {
                return Err(word_ids::too_long().at(format!("caption {}", i + 1)));
            }
            rows.push(ids);
        }
        Ok(Self::of_ids(rows))
    }

    /// Captions that are word ids already, each in full.
    pub fn of_ids(rows: Ragged<u32>) -> Self {
        Self { words: rows.longest(), rows, continues: Vec::new(), mask: 0 }
    }

    /// The number of captions.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no caption.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most ids of a caption, of whole words those of the longest: its padded length, if batches are not padded to their longest only.
    pub fn words(&self) -> usize {
        self.words
    }

    /// A caption's ids, `[CLS]` and `[SEP]` included, without padding.
    pub fn ids(&self, caption: usize) -> &[u32] {
        self.rows.row(caption)
    }

    /// A caption's pieces with each word changed with this chance: half of those words become `[MASK]`, of a tenth each
    /// piece becomes a random one, the rest is deleted. Panics for whole words.
    pub fn changed(&self, caption: usize, chance: f64, draws: &mut Rng) -> Vec<u32> {
        assert!(!self.continues.is_empty(), "only pieces of words are changed");
        let ids = self.ids(caption);
        let inner = &ids[1.min(ids.len())..ids.len().saturating_sub(1)];
        let mut out = vec![ids[0]];
        for word in inner.chunk_by(|_, next| self.continues.get(*next as usize) == Some(&true)) {
            let share = draws.unit() / chance;
            match share {
                s if s < 0.5 => out.extend(word.iter().map(|_| self.mask)),
                s if s < 0.6 => out.extend(word.iter().map(|_| draws.below(self.continues.len()) as u32)),
                s if s < 1.0 => {}
                _ => out.extend(word),
            }
        }
        out.extend(ids.last().filter(|_| ids.len() > 1));
        out
    }

    /// The number of a caption's ids.
    pub fn length(&self, caption: usize) -> usize {
        self.ids(caption).len()
    }
}

/// A small vocabulary from captions: `[PAD] [UNK] [CLS] [SEP]`, characters (`c` where one begins a word, `##c`
/// where it goes on), then whole words, each group by count and then by alphabet, `size` in all at most (at least the four).
/// The same captions give the same vocabulary.
pub fn build_vocab<S: AsRef<str>>(texts: &[S], size: usize) -> Vec<String> {
    let (mut pieces, mut whole) = (HashMap::new(), HashMap::new());
    for word in texts.iter().flat_map(|text| words(text.as_ref(), Settings::default())) {
        if word.chars().count() > MAX_WORD {
            continue;
        }
        for (i, c) in word.chars().enumerate() {
            let piece = if i == 0 { c.to_string() } else { format!("##{c}") };
            *pieces.entry(piece).or_insert(0_u64) += 1;
        }
        *whole.entry(word).or_insert(0_u64) += 1;
    }
    let by_count = |counts: HashMap<String, u64>| {
        let mut sorted: Vec<_> = counts.into_iter().collect();
        sorted.sort_unstable_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
        sorted.into_iter().map(|(piece, _)| piece)
    };
    let all = SPECIAL.map(String::from).into_iter().chain(by_count(pieces)).chain(by_count(whole));
    let mut seen = HashSet::new();
    all.filter(|piece| seen.insert(piece.clone())).take(size.max(SPECIAL.len())).collect()
}

/// A caption's words and punctuation marks, normalised.
pub(super) fn words(text: &str, settings: Settings) -> Vec<String> {
    let mut normal = NormalizedString::from(text);
    settings.normalizer().normalize(&mut normal).expect("this normalizer never fails");
    let mut split = PreTokenizedString::from(normal);
    BertPreTokenizer.pre_tokenize(&mut split).expect("this splitter never fails");
    let parts = split.get_splits(OffsetReferential::Normalized, OffsetType::None);
    parts.into_iter().map(|(word, ..)| word.to_owned()).collect()
}

/// The lines of a vocabulary file, stripped; blank lines at its end are none.
pub(super) fn parse_vocab(bytes: &[u8]) -> Result<Vec<String>> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
        Error::new("the vocabulary is no UTF-8 text")
            .expected("one piece a line, in UTF-8")
            .found(format!("invalid bytes on line {line}"))
            .cure("use the vocab.txt that came with the model's weights")
    })?;
    let text = text.trim_end();
    if text.bytes().filter(|&b| b == b'\n').count() >= MAX_PIECES {
        return Err(Error::new("the vocabulary is too large").expected("at most 4 million lines"));
    }
    Ok(text.split('\n').map(|line| line.trim().to_owned()).collect())
}

fn lacking(vocab: &[String], [cls, sep, unk]: [Option<u32>; 3]) -> Error {
    let all = [("[CLS]", cls), ("[SEP]", sep), ("[UNK]", unk)];
    let names: Vec<&str> = all.iter().filter(|(_, id)| id.is_none()).map(|(name, _)| *name).collect();
    let start: Vec<String> = vocab.iter().take(3).map(|piece| format!("\"{}\"", shorten(piece))).collect();
    Error::new(format!("the vocabulary lacks {}", names.join(", ")))
        .expected("BERT's vocab.txt: one piece a line, [UNK], [CLS] and [SEP] among them")
        .found(format!("{} lines, starting {}", vocab.len(), start.join(", ")))
        .cure("use the vocab.txt that came with the model's weights")
}

fn shorten(piece: &str) -> String {
    piece.chars().take(30).flat_map(char::escape_debug).collect()
}

fn internal(e: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::new(format!("the tokenizer could not be built: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/");

    fn small(words: &[&str]) -> WordPiece {
        WordPiece::from_vocab(SPECIAL.iter().chain(words).map(ToString::to_string).collect()).unwrap()
    }

    /// Every case of the fixture, through the caption reader as a user's file goes. The one case that Python 2
    /// and 3 disagree on holds a character of Unicode 6.1; there the newer tables count, which keep it.
    #[test]
    fn tokens_equal_the_published_code() {
        let file = std::fs::read_to_string(format!("{FIXTURES}tokenize_bert.json")).unwrap();
        let all: Value = serde_json::from_str(&file).unwrap();
        let pieces =
            WordPiece::open(Path::new(&format!("{FIXTURES}{}", all["vocab_file"].as_str().unwrap())))
                .unwrap();
        let max_words = all["max_words"].as_u64().unwrap() as usize;
        let numbers =
            |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect::<Vec<_>>();
        let (mut compared, mut newer) = (0, 0);
        for case in all["cases"].as_array().unwrap() {
            let hex = case["bytes_after_strip_hex"].as_str().unwrap();
            let mut bytes: Vec<u8> =
                (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            bytes.push(b'\n');
            let text = crate::data::captions::parse(&bytes, false).unwrap().texts.remove(0);
            if case["same_in_python3"] == Value::Bool(false) {
                assert_eq!(words(&text, Settings::default()), ["w1", "w2", "dog\u{1f600}cat"]);
                newer += 1;
                continue;
            }
            let basic: Vec<&str> =
                case["basic"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
            assert_eq!(words(&text, Settings::default()), basic, "{text:?}");
            let tokens = pieces.encode(&text, max_words);
            assert_eq!(tokens.ids, numbers(&case["input_ids"]), "{text:?}");
            assert_eq!(tokens.length as u32, numbers(&case["mask"]).iter().sum::<u32>(), "{text:?}");
            compared += 1;
        }
        assert!(compared >= 26 && newer == 1, "{compared} cases compared, {newer} newer");
    }

    #[test]
    fn a_vocabulary_without_its_special_pieces_is_refused() {
        let open = |text: &str| parse_vocab(text.as_bytes()).and_then(WordPiece::from_vocab);
        let e = open("[PAD]\n[UNK]\na\n").unwrap_err().to_string();
        assert!(e.contains("lacks [CLS], [SEP]\n") && e.contains("3 lines"), "{e}");
        assert!(open("[PAD]\n[CLS]\n[SEP]\n").unwrap_err().to_string().contains("lacks [UNK]\n"));
        assert!(open("").is_err());
        assert!(parse_vocab(b"[PAD]\n\xff\n").unwrap_err().to_string().contains("line 2"));
        let odd = open("a\n[UNK]\n[CLS]\n[SEP]\n\n").unwrap();
        assert_eq!((odd.size(), odd.notices().len()), (4, 1));
        assert!(open("[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n").unwrap().notices().is_empty());
    }

    #[test]
    fn long_and_short_captions_fit_max_words() {
        let pieces = small(&["a", "##a"]);
        assert_eq!(pieces.encode("aaa a", 4), Tokens { ids: vec![2, 4, 5, 3], length: 4 });
        assert_eq!(pieces.encode("aaa a", 7), Tokens { ids: vec![2, 4, 5, 5, 4, 3, 0], length: 6 });
        assert_eq!(pieces.encode("a", 2), Tokens { ids: vec![2, 3], length: 2 });
        assert_eq!(pieces.encode("a", 0), Tokens { ids: vec![2, 3], length: 2 });
        assert_eq!(pieces.encode(&"a".repeat(100), 200).length, 102);
        assert_eq!(pieces.encode(&"a".repeat(101), 200), pieces.encode("?", 200));
    }

    #[test]
    fn a_built_vocabulary_spells_its_captions_and_survives_a_file() {
        let texts = ["A red dog, a red cat", "Café: dog", "dog"];
        let vocab = build_vocab(&texts, 30);
        assert_eq!(vocab[..4], SPECIAL);
        assert_eq!(vocab, build_vocab(&texts, 30));
        assert_eq!(vocab[4..7], ["##e", "##g", "##o"], "by count, equal counts by alphabet");
        let whole = |v: &[String]| {
            v.iter().position(|p| p == "dog").unwrap() < v.iter().position(|p| p == "cafe").unwrap()
        };
        assert!(whole(&build_vocab(&texts, 1000)));
        let pieces = WordPiece::from_vocab(vocab).unwrap();
        for text in texts {
            assert!(!pieces.encode(text, 50).ids.contains(&1), "{text}: every character is a piece");
        }
        assert_eq!(build_vocab(&texts, 10).len(), 10);
        let folder = tempfile::tempdir().unwrap();
        pieces.save(folder.path()).unwrap();
        assert_eq!(WordPiece::open(&folder.path().join(PIECES)).unwrap().vocab(), pieces.vocab());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no other file is left");
        assert!(pieces.save(&folder.path().join("no")).is_err());
    }

    #[test]
    fn the_table_holds_what_encode_gives() {
        let pieces = small(&["a", "dog"]);
        let texts: Vec<String> = (0..37).map(|i| "a dog ".repeat(i % 5)).collect();
        let table = TokenTable::new(&pieces, &texts, 8);
        assert_eq!((table.len(), table.words()), (37, 8));
        for (i, text) in texts.iter().enumerate() {
            let tokens = pieces.encode(text, 8);
            assert_eq!(table.ids(i), &tokens.ids[..tokens.length]);
            assert_eq!(table.length(i), tokens.length);
        }
        assert!(TokenTable::new(&pieces, &[], 8).is_empty());
    }
}
