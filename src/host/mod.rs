//! What the host computes with: f64 arrays, comparison by norm ratios, random numbers.

mod array;
mod compare;
mod rng;

pub use array::Array;
pub use compare::{Ratios, ratios};
pub use rng::{Rng, hash_u32, uniform};
