//! Evaluation: models in their folders, a split encoded once, all its pairs scored in tiles, ranks and ensembles.

pub mod begun;
pub mod choices;
pub mod encoded;
pub mod features;
pub mod import;
pub mod model;
mod options;
pub mod rank;
pub mod score;
pub mod sims;
pub mod text_cache;

pub use features::FeaturesOptions;
pub use options::{EvaluateOptions, precisions};

/// What long work over a split tells while it runs; who listens decides how to show it.
#[derive(Clone, Debug)]
pub enum Progress {
    /// A sentence worth knowing: a layout taken, odd captions, a tile shrunk.
    Notice(String),
    /// Pictures are read, for the file of what evaluation sees of them.
    Reading {
        /// Pictures read.
        done: u64,
        /// Pictures in all.
        total: u64,
    },
    /// A frozen text encoder runs over the captions, for the cache of its states.
    Encoding {
        /// Captions encoded.
        done: u64,
        /// Captions in all.
        total: u64,
    },
    /// Features are made of pictures.
    Extracting {
        /// Pictures done by this call.
        done: u64,
        /// Pictures that were to do.
        total: u64,
    },
    /// Pairs are being scored.
    Evaluating {
        /// Pairs scored.
        done: u64,
        /// Pairs in all.
        total: u64,
    },
}
