//! What a run was begun with besides its options: its data, and a frozen text encoder's weights. Kept in the run's
//! configuration, compared when it goes on and when it is evaluated.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::dataset::{self, Dataset};
use crate::data::identity::{self, Identity};
use crate::data::recipe::Recipe;
use crate::data::tokenizer::Tokenizer;
use crate::data::weights::listing;
use crate::error::{Error, Result};
use crate::host::Inputs;

/// What a run remembers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// Each split of its data folder that could be opened.
    pub data: BTreeMap<String, Identity>,
    /// A hash of the text encoder's weights, where the run leaves them as they are and so does not keep them.
    pub encoder: Option<String>,
    /// What its features were made with, where the folder says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
}

impl Begun {
    /// The key in a run's configuration.
    pub const KEY: &'static str = "begun_with";

    /// What a run's configuration says; `None` for an imported checkpoint, which knows no data.
    pub fn of_run(description: &Value) -> Option<Self> {
        serde_json::from_value(description[Self::KEY].clone()).ok()
    }

    /// What is there now: every split of a data folder, as a model reads it, and a frozen encoder's folder.
    ///
    /// # Errors
    /// A file that cannot be read or that shrinks meanwhile.
    pub fn now(
        folder: &Path,
        wanted: &dataset::Options,
        inputs: &Inputs,
        tokenizer: &Tokenizer,
        encoder: Option<&Path>,
    ) -> Result<Self> {
        let recipe = if wanted.pictures { None } else { Recipe::open(folder)? };
        let mut begun = Self { recipe, ..Self::default() };
        for split in dataset::splits(folder, wanted.pictures) {
            // A split that is not whole is of no use to this run, nor to compare with.
            let Ok(mut data) = Dataset::open(folder, &split, wanted) else { continue };
            if data.prepare(inputs, tokenizer).is_ok() {
                begun.data.insert(split, Identity::of(&data)?);
            }
        }
        if let Some(folder) = encoder {
            begun.encoder = Some(identity::file(&folder.join("model.safetensors"), "the text encoder")?);
        }
        Ok(begun)
    }

    /// Refuses data whose features were made otherwise than those that the run was begun with, where both are known.
    ///
    /// # Errors
    /// Another encoder, stage, size of pictures or preprocessing.
    pub fn refuse_other_features(&self, now: Option<&Recipe>, run: &Path, data: &Path) -> Result<()> {
        let (Some(begun), Some(now)) = (&self.recipe, now) else { return Ok(()) };
        let differing = begun.differences(now);
        if differing.is_empty() {
            return Ok(());
        }
        Err(Error::new("the features were not made as those that the run was trained on")
            .at(data.display())
            .expected(format!("features made as {} had them", run.display()))
            .found(listing(&differing))
            .cure(format!("make them as those were: {}", begun.command())))
    }

    /// How what is there now differs in these splits and in the encoder, a line each.
    pub fn differences(&self, now: &Self, splits: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        for split in splits {
            if let (Some(begun), Some(now)) = (self.data.get(*split), now.data.get(*split)) {
                found.extend(begun.differences(now).iter().map(|what| format!("{split}: {what}")));
            }
        }
        if self.encoder.is_some() && now.encoder.is_some() && self.encoder != now.encoder {
            found.push("the text encoder: other weights".into());
        }
        found
    }
}
