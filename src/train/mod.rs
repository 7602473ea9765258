//! Training and evaluation: options, the loop, checkpoints, scoring, ranking, the metrics and event files.

pub mod checkpoint;
pub mod encoded;
pub mod event;
pub mod events;
pub mod metrics;
pub mod model;
pub mod optim;
pub mod options;
pub mod rank;
mod recovery;
pub mod run;
pub mod score;
pub mod sims;
pub mod textcache;

pub use event::{Ending, Event};
