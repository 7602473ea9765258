//! The two containers of `torch.save`: a zip archive (1.6 and later), and the legacy format of pickles and
//! storages in a row. Both give a pickle and the place of each storage; both are little-endian.

use super::refusal;
use super::tensor::{declared, key_text};
use crate::data::archive::{self, Entry, shown};
use crate::data::pickle::{self, Node, Pickle};
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

/// Where each storage's bytes are in the file, by its key.
pub(super) type Storages<'a> = HashMap<Cow<'a, str>, Range<usize>>;

/// The legacy format begins with a pickle of this number.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The only version of the legacy format there was.
const PROTOCOL: i64 = 1001;

/// Reads a container: the pickle of its value, and its storages.
pub(super) fn read(bytes: &[u8]) -> Result<(Pickle<'_>, Storages<'_>)> {
    if bytes.starts_with(b"PK\x03\x04") { zip(bytes) } else { legacy(bytes) }
}

/// A zip archive of `NAME/data.pkl` and `NAME/data/KEY`.
fn zip(bytes: &[u8]) -> Result<(Pickle<'_>, Storages<'_>)> {
    let entries = archive::entries(bytes).map_err(refusal)?;
    let is_root = |entry: &&Entry| entry.name == "data.pkl" || entry.name.ends_with("/data.pkl");
    let mut roots = entries.iter().filter(is_root);
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err(refusal("the zip archive must hold one `data.pkl`"));
    };
    let folder = root.name.trim_end_matches("data.pkl");
    let inside = |entry: &Entry| Some(entry.name.strip_prefix(folder)?.to_string());
    let order = entries.iter().find(|entry| inside(entry).is_some_and(|name| name == "byteorder"));
    if order.is_some_and(|entry| bytes[entry.bytes.clone()].trim_ascii() != b"little") {
        let error = refusal("its numbers are big-endian, which is not supported");
        return Err(error.cure("load it in PyTorch on a little-endian machine and torch.save() it anew"));
    }
    let storage = |entry: &Entry| {
        let key = inside(entry)?.strip_prefix("data/")?.to_string();
        Some((Cow::Owned(key), entry.bytes.clone()))
    };
    let storages = entries.iter().filter_map(storage).collect();
    let pickle = pickle::read(&bytes[root.bytes.clone()]).map_err(refusal)?;
    Ok((pickle, storages))
}

/// Pickles of the magic number, the protocol, the system, the value and the storages' keys, then each storage
/// as its element count and its bytes.
fn legacy(bytes: &[u8]) -> Result<(Pickle<'_>, Storages<'_>)> {
    if bytes.first() != Some(&0x80) {
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
        // A plain pickle has no storages. Whoever reads it finds that, and what else is wrong with it.
        _ => return Ok((magic, Storages::new())),
    }
    let (protocol, _) = next("its protocol version")?;
    if *protocol.node(protocol.root()) != Node::Int(PROTOCOL) {
        let what = format!("its legacy protocol version is not {PROTOCOL}, the only one there was");
        return Err(refusal(what));
    }
    next("the system it was saved on")?;
    let (value, _) = next("its value")?;
    let (keys, start) = next("its storage keys")?;
    let storages = legacy_storages(bytes, start, &value, &keys)?;
    Ok((value, storages))
}

/// Where the listed storages are, from `at` on. Their lengths are those that the tensors declare.
fn legacy_storages<'a>(
    bytes: &[u8],
    mut at: usize,
    value: &Pickle<'a>,
    keys: &Pickle,
) -> Result<Storages<'a>> {
    let mut expected = HashMap::new();
    for node in value.nodes() {
        if let &Node::Persistent(id) = node {
            let storage = declared(value, id).map_err(refusal)?;
            expected.insert(storage.key.clone(), storage);
        }
    }
    let listed = keys.sequence(keys.root()).ok_or_else(|| refusal("its storage keys are no list"))?;
    let mut storages = Storages::new();
    for &key in listed {
        let key = key_text(keys, key).ok_or_else(|| refusal("a storage key is no text"))?;
        let Some((key, storage)) = expected.remove_entry(key.as_ref()) else {
            let what = format!("storage `{}` is listed twice, or no tensor uses it", shown(&key));
            return Err(refusal(what));
        };
        let cut = || refusal(format!("storage `{}` is cut off: the file ends in it", shown(&key)));
        let count = u64::from_le_bytes(*bytes[at..].first_chunk().ok_or_else(cut)?);
        if count != storage.elements as u64 {
            let what = format!("storage `{}` has another size than its tensors say", shown(&key));
            return Err(refusal(what).expected(format!("{} elements", storage.elements)).found(count));
        }
        let start = at + 8;
        let end = start.checked_add(storage.bytes()).filter(|&end| end <= bytes.len()).ok_or_else(cut)?;
        at = end;
        storages.insert(key, start..end);
    }
    Ok(storages)
}
