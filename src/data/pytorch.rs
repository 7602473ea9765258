//! PyTorch checkpoints: what `torch.save` wrote, in its zip format (1.6 and later) or its legacy format,
//! by Python 2 or 3, from any device.
//!
//! The crate `pytorch-reader` reads the tensors. Before it sees a file, this module walks the container and
//! its pickle with readers of its own ([`archive`], [`pickle`]) and refuses what is not a plain checkpoint:
//! entries that are compressed or damaged, storages missing or of another size than declared, values that
//! cannot be a state dict, requests to call something. So a file costs at most a small multiple of its own
//! size, and nothing in it is ever executed.

use crate::data::archive::{self, shown};
use crate::data::pickle::{self, Id, Node, Object, Pickle};
use crate::data::weights::{self, Dtype, Entry};
use crate::{Error, Result};
use pytorch_reader::{DType, PytorchReader, Tensor};
use serde_json::{Map, Value as Json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The deepest a tensor may lie in dicts and lists.
const MAX_DEPTH: usize = 16;

/// The most dicts, lists and values that are looked at.
const MAX_VISITS: usize = 500_000;

/// The longest dict key and storage key, in bytes.
const MAX_KEY: usize = 512;

/// The most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 32;

/// How much larger all tensors together may be than their file. Views share storages, so an honest file can
/// be exceeded; a hostile one repeats a few bytes without end.
const MAX_GROWTH: u64 = 8;

/// What any file may hold whatever its length, in bytes.
const SMALL: u64 = 16 << 20;

/// An open checkpoint. Tensors are read when asked for.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    facts: Map<String, Json>,
    unread: Vec<String>,
}

impl Checkpoint {
    /// Opens a checkpoint and checks its container, its pickle and every tensor's place.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io("open the checkpoint", path, &e);
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length == 0 {
            return Err(refusal("the file is empty").at(path.display()));
        }
        let map = weights::map(&file).map_err(io)?;
        let contents = inspect(&map).map_err(|e| e.at(path.display()))?;
        let reader = PytorchReader::new(path).map_err(|e| refusal(e.to_string()).at(path.display()))?;
        let mut read = reader.into_tensors();
        let mut tensors = BTreeMap::new();
        for name in contents.tensors {
            let tensor = read.remove(&name).ok_or_else(|| {
                refusal(format!("the tensor `{}` is shared in a way that is not supported", shown(&name)))
                    .at(path.display())
            })?;
            tensors.insert(name, tensor);
        }
        if let Some(name) = read.keys().next() {
            let what = format!("the tensor `{}` is not in a plain state dict", shown(name));
            return Err(refusal(what).at(path.display()));
        }
        let total: u64 = tensors.values().map(|tensor| tensor.byte_len() as u64).sum();
        let most = length.saturating_mul(MAX_GROWTH).saturating_add(SMALL);
        if total > most {
            let error = refusal("its tensors repeat a small storage far beyond the size of the file");
            let expected = format!("at most {most} bytes in all");
            return Err(error.expected(expected).found(format!("{total} bytes")).at(path.display()));
        }
        Ok(Self { path: path.to_path_buf(), tensors, facts: contents.facts, unread: contents.unread })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors' names with their shapes, sorted by name. A name is the path through dicts (keys)
    /// and lists (numbers), joined by dots: `model.0.fc.weight`.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape()))
    }

    /// The plain values beside the tensors at the checkpoint's top: numbers, text, lists, and the attributes
    /// of a namespace (`opt`) as a JSON object.
    pub fn facts(&self) -> &Map<String, Json> {
        &self.facts
    }

    /// Python objects among the values, which were neither made nor read: where, and of which class.
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    /// Reads a tensor: floats as f32, other types as they are.
    pub fn entry(&self, name: &str) -> Result<Entry<'static>> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::new(format!("there is no tensor `{name}`")).at(self.path.display()))?;
        let bytes = tensor.read().map_err(|e| refusal(e.to_string()).at(self.path.display()))?;
        let dtype = stored_as(tensor.dtype());
        let (dtype, bytes) = match weights::widen(dtype, &bytes) {
            Some(values) if dtype != Dtype::F32 => (Dtype::F32, bytemuck::cast_slice(&values).to_vec()),
            _ => (dtype, bytes),
        };
        Ok(Entry { name: name.to_string(), dtype, shape: tensor.shape().to_vec(), bytes: Cow::Owned(bytes) })
    }
}

fn stored_as(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}

