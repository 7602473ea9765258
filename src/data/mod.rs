//! Files in and out: features, captions, tokens, batches, weights. No GPU in it.
pub mod archive;
pub mod atomic;
pub mod import;
pub mod layouts;
pub mod pickle;
pub mod pytorch;
pub mod weights;
