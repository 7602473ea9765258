//! How captions are cleaned before they are split: what a tokenizer's own files say, `tokenizer_config.json` or
//! `tokenizer.json` beside its vocabulary. What cannot be obeyed is refused.

use std::fmt;
use std::path::Path;

use serde_json::{Value as Json, json};
use tokenizers::normalizers::BertNormalizer;

use crate::data::atomic;
use crate::data::captions::read_limited;
use crate::{Error, Result};

/// The settings of a tokenizer in a model's folder.
pub const CONFIG: &str = "tokenizer_config.json";
/// A whole tokenizer, vocabulary included.
pub const WHOLE: &str = "tokenizer.json";
/// The largest such file read; a vocabulary of 4 million pieces included.
const MAX_FILE: u64 = 256 << 20;
/// The classes whose captions are split as BERT's are.
const CLASSES: [&str; 7] = [
    "BertTokenizer",
    "BertTokenizerFast",
    "DistilBertTokenizer",
    "DistilBertTokenizerFast",
    "ElectraTokenizer",
    "ElectraTokenizerFast",
    "PreTrainedTokenizerFast",
];

/// How captions are cleaned. The default is the published code's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Capitals become small letters.
    pub lowercase: bool,
    /// Letters lose their accents; by default they do where capitals become small.
    pub strip_accents: Option<bool>,
    /// Each Chinese character is a word.
    pub split_chinese: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lowercase: true, strip_accents: None, split_chinese: false }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let case = if self.lowercase { "lower case" } else { "case kept" };
        let accents = if self.strips() { "accents stripped" } else { "accents kept" };
        let chinese = if self.split_chinese { ", Chinese characters apart" } else { "" };
        write!(f, "{case}, {accents}{chinese}")
    }
}

impl Settings {
    fn strips(self) -> bool {
        self.strip_accents.unwrap_or(self.lowercase)
    }

    pub(super) fn normalizer(self) -> BertNormalizer {
        BertNormalizer::new(true, self.split_chinese, Some(self.strips()), self.lowercase)
    }

    /// What the files beside a vocabulary say, the one of settings before the whole one; else, what the vocabulary
    /// tells: one with capitals is of captions as they are. With it, who says so.
    ///
    /// # Errors
    /// A file that cannot be read, or that asks for what is not known here.
    pub fn beside(folder: &Path, vocab: &[String]) -> Result<(Self, &'static str)> {
        let (config, whole) = (folder.join(CONFIG), folder.join(WHOLE));
        if config.is_file() {
            let json = read(&config)?;
            let base =
                if whole.is_file() { Self::of_whole(&read(&whole)?) } else { Ok(Self::of_vocab(vocab).0) };
            let base = base.map_err(|e| e.at(whole.display()))?;
            return Ok((base.overruled(&json).map_err(|e| e.at(config.display()))?, CONFIG));
        }
        if whole.is_file() {
            return Ok((Self::of_whole(&read(&whole)?).map_err(|e| e.at(whole.display()))?, WHOLE));
        }
        Ok(Self::of_vocab(vocab))
    }

    fn of_vocab(vocab: &[String]) -> (Self, &'static str) {
        let special = |piece: &str| piece.starts_with('[') && piece.ends_with(']');
        let capital = |piece: &String| !special(piece) && piece.chars().any(char::is_uppercase);
        match vocab.iter().any(capital) {
            true => (Self { lowercase: false, ..Self::default() }, "the vocabulary's capitals"),
            false => (Self::default(), "BERT's default"),
        }
    }

    /// These settings with what a `tokenizer_config.json`, or a checkpoint's options, say of them.
    ///
    /// # Errors
    /// A setting of another type, or one that is not known here.
    pub fn overruled(mut self, json: &Json) -> Result<Self> {
        let wrong = |name: &str, expected: &str| {
            let error = Error::new(format!("the tokenizer's {name} is not one that can be followed"));
            Err(error
                .expected(expected)
                .found(&json[name])
                .cure("give a BERT's tokenizer: WordPiece on basic words"))
        };
        for (name, setting) in
            [("do_lower_case", &mut self.lowercase), ("tokenize_chinese_chars", &mut self.split_chinese)]
        {
            match &json[name] {
                Json::Null => {}
                Json::Bool(value) => *setting = *value,
                _ => return wrong(name, "true or false"),
            }
        }
        match &json["strip_accents"] {
            Json::Null => {}
            Json::Bool(value) => self.strip_accents = Some(*value),
            _ => return wrong("strip_accents", "true, false or null"),
        }
        if json["do_basic_tokenize"] == json!(false) {
            return wrong("do_basic_tokenize", "true");
        }
        match &json["tokenizer_class"] {
            Json::Null => Ok(self),
            Json::String(class) if CLASSES.contains(&class.as_str()) => Ok(self),
            _ => wrong("tokenizer_class", CLASSES[0]),
        }
    }