fn refusal(what: impl std::fmt::Display) -> Error {
    let error = Error::new(format!("this is not a sound PyTorch checkpoint: {what}"));
    error.cure(
        "fetch the file again; if it stays so, load it in PyTorch and torch.save() its state_dict() anew",
    )
}

/// What a checkpoint holds, by our own reading of its pickle.
#[derive(Default)]
struct Contents {
    tensors: Vec<String>,
    facts: Map<String, Json>,
    unread: Vec<String>,
}

/// The storages a container holds, by key, with their length in bytes where the container states it.
type Storages<'a> = HashMap<Cow<'a, str>, usize>;

fn inspect(bytes: &[u8]) -> Result<Contents> {
    if bytes.starts_with(b"PK\x03\x04") {
        let entries = archive::entries(bytes).map_err(refusal)?;
        let is_root = |name: &str| name == "data.pkl" || name.ends_with("/data.pkl");
        let mut roots = entries.iter().filter(|entry| is_root(&entry.name));
        let (Some(root), None) = (roots.next(), roots.next()) else {
            return Err(refusal("the zip archive must hold one `data.pkl`"));
        };
        let folder = format!("{}data/", root.name.trim_end_matches("data.pkl"));
        let storages = entries
            .iter()
            .filter_map(|entry| Some((entry.name.strip_prefix(&folder)?.into(), entry.bytes.len())));
        let pickle = pickle::read(&bytes[root.bytes.clone()]).map_err(refusal)?;
        return contents(&pickle, &storages.collect());
    }
    legacy(bytes)
}

/// What `torch.save` wrote before 1.6 begins with this number.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The legacy format: pickles of the magic number, the protocol, the system, the value and the storages' keys,
/// then each storage as its element count and its bytes.
fn legacy(bytes: &[u8]) -> Result<Contents> {
    if bytes[0] != 0x80 {
        return Err(refusal("it begins neither like a zip archive nor like a pickle"));
    }
    let mut at = 0;
    let mut next = |what: &str| {
        let pickle = pickle::read(&bytes[at..]).map_err(|e| refusal(format!("reading {what}: {e}")))?;
        at += pickle.length();
        Ok::<_, Error>((pickle, at))
    };
    let (magic, _) = next("its first pickle")?;
    match magic.node(magic.root()) {
        Node::Long(number) if *number == MAGIC => {}
        Node::Long(_) | Node::Int(_) => return Err(refusal("its magic number is not PyTorch's")),
        _ => {
            // A plain pickle holds no storages; still say what is wrong with it, if anything is.
            contents(&magic, &Storages::new())?;
            return Err(refusal("it is a plain pickle, without tensors"));
        }
    }
    let (protocol, _) = next("its protocol version")?;
    if *protocol.node(protocol.root()) != Node::Int(1001) {
        return Err(refusal("its legacy protocol version is not 1001, the only one there was"));
    }
    next("the system it was saved on")?;
    let (value, _) = next("its value")?;
    let (keys, start) = next("its storage keys")?;
    let storages = legacy_storages(&bytes[start..], &value, &keys)?;
    contents(&value, &storages)
}

/// Checks that the storages listed are those the value declares and lie in the file, one after the other.
fn legacy_storages<'a>(mut rest: &[u8], value: &Pickle<'a>, keys: &Pickle) -> Result<Storages<'a>> {
    let mut declared = Storages::new();
    let mut elements = HashMap::new();
    for storage in value.nodes().iter().filter_map(|node| declared_storage(value, node)) {
        let storage = storage?;
        elements.insert(storage.key.clone(), storage.elements);
        declared.insert(storage.key, storage.bytes);
    }
    let listed = keys.sequence(keys.root()).ok_or_else(|| refusal("its storage keys are no list"))?;
    let mut seen = BTreeSet::new();
    for &key in listed {
        let key = key_text(keys, key).ok_or_else(|| refusal("a storage key is no text"))?;
        let (Some(&length), Some(&count)) = (declared.get(key.as_ref()), elements.get(key.as_ref())) else {
            return Err(refusal(format!("storage `{}` is listed, but no tensor uses it", shown(&key))));
        };
        let stored = rest.split_first_chunk::<8>();
        let body = stored.and_then(|(number, body)| Some((u64::from_le_bytes(*number), body.get(..length)?)));
        let Some((number, body)) = body else {
            return Err(refusal(format!("storage `{}` is cut off: the file ends in it", shown(&key))));
        };
        if number != count as u64 {
            let what = format!("storage `{}` has another size than its tensors say", shown(&key));
            return Err(refusal(what).expected(format!("{count} elements")).found(number));
        }
        rest = &rest[8 + body.len()..];
        if !seen.insert(key.into_owned()) {
            return Err(refusal("a storage is listed twice"));
        }
    }
    if let Some(key) = declared.keys().find(|key| !seen.contains(key.as_ref())) {
        return Err(refusal(format!("storage `{}` is used, but the file does not hold it", shown(key))));
    }
    Ok(declared)
}

