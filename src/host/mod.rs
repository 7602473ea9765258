//! The host twin's ground: f64 arrays, named columns of items, comparison by norm ratios, and the counter-based
//! generator.

mod array;
mod columns;
mod compare;
mod rng;

pub use array::Array;
pub use columns::{Column, Columns, Inputs};
pub use compare::{Ratios, ratios};
pub use rng::{Rng, hash_u32, uniform};
