//! Crossweave.
pub mod cli;
pub mod error;
pub mod shape;
pub mod train;

pub use error::{Error, Kind, Result};
