//! Files and folders that appear whole or not at all.
//!
//! Everything is written to a temporary sibling, forced to the disk and then renamed into place, so a full
//! disk, a crash or a power cut leaves either the former file or the new one, never a half.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file through `fill`. On any failure the temporary is removed and a former file stays as it was;
/// the error names `path`.
pub fn file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let temporary = Temporary::beside(path)?;
    let write = || {
        let file = File::options().write(true).create_new(true).open(&temporary.path)?;
        let mut buffered = BufWriter::with_capacity(1 << 20, file);
        fill(&mut buffered)?;
        buffered.into_inner().map_err(|e| e.into_error())?.sync_all()
    };
    write().map_err(|e| Error::io("write the file", path, &e))?;
    temporary.rename_to(path)
}

/// Makes the folder `path`, whose files `fill` writes into the temporary folder it is given. `path` must not
/// exist yet, or be an empty folder. On any failure nothing is left, and the error names `path`.
pub fn folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    refuse_existing(path)?;
    let temporary = Temporary::beside(path)?;
    fs::create_dir(&temporary.path).map_err(|e| Error::io("make the folder", path, &e))?;
    fill(&temporary.path).map_err(|e| e.at(path.display()))?;
    sync_folder(&temporary.path);
    temporary.rename_to(path)
}

/// An error if something is already at `path` (an empty folder aside).
pub fn refuse_existing(path: &Path) -> Result<()> {
    let taken = match fs::read_dir(path) {
        Ok(mut files) => files.next().is_some(),
        Err(_) => path.symlink_metadata().is_ok(),
    };
    if taken {
        let error = Error::new("the output is already there").at(path.display());
        return Err(error.cure("give another output folder, or remove this one first"));
    }
    Ok(())
}

/// A sibling of the final path, removed on drop unless it was renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = path.file_name().ok_or_else(|| {
            Error::new("this path has no file name")
                .at(path.display())
                .cure("give the name of the file to write")
        })?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let own = format!(".{}.{}-{count}.tmp", name.to_string_lossy(), std::process::id());
        Ok(Self { path: path.with_file_name(own) })
    }

    fn rename_to(self, path: &Path) -> Result<()> {
        fs::rename(&self.path, path).map_err(|e| Error::io("put the file in place", path, &e))?;
        std::mem::forget(self);
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_folder(parent);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if fs::remove_file(&self.path).is_err() {
            // Nothing is left to report it to: the failure that brought us here is already on its way.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Makes a rename in this folder durable. Systems that cannot open a folder (Windows) need no such step.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error as IoError, ErrorKind};

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .expect("the test folder")
            .map(|f| f.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_keeps_the_former_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("weights");
        file(&path, |out| out.write_all(b"first")).expect("the first write");
        let error = file(&path, |out| {
            out.write_all(&[7; 3 << 20])?;
            Err(IoError::from(ErrorKind::StorageFull))
        })
        .expect_err("the disk is full");
        assert!(error.to_string().contains("free some space"), "{error}");
        assert!(error.to_string().contains("weights"), "{error}");
        assert_eq!(fs::read(&path).expect("the former file"), b"first");
        assert_eq!(names(folder.path()), ["weights"]);
    }

    #[test]
    fn a_failed_folder_leaves_nothing() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let path = parent.path().join("out");
        let failed = folder(&path, |inside| {
            fs::write(inside.join("a"), b"a").expect("a file inside");
            Err(Error::new("stop").at(inside.display()))
        });
        let failed = failed.expect_err("stopped").to_string();
        assert_eq!(failed, format!("{}: stop", path.display()));
        assert!(names(parent.path()).is_empty());
        folder(&path, |inside| file(&inside.join("a"), |out| out.write_all(b"a"))).expect("the folder");
        assert_eq!(names(&path), ["a"]);
        let again = folder(&path, |_| Ok(())).expect_err("it exists");
        assert!(again.to_string().contains("already there"), "{again}");
    }
}
