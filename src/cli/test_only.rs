//! `crossweave train` as authors' programs have it that evaluate a checkpoint where an option says so.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::{Verdict, evaluate, note};
use crate::data::import::Source;
use crate::data::{atomic, weights};
use crate::error::{Error, Result};
use crate::eval::model::{open_tokenizer, read_description, read_json, run_folder};
use crate::eval::{EvaluateOptions, import};
use crate::train::options::TrainOptions;

/// The split that is evaluated.
const SPLIT: &str = "test";
/// The data set with two protocols.
const COCO: &str = "coco";

/// Evaluates a run's folder, or an authors' checkpoint, which is imported for that long.
///
/// # Errors
/// A checkpoint that is missing, of another system or model; all that [`evaluate::run`] reports.
pub fn run(options: &TrainOptions, checkpoint: &Path) -> Result<Verdict> {
    for warning in &options.warnings {
        note("warning", warning);
    }
    let imported = match run_folder(checkpoint) {
        Ok(_) => None,
        Err(_) if checkpoint.is_file() => Some(Imported::begin(options, checkpoint)?),
        Err(e) => return Err(e),
    };
    let folder = match &imported {
        Some(imported) => imported.0.clone(),
        None => run_folder(checkpoint)?,
    };
    check(options, &folder)?;
    let run = &options.run;
    let given = |name: &str, path: &PathBuf| options.given.iter().any(|id| id == name).then(|| path.clone());
    // A run remembers its data, a checkpoint does not.
    let or_default =
        |name: &str, path: &PathBuf| given(name, path).or_else(|| imported.as_ref().map(|_| path.clone()));
    let data_name = or_default("data_name", &run.data_name);
    let verdict = evaluate::run(&EvaluateOptions {
        runs: vec![folder],
        data_path: or_default("data_path", &run.data_path),
        data_name: data_name.clone(),
        split: SPLIT.into(),
        captions_per_image: options.fixed.captions_per_image,
        vocab: None,
        device: run.device.clone(),
        precision: options.fixed.precision,
        tile: options.fixed.tile,
        save_sims: None,
        sims: Vec::new(),
        folds: None,
        show: 0,
        stats: run.stats,
        json: false,
    })?;
    if data_name.is_some_and(|name| name.ends_with(COCO)) {
        let run = if imported.is_some() { "OUT (a folder that `import` made of it)" } else { "RUN" };
        note(
            "notice",
            &format!(
                "this is the protocol of all test images (COCO's 5K): `crossweave evaluate {run} --data_path D --data_name \
                 coco --folds 5` gives the 1K one"
            ),
        );
    }
    Ok(verdict)
}

/// Whether the folder holds what the options ask for.
fn check(options: &TrainOptions, folder: &Path) -> Result<()> {
    let description = read_description(folder)?;
    let (system, name) = (&description["system"], options.kind.name);
    if *system != name {
        return Err(Error::new("the checkpoint is of another system")
            .at(folder.display())
            .expected(name)
            .found(system)
            .cure(format!("`crossweave evaluate {}` evaluates any", folder.display())));
    }
    for (option, asked) in asked(options) {
        let is = [&description[&option], &description["options"][&option]]
            .into_iter()
            .find(|value| !value.is_null())
            .unwrap_or(&Json::Null);
        let same = is.is_null() || *is == asked || (asked.is_number() && is.as_f64() == asked.as_f64());
        if !same {
            return Err(Error::new(format!("the checkpoint is of another {option}"))
                .at(folder.display())
                .expected(asked)
                .found(is)
                .cure(format!("leave out {option}: the checkpoint says it")));
        }
    }
    Ok(())
}

/// The options of the model that the user gave.
fn asked(options: &TrainOptions) -> Vec<(String, Json)> {
    let Json::Object(fixed) = options.own.fixed() else { return Vec::new() };
    let faithful = ("faithful".to_string(), Json::Bool(options.fixed.faithful));
    let all = fixed.into_iter().chain([faithful]);
    all.filter(|(name, _)| options.given.contains(&name.replace('-', "_"))).collect()
}

/// The folder of an imported checkpoint, which is removed in the end.
struct Imported(PathBuf);

impl Imported {
    fn begin(options: &TrainOptions, checkpoint: &Path) -> Result<Self> {
        let (name, bert) = (options.kind.name, &options.run.bert_path);
        let (file, bert_folder) = (checkpoint.display(), bert.display());
        let by_itself = format!(
            "see what `cargo run --release --bin import -- {name} {file} OUT --config bert_config.json --vocab vocab.txt` \
             says (both of the BERT that it was trained with), then give OUT in place of {file}"
        );
        let without_bert = format!(
            "give the imported BERT that it was trained with: --bert_path DIR, with config.json and vocab.txt (now {bert_folder})"
        );
        let config: Json = read_json(&bert.join("config.json")).map_err(|e| e.cure(&without_bert))?;
        let tokenizer = open_tokenizer(bert, None, options.kind.text).map_err(|e| e.cure(&without_bert))?;
        let made = || {
            let source = Source::open(checkpoint)?;
            let imported = import::system(options.kind, &source, Some(&config), &asked(options))?;
            note(
                "notice",
                &format!("{file} is imported for this evaluation: `import` makes a folder that stays"),
            );
            let folder = std::env::temp_dir().join(format!("crossweave-{}-imported", std::process::id()));
            atomic::folder(&folder, |to| {
                weights::write(&to.join("model.safetensors"), &imported.entries, &imported.metadata)?;
                let text = format!("{:#}\n", imported.config);
                atomic::file(&to.join("config.json"), |file| file.write_all(text.as_bytes()))?;
                tokenizer.save(to)
            })?;
            Ok(Self(folder))
        };
        made().map_err(|e: Error| e.at(file).cure(by_itself))
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
