//! PyTorch checkpoints: what `torch.save` wrote, in its zip format (1.6 and later) or its legacy format,
//! by Python 2 or 3, from any device.
//!
//! The container is checked and its pickle decoded ([`archive`](super::archive), [`pickle`](super::pickle)); nothing is
//! executed. Entries that are compressed or damaged, storages missing or of another size than declared, tensors
//! that reach outside their storage and requests to call something are refused, so a file costs at most a small
//! multiple of its own size.

mod container;
mod tensor;

use crate::data::archive::shown;
use crate::data::foreign;
use crate::data::pickle::{Id, Node, Object, Pickle};
use crate::data::weights::{self, Dtype, Entry};
use crate::{Error, Result};
use container::Storages;
use memmap2::Mmap;
use serde_json::{Map, Value as Json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use tensor::{Tensor, is_tensor, key_text};

/// The deepest that tensors may be nested in dicts and lists.
const MAX_DEPTH: usize = 16;

/// The most dicts, lists and values that are looked at.
const MAX_VISITS: usize = 500_000;

/// The longest tensor name, in bytes.
const MAX_NAME: usize = 1024;

/// The most objects that are listed as unread.
const MAX_UNREAD: usize = 1000;

/// How much larger all tensors together may be than their file. Views share storages, so an honest file can
/// be exceeded; a hostile one repeats a few bytes without end.
const MAX_GROWTH: u64 = 8;

/// What any file may hold whatever its length, in bytes.
const SMALL: u64 = 16 << 20;

/// The most bytes of plain values that are kept.
const MAX_FACTS: usize = 4 << 20;

/// An open checkpoint. Tensors are read when asked for.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    map: Mmap,
    contents: Contents,
}

impl Checkpoint {
    /// Opens a checkpoint and checks its container, its pickle and every tensor's place.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io("open the checkpoint", path, &e);
        foreign::refuse(path)?;
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Err(refusal("the file is empty").at(path.display()));
        }
        let map = weights::map(&file).map_err(io)?;
        let contents = contents(&map).map_err(|e| e.at(path.display()))?;
        Ok(Self { path: path.to_path_buf(), map, contents })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors' names with their shapes, sorted by name. A name is the path through dicts (keys)
    /// and lists (numbers), joined by dots: `model.0.fc.weight`.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.contents.tensors.iter().map(|(name, tensor)| (name.as_str(), &tensor.shape[..]))
    }

    /// The plain values beside the tensors at the checkpoint's top: numbers, text, lists, and the attributes
    /// of a namespace (`opt`) as a JSON object.
    pub fn facts(&self) -> &Map<String, Json> {
        &self.contents.facts
    }

    /// What was not read, and never made: where, and what it is (a Python object, a dict's key that is no text).
    pub fn unread(&self) -> &[String] {
        &self.contents.unread
    }

    /// Reads a tensor: floats as f32, other types as they are.
    pub fn entry(&self, name: &str) -> Result<Entry<'_>> {
        let tensor = self.contents.tensors.get(name).ok_or_else(|| {
            let error = Error::new(format!("there is no tensor `{}`", shown(name))).at(self.path.display());
            error.cure("list the names with `import tensors`")
        })?;
        let bytes = tensor.read(&self.map);
        let (dtype, bytes) = match weights::widen(tensor.dtype, &bytes) {
            Some(values) if tensor.dtype != Dtype::F32 => {
                (Dtype::F32, Cow::Owned(bytemuck::cast_slice(&values).to_vec()))
            }
            _ => (tensor.dtype, bytes),
        };
        Ok(Entry { name: name.to_string(), dtype, shape: tensor.shape.clone(), bytes })
    }
}

fn refusal(what: impl std::fmt::Display) -> Error {
    let error = Error::new(format!("this is not a sound PyTorch checkpoint: {what}"));
    error.cure(
        "fetch the file again; if it stays so, load it in PyTorch and torch.save() its state_dict() anew",
    )
}

/// What a checkpoint holds.
#[derive(Debug, Default)]
struct Contents {
    tensors: BTreeMap<String, Tensor>,
    facts: Map<String, Json>,
    unread: Vec<String>,
}

/// Reads a file: its tensors by name, its facts, what is left unread.
fn contents(bytes: &[u8]) -> Result<Contents> {
    let (pickle, storages) = container::read(bytes)?;
    for node in pickle.nodes() {
        if let Node::Object(object) = node {
            check_call(&pickle, object)?;
        }
    }
    let Some(items) = pickle.items(pickle.root()) else {
        let error = refusal("its value is no dict of tensors");
        return Err(error
            .expected("a state dict, or a dict that holds some")
            .found(shown(&pickle.type_name(pickle.root()))));
    };
    let mut search =
        Search { pickle: &pickle, storages: &storages, found: Contents::default(), visits: 0, size: 0 };
    let mut left = MAX_FACTS;
    for (key, value) in items {
        let Some(name) = key_text(&pickle, key) else {
            search.skip("", key);
            continue;
        };
        let (tensors, unread) = (search.found.tensors.len(), search.found.unread.len());
        search.visit(value, &name, MAX_DEPTH)?;
        if search.found.tensors.len() > tensors {
            continue;
        }
        if let Some(fact) = pickle.json_within(value, 8, &mut left) {
            search.found.unread.truncate(unread);
            search.found.facts.insert(name.into_owned(), fact);
        } else if search.found.unread.len() == unread {
            search.skip(&name, value);
        }
    }
    search.finish(bytes.len() as u64)
}

