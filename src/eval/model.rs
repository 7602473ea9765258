//! A model with its weights and vocabulary, and the folders it is kept in.
//!
//! A run's folder and an imported checkpoint's have one form: `config.json`, `vocab.txt` (of whole
//! words: `vocab.json`) and `model.safetensors` (a run's best weights so far).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::begun::Begun;
use crate::data::atomic;
use crate::data::tokenizer::{PIECES, Tokenizer, WORDS, WordPiece};
use crate::data::weights::{self, Dtype, Entry, Weights};
use crate::data::words::Vocabulary;
use crate::error::{Error, Result};
use crate::nn::{ParamSpec, ParamValues, Params, Role, position_table, shapes, swin};
use crate::systems::{System, Text, kind, kinds};
use crate::tensor::Device;

/// The version of the folder's form.
const VERSION: u64 = 1;
/// A configuration file larger than this is not read.
const LARGEST_CONFIG: u64 = 1 << 20;

/// A system with its parameters and vocabulary.
pub struct Model {
    /// The system's name.
    pub name: String,
    /// The system.
    pub system: Box<dyn System>,
    /// What parameters there are.
    pub specs: Vec<ParamSpec>,
    /// Their values.
    pub params: Params,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
}

impl Model {
    /// Checks that this model is the one a run was begun with, and takes its vocabulary.
    ///
    /// # Errors
    /// Another configuration, as from changed data or another text encoder; other words; no vocabulary there.
    pub fn resume(&mut self, folder: &Path) -> Result<()> {
        let text = kind(&self.name)?.text;
        let tokenizer = open_tokenizer(folder, None, text)?;
        if let (Tokenizer::Words(own), Tokenizer::Words(begun)) = (&self.tokenizer, &tokenizer)
            && own != begun
        {
            return Err(Error::new("the vocabulary is not the one that the run was begun with")
                .at(folder.display())
                .expected(format!("the {} words of {WORDS}", begun.size()))
                .found(format!("other words, {} in all", own.size()))
                .cure("leave out --vocab_path to go on with the run's own, or begin a new run"));
        }
        let (_, begun) = read_system(folder)?;
        let [own, begun] = [self.system.config(), begun.config()];
        if own != begun {
            let differing = |of: &Value, other: &Value| -> String {
                let fields = of.as_object().into_iter().flatten().filter(|(name, v)| other[*name] != **v);
                fields.map(|(name, v)| format!("{name} {v}")).collect::<Vec<_>>().join(", ")
            };
            let (what, cure) = match text {
                Text::Bert { .. } => ("the data or the text encoder", "its own data and --bert_path"),
                Text::Words => ("the data", "its own data"),
            };
            return Err(Error::new(format!("{what} are not those that the run was begun with"))
                .at(folder.display())
                .expected(differing(&begun, &own))
                .found(differing(&own, &begun))
                .cure(format!("give the run {cure}, or begin a new run")));
        }
        self.tokenizer = tokenizer;
        check_vocab(&self.tokenizer, &*self.system)
    }

    /// Opens a run's or an imported checkpoint's folder.
    ///
    /// # Errors
    /// Missing files, an unknown system, a newer version, weights that do not fit the configuration or are not
    /// finite.
    pub fn open(folder: &Path, vocab: Option<&Path>, device: &Device) -> Result<Self> {
        Stored::open(folder, vocab)?.on(device)
    }

    /// Whether a parameter is trained.
    pub fn is_trained(&self, name: &str, with_text: bool) -> bool {
        self.specs.iter().any(|s| s.name == name && is_trained(s, with_text))
    }

    /// Writes `config.json` and the vocabulary, the run's options and what it was begun with beside the configuration.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_config(&self, folder: &Path, options: &Value, begun: &Begun) -> Result<()> {
        let mut config =
            json!({"system": self.name, "version": VERSION, "options": options, Begun::KEY: begun});
        if let (Some(to), Value::Object(from)) = (config.as_object_mut(), self.system.config()) {
            to.extend(from);
        }
        let text = serde_json::to_string_pretty(&config).expect("a configuration is plain data");
        atomic::file(&folder.join("config.json"), |out| out.write_all(text.as_bytes()))?;
        self.tokenizer.save(folder)
    }

    /// Every parameter copied back, in the specs' order; `keep` picks by role.
    ///
    /// # Errors
    /// What the device reports.
    pub fn values(&self, keep: impl Fn(Role) -> bool) -> Result<Vec<(&ParamSpec, Vec<f32>)>> {
        let mut read = self.params.read(keep)?;
        Ok(self.specs.iter().filter_map(|s| Some((s, read.remove(s.name.as_str())?))).collect())
    }

    /// Writes all weights that evaluation needs under their original names.
    ///
    /// # Errors
    /// As [`Model::values`], and a file that cannot be written: the former one stays.
    pub fn write_weights(&self, path: &Path) -> Result<()> {
        let values = self.values(|role| role != Role::Criterion)?;
        let entries: Vec<Entry> = values.iter().map(|(spec, v)| entry(spec, v)).collect();
        weights::write(path, &entries, &HashMap::from([("format".into(), "pt".into())]))
    }
}