/// A storage as a pickle's persistent id declares it.
struct Declared<'a> {
    key: Cow<'a, str>,
    elements: usize,
    bytes: usize,
}

/// The storage a persistent id names; `None` for other nodes.
fn declared_storage<'a>(pickle: &Pickle<'a>, node: &Node<'a>) -> Option<Result<Declared<'a>>> {
    let &Node::Persistent(id) = node else { return None };
    let parse = || {
        let [tag, class, key, _device, elements, ..] = pickle.sequence(id)? else { return None };
        let Node::Name(_, class) = *pickle.node(*class) else { return None };
        let &Node::Int(elements) = pickle.node(*elements) else { return None };
        let key = key_text(pickle, *key).filter(|key| key.len() <= MAX_KEY)?;
        let elements = usize::try_from(elements).ok()?;
        let bytes = elements.checked_mul(element_size(class)?)?;
        (pickle.text(*tag) == Some("storage")).then_some(Declared { key, elements, bytes })
    };
    Some(parse().ok_or_else(|| refusal("a tensor's storage is described in an unknown way")))
}

fn element_size(storage: &str) -> Option<usize> {
    Some(match storage {
        "DoubleStorage" | "LongStorage" => 8,
        "FloatStorage" | "IntStorage" => 4,
        "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
        "CharStorage" | "ByteStorage" | "BoolStorage" | "UntypedStorage" => 1,
        _ => return None,
    })
}

fn key_text<'a>(pickle: &Pickle<'a>, id: Id) -> Option<Cow<'a, str>> {
    match pickle.node(id) {
        Node::Text(text) => Some(text.clone()),
        Node::Int(number) => Some(number.to_string().into()),
        _ => None,
    }
}

/// Walks a checkpoint's value: its tensors by name, its facts, what is left unread.
fn contents(pickle: &Pickle, storages: &Storages) -> Result<Contents> {
    for node in pickle.nodes() {
        check_node(pickle, node, storages)?;
    }
    let Some(items) = pickle.items(pickle.root()) else {
        let error = refusal("its value is no dict of tensors");
        return Err(error
            .expected("a state dict, or a dict that holds some")
            .found(pickle.type_name(pickle.root())));
    };
    let mut walk = Walk { pickle, found: Contents::default(), visits: 0 };
    for (key, value) in items {
        let Some(name) = key_text(pickle, key) else {
            return Err(refusal(format!("a key of its dict is {}", pickle.type_name(key))));
        };
        let (before, unread) = (walk.found.tensors.len(), walk.found.unread.len());
        walk.visit(value, &name, MAX_DEPTH)?;
        if walk.found.tensors.len() == before
            && let Some(fact) = pickle.json(value, 8)
        {
            walk.found.unread.truncate(unread);
            walk.found.facts.insert(name.into_owned(), fact);
        }
    }
    let found = walk.found;
    if found.tensors.is_empty() {
        let error = refusal("it holds no tensors");
        return Err(if found.unread.is_empty() {
            error
        } else {
            error.found(weights::listing(&found.unread))
        });
    }
    let mut sorted: Vec<&String> = found.tensors.iter().collect();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(refusal(format!("two tensors are named `{}`", shown(pair[0]))));
    }
    Ok(found)
}

