//! Paths that a run's configuration remembers: they mean the same from any folder, and need not be text.

use std::path::{Path, PathBuf};

use serde::Serializer;
use serde_json::{Value as Json, json};

/// What a path that is no text is kept under: its bytes.
const BYTES: &str = "bytes";

/// The path from the root: links and `..` stay as they are.
pub fn absolute(path: &Path) -> PathBuf {
    // It fails on an empty path only, which is no place at all.
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The path as a configuration keeps it: text, or else its bytes.
pub fn to_json(path: &Path) -> Json {
    match path.to_str() {
        Some(text) => text.into(),
        None => json!({BYTES: path.as_os_str().as_encoded_bytes()}),
    }
}

/// The path that a configuration kept.
pub fn from_json(kept: &Json) -> Option<PathBuf> {
    let byte = |b: &Json| u8::try_from(b.as_u64()?).ok();
    match kept {
        Json::String(text) => Some(text.into()),
        _ => from_bytes(kept[BYTES].as_array()?.iter().map(byte).collect::<Option<Vec<u8>>>()?),
    }
}

#[cfg(unix)]
fn from_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
    Some(std::os::unix::ffi::OsStringExt::from_vec(bytes)).map(|name: std::ffi::OsString| name.into())
}

/// Elsewhere paths that are no text are too rare to be kept.
#[cfg(not(unix))]
fn from_bytes(_: Vec<u8>) -> Option<PathBuf> {
    None
}

/// Serializes a path from the root.
///
/// # Errors
/// What the serializer reports.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&to_json(&absolute(path)), serializer)
}

/// Serializes a name that a path ends in.
///
/// # Errors
/// What the serializer reports.
pub fn serialize_name<S: Serializer>(name: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&to_json(name), serializer)
}

/// As [`serialize`], of a path that may be missing.
///
/// # Errors
/// What the serializer reports.
pub fn serialize_some<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&path.as_ref().map(|path| to_json(&absolute(path))), serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_back_as_it_was() {
        let mut paths = vec![PathBuf::from("data"), PathBuf::from("/\u{e4}/b c")];
        #[cfg(unix)]
        paths.push(from_bytes(b"/runs/\xff\x80".to_vec()).expect("bytes are a path"));
        for path in paths {
            let text = to_json(&path).to_string();
            assert_eq!(from_json(&serde_json::from_str(&text).expect("JSON")), Some(path));
        }
        assert!(absolute(Path::new("data")).is_absolute());
        for kept in [json!(null), json!(3), json!({BYTES: [256]}), json!({BYTES: "x"}), json!([47])] {
            assert_eq!(from_json(&kept), None, "{kept}");
        }
    }
}