    /// What a `tokenizer.json` says.
    fn of_whole(json: &Json) -> Result<Self> {
        let none = Self { lowercase: false, strip_accents: Some(false), split_chinese: false };
        let flag = |normalizer: &Json, name: &str| normalizer[name].as_bool();
        let one = |settings: Self, normalizer: &Json| match normalizer["type"].as_str() {
            Some("BertNormalizer") => Ok(Self {
                lowercase: flag(normalizer, "lowercase").unwrap_or(true),
                strip_accents: flag(normalizer, "strip_accents"),
                split_chinese: flag(normalizer, "handle_chinese_chars").unwrap_or(true),
            }),
            Some("Lowercase") => Ok(Self { lowercase: true, ..settings }),
            Some("StripAccents") => Ok(Self { strip_accents: Some(true), ..settings }),
            // Forms that only differ in how a letter and its accent are stored.
            Some("NFC" | "NFD") => Ok(settings),
            _ => Err(Error::new("the tokenizer cleans captions in a way that is not known here")
                .expected("a BertNormalizer")
                .found(&normalizer["type"])
                .cure("give a BERT's tokenizer: WordPiece on basic words")),
        };
        match &json["normalizer"] {
            Json::Null => Ok(none),
            normalizer => match normalizer["normalizers"].as_array() {
                Some(all) => all.iter().try_fold(none, one),
                None => one(none, normalizer),
            },
        }
    }

    /// Writes them as [`Settings::beside`] reads them.
    ///
    /// # Errors
    /// A failed write.
    pub(super) fn save(self, folder: &Path) -> Result<()> {
        let text = json!({
            "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.split_chinese,
        });
        atomic::file(&folder.join(CONFIG), |out| out.write_all(format!("{text:#}\n").as_bytes()))
    }
}

/// The pieces of a `tokenizer.json`, by id.
///
/// # Errors
/// A file that cannot be read, and one of another kind of tokenizer.
pub(super) fn vocabulary(path: &Path, most: usize) -> Result<Vec<String>> {
    let json = read(path)?;
    let wrong = |what: &str| {
        let error = Error::new(what.to_owned()).at(path.display());
        Err(error
            .expected("a BERT's tokenizer: WordPiece with ##")
            .cure("give its vocab.txt: --vocab vocab.txt"))
    };
    let model = &json["model"];
    let is = |name: &str, value: &str| model[name].as_str().is_none_or(|own| own == value);
    let Some(pieces) = model["vocab"].as_object() else {
        return wrong("the tokenizer has no vocabulary of pieces");
    };
    if !is("type", "WordPiece") || !is("unk_token", "[UNK]") || !is("continuing_subword_prefix", "##") {
        return wrong("the tokenizer is of another kind");
    }
    let id = |id: &Json| id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < most);
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let added = added.filter_map(|token| Some((token["content"].as_str()?, &token["id"])));
    let mut vocab = Vec::new();
    for (piece, number) in pieces.iter().map(|(piece, number)| (piece.as_str(), number)).chain(added) {
        let Some(id) = id(number) else { return wrong("a piece has no sound number") };
        if vocab.len() <= id {
            vocab.resize(id + 1, String::new());
        }
        vocab[id] = piece.to_owned();
    }
    // A number that is left out still has its row in the weights.
    for (id, piece) in vocab.iter_mut().enumerate().filter(|(_, piece)| piece.is_empty()) {
        *piece = format!("[unused {id}]");
    }
    Ok(vocab)
}

