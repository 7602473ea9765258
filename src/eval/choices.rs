//! The measured choices of kernels on disk: a file an adapter and driver in the user's folder of caches.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::data::atomic;
use crate::gpu::{Choices, Options, Precision, Store};

/// The options of a device that remembers what it measures: the one the user named, or the best.
pub fn remembering(device: Option<&str>, precision: Precision) -> Options {
    let store = ChoicesFolder::of_user().map(|folder| Rc::new(folder) as Rc<dyn Store>);
    Options { device: device.map(Into::into), precision: Some(precision), store, ..Options::default() }
}

/// A folder of choices.
#[derive(Clone, Debug)]
pub struct ChoicesFolder(PathBuf);

impl ChoicesFolder {
    /// In this folder, which is made when there is something to keep.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The user's: `CROSSWEAVE_CACHE`, or where the system has caches; `None` where there is no such folder.
    pub fn of_user() -> Option<Self> {
        let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let own = of("CROSSWEAVE_CACHE").or_else(|| {
            let all = of("XDG_CACHE_HOME").or_else(|| of("LOCALAPPDATA"));
            Some(all.or_else(|| of("HOME").map(|home| home.join(".cache")))?.join("crossweave"))
        });
        own.map(Self)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn file(&self, about: &str) -> PathBuf {
        self.0.join(format!("choices-{:016x}.json", xxhash_rust::xxh3::xxh3_64(about.as_bytes())))
    }
}

impl Store for ChoicesFolder {
    /// A file that is broken, or about something else, is as good as none.
    fn load(&self, about: &str) -> Option<Choices> {
        let kept: Choices = serde_json::from_slice(&std::fs::read(self.file(about)).ok()?).ok()?;
        (kept.about == about).then_some(kept)
    }

    /// A disk that cannot be written is no reason to stop.
    fn save(&self, choices: &Choices) {
        let text = serde_json::to_string_pretty(choices).expect("it is plain data");
        let _ = std::fs::create_dir_all(&self.0);
        let _ = atomic::file(&self.file(&choices.about), |out| out.write_all(text.as_bytes()));
    }
}
