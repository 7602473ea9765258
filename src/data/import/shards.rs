//! Weights in several files, as Hugging Face cuts large models: an index names the file of each tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Source;
use crate::data::captions::read_limited;
use crate::{Error, Result};

/// What an index's name ends in.
const INDEX: &str = ".index.json";
/// The largest index read.
const MAX_FILE: u64 = 64 << 20;
/// The most files of one model.
const MAX_SHARDS: usize = 1000;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that an index names, opened.
pub struct Shards {
    path: PathBuf,
    files: Vec<Source>,
}

impl Shards {
    /// Opens every file that an index names, and checks that they hold what it says.
    ///
    /// # Errors
    /// No index, a file that is missing or no weights, a tensor that is not where the index says, or in two files.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |what: String| Error::new(what).at(path.display());
        let bytes = read_limited(path, MAX_FILE, "the index of the weights")?;
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|e| wrong(format!("this is no index of weights: {e}")).cure("download it again"))?;
        let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
        let plain = |name: &&&str| Path::new(**name).file_name() != Some(name.as_ref());
        if let Some(name) = names.iter().find(plain) {
            return Err(
                wrong("the index names a file that is not beside it".into()).found(format!("{name:?}"))
            );
        }
        if names.is_empty() || names.len() > MAX_SHARDS {
            let error = wrong("the index names no files, or too many".into());
            return Err(error.expected(format!("1 to {MAX_SHARDS}")).found(names.len()));
        }
        let file = |name: &&str| {
            let file = path.with_file_name(name);
            if !file.is_file() {
                let error = wrong(format!("a file of the weights is missing: {name}"));
                return Err(error.expected(format!("{} files", names.len())).cure("download it too"));
            }
            Source::open_one(&file)
        };
        let files = names.iter().map(file).collect::<Result<Vec<Source>>>()?;
        let mut held = BTreeSet::new();
        for (name, _) in files.iter().flat_map(Source::shapes) {
            if !held.insert(name) {
                return Err(wrong(format!("two of the files hold `{name}`")).cure("download them again"));
            }
        }
        match index.weight_map.keys().find(|name| !held.contains(name.as_str())) {
            Some(name) => Err(wrong(format!("no file holds `{name}`, which the index lists"))
                .cure("download the files again, all of one version")),
            None => Ok(Self { path: path.to_path_buf(), files }),
        }
    }

    /// The index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files.
    pub fn files(&self) -> &[Source] {
        &self.files
    }

    /// The file that holds a tensor.
    ///
    /// # Errors
    /// None does.
    pub fn holding(&self, name: &str) -> Result<&Source> {
        let holds = |file: &&Source| file.shapes().any(|(own, _)| own == name);
        self.files.iter().find(holds).ok_or_else(|| {
            Error::new(format!("there is no tensor `{name}`")).at(self.path.display()).cure("check the index")
        })
    }
}

/// The index meant by a path: itself, or that of the shard `NAME-00001-of-00002.EXT`.
///
/// # Errors
/// A shard without its index.
pub(super) fn index_of(path: &Path) -> Result<Option<PathBuf>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(INDEX) {
        return Ok(Some(path.to_path_buf()));
    }
    let Some((stem, extension)) = name.rsplit_once('.') else { return Ok(None) };
    let numbers = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let cut = stem.rsplit_once("-of-").filter(|(_, all)| numbers(all));
    let Some((whole, _)) = cut.and_then(|(head, _)| head.rsplit_once('-').filter(|(_, n)| numbers(n))) else {
        return Ok(None);
    };
    let index = path.with_file_name(format!("{whole}.{extension}{INDEX}"));
    match index.is_file() {
        true => Ok(Some(index)),
        false => Err(Error::new("this is one of several files of a model, and their index is not beside it")
            .at(path.display())
            .expected(index.display())
            .cure("download the index and all files that it names into one folder")),
    }
}
