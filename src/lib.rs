//! Crossweave.
pub mod data;
pub mod error;
pub mod shape;

pub use error::{Error, Kind, Result};
