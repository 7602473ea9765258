//! The states of a frozen text encoder, computed once per caption and kept in the run's folder.
//!
//! A cache is a `.npy` array `[captions, words, hidden]` of f32. What it was computed from is part of its name,
//! so a file of other weights, captions or lengths is never taken up; it appears whole or not at all.

use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::Progress;
use super::encoded::interrupted;
use super::model::Model;
use super::sims::npy_header;
use crate::data::atomic;
use crate::data::batches::{BatchPlan, assemble};
use crate::data::dataset::Dataset;
use crate::data::features::Features;
use crate::data::identity;
use crate::data::tokenizer::TokenTable;
use crate::error::{Error, Kind, Result};
use crate::host::Inputs;
use crate::nn::bert::{self, Tokens};
use crate::systems::{Items, TextEncoder};
use crate::tensor::{Device, Tensor};

/// Captions encoded at a time.
const ENCODE: usize = 64;

/// A split's captions to be encoded.
pub struct Captions<'a> {
    /// The split's name.
    pub split: &'a str,
    /// The split.
    pub data: &'a Dataset,
    /// Its tokens.
    pub tokens: &'a TokenTable,
}

/// The encoder's last states of a split's captions, read from a mapped file.
#[derive(Debug)]
pub struct TextCache(Features);

impl TextCache {
    /// Opens the run's file of these captions, or makes it with the model's text encoder, whose weights and
    /// configuration came from the folder `bert`. `stop` ends the making between batches.
    ///
    /// # Errors
    /// A file that cannot be read or written, what the device reports, states that are not finite, or `stop`.
    pub fn open(
        run: &Path,
        bert: &Path,
        captions: &Captions,
        model: &Model,
        device: &Device,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let name = format!("text-{}-", captions.split);
        let path = run.join(format!("{name}{:016x}.npy", key(bert, captions.tokens)?));
        let encoder = model.system.text_encoder().ok_or_else(|| {
            Error::new("this system has no text encoder whose states could be kept")
                .cure("leave out --cache-text")
        })?;
        let shape = [captions.tokens.len(), captions.tokens.words(), encoder.config.hidden_size];
        if path.exists() {
            match Features::open(&path) {
                Ok(file) if [file.len(), file.regions(), file.dim()] == shape && file.is_f32() => {
                    tell(Progress::Notice(format!(
                        "text states of {} are in {}",
                        captions.split,
                        path.display()
                    )));
                    return Ok(Self(file));
                }
                Ok(_) => {
                    tell(Progress::Notice(format!("{} has another shape or type: made anew", path.display())))
                }
                Err(e) => tell(Progress::Notice(format!("{e}; made anew"))),
            }
        }
        remove_stale(run, &name)?;
        let encode = |part| states(&encoder, model, captions, part, device);
        write(&path, shape, &encode, stop, tell)?;
        Ok(Self(Features::open(&path)?))
    }

    /// The states `[captions, words, hidden]` of some captions' first `words`, on the device.
    ///
    /// # Errors
    /// A file that shrank, a caption it does not have, states that are not finite.
    pub fn upload(&self, captions: &[usize], words: usize, device: &Device) -> Result<Tensor> {
        let shape = [captions.len(), words, self.0.dim()];
        let bytes = 4 * words * self.0.dim();
        let rows = captions.iter().map(|&caption| Ok(&self.0.f32_bytes(caption)?[..bytes]));
        Ok(device.tensor_of_bytes(shape, &rows.collect::<Result<Vec<_>>>()?))
    }
}

fn write(
    path: &Path,
    shape: [usize; 3],
    encode: &dyn Fn(Vec<usize>) -> Result<Vec<f32>>,
    stop: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(Progress),
) -> Result<()> {
    let total = shape[0];
    let mut failed = None;
    let written = atomic::file(path, |out| {
        tell(Progress::Encoding { done: 0, total: total as u64 });
        out.write_all(&npy_header("<f4", &shape))?;
        for start in (0..total).step_by(ENCODE) {
            let part: Vec<usize> = (start..total.min(start + ENCODE)).collect();
            let done = (start + part.len()) as u64;
            match interrupted(stop).and_then(|()| encode(part)) {
                Ok(values) => values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))?,
                Err(e) => {
                    failed = Some(e);
                    return Err(io::Error::other("no states"));
                }
            }
            tell(Progress::Encoding { done, total: total as u64 });
        }
        Ok(())
    });
    failed.map_or(written, Err)
}

/// The last states of some captions.
fn states(
    encoder: &TextEncoder,
    model: &Model,
    captions: &Captions,
    part: Vec<usize>,
    device: &Device,
) -> Result<Vec<f32>> {
    let inputs = Inputs { captions: &["input_ids", "attention_mask"], pad_to_max: true, ..Inputs::default() };
    let plan = BatchPlan { captions: part, ..BatchPlan::default() };
    let batch = assemble(captions.data, captions.tokens, &inputs, &plan, None)?;
    let x = Items::upload(&batch.captions, device);
    let [ids, mask] = ["input_ids", "attention_mask"].map(|name| x.at(name).clone());
    let scope = model.params.below(encoder.prefix);
    let tokens = Tokens { ids, mask, types: None };
    let values = bert::encode(&scope, encoder.config, &tokens, None).last().to_vec()?;
    if values.iter().all(|v| v.is_finite()) {
        return Ok(values);
    }
    Err(Error::of(Kind::NonFinite, "the text encoder gives states that are NaN or infinite")
        .at(format!(
            "captions {} to {}",
            batch.caption_ids[0],
            batch.caption_ids[batch.caption_ids.len() - 1]
        ))
        .cure("give another --bert_path"))
}

/// What states follow from: the encoder's weights and configuration, and the captions' tokens (thus the
/// vocabulary and the captions' length), besides this program.
fn key(bert: &Path, tokens: &TokenTable) -> Result<u64> {
    let mut hasher = Xxh3::new();
    hasher.write(env!("CARGO_PKG_VERSION").as_bytes());
    for name in ["model.safetensors", "config.json"] {
        hasher.write(identity::file(&bert.join(name), "the text encoder")?.as_bytes());
    }
    hasher.write_usize(tokens.words());
    for caption in 0..tokens.len() {
        hasher.write_usize(tokens.length(caption));
        tokens.ids(caption).iter().for_each(|id| hasher.write_u32(*id));
    }
    Ok(hasher.digest())
}

/// Removes the split's caches of other encoders or captions: they are large, and nothing will read them.
fn remove_stale(run: &Path, name: &str) -> Result<()> {
    let entries = std::fs::read_dir(run).map_err(|e| Error::io("look into the run's folder", run, &e))?;
    let paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    for path in paths {
        let file = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let key = file.strip_prefix(name).and_then(|rest| rest.strip_suffix(".npy"));
        if key.is_some_and(|key| key.len() == 16 && key.bytes().all(|b| b.is_ascii_hexdigit())) {
            std::fs::remove_file(&path).map_err(|e| Error::io("remove the stale text states", &path, &e))?;
        }
    }
    Ok(())
}
