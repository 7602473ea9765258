//! The one error of the crate: what went wrong, where, what was expected, what was found, and the cure.

use std::fmt;
use std::path::Path;

/// What class of trouble an [`Error`] reports, for callers that react to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file, flag or value that the user gave is wrong.
    Input,
    /// No usable adapter, or a limit of it is exceeded.
    Adapter,
    /// The device ran out of memory.
    OutOfMemory,
    /// The device was lost; a new [`crate::gpu::Gpu`] is needed.
    DeviceLost,
    /// A loss, gradient or score is NaN or infinite.
    NonFinite,
    /// Reading or writing a file failed.
    Io,
    /// The user asked to stop.
    Interrupted,
}

/// An error as shown to a person. Built with [`Error::new`] and the chained setters.
#[derive(Clone, Debug)]
pub struct Error(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    kind: Kind,
    what: String,
    place: Option<String>,
    expected: Option<String>,
    found: Option<String>,
    cure: Option<String>,
}

/// The crate's result type.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An input error that says `what` is wrong.
    pub fn new(what: impl Into<String>) -> Self {
        Self::of(Kind::Input, what)
    }

    /// An error of the given kind.
    pub fn of(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            kind,
            what: what.into(),
            place: None,
            expected: None,
            found: None,
            cure: None,
        }))
    }

    /// A failed file operation: `doing` completes "could not ..".
    pub fn io(doing: &str, path: &Path, e: &std::io::Error) -> Self {
        let cure = match e.kind() {
            std::io::ErrorKind::StorageFull => "free some space on that disk and run again",
            std::io::ErrorKind::PermissionDenied => "check the permissions of that path",
            std::io::ErrorKind::NotFound => "check the path",
            _ => "",
        };
        let error = Self::of(Kind::Io, format!("could not {doing}: {e}")).at(path.display());
        if cure.is_empty() { error } else { error.cure(cure) }
    }

    /// Where: a file, an option, a line.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(place.to_string());
        self
    }

    /// What would have been right.
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(expected.to_string());
        self
    }

    /// What was there instead.
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.0.found = Some(found.to_string());
        self
    }

    /// What the user can do about it.
    pub fn cure(mut self, cure: impl fmt::Display) -> Self {
        self.0.cure = Some(cure.to_string());
        self
    }

    /// The class of this error.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.0.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}", self.0.what)?;
        let rows = [("expected", &self.0.expected), ("found", &self.0.found), ("cure", &self.0.cure)];
        for (label, text) in rows {
            if let Some(text) = text {
                write!(f, "\n  {label}: {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