/// A model in its folder, opened and checked; its weights are on no device yet.
pub struct Stored {
    /// The system's name.
    pub name: String,
    /// The system.
    pub system: Box<dyn System>,
    specs: Vec<ParamSpec>,
    weights: Weights,
    /// What reads its captions.
    pub tokenizer: Tokenizer,
}

impl Stored {
    /// Opens a run's or an imported checkpoint's folder.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open(folder: &Path, vocab: Option<&Path>) -> Result<Self> {
        let (name, system) = read_system(folder)?;
        let file = folder.join("model.safetensors");
        if !file.exists() {
            return Err(Error::new("there are no weights here").at(file.display()).cure(
                "let the run reach its first validation, or import a checkpoint with the `import` program",
            ));
        }
        let weights = Weights::open(&file)?;
        weights.check_finite()?;
        let tokenizer = open_tokenizer(folder, vocab, kind(&name)?.text)?;
        let specs: Vec<ParamSpec> = saved(system.parameters()).collect();
        weights::check(weights.path().display(), &shapes(&specs), weights.shapes())?;
        check_vocab(&tokenizer, &*system)?;
        Ok(Self { name, system, specs, weights, tokenizer })
    }

    /// Its weights, as they are stored.
    pub fn into_weights(self) -> Weights {
        self.weights
    }

    /// The model, its weights on a device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn on(self, device: &Device) -> Result<Model> {
        let Self { name, system, specs, weights, tokenizer } = self;
        let params = Params::new(&specs, device, &mut |spec| stored(&weights, &spec.name, spec))?;
        Ok(Model { name, system, specs, params, tokenizer })
    }
}

/// Whether training moves a parameter.
pub fn is_trained(spec: &ParamSpec, with_text: bool) -> bool {
    matches!(spec.role, Role::Weight | Role::Criterion) || (with_text && spec.role == Role::Encoder)
}

/// The parameters of a saved model: all but the loss's own.
pub fn saved(specs: Vec<ParamSpec>) -> impl Iterator<Item = ParamSpec> {
    specs.into_iter().filter(|s| s.role != Role::Criterion)
}

/// A parameter as the original state dict keeps it: counters are whole numbers.
pub fn entry<'a>(spec: &ParamSpec, values: &'a [f32]) -> Entry<'a> {
    if spec.role == Role::Counter {
        let bytes = values.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect::<Vec<u8>>();
        let shape = spec.shape.dims().to_vec();
        return Entry { name: spec.name.clone(), dtype: Dtype::I64, shape, bytes: bytes.into() };
    }
    Entry::f32s(spec.name.clone(), spec.shape.dims(), values)
}

/// A parameter's values, or its moments', as a file has them under `name`: f32 straight from the file's map.
///
/// # Errors
/// A type that holds no numbers.
pub fn stored<'a>(weights: &'a Weights, name: &str, spec: &ParamSpec) -> Result<ParamValues<'a>> {
    Ok(match (weights.dtype(name), spec.role) {
        (Some(Dtype::F32), _) => ParamValues::Bytes(weights.bytes(name)?),
        (_, Role::Counter) => ParamValues::Values(weights.ints(name)?.iter().map(|v| *v as f32).collect()),
        _ => ParamValues::Values(weights.f32s(name)?),
    })
}

/// As [`stored`], of an encoder for pictures of any size: a table of relative positions is resampled.
///
/// # Errors
/// As [`stored`].
pub fn resampled<'a>(weights: &'a Weights, name: &str, spec: &ParamSpec) -> Result<ParamValues<'a>> {
    let found = weights.shape(name).unwrap_or_default();
    match swin::resized_table(name, found, spec.shape.dims()) {
        Some([from, to, heads]) => {
            let table = weights.f32s(name)?;
            Ok(ParamValues::Values(position_table::resampled(&table, from, to, heads)))
        }
        None => stored(weights, name, spec),
    }
}

