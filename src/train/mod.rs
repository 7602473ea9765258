//! Training and evaluation: options, the loop, scoring, ranking, the metrics file and the event files.
pub mod event;
pub mod events;
pub mod metrics;
pub mod optim;
pub mod options;
pub mod rank;
pub mod run;
pub mod score;
pub mod sims;

pub use event::{Ending, Event};
