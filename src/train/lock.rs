//! One process a run: a file in its folder that the system keeps locked as long as the process lives.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// The file in a run's folder: while it is locked it holds the process's number.
const FILE: &str = "lock";
/// Bytes of a number that are shown.
const SHOWN: u64 = 20;

/// The right to write a run. The system takes it back when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Takes a run's lock, the folder being there. `None` on a file system that knows no locks.
    ///
    /// # Errors
    /// Another process that has it, which is named; a folder that cannot be written.
    pub(super) fn take(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let io = |e| Error::io("lock the run", &path, &e);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Some systems keep others from reading a locked file: then the holder has no number here.
                let _ = file.take(SHOWN).read_to_string(&mut holder);
                let holder =
                    if holder.is_empty() { "another process".into() } else { format!("process {holder}") };
                return Err(Error::new("this run is being trained already")
                    .at(folder.display())
                    .found(format!("{holder} writes it"))
                    .cure("wait until it ends, or stop it; the run can then go on with --resume"));
            }
            Err(TryLockError::Error(_)) => return Ok(None),
        }
        file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(io)?;
        Ok(Some(Self(file)))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The lock goes with the file; a number that stays says nothing.
        let _ = self.0.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_refused_and_told_of_the_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = Lock::take(folder.path()).expect("free").expect("locks work here");
        let error = Lock::take(folder.path()).expect_err("taken").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        // The number of a process that was killed.
        std::fs::write(folder.path().join(FILE), "123456789").expect("written");
        Lock::take(folder.path()).expect("its lock died with it").expect("locks work here");
        assert_eq!(std::fs::read(folder.path().join(FILE)).expect("read"), b"");
    }
}
