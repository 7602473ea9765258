//! Fresh models: the text encoder from a folder or from random weights, all else from a seed.

use std::path::Path;

use super::options::{BertInit, TrainOptions};
use crate::data::dataset::Dataset;
use crate::data::tokenizer::{Tokenizer, WORDS, WordPiece, build_vocab};
use crate::data::weights::{self, Weights};
use crate::data::words::Vocabulary;
use crate::error::{Error, Result};
use crate::eval::model::{Model, check_vocab, read_json, resampled};
use crate::nn::{ParamSpec, ParamValues, Params, Role, begin_values, bert, swin};
use crate::systems::{Encoders, System, Text, TextSide};
use crate::tensor::Device;

/// Pieces of a random encoder's captions at most, where the options do not say.
const MAX_WORDS: usize = 64;
/// Pieces of a vocabulary built from captions, where the options do not say.
const VOCAB: usize = 2000;

/// A model with fresh weights for training on these data: BERT from `--bert_path`, or random with a vocabulary built
/// from the captions; whole words from the data's vocabulary.
///
/// # Errors
/// A vocabulary or BERT folder that is missing, not imported or of another shape; sizes that make no model.
pub fn fresh(options: &TrainOptions, data: &Dataset, device: &Device) -> Result<Model> {
    let fixed = &options.fixed;
    let mut pretrained: Vec<Pretrained> = Vec::new();
    let image = options.own.image_encoder().map(|folder| open_swin(folder, &mut pretrained)).transpose()?;
    let (tokenizer, text) = match fixed.bert_init {
        _ if options.kind.text == Text::Words => {
            let vocabulary = vocabulary(options)?;
            let ids = vocabulary.size();
            (Tokenizer::Words(vocabulary), TextSide::Words(ids))
        }
        BertInit::Random => {
            let vocab = build_vocab(data.texts(), fixed.vocab_size.unwrap_or(VOCAB));
            let pieces = WordPiece::from_vocab(vocab)?;
            let config = random_bert(options, pieces.size())?;
            (Tokenizer::Pieces(pieces), TextSide::Bert(config))
        }
        BertInit::Pretrained => {
            let folder = &options.run.bert_path;
            pretrained.push(Pretrained { part: Part::Text, weights: open_bert(folder)? });
            let path = folder.join("config.json");
            let config = bert::Config::read(&read_json(&path)?).map_err(|e| e.at(path.display()))?;
            let pieces = WordPiece::open(&folder.join("vocab.txt"))?;
            (Tokenizer::Pieces(pieces), TextSide::Bert(config))
        }
    };
    let (batch_size, faithful) = (fixed.batch_size, fixed.faithful);
    let (regions, dim) = (data.regions(), data.dim());
    let system = options.own.system(&Encoders { regions, dim, image, text, batch_size, faithful })?;
    check_vocab(&tokenizer, &*system)?;
    if let Some(encoder) = system.image_encoder() {
        encoder.config.check_on(device)?;
    }
    let specs = system.parameters();
    for encoder in &pretrained {
        encoder.check(&*system, &specs)?;
    }
    let params = Params::new(&specs, device, &mut |spec| {
        let held = pretrained.iter().find_map(|encoder| Some((encoder, encoder.name(&*system, spec)?)));
        match held {
            Some((encoder, name)) => encoder.values(name, spec),
            None => Ok(begin_values(spec, &specs, fixed.seed)),
        }
    })?;
    Ok(Model { name: options.kind.name.to_string(), system, specs, params, tokenizer })
}

/// Which of a system's encoders.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Text,
    Image,
}

/// An encoder's weights to begin with.
struct Pretrained {
    part: Part,
    weights: Weights,
}

