//! Fresh models: the text encoder from a folder or from random weights, all else from a seed.

use std::path::Path;

use super::options::{BertInit, TrainOptions};
use crate::data::dataset::Dataset;
use crate::data::tokenizer::{Tokenizer, WORDS, WordPiece, build_vocab};
use crate::data::weights::{self, Weights};
use crate::data::words::Vocabulary;
use crate::error::{Error, Result};
use crate::eval::model::{Model, check_vocab, read_json, stored};
use crate::nn::{ParamSpec, Params, Role, begin_values, bert};
use crate::systems::{Encoders, Text, TextSide};
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
    let (tokenizer, text, pretrained) = match fixed.bert_init {
        _ if options.kind.text == Text::Words => {
            let vocabulary = vocabulary(options)?;
            let ids = vocabulary.size();
            (Tokenizer::Words(vocabulary), TextSide::Words(ids), None)
        }
        BertInit::Random => {
            let vocab = build_vocab(data.texts(), fixed.vocab_size.unwrap_or(VOCAB));
            let pieces = WordPiece::from_vocab(vocab)?;
            let config = random_bert(options, pieces.size())?;
            (Tokenizer::Pieces(pieces), TextSide::Bert(config), None)
        }
        BertInit::Pretrained => {
            let folder = &options.run.bert_path;
            let weights = open_bert(folder)?;
            let path = folder.join("config.json");
            let config = bert::Config::read(&read_json(&path)?).map_err(|e| e.at(path.display()))?;
            let pieces = WordPiece::open(&folder.join("vocab.txt"))?;
            (Tokenizer::Pieces(pieces), TextSide::Bert(config), Some(weights))
        }
    };
    let (batch_size, faithful) = (fixed.batch_size, fixed.faithful);
    let (regions, dim) = (data.regions(), data.dim());
    let system = options.own.system(&Encoders { regions, dim, text, batch_size, faithful })?;
    check_vocab(&tokenizer, &*system)?;
    let specs = system.parameters();
    let prefix = system.text_encoder().map_or("", |encoder| encoder.prefix);
    // What the encoder's file holds needs no random beginning; many encoders come without a pooler, which
    // nothing here uses.
    let held = |s: &ParamSpec| {
        let inner = s.name.strip_prefix(prefix).filter(|_| s.role == Role::Encoder);
        inner.zip(pretrained.as_ref()).is_some_and(|(name, weights)| {
            !name.starts_with("pooler.") || weights.names().any(|name| name.starts_with("pooler."))
        })
    };
    if let Some(weights) = &pretrained {
        let inner = |s: &ParamSpec| (s.name[prefix.len()..].to_string(), s.shape.dims().to_vec());
        let expected: Vec<_> = specs.iter().filter(|s| held(s)).map(inner).collect();
        weights::check(weights.path().display(), &expected, weights.shapes())?;
    }
    let params = Params::new(&specs, device, &mut |spec| match &pretrained {
        Some(weights) if held(spec) => stored(weights, &spec.name[prefix.len()..], spec),
        _ => Ok(begin_values(spec, &specs, fixed.seed)),
    })?;
    Ok(Model { name: options.kind.name.to_string(), system, specs, params, tokenizer })
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
    let file = folder.join("model.safetensors");
    if file.exists() {
        let weights = Weights::open(&file)?;
        weights.check_finite()?;
        return Ok(weights);
    }
    let error = Error::new("there is no imported BERT here").at(folder.display());
    if let Some(parent) = folder.parent().filter(|_| folder.is_file()) {
        return Err(error.found("a file").cure(format!("give its folder: --bert_path {}", parent.display())));
    }
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
