//! The metrics file.
