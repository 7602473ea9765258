//! Files in and out: features, captions, tokens, batches, weights. No GPU in it.

pub mod batches;
pub mod captions;
pub mod check;
pub mod dataset;
pub mod features;
pub mod prefetch;
pub mod tokenizer;

#[cfg(test)]
mod hostile;
