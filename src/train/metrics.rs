//! The metrics of a run: one JSON object a line, appended as training goes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

/// The file's name.
pub const FILE: &str = "metrics.jsonl";

/// No line that Crossweave writes comes near.
const LONGEST_LINE: u64 = 1 << 20;

/// A run of a million logged steps stays below.
const LARGEST_FILE: u64 = 1 << 30;

/// An open metrics file. Every row is the system's, whole, when [`MetricsLog::append`] returns: a killed process loses
/// none. [`MetricsLog::sync`] keeps them from a power failure too.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the file, made if absent, to append to it.
    ///
    /// With `keep_until_step` the file is cut before the first row whose `step` is larger, as a resumed run
    /// writes those rows again. A torn last line, which a killed run may leave, is cut off too.
    ///
    /// Errors: the file cannot be opened or cut, or is no metrics file (the line is named; it stays as it is).
    pub fn open(path: &Path, keep_until_step: Option<u64>) -> Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path);
        let file = file.map_err(|e| Error::io("open the metrics file", path, &e))?;
        let kept = scan(path, &file, |row| match (row["step"].as_u64(), keep_until_step) {
            (Some(step), Some(last)) => step <= last,
            _ => true,
        })?;
        let cut = file.set_len(kept).and_then(|()| file.sync_data());
        cut.map_err(|e| Error::io("cut the metrics file", path, &e))?;
        Ok(Self { path: path.into(), file })
    }

    /// Appends one row, a JSON object.
    ///
    /// Errors: the row is no object or too long, or the file cannot be written.
    pub fn append(&mut self, row: &Value) -> Result<()> {
        let line = format!("{row}\n");
        if !row.is_object() || line.len() as u64 > LONGEST_LINE {
            return Err(Error::new("not a row of a metrics file")
                .at(self.path.display())
                .expected(format!("a JSON object of at most {LONGEST_LINE} bytes"))
                .found(format!("{} bytes", line.len())));
        }
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.flush());
        written.map_err(|e| Error::io("write the metrics file", &self.path, &e))
    }

    /// Forces all rows to the disk.
    ///
    /// # Errors
    /// The disk does not take them.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("write the metrics file", &self.path, &e))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// All rows of a metrics file; a torn last line is left out.
///
/// Errors: the file cannot be read, or is no metrics file (the line is named).
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let file = File::open(path).map_err(|e| Error::io("read the metrics file", path, &e))?;
    let mut rows = Vec::new();
    scan(path, &file, |row| {
        rows.push(row.clone());
        true
    })?;
    Ok(rows)
}

/// Hands rows to `keep` until it says no or a torn line ends the file; returns the bytes up to there.
fn scan(path: &Path, file: &File, mut keep: impl FnMut(&Value) -> bool) -> Result<u64> {
    let fail = |e: &std::io::Error| Error::io("read the metrics file", path, e);
    let size = file.metadata().map_err(|e| fail(&e))?.len();
    if size > LARGEST_FILE {
        return Err(Error::new("the metrics file is too large")
            .at(path.display())
            .expected(format!("at most {LARGEST_FILE} bytes"))
            .found(size)
            .cure("move it away; the run starts a new one"));
    }
    let mut reader = BufReader::new(file);
    let (mut kept, mut line, mut number) = (0, Vec::new(), 0usize);
    loop {
        line.clear();
        number += 1;
        reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(|e| fail(&e))?;
        let whole = line.last() == Some(&b'\n');
        let last = kept + line.len() as u64 >= size;
        if line.is_empty() || (!whole && last) {
            return Ok(kept);
        }
        match serde_json::from_slice::<Value>(&line) {
            Ok(row) if whole && row.is_object() => {
                if !keep(&row) {
                    return Ok(kept);
                }
            }
            // A crash of the machine may leave a hole of zeros in the last block.
            _ if last && line.contains(&0) => return Ok(kept),
            _ => {
                return Err(Error::new("a line is no JSON object")
                    .at(format!("{}, line {number}", path.display()))
                    .expected("one JSON object a line")
                    .found(excerpt(&line))
                    .cure("remove the line, or move the file away"));
            }
        }
        kept += line.len() as u64;
    }
}

fn excerpt(line: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(&line[..line.len().min(60)]).escape_debug().collect();
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn file_of(text: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, text).expect("written");
        (folder, path)
    }

    #[test]
    fn rows_come_back_as_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let rows = [json!({"step": 1, "loss": 0.1}), json!({"note": "two\nlines"}), json!({"step": 3})];
        for row in &rows {
            MetricsLog::open(&path, None).expect("opened").append(row).expect("appended");
        }
        assert_eq!(read(&path).expect("read"), rows);
    }

    #[test]
    fn resuming_drops_the_rows_past_its_step() {
        let (_folder, path) =
            file_of(b"{\"step\":1}\n{\"step\":2}\n{\"epoch\":0}\n{\"step\":3}\n{\"step\":4}\n");
        let mut log = MetricsLog::open(&path, Some(2)).expect("opened");
        log.append(&json!({"step": 3, "again": true})).expect("appended");
        let text = std::fs::read_to_string(&path).expect("read");
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"epoch\":0}\n{\"again\":true,\"step\":3}\n");
    }

    #[test]
    fn a_torn_last_line_is_cut() {
        for torn in ["{\"step\":2", "{\"step\":2}", "{\"st\0\0\0\n", "\0\0\0\0"] {
            let (_folder, path) = file_of(format!("{{\"step\":1}}\n{torn}").as_bytes());
            assert_eq!(read(&path).expect("read").len(), 1, "{torn:?}");
            MetricsLog::open(&path, None).expect("opened").append(&json!({"step": 2})).expect("appended");
            assert_eq!(read(&path).expect("read"), [json!({"step": 1}), json!({"step": 2})], "{torn:?}");
        }
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_left_alone() {
        let deep = ["[".repeat(100_000), "\n{}\n".into()].concat();
        for text in ["no json\n{}\n", "[1]\n", "\n{}\n", "{}\n\u{fffd}\n{}\n", &deep] {
            let (_folder, path) = file_of(text.as_bytes());
            let error = MetricsLog::open(&path, Some(0)).expect_err("refused");
            assert!(error.to_string().contains("line "), "{error}");
            assert!(error.to_string().len() < 1000);
            assert_eq!(std::fs::read(&path).expect("read"), text.as_bytes());
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let (_folder, path) = file_of(&vec![b'x'; 3 << 20]);
        assert!(read(&path).is_err());
    }

    #[test]
    fn only_objects_are_rows() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = MetricsLog::open(&folder.path().join("m"), None).expect("opened");
        assert!(log.append(&json!([1])).is_err());
        assert!(log.append(&json!({"text": "x".repeat(LONGEST_LINE as usize)})).is_err());
        assert!(MetricsLog::open(folder.path(), None).is_err());
        assert!(read(&folder.path().join("absent")).is_err());
    }

    proptest! {
        #[test]
        fn cutting_anywhere_loses_at_most_the_last_row(n in 1..6u64, cut in 0..200usize) {
            let text: String = (0..n).map(|step| format!("{}\n", json!({"step": step}))).collect();
            let kept = &text[..cut.min(text.len())];
            let (_folder, path) = file_of(kept.as_bytes());
            prop_assert_eq!(read(&path).expect("read").len(), kept.matches('\n').count());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (_folder, path) = file_of(&bytes);
            if let Ok(rows) = read(&path) {
                prop_assert!(rows.iter().all(Value::is_object));
            }
        }
    }
}
