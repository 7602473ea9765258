//! What surrounds a training step: ranking, the metrics file and the event files.
pub mod events;
pub mod metrics;
pub mod optim;
pub mod rank;
