//! Crossweave.

pub mod cli;
pub mod data;
pub mod error;
pub mod gpu;
pub mod host;
pub mod nn;
pub mod ops;
pub mod shape;
pub mod systems;
pub mod tensor;
pub mod train;

pub use error::{Error, Kind, Result};
