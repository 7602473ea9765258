//! What features were made with: `features.json` in a folder that `crossweave features` made.
//!
//! A model can be given features of the encoder that it was trained on only, and two encoders' may have one shape: a run
//! remembers the recipe of its data and refuses features made otherwise.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::atomic;
use super::captions::read_limited;
use crate::{Error, Result};

/// The file in the folder.
pub const FILE: &str = "features.json";
/// The version of the file's form.
const VERSION: u64 = 1;
/// The version of how pictures become what the encoder reads: upright, the shorter side resized as 256 is to 224, the
/// middle of it, the usual means and spreads.
pub const PREPROCESSING: u64 = 1;
/// The largest file read.
const MAX_FILE: u64 = 1 << 20;
/// What must be the same for a model to read features.
const MATTERS: [&str; 4] = ["encoder", "stage", "image_size", "preprocessing"];
/// What may differ between two makings of the same features.
const FREE: &str = "source";

/// What features were made with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The version of the file's form.
    pub version: u64,
    /// The version of the program.
    #[serde(rename = "crossweave")]
    pub program: String,
    /// A hash of the encoder's weights.
    pub encoder: String,
    /// Where the encoder was.
    pub source: String,
    /// The encoder's configuration.
    pub config: Value,
    /// The stage whose grid the regions are, from 1.
    pub stage: usize,
    /// Width and height at which pictures were read.
    pub image_size: usize,
    /// See [`PREPROCESSING`].
    pub preprocessing: u64,
    /// The number type of the features: `f16` or `f32`.
    pub numbers: String,
    /// How often a word of the vocabulary is in the training captions at least.
    pub min_count: usize,
    /// The splits.
    pub splits: BTreeMap<String, Part>,
}

/// What a split was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Pictures.
    pub pictures: usize,
    /// Captions of each.
    pub captions_per_image: usize,
    /// A hash of the pictures' names and sizes and of the captions.
    pub content: String,
}

impl Recipe {
    /// One of this program and no split yet.
    pub fn new(encoder: String, source: String, config: Value, stage: usize, image_size: usize) -> Self {
        Self {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").into(),
            encoder,
            source,
            config,
            stage,
            image_size,
            preprocessing: PREPROCESSING,
            numbers: "f16".into(),
            min_count: 1,
            splits: BTreeMap::new(),
        }
    }

    /// That of a folder, if it has one: a file of that name that another program wrote is none.
    ///
    /// # Errors
    /// A file that is too large, not understood, or of a newer version.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_limited(&path, MAX_FILE, "the features' recipe")?;
        Self::parse(&bytes).map_err(|e| e.at(path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let cure = "make the features again with `crossweave features`";
        let wrong = |e: &dyn std::fmt::Display| {
            Error::new(format!("what the features were made with is not understood: {e}")).cure(cure)
        };
        let value: Value = serde_json::from_slice(bytes).map_err(|e| wrong(&e))?;
        if value.get("crossweave").is_none() {
            return Ok(None);
        }
        match value["version"].as_u64() {
            Some(version) if version > VERSION => {
                Err(Error::new("these features were made by a newer version")
                    .expected(format!("version {VERSION}"))
                    .found(version)
                    .cure("use the crossweave that made them, or a newer one"))
            }
            _ => serde_json::from_value(value).map(Some).map_err(|e| wrong(&e)),
        }
    }

    /// Writes it into a folder, whole or not at all.
    ///
    /// # Errors
    /// A failed write.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("a recipe is plain data");
        atomic::file(&folder.join(FILE), |out| out.write_all(text.as_bytes()))
    }

    /// Captions of each image of a split, if it has that split.
    pub fn captions_per_image(&self, split: &str) -> Option<usize> {
        self.splits.get(split).map(|part| part.captions_per_image)
    }

    /// How another's features differ from what a model of this one's reads, in words.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        self.differing(other, |name| MATTERS.contains(&name))
    }

    /// How the making of another differs from that of this one, in words.
    pub fn all_differences(&self, other: &Self) -> Vec<String> {
        self.differing(other, |name| name != FREE)
    }

    fn differing(&self, other: &Self, counts: impl Fn(&str) -> bool) -> Vec<String> {
        let [own, other] = [self, other].map(|r| serde_json::to_value(r).expect("a recipe is plain data"));
        let fields = own.as_object().into_iter().flatten();
        let differing = fields.filter(|(name, value)| counts(name) && other[*name] != **value);
        let said = |name: &String, value: &Value| match value {
            // All of it would say no more.
            Value::Object(_) => format!("other {name}"),
            _ => format!("{name} {} instead of {value}", other[name]),
        };
        differing.map(|(name, value)| said(name, value)).collect()
    }

    /// The command that makes features of pictures as this one's were.
    pub fn command(&self) -> String {
        let Self { source, stage, image_size, .. } = self;
        format!(
            "crossweave features --encoder {source} --stage {stage} --image_size {image_size} --images DIR --out DATA"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe::new("0123".into(), "swin".into(), serde_json::json!({"img_size": 64}), 4, 64)
    }

    #[test]
    fn a_recipe_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Recipe::open(folder.path()).expect("none"), None);
        let mut all = recipe();
        let part = Part { pictures: 3, captions_per_image: 2, content: "4567".into() };
        all.splits.insert("train".into(), part);
        all.save(folder.path()).expect("written");
        assert_eq!(Recipe::open(folder.path()).expect("read"), Some(all.clone()));
        assert_eq!((all.captions_per_image("train"), all.captions_per_image("dev")), (Some(2), None));
    }

    #[test]
    fn only_what_a_model_sees_keeps_it_from_features() {
        let own = recipe();
        let free = Recipe {
            source: "elsewhere".into(),
            numbers: "f32".into(),
            min_count: 4,
            program: "9.0".into(),
            ..recipe()
        };
        assert_eq!(own.differences(&free), [""; 0]);
        assert_eq!(own.all_differences(&free).len(), 3);
        let other = Recipe { encoder: "89ab".into(), image_size: 96, ..recipe() };
        assert_eq!(
            own.differences(&other),
            ["encoder \"89ab\" instead of \"0123\"", "image_size 96 instead of 64"]
        );
        for changed in [Recipe { stage: 3, ..recipe() }, Recipe { preprocessing: 2, ..recipe() }] {
            assert_eq!(own.differences(&changed).len(), 1);
        }
    }

    #[test]
    fn what_is_none_is_told_apart() {
        assert_eq!(Recipe::parse(br#"{"a": 1}"#).expect("another program's"), None);
        for (text, part) in [
            ("{", "not understood"),
            (r#"{"crossweave": "0.1.0", "version": 1}"#, "not understood"),
            (r#"{"crossweave": "9.1.0", "version": 2}"#, "newer"),
        ] {
            let error = Recipe::parse(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