/// What the reader after us must not meet: calls, storages the file does not hold, sizes without bound.
fn check_node(pickle: &Pickle, node: &Node, storages: &Storages) -> Result<()> {
    let too_long = |&(key, _): &(Id, Id)| pickle.text(key).is_some_and(|text| text.len() > MAX_KEY);
    match node {
        Node::Dict(items) if items.iter().any(too_long) => {
            Err(refusal(format!("a key of a dict is longer than {MAX_KEY} bytes")))
        }
        Node::Object(object) => check_object(pickle, object),
        Node::Persistent(_) => {
            let Some(declared) = declared_storage(pickle, node) else { return Ok(()) };
            let Declared { key, bytes, .. } = declared?;
            match storages.get(&key) {
                None => {
                    Err(refusal(format!("storage `{}` is used, but the file does not hold it", shown(&key))))
                }
                Some(&held) if held != bytes => {
                    let what = format!("storage `{}` has another size than its tensors say", shown(&key));
                    Err(refusal(what).expected(format!("{bytes} bytes")).found(format!("{held} bytes")))
                }
                Some(_) => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn check_object(pickle: &Pickle, object: &Object) -> Result<()> {
    let Some((module, name)) = pickle.class(object) else {
        return Err(refusal("it calls what is no class or function"));
    };
    if runs_code(module, name) {
        let what = format!("it asks Python to call {module}.{name} when it is opened");
        return Err(
            refusal(what).cure("do not open this file in Python either: it is an attack, not a checkpoint")
        );
    }
    let too_long = |&(key, _): &(Id, Id)| pickle.text(key).is_some_and(|text| text.len() > MAX_KEY);
    if object.items.iter().any(too_long) {
        return Err(refusal(format!("a key of a dict is longer than {MAX_KEY} bytes")));
    }
    let rank = |&id: &Id| pickle.sequence(id).map_or(0, <[Id]>::len);
    let args = pickle.sequence(object.args).unwrap_or_default();
    if is_tensor(module, name) && args.iter().map(rank).max() > Some(MAX_DIMENSIONS) {
        return Err(refusal(format!("a tensor has more than {MAX_DIMENSIONS} dimensions")));
    }
    if name == "_rebuild_from_type_v2" {
        return Err(refusal("it holds tensors of a Python subclass, which are not supported"));
    }
    Ok(())
}

fn is_tensor(module: &str, name: &str) -> bool {
    let rebuilds = [
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
    ];
    module == "torch._utils" && rebuilds.contains(&name)
}

/// Whether calling this runs code or touches the system. Nothing is called here in any case; a file that
/// asks for it is no checkpoint.
fn runs_code(module: &str, name: &str) -> bool {
    let top = module.split('.').next().unwrap_or_default();
    let modules = [
        "os",
        "posix",
        "nt",
        "subprocess",
        "commands",
        "popen2",
        "pty",
        "sys",
        "socket",
        "shutil",
        "runpy",
        "importlib",
        "imp",
        "ctypes",
        "code",
        "codeop",
        "webbrowser",
        "pickle",
        "cPickle",
        "_pickle",
        "marshal",
        "multiprocessing",
        "threading",
        "asyncio",
        "bdb",
        "pdb",
        "timeit",
        "urllib",
        "http",
        "ftplib",
        "tempfile",
    ];
    let harmless = [
        "set",
        "frozenset",
        "dict",
        "list",
        "tuple",
        "int",
        "float",
        "complex",
        "bool",
        "str",
        "bytes",
        "bytearray",
        "slice",
        "range",
        "object",
        "unicode",
        "long",
        "xrange",
    ];
    match top {
        "builtins" | "__builtin__" => !harmless.contains(&name),
        _ => modules.contains(&top),
    }
}

struct Walk<'a> {
    pickle: &'a Pickle<'a>,
    found: Contents,
    visits: usize,
}

impl Walk<'_> {
    fn visit(&mut self, id: Id, path: &str, depth: usize) -> Result<()> {
        self.visits += 1;
        if depth == 0 || self.visits > MAX_VISITS {
            return Err(refusal("its values are nested too deeply, or repeat each other without end"));
        }
        if path.len() > 2 * MAX_KEY || self.found.tensors.len() > weights::MAX_TENSORS {
            return Err(refusal("its tensors have names without end, or are too many"));
        }
        if let Node::Object(object) = self.pickle.node(id) {
            let (module, name) = self.pickle.class(object).unwrap_or(("?", "?"));
            if is_tensor(module, name) {
                self.found.tensors.push(path.to_string());
                return Ok(());
            }
        }
        if let Some(items) = self.pickle.items(id) {
            self.visits += items.len();
            for (key, value) in items {
                // A key that is no text or number (a tuple, say) is of an optimiser's state or the like.
                if let Some(key) = key_text(self.pickle, key) {
                    self.visit(value, &format!("{path}.{key}"), depth - 1)?;
                }
            }
        } else if let Some(values) = self.pickle.sequence(id) {
            for (index, &value) in values.iter().enumerate() {
                self.visit(value, &format!("{path}.{index}"), depth - 1)?;
            }
        } else if matches!(self.pickle.node(id), Node::Object(_)) && self.found.unread.len() < 1000 {
            self.found.unread.push(format!("{}: {}", shown(path), self.pickle.type_name(id)));
        }
        Ok(())
    }
}
