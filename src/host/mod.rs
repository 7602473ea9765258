//! The host twin's ground: f64 arrays, comparison by norm ratios, and the counter-based generator.

mod array;
mod compare;
mod rng;

pub use array::{Array, ArrayView};
pub use compare::{Ratios, ratios};
pub use rng::{Rng, hash_u32, uniform};
