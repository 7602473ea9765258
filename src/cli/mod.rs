//! What the program shows to a person.
pub mod plot;