/// What a model of a folder reads captions with: from the file `given`, or else from the folder's own.
///
/// # Errors
/// A missing or bad file.
pub fn open_tokenizer(folder: &Path, given: Option<&Path>, text: Text) -> Result<Tokenizer> {
    let path = |own: &str| given.map_or_else(|| folder.join(own), Path::to_path_buf);
    Ok(match text {
        Text::Bert { .. } => Tokenizer::Pieces(WordPiece::open(&path(PIECES))?),
        Text::Words => Tokenizer::Words(Vocabulary::open(&path(WORDS))?),
    })
}

/// Whether the system has a row for every id of a vocabulary.
///
/// # Errors
/// A vocabulary that is too large.
pub fn check_vocab(tokenizer: &Tokenizer, system: &dyn System) -> Result<()> {
    let rows = match tokenizer {
        Tokenizer::Pieces(_) => system.text_encoder().map(|encoder| encoder.config.vocab_size),
        Tokenizer::Words(_) => Some(system.inputs().vocabulary),
    };
    match rows.filter(|rows| tokenizer.size() > *rows) {
        Some(rows) => Err(Error::new("the vocabulary has more ids than the model")
            .at(tokenizer.file())
            .expected(format!("at most {rows}"))
            .found(tokenizer.size())
            .cure("give the vocabulary that the model was trained with")),
        None => Ok(()),
    }
}

/// The folder of a run or of an imported checkpoint: a file inside means its folder.
///
/// # Errors
/// Nothing there, or a file that is in no such folder: for weights of other programs, how to import them.
pub fn run_folder(path: &Path) -> Result<PathBuf> {
    if path.is_dir() {
        let holds = |folder: &Path| folder.join("config.json").is_file();
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        return match entries.filter(|entry| holds(entry)).min().filter(|_| !holds(path)) {
            Some(run) => Err(Error::new("this folder is no run but holds one")
                .at(path.display())
                .cure(format!("give {}", run.display()))),
            None => Ok(path.to_path_buf()),
        };
    }
    if !path.exists() {
        return Err(Error::new("there is no such run").at(path.display()).cure(
            "check the path; it is the folder that `crossweave train` named with --model_name, or else with --logger_name, \
             or that `import` made",
        ));
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if parent.join("config.json").is_file() && read_description(parent).is_ok() {
        return Ok(parent.to_path_buf());
    }
    let names: Vec<&str> = kinds().iter().map(|kind| kind.name).collect();
    Err(Error::new("this is a file, and no run's").at(path.display()).expected("the folder of a run").cure(
        format!(
            "if it is a checkpoint of {}, import it first: `cargo run --release --bin import -- SYSTEM {} OUT --config bert_config.json \
             --vocab vocab.txt`, then give OUT",
            names.join(" or "),
            path.display()
        ),
    ))
}

/// A folder's configuration as JSON, checked for system and version.
///
/// # Errors
/// No such file, no JSON, an unknown system, a newer version.
pub fn read_description(folder: &Path) -> Result<Value> {
    let path = folder.join("config.json");
    let value: Value = read_json(&path)?;
    kind(value["system"].as_str().unwrap_or_default()).map_err(|e| e.at(path.display()))?;
    let version = value["version"].as_u64().unwrap_or(VERSION);
    if version > VERSION {
        return Err(Error::new("this folder was written by a newer version")
            .at(path.display())
            .expected(format!("version {VERSION}"))
            .found(version)
            .cure("use the crossweave that wrote it, or a newer one"));
    }
    Ok(value)
}

/// The system of a folder, with its name.
///
/// # Errors
/// As [`read_description`], and options that are missing or make no model.
pub fn read_system(folder: &Path) -> Result<(String, Box<dyn System>)> {
    let description = read_description(folder)?;
    let name = description["system"].as_str().unwrap_or_default().to_string();
    let system = (kind(&name)?.open)(&description);
    Ok((name, system.map_err(|e| e.at(folder.join("config.json").display()))?))
}

/// A small JSON file.
///
/// # Errors
/// A file that is missing, too large, or not understood.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let about = std::fs::metadata(path).map_err(|e| Error::io("read the configuration", path, &e))?;
    if about.len() > LARGEST_CONFIG {
        return Err(Error::new("this is no configuration: it is too large")
            .at(path.display())
            .expected(format!("at most {LARGEST_CONFIG} bytes"))
            .found(about.len()));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io("read the configuration", path, &e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(format!("the configuration is not understood: {e}")).at(path.display()))
}