impl Pretrained {
    /// A parameter's name in the encoder's file; `None` for another's, and for one that the file lacks and may lack: a
    /// pooler, which nothing reads, and norms of a Swin's inner stages, which its first task has no use for.
    fn name<'s>(&self, system: &dyn System, spec: &'s ParamSpec) -> Option<&'s str> {
        let (prefix, optional) = match self.part {
            Part::Text => (system.text_encoder()?.prefix, "pooler."),
            Part::Image => (system.image_encoder()?.prefix, "norm_"),
        };
        let name = spec.name.strip_prefix(prefix).filter(|_| spec.role == Role::Encoder)?;
        let lacks = name.starts_with(optional) && !self.weights.names().any(|n| n.starts_with(optional));
        (!lacks).then_some(name)
    }

    /// Whether all parameters are there, of the right shapes.
    fn check(&self, system: &dyn System, specs: &[ParamSpec]) -> Result<()> {
        let expected = |spec: &ParamSpec| {
            let name = self.name(system, spec)?;
            let own = spec.shape.dims();
            // A table of another size is resampled.
            let found =
                self.weights.shape(name).filter(|found| swin::resized_table(name, found, own).is_some());
            Some((name.to_string(), found.unwrap_or(own).to_vec()))
        };
        let expected: Vec<_> = specs.iter().filter_map(expected).collect();
        weights::check(self.weights.path().display(), &expected, self.weights.shapes())
    }

    /// A parameter's values.
    fn values(&self, name: &str, spec: &ParamSpec) -> Result<ParamValues<'_>> {
        resampled(&self.weights, name, spec)
    }
}

/// The data's vocabulary; a run that goes on has its own, unless another is given.
fn vocabulary(options: &TrainOptions) -> Result<Vocabulary> {
    match (&options.run.resume, options.own.vocabulary()) {
        (Some(run), None) => Vocabulary::open(&run.join(WORDS)),
        (_, given) => Vocabulary::of_data(&options.data_folder(), given),
    }
}

fn random_bert(options: &TrainOptions, vocab_size: usize) -> Result<bert::Config> {
    let fixed = &options.fixed;
    if let Some(file) = &fixed.bert_config {
        let config: bert::Config = read_json(file)?;
        return Ok(bert::Config { vocab_size, ..config });
    }
    let hidden = fixed.bert_hidden.unwrap_or(64);
    Ok(bert::Config {
        vocab_size,
        hidden_size: hidden,
        num_hidden_layers: fixed.bert_layers.unwrap_or(2),
        num_attention_heads: fixed.bert_heads.unwrap_or(4),
        intermediate_size: fixed.bert_intermediate.unwrap_or(4 * hidden),
        hidden_act: "gelu".into(),
        hidden_dropout_prob: 0.1,
        attention_probs_dropout_prob: 0.1,
        max_position_embeddings: options.own.max_words().unwrap_or(MAX_WORDS),
        type_vocab_size: 2,
        initializer_range: 0.02,
        layer_norm_eps: 1e-12,
    })
}

fn open_bert(folder: &Path) -> Result<Weights> {
    let expected = "model.safetensors, config.json and vocab.txt, as the `import` program writes them";
    let cure = "give --bert_path, or train a small BERT along with --bert-init random";
    open_encoder(folder, "BERT", "bert", ["pytorch_model.bin"].as_slice(), expected, cure)
}

/// Opens an imported Swin: its weights are added to `pretrained`.
fn open_swin(folder: &Path, pretrained: &mut Vec<Pretrained>) -> Result<swin::Config> {
    let expected = "model.safetensors and config.json, as the `import` program writes them";
    let cure = "give the folder that `import -- swin FILE OUT` made, or train a small Swin along with --swin-init random";
    let weights = open_encoder(folder, "Swin", "swin", &[], expected, cure)?;
    pretrained.push(Pretrained { part: Part::Image, weights });
    let path = folder.join("config.json");
    let config: swin::Config = read_json(&path).map_err(|e| e.cure(cure))?;
    config.check().map_err(|e| e.at(path.display()))?;
    Ok(config)
}

fn open_encoder(
    folder: &Path,
    name: &str,
    what: &str,
    theirs: &[&str],
    expected: &str,
    cure: &str,
) -> Result<Weights> {
    let file = folder.join("model.safetensors");
    if file.exists() {
        let weights = Weights::open(&file)?;
        weights.check_finite()?;
        return Ok(weights);
    }
    let error = Error::new(format!("there is no imported {name} here")).at(folder.display());
    let import = |file: &Path| {
        format!(
            "import it: cargo run --release --bin import -- {what} {} OUT, then --{what}_path OUT",
            file.display()
        )
    };
    if let Some(parent) = folder.parent().filter(|_| folder.is_file()) {
        let error = error.found("a file");
        let imported = folder.file_name().is_some_and(|name| name == "model.safetensors");
        return Err(match imported {
            true => error.cure(format!("give its folder: --{what}_path {}", parent.display())),
            false => error.cure(import(folder)),
        });
    }
    let theirs = theirs.iter().map(|name| folder.join(name)).find(|path| path.exists());
    Err(match theirs {
        Some(file) => error.cure(import(&file)),
        None => error.expected(expected).cure(cure),
    })
}
