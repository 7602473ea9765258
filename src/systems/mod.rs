//! The published systems: what their papers add to the building blocks.

pub mod dime;
pub mod hinge;
