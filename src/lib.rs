//! Crossweave.
pub mod data;
pub mod error;
pub mod gpu;
pub mod host;
pub mod ops;
pub mod shape;
pub mod tensor;

pub use error::{Error, Kind, Result};
