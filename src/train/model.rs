//! A model with its weights and vocabulary, and the folders it lives in.
//!
//! A run's folder and an imported checkpoint's have one form: `config.json`, `vocab.txt` and
//! `model.safetensors` (a run's best weights so far).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use super::options::{BertInit, TrainOptions};
use crate::data::atomic;
use crate::data::tokenizer::{WordPiece, build_vocab};
use crate::data::weights::{self, Dtype, Entry, Weights};
use crate::error::{Error, Result};
use crate::nn::{ParamSpec, ParamValues, Params, Role, begin_values, bert, shapes};
use crate::systems::dime::{AttentionNorm, Config, Direction};
use crate::tensor::Device;

/// The version of the folder's form.
const VERSION: u64 = 1;
/// A configuration file larger than this is not read.
const LARGEST_CONFIG: u64 = 1 << 20;

/// DIME's options, parameters and vocabulary.
pub struct Model {
    /// The options.
    pub config: Config,
    /// What parameters there are.
    pub specs: Vec<ParamSpec>,
    /// Their values.
    pub params: Params,
    /// The tokenizer.
    pub pieces: WordPiece,
}

impl Model {
    /// A model with fresh weights for training: BERT from `--bert_path`, or random with a vocabulary built
    /// from the captions.
    ///
    /// # Errors
    /// A BERT folder that is missing, not imported or of another shape; sizes that make no model.
    pub fn begin(options: &TrainOptions, dim: usize, captions: &[String], device: &Device) -> Result<Self> {
        let (pieces, bert, pretrained) = match options.bert_init {
            BertInit::Random => {
                let pieces =
                    WordPiece::from_vocab(build_vocab(captions, options.vocab_size.unwrap_or(2000)))?;
                let config = random_bert(options, pieces.size())?;
                (pieces, config, None)
            }
            BertInit::Pretrained => {
                let folder = &options.bert_path;
                let weights = open_bert(folder)?;
                let config: bert::Config = read_json(&folder.join("config.json"))?;
                (WordPiece::open(&folder.join("vocab.txt"))?, config, Some(weights))
            }
        };
        let config = dime_config(options, dim, bert)?;
        check_vocab(&pieces, &config)?;
        let specs = config.parameters();
        // What the encoder's file holds needs no random beginning; many encoders come without a pooler, which
        // nothing here uses.
        let held = |s: &ParamSpec| {
            let pooler = s.name.starts_with("txt_enc.bert.pooler.");
            pretrained.as_ref().is_some_and(|weights| {
                s.role == Role::Encoder
                    && (!pooler || weights.names().any(|name| name.starts_with("pooler.")))
            })
        };
        let theirs = |name: &str| name.trim_start_matches("txt_enc.bert.").to_string();
        if let Some(weights) = &pretrained {
            let of = |s: &ParamSpec| (theirs(&s.name), s.shape.dims().to_vec());
            let expected: Vec<_> = specs.iter().filter(|s| held(s)).map(of).collect();
            weights::check(weights.path().display(), &expected, weights.shapes())?;
        }
        let params = Params::new(&specs, device, &mut |spec| match &pretrained {
            Some(weights) if held(spec) => stored(weights, &theirs(&spec.name), spec),
            _ => Ok(begin_values(spec, &specs, options.seed)),
        })?;
        Ok(Self { config, specs, params, pieces })
    }

    /// Checks that this model is the one a run was begun with, and takes its vocabulary.
    ///
    /// # Errors
    /// Another configuration, as from changed data or another text encoder; no vocabulary there.
    pub fn resume(&mut self, folder: &Path) -> Result<()> {
        let [own, begun] = [&self.config, &read_config(folder)?]
            .map(|config| serde_json::to_value(config).expect("a configuration is plain data"));
        if own != begun {
            let differing = |of: &Value, other: &Value| -> String {
                let fields = of.as_object().into_iter().flatten().filter(|(name, v)| other[*name] != **v);
                fields.map(|(name, v)| format!("{name} {v}")).collect::<Vec<_>>().join(", ")
            };
            return Err(Error::new("the data or the text encoder are not those that the run was begun with")
                .at(folder.display())
                .expected(differing(&begun, &own))
                .found(differing(&own, &begun))
                .cure("give the run its own data and --bert_path, or begin a new run"));
        }
        self.pieces = WordPiece::open(&folder.join("vocab.txt"))?;
        check_vocab(&self.pieces, &self.config)
    }

