//! What the program shows to a person.
pub mod parity;
pub mod plot;
