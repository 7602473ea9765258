//! Files in and out: features, captions, tokens, batches, weights. No GPU in it.

pub mod archive;
pub mod atomic;
pub mod batches;
pub mod boxes;
pub mod captioned;
pub mod captions;
pub mod check;
pub mod dataset;
pub mod depends;
pub mod features;
mod foreign;
pub mod identity;
pub mod ids;
pub mod import;
pub mod paths;
pub mod pickle;
pub mod pictures;
pub mod prefetch;
pub mod pytorch;
pub mod ragged;
pub mod recipe;
pub mod tokenizer;
pub mod weights;
pub mod word_ids;
pub mod words;

#[cfg(test)]
mod hostile;