    /// Opens a run's or an imported checkpoint's folder.
    ///
    /// # Errors
    /// Missing files, another system, a newer version, weights that do not fit the configuration or are not
    /// finite.
    pub fn open(folder: &Path, vocab: Option<&Path>, device: &Device) -> Result<Self> {
        let config = read_config(folder)?;
        let file = folder.join("model.safetensors");
        if !file.exists() {
            return Err(Error::new("there are no weights here").at(file.display()).cure(
                "let the run reach its first validation, or import a checkpoint with the `import` program",
            ));
        }
        let weights = Weights::open(&file)?;
        weights.check_finite()?;
        let own = folder.join("vocab.txt");
        let pieces = WordPiece::open(vocab.unwrap_or(&own))?;
        let specs = config.parameters();
        weights::check(weights.path().display(), &shapes(&specs), weights.shapes())?;
        let params = Params::new(&specs, device, &mut |spec| stored(&weights, &spec.name, spec))?;
        check_vocab(&pieces, &config)?;
        Ok(Self { config, specs, params, pieces })
    }

    /// Whether a parameter is trained.
    pub fn is_trained(&self, name: &str, with_bert: bool) -> bool {
        self.specs
            .iter()
            .any(|s| s.name == name && (s.role == Role::Weight || (with_bert && s.role == Role::Encoder)))
    }

    /// Writes `config.json` and `vocab.txt`, the options of the run beside the configuration.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_config(&self, folder: &Path, options: &TrainOptions) -> Result<()> {
        let mut config = json!({"system": "dime", "version": VERSION, "options": options});
        let own = serde_json::to_value(&self.config).expect("a configuration is plain data");
        if let (Some(to), Value::Object(from)) = (config.as_object_mut(), own) {
            to.extend(from);
        }
        let text = serde_json::to_string_pretty(&config).expect("a configuration is plain data");
        atomic::file(&folder.join("config.json"), |out| out.write_all(text.as_bytes()))?;
        self.pieces.save(&folder.join("vocab.txt"))
    }

    /// Every parameter copied back, in the specs' order; `keep` picks by role.
    ///
    /// # Errors
    /// What the device reports.
    pub fn values(&self, keep: impl Fn(Role) -> bool) -> Result<Vec<(&ParamSpec, Vec<f32>)>> {
        let mut read = self.params.read(keep)?;
        Ok(self.specs.iter().filter_map(|s| Some((s, read.remove(s.name.as_str())?))).collect())
    }

    /// Writes all weights under their original names.
    ///
    /// # Errors
    /// As [`Model::values`], and a file that cannot be written: the former one stays.
    pub fn write_weights(&self, path: &Path) -> Result<()> {
        let values = self.values(|_| true)?;
        let entries: Vec<Entry> = values.iter().map(|(spec, v)| entry(spec, v)).collect();
        weights::write(path, &entries, &HashMap::from([("format".into(), "pt".into())]))
    }
}

/// A parameter as the original state dict keeps it: counters are whole numbers.
pub(super) fn entry<'a>(spec: &ParamSpec, values: &'a [f32]) -> Entry<'a> {
    if spec.role == Role::Counter {
        let bytes = values.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect::<Vec<u8>>();
        let shape = spec.shape.dims().to_vec();
        return Entry { name: spec.name.clone(), dtype: Dtype::I64, shape, bytes: bytes.into() };
    }
    Entry::f32s(spec.name.clone(), spec.shape.dims(), values)
}

/// A parameter's values, or its moments', as a file has them under `name`: f32 straight from the file's map.
pub(super) fn stored<'a>(weights: &'a Weights, name: &str, spec: &ParamSpec) -> Result<ParamValues<'a>> {
    Ok(match (weights.dtype(name), spec.role) {
        (Some(Dtype::F32), _) => ParamValues::Bytes(weights.bytes(name)?),
        (_, Role::Counter) => ParamValues::Values(weights.ints(name)?.iter().map(|v| *v as f32).collect()),
        _ => ParamValues::Values(weights.f32s(name)?),
    })
}

