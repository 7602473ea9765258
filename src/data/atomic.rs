//! Files and folders that appear whole or not at all.
//!
//! Everything is written to a temporary sibling, forced to the disk and then renamed into place, so a full
//! disk, a crash or a power cut leaves either the former file or the new one, never a half.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Links followed from one path at most.
const LINKS: usize = 40;

/// Writes a file through `fill`. On any failure the temporary is removed and a former file stays as it was;
/// the error names `path`.
pub fn file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    Pending::begin(path)?.write(fill)
}

/// A file that will be written when its content is there: its place is known to take it.
pub struct Pending {
    /// As the user named it.
    named: PathBuf,
    /// Where links lead.
    path: PathBuf,
    temporary: Temporary,
    file: File,
}

impl Pending {
    /// Makes the temporary beside the file, or beside the file that a link at `path` leads to.
    ///
    /// # Errors
    /// A folder, pipe or device at `path`, which a rename would replace; a place where no file can be made.
    pub fn begin(path: &Path) -> Result<Self> {
        let target = followed(path)?;
        let temporary = Temporary::beside(&target)?;
        let file = File::options().write(true).create_new(true).open(&temporary.path);
        let file = file.map_err(|e| failed("write the file", path, &e))?;
        Ok(Self { named: path.to_path_buf(), path: target, temporary, file })
    }

    /// Writes the file through `fill`, as [`file()`] does.
    ///
    /// # Errors
    /// A write that fails, as on a full disk; a former file is then as it was.
    pub fn write(self, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        self.write_in_parts(|out| fill(out))
    }

    /// As [`Pending::write`], in whatever order `fill` likes; what it leaves out below the file's length is zeros.
    ///
    /// # Errors
    /// As there.
    pub fn write_in_parts(
        self,
        fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
    ) -> Result<()> {
        let write = |file: File| {
            let mut buffered = BufWriter::with_capacity(1 << 20, file);
            fill(&mut buffered)?;
            buffered.into_inner().map_err(|e| e.into_error())?.sync_all()
        };
        write(self.file).map_err(|e| failed("write the file", &self.named, &e))?;
        self.temporary.rename_to(&self.path)
    }
}

/// The file that a path leads to, through links: it need not be there yet.
fn followed(path: &Path) -> Result<PathBuf> {
    if let Ok(about) = fs::metadata(path)
        && !about.is_file()
    {
        let what = if about.is_dir() { "this is a folder" } else { "this is a pipe or a device, no file" };
        return Err(Error::new(what).at(path.display()).cure("give the name of a file to write"));
    }
    let mut to = path.to_path_buf();
    for _ in 0..LINKS {
        let Ok(next) = fs::read_link(&to) else { return Ok(to) };
        to = to.parent().unwrap_or(Path::new("")).join(next);
    }
    Err(Error::new("links lead here without end").at(path.display()).cure("remove the link"))
}

/// As [`Error::io`]; a folder that is missing is named.
fn failed(doing: &str, path: &Path, e: &std::io::Error) -> Error {
    let error = Error::io(doing, path, e);
    match path.parent() {
        Some(parent) if e.kind() == ErrorKind::NotFound && !parent.exists() => {
            error.cure(format!("make the folder {} first", parent.display()))
        }
        _ => error,
    }
}

/// Makes the folder `path`, whose files `fill` writes into the temporary folder it is given. `path` must not
/// exist yet, or be an empty folder. On any failure nothing is left, and the error names `path`.
pub fn folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    refuse_existing(path)?;
    let temporary = Temporary::beside(path)?;
    fs::create_dir(&temporary.path).map_err(|e| failed("make the folder", path, &e))?;
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
    use std::io::Error as IoError;

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

    #[cfg(unix)]
    #[test]
    fn a_link_is_written_through_and_what_is_no_file_is_refused() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("elsewhere")).expect("a folder");
        symlink("elsewhere/new", at("second")).expect("a link");
        symlink("second", at("first")).expect("a link");
        for text in ["one", "two"] {
            file(&at("first"), |out| out.write_all(text.as_bytes())).expect("written through");
            assert_eq!(fs::read_to_string(at("elsewhere/new")).expect("the file"), text);
            assert!(fs::symlink_metadata(at("first")).expect("the link").is_symlink());
        }
        symlink("round", at("round")).expect("a link");
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().expect("mkfifo").success());
        for (name, part) in
            [("round", "without end"), ("pipe", "pipe or a device"), ("elsewhere", "a folder")]
        {
            let error = Pending::begin(&at(name)).err().expect(name).to_string();
            assert!(error.contains(part) && error.contains(name), "{error}");
        }
        assert!(fs::symlink_metadata(at("pipe")).expect("the pipe").file_type().is_fifo());
        let error = Pending::begin(&at("no/such")).err().expect("no folder").to_string();
        assert!(error.contains("make the folder") && error.contains("no first"), "{error}");
        assert_eq!(names(folder.path()), ["elsewhere", "first", "pipe", "round", "second"]);
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