/// Refuses a file that asks Python to call something harmful. Nothing is called here in any case.
fn check_call(pickle: &Pickle, object: &Object) -> Result<()> {
    let Some((module, name)) = pickle.class(object) else {
        return Err(refusal("it calls what is no class or function"));
    };
    if runs_code(module, name) {
        let what = format!("it asks Python to call {module}.{name} when it is opened");
        return Err(
            refusal(what).cure("do not open this file in Python either: it is an attack, not a checkpoint")
        );
    }
    if name == "_rebuild_from_type_v2" {
        return Err(refusal("it holds tensors of a Python subclass, which are not supported"));
    }
    Ok(())
}

/// Modules whose functions run code or touch the system.
const HARMFUL: &str = "os posix nt subprocess commands popen2 pty sys socket shutil runpy importlib imp ctypes \
    code codeop webbrowser pickle cPickle _pickle marshal multiprocessing threading asyncio bdb pdb timeit \
    urllib http ftplib tempfile";

/// Built-in classes that checkpoints name, and `getattr` and `type`, by which Python 3.11 pickles the members of enums: what they
/// would return is no class that a name stands for, so nothing can be called by it.
const HARMLESS: &str = "set frozenset dict list tuple int float complex bool str bytes bytearray slice range \
    object unicode long xrange getattr type";

/// Whether calling this would run code or touch the system: a file that asks for it is no checkpoint.
fn runs_code(module: &str, name: &str) -> bool {
    let listed = |list: &str, word: &str| list.split(' ').any(|known| known == word);
    match module.split('.').next().unwrap_or_default() {
        "builtins" | "__builtin__" => !listed(HARMLESS, name),
        top => listed(HARMFUL, top),
    }
}

/// The search for tensors through nested dicts and lists.
struct Search<'a> {
    pickle: &'a Pickle<'a>,
    storages: &'a Storages<'a>,
    found: Contents,
    visits: usize,
    /// Bytes of all tensors.
    size: u64,
}

impl Search<'_> {
    fn visit(&mut self, id: Id, name: &str, depth: usize) -> Result<()> {
        self.visits += 1;
        if depth == 0 || self.visits > MAX_VISITS {
            return Err(refusal("its values are nested too deeply, or repeat each other without end"));
        }
        if name.len() > MAX_NAME {
            return Err(refusal(format!("a name in it is longer than {MAX_NAME} bytes")).found(shown(name)));
        }
        if let Node::Object(object) = self.pickle.node(id)
            && is_tensor(self.pickle, object)
        {
            return self.add(name, object);
        }
        if let Some(items) = self.pickle.items(id) {
            self.visits += items.len();
            for (key, value) in items {
                match key_text(self.pickle, key) {
                    Some(key) => self.visit(value, &format!("{name}.{key}"), depth - 1)?,
                    None => self.skip(name, key),
                }
            }
        } else if let Some(values) = self.pickle.sequence(id) {
            for (index, &value) in values.iter().enumerate() {
                self.visit(value, &format!("{name}.{index}"), depth - 1)?;
            }
        } else if matches!(self.pickle.node(id), Node::Object(_)) {
            self.skip(name, id);
        }
        Ok(())
    }

    fn add(&mut self, name: &str, object: &Object) -> Result<()> {
        let tensor = tensor::tensor(self.pickle, object, self.storages)
            .map_err(|e| refusal(format!("the tensor `{}`: {e}", shown(name))))?;
        self.size = self.size.saturating_add(tensor.bytes() as u64);
        if self.found.tensors.insert(name.to_string(), tensor).is_some() {
            return Err(refusal(format!("two tensors are named `{}`", shown(name))));
        }
        if self.found.tensors.len() > weights::MAX_TENSORS {
            return Err(refusal(format!("it has more than {} tensors", weights::MAX_TENSORS)));
        }
        Ok(())
    }

    /// Notes what is not read.
    fn skip(&mut self, place: &str, id: Id) {
        if self.found.unread.len() < MAX_UNREAD {
            let place = if place.is_empty() { "the top" } else { place };
            self.found.unread.push(format!("{}: {}", shown(place), shown(&self.pickle.type_name(id))));
        }
    }

    /// What was found, if it is a checkpoint for a file of this length.
    fn finish(self, length: u64) -> Result<Contents> {
        if self.found.tensors.is_empty() {
            let error = refusal("it holds no tensors");
            return Err(match self.found.unread.is_empty() {
                true => error,
                false => error.found(weights::listing(&self.found.unread)),
            });
        }
        let most = length.saturating_mul(MAX_GROWTH).saturating_add(SMALL);
        if self.size > most {
            let error = refusal("its tensors repeat a small storage far beyond the size of the file");
            let expected = format!("at most {most} bytes in all");
            return Err(error.expected(expected).found(format!("{} bytes", self.size)));
        }
        Ok(self.found)
    }
}