fn check_vocab(pieces: &WordPiece, config: &Config) -> Result<()> {
    if pieces.size() > config.bert_config.vocab_size {
        return Err(Error::new("the vocabulary has more pieces than the text encoder")
            .at("vocab.txt")
            .expected(format!("at most {}", config.bert_config.vocab_size))
            .found(pieces.size())
            .cure("give the vocabulary that the encoder was trained with"));
    }
    Ok(())
}

fn random_bert(options: &TrainOptions, vocab_size: usize) -> Result<bert::Config> {
    if let Some(file) = &options.bert_config {
        let config: bert::Config = read_json(file)?;
        return Ok(bert::Config { vocab_size, ..config });
    }
    let hidden = options.bert_hidden.unwrap_or(64);
    Ok(bert::Config {
        vocab_size,
        hidden_size: hidden,
        num_hidden_layers: options.bert_layers.unwrap_or(2),
        num_attention_heads: options.bert_heads.unwrap_or(4),
        intermediate_size: options.bert_intermediate.unwrap_or(4 * hidden),
        hidden_act: "gelu".into(),
        hidden_dropout_prob: 0.1,
        attention_probs_dropout_prob: 0.1,
        max_position_embeddings: options.max_words,
        type_vocab_size: 2,
        initializer_range: 0.02,
        layer_norm_eps: 1e-12,
    })
}

fn open_bert(folder: &Path) -> Result<Weights> {
    let file = folder.join("model.safetensors");
    if file.exists() {
        let weights = Weights::open(&file)?;
        weights.check_finite()?;
        return Ok(weights);
    }
    let error = Error::new("there is no imported BERT here").at(folder.display());
    let theirs = folder.join("pytorch_model.bin");
    Err(if theirs.exists() {
        error.cure(format!(
            "import it: cargo run --release --bin import -- bert {} OUT, then --bert_path OUT",
            theirs.display()
        ))
    } else {
        error
            .expected("model.safetensors, config.json and vocab.txt, as the `import` program writes them")
            .cure("give --bert_path, or train a small BERT along with --bert-init random")
    })
}

fn dime_config(options: &TrainOptions, dim: usize, bert_config: bert::Config) -> Result<Config> {
    let direction = if options.direction == "t2i" { Direction::T2i } else { Direction::I2t };
    let norm = Value::String(options.raw_feature_norm_CMRC.clone());
    let norm: AttentionNorm = serde_json::from_value(norm)
        .map_err(|_| Error::new("no such attention norm").at("--raw_feature_norm_CMRC"))?;
    let config = Config {
        direction,
        max_words: options.max_words,
        img_dim: dim,
        embed_size: options.embed_size,
        num_head_IMRC: options.num_head_IMRC,
        hid_IMRC: options.hid_IMRC,
        hid_router: options.hid_router,
        raw_feature_norm_CMRC: norm,
        lambda_softmax_CMRC: options.lambda_softmax_CMRC,
        use_abs: options.use_abs,
        no_imgnorm: options.no_imgnorm,
        margin: options.margin,
        max_violation: options.max_violation,
        trade_off: options.trade_off,
        batch_size: options.batch_size,
        path_hid: 128,
        mask_padding: options.mask_padding,
        bert_config,
    };
    config.check()?;
    Ok(config)
}

/// A folder's configuration as JSON, checked for system and version.
///
/// # Errors
/// No such file, no JSON, another system, a newer version.
pub fn read_description(folder: &Path) -> Result<Value> {
    let path = folder.join("config.json");
    let value: Value = read_json(&path)?;
    let system = value["system"].as_str().unwrap_or("none");
    if system != "dime" {
        return Err(Error::new("this folder holds another system")
            .at(path.display())
            .expected("dime")
            .found(system));
    }
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

/// A folder's DIME configuration.
///
/// # Errors
/// As [`read_description`], and options that are missing or make no model.
pub fn read_config(folder: &Path) -> Result<Config> {
    let place = folder.join("config.json");
    Config::read(&read_description(folder)?).map_err(|e| e.at(place.display()))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
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
