//! Training: options, the loop, checkpoints, the metrics and event files.

pub mod begin;
pub mod checkpoint;
mod checks;
pub mod event;
mod lock;
pub mod metrics;
pub mod options;
mod recovery;
mod results;
pub mod run;
pub mod tensorboard;

pub use event::{Ending, Event};
