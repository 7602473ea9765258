//! What the host computes with: f64 arrays, named columns of items, comparison by norm ratios, random numbers.

mod array;
mod columns;
mod compare;
mod rng;

pub use array::{Array, ArrayView};
pub use columns::{Column, Columns, Inputs};
pub use compare::{Ratios, ratios};
pub use rng::{Rng, hash_u32, uniform};