fn read(path: &Path) -> Result<Json> {
    let bytes = read_limited(path, MAX_FILE, "the tokenizer")?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(format!("the tokenizer is not understood: {e}")).at(path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{PIECES, WordPiece};
    use super::*;

    const VOCAB: &str = "[PAD] [UNK] [CLS] [SEP] [MASK] man Man ##s ##n a A dog Zo ##\u{e9} Zoe Zo\u{e9} caf ##e \
                         caf\u{e9} , . NEW York ' \u{72ac} ##\u{72ac} an m M ##an S ##tr ##eet";
    const CAPTIONS: [&str; 3] =
        ["Man man MAN mans", "Zo\u{e9}'s caf\u{e9}, NEW York.", "A dog \u{72ac}\u{72ac} an  Street"];

    /// A folder with the vocabulary and another file.
    fn folder(name: &str, text: &Json) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(PIECES), VOCAB.replace(' ', "\n") + "\n").expect("written");
        fs::write(folder.path().join(name), text.to_string()).expect("written");
        folder
    }

    fn ids(pieces: &WordPiece) -> [Vec<u32>; 3] {
        CAPTIONS.map(|text| {
            let tokens = pieces.encode(text, 30);
            tokens.ids[1..tokens.length - 1].to_vec()
        })
    }

    /// What `BertTokenizer` of transformers 4 gives with these settings and this vocabulary.
    #[test]
    fn settings_are_obeyed_as_the_reference_does_and_stay_with_the_vocabulary() {
        let cases = [
            (
                json!({"do_lower_case": false, "tokenize_chinese_chars": true, "tokenizer_class": "BertTokenizer"}),
                [&[6, 5, 1, 5, 7][..], &[15, 23, 1, 18, 19, 21, 22, 20], &[10, 11, 24, 24, 26, 30, 31, 32]],
            ),
            (
                json!({"do_lower_case": false, "tokenize_chinese_chars": false}),
                [&[6, 5, 1, 5, 7], &[15, 23, 1, 18, 19, 21, 22, 20], &[10, 11, 24, 25, 26, 30, 31, 32]],
            ),
            (
                json!({"do_lower_case": false, "strip_accents": true, "tokenize_chinese_chars": true}),
                [&[6, 5, 1, 5, 7], &[14, 23, 1, 16, 17, 19, 21, 22, 20], &[10, 11, 24, 24, 26, 30, 31, 32]],
            ),
            (
                json!({"do_lower_case": true, "tokenize_chinese_chars": true}),
                [&[5, 5, 5, 5, 7], &[1, 23, 1, 16, 17, 19, 1, 1, 20], &[9, 11, 24, 24, 26, 1]],
            ),
            (
                json!({"do_lower_case": true, "strip_accents": false, "tokenize_chinese_chars": true}),
                [&[5, 5, 5, 5, 7], &[1, 23, 1, 18, 19, 1, 1, 20], &[9, 11, 24, 24, 26, 1]],
            ),
        ];
        for (config, expected) in cases {
            let own = folder(CONFIG, &config);
            let pieces = WordPiece::open(&own.path().join(PIECES)).expect("sound");
            assert_eq!(pieces.settings().1, CONFIG);
            assert_eq!(ids(&pieces), expected.map(<[u32]>::to_vec), "{config}");
            let kept = tempfile::tempdir().expect("a folder");
            pieces.save(kept.path()).expect("saved");
            let again = WordPiece::open(&kept.path().join(PIECES)).expect("sound");
            assert_eq!(ids(&again), ids(&pieces), "{config}, kept");
        }
    }

    #[test]
    fn a_whole_tokenizer_and_a_vocabularys_capitals_say_the_same() {
        let pieces: serde_json::Map<String, Json> =
            VOCAB.split(' ').enumerate().map(|(id, piece)| (piece.to_owned(), id.into())).collect();
        let whole = |normalizer: Json| json!({"normalizer": normalizer, "model": {"type": "WordPiece", "vocab": pieces}});
        let cased = json!({"type": "BertNormalizer", "lowercase": false, "strip_accents": null, "handle_chinese_chars": false});
        let of_parts = json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]});
        for (normalizer, lowercase) in [(Json::Null, false), (cased, false), (of_parts, true)] {
            let own = folder(WHOLE, &whole(normalizer));
            let [beside, alone] =
                [PIECES, WHOLE].map(|name| WordPiece::open(&own.path().join(name)).expect("sound"));
            assert_eq!(beside.vocab(), alone.vocab());
            assert_eq!((beside.settings(), beside.settings().1), (alone.settings(), WHOLE));
            assert_eq!(beside.settings().0.lowercase, lowercase);
        }
        let bare = folder("other", &Json::Null);
        let (settings, said_by) = WordPiece::open(&bare.path().join(PIECES)).expect("sound").settings();
        assert_eq!(
            (settings.to_string().as_str(), said_by),
            ("case kept, accents kept", "the vocabulary's capitals")
        );
        let small = ["[CLS]", "man", "\u{72ac}"].map(String::from);
        assert_eq!(Settings::of_vocab(&small), (Settings::default(), "BERT's default"));
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        let cases = [
            (CONFIG, json!({"do_lower_case": "no"}), "do_lower_case"),
            (CONFIG, json!({"strip_accents": 1}), "strip_accents"),
            (CONFIG, json!({"tokenizer_class": "RobertaTokenizer"}), "RobertaTokenizer"),
            (CONFIG, json!({"do_basic_tokenize": false}), "do_basic_tokenize"),
            (WHOLE, json!({"normalizer": {"type": "Replace"}}), "Replace"),
        ];
        for (name, text, part) in cases {
            let own = folder(name, &text);
            let error = WordPiece::open(&own.path().join(PIECES)).expect_err(part).to_string();
            assert!(error.contains(part) && error.contains(name) && error.contains("cure"), "{error}");
        }
        for model in [
            json!({"type": "BPE", "vocab": {}}),
            json!({"vocab": {"a": -1}}),
            json!({"vocab": []}),
            Json::Null,
        ] {
            let own = folder(WHOLE, &json!({"model": model}));
            let error = WordPiece::open(&own.path().join(WHOLE)).expect_err("no pieces").to_string();
            assert!(error.contains(WHOLE) && error.contains("--vocab"), "{model}: {error}");
        }
    }
}
