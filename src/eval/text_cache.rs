//! The states of a frozen text encoder, computed once per caption and kept in the run's folder.
//!
//! A cache is a `.npy` array `[captions, words, hidden]` of f32. What it was computed from is part of its name,
//! so a file of other weights, captions or lengths is never taken up; it appears whole or not at all. Where padding does
//! not count, it is zeros, and nothing is computed for it but what brings a batch to one length.

use std::hash::Hasher;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::Progress;
use super::encoded::interrupted;
use super::model::Model;
use super::sims::npy_header;
use crate::data::atomic::Pending;
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
        write(&path, shape, captions.tokens, &encode, stop, tell)?;
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

/// Writes the states of captions, those of like lengths together, each where it belongs; past what `encode` gives are
/// zeros.
fn write(
    path: &Path,
    shape: [usize; 3],
    tokens: &TokenTable,
    encode: &dyn Fn(Vec<usize>) -> Result<Vec<Vec<f32>>>,
    stop: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(Progress),
) -> Result<()> {
    let total = shape[0];
    let header = npy_header("<f4", &shape);
    let place = |caption: usize| (header.len() + 4 * caption * shape[1] * shape[2]) as u64;
    let mut order: Vec<usize> = (0..total).collect();
    order.sort_by_key(|caption| std::cmp::Reverse(tokens.length(*caption)));
    let mut failed = None;
    let written = Pending::begin(path)?.write_in_parts(|out| {
        tell(Progress::Encoding { done: 0, total: total as u64 });
        out.write_all(&header)?;
        out.get_ref().set_len(place(total))?;
        let mut done = 0;
        for part in order.chunks(ENCODE) {
            match interrupted(stop).and_then(|()| encode(part.to_vec())) {
                Ok(rows) => {
                    for (caption, row) in part.iter().zip(rows) {
                        out.seek(SeekFrom::Start(place(*caption)))?;
                        row.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))?;
                    }
                }
                Err(e) => {
                    failed = Some(e);
                    return Err(io::Error::other("no states"));
                }
            }
            done += part.len() as u64;
            tell(Progress::Encoding { done, total: total as u64 });
        }
        Ok(())
    });
    failed.map_or(written, Err)
}

/// The last states of some captions: of the words that each has, or where padding counts of all.
fn states(
    encoder: &TextEncoder,
    model: &Model,
    captions: &Captions,
    part: Vec<usize>,
    device: &Device,
) -> Result<Vec<Vec<f32>>> {
    let Inputs { pad_to_max, least, .. } = model.system.inputs();
    let inputs =
        Inputs { captions: &["input_ids", "attention_mask"], pad_to_max, least, ..Inputs::default() };
    let plan = BatchPlan { captions: part, ..BatchPlan::default() };
    let batch = assemble(captions.data, captions.tokens, &inputs, &plan, None)?;
    let x = Items::upload(&batch.captions, device);
    let [ids, mask] = ["input_ids", "attention_mask"].map(|name| x.at(name).clone());
    let scope = model.params.below(encoder.prefix);
    let tokens = Tokens { ids, mask, types: None };
    let values = bert::encode(&scope, encoder.config, &tokens, None).last().to_vec()?;
    let hidden = encoder.config.hidden_size;
    let own = |(caption, row): (&usize, &[f32])| {
        let words = if pad_to_max { batch.words } else { captions.tokens.length(*caption) };
        row[..words * hidden].to_vec()
    };
    let rows = values.chunks(batch.words * hidden);
    let rows: Vec<Vec<f32>> = batch.caption_ids.iter().zip(rows).map(own).collect();
    match rows.iter().position(|row| row.iter().any(|v| !v.is_finite())) {
        None => Ok(rows),
        Some(bad) => {
            Err(Error::of(Kind::NonFinite, "the text encoder gives states that are NaN or infinite")
                .at(format!("caption {}", batch.caption_ids[bad]))
                .cure("give another --bert_path"))
        }
    }
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
