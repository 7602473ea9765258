//! Reads Python pickles as plain values. Nothing in them is resolved, imported or executed: a class or a
//! function is its name, a call is that name beside its arguments.
//!
//! Values live in one arena and refer to each other by number, as Python's own memo does. So a shared list
//! stays shared (a "memo bomb" costs its length, not its expansion), nothing is dropped recursively, and what
//! is read is bounded by the file's length and by [`MAX_STEPS`] or the reader's own limit. A consumer that visits the values bounds its
//! own depth: values may be nested deeply, and even contain themselves.
//!
//! The opcodes are those of Python's `pickletools`, protocols 0 to 5, without the extension registry and
//! out-of-band buffers.

use crate::{Error, Result};
use serde_json::{Map, Value as Json};
use std::borrow::Cow;

mod machine;

use machine::Machine;

/// The most opcodes of one pickle. A checkpoint needs about 25 a tensor.
pub const MAX_STEPS: usize = 250_000;

/// The longest module, class or function name, in bytes.
pub const MAX_NAME: usize = 128;

/// What a value costs in [`Pickle::json`] beside its text, in bytes.
const VALUE_BYTES: usize = 32;

/// The number of a [`Node`] in its [`Pickle`].
pub type Id = u32;

/// One Python value. Text and bytes are borrowed from the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An int that fits 64 bits.
    Int(i64),
    /// A longer int: two's complement, little-endian.
    Long(&'a [u8]),
    /// A float.
    Float(f64),
    /// A str; of Python 2 if it is UTF-8.
    Text(Cow<'a, str>),
    /// A bytes; of Python 2 a str that is not UTF-8.
    Bytes(&'a [u8]),
    /// A list or a set.
    List(Vec<Id>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A dict, in its order. Keys can repeat; the last one counts.
    Dict(Vec<(Id, Id)>),
    /// A class or function: its module and name.
    Name(&'a str, &'a str),
    /// What a call or a constructor would have made.
    Object(Box<Object>),
    /// A persistent id: PyTorch's reference to a storage.
    Persistent(Id),
}

/// A call that was not made.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What would have been called.
    pub class: Id,
    /// Its arguments, a tuple.
    pub args: Id,
    /// The state set on it afterwards (`__setstate__` or `__dict__`).
    pub state: Option<Id>,
    /// Dict items set on it.
    pub items: Vec<(Id, Id)>,
    /// List items appended to it.
    pub list: Vec<Id>,
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
    length: usize,
}

impl<'a> Pickle<'a> {
    /// The value the pickle holds.
    pub fn root(&self) -> Id {
        self.root
    }

    /// How many bytes it took, its STOP included.
    pub fn length(&self) -> usize {
        self.length
    }

    /// A value by its number.
    pub fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id as usize]
    }

    /// All values, in the order they were made.
    pub fn nodes(&self) -> &[Node<'a>] {
        &self.nodes
    }

    /// A text value.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The values of a list or tuple.
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::List(items) | Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The `module.name` of an object's class or function.
    pub fn class(&self, object: &Object) -> Option<(&'a str, &'a str)> {
        match *self.node(object.class) {
            Node::Name(module, name) => Some((module, name)),
            _ => None,
        }
    }

    /// The key-value pairs of a dict, an `OrderedDict` however it was made, or any object on which some are set.
    pub fn items(&self, id: Id) -> Option<Vec<(Id, Id)>> {
        match self.node(id) {
            Node::Dict(items) => Some(items.clone()),
            Node::Object(object) if self.class(object) == Some(("collections", "OrderedDict")) => {
                let mut items = Vec::new();
                // Python 2 gives the pairs as an argument, Python 3 sets them on the empty dict.
                for pairs in self.sequence(object.args)? {
                    for &pair in self.sequence(*pairs)? {
                        let &[key, value] = self.sequence(pair)? else { return None };
                        items.push((key, value));
                    }
                }
                items.extend(&object.items);
                Some(items)
            }
            Node::Object(object) if !object.items.is_empty() => Some(object.items.clone()),
            _ => None,
        }
    }

    /// What a person would call this value's type.
    pub fn type_name(&self, id: Id) -> String {
        match self.node(id) {
            Node::None => "None".into(),
            Node::Bool(_) => "a bool".into(),
            Node::Int(_) | Node::Long(_) => "an int".into(),
            Node::Float(_) => "a float".into(),
            Node::Text(_) => "a str".into(),
            Node::Bytes(_) => "a bytes".into(),
            Node::List(_) => "a list".into(),
            Node::Tuple(_) => "a tuple".into(),
            Node::Dict(_) => "a dict".into(),
            Node::Name(module, name) => format!("the name {module}.{name}"),
            Node::Object(object) => match self.class(object) {
                Some((module, name)) => format!("an object of {module}.{name}"),
                None => "an object of no class".into(),
            },
            Node::Persistent(_) => "a storage".into(),
        }
    }

    /// A value as JSON, to `depth` levels: numbers, text, lists, dicts, and an object's attributes (an
    /// `argparse.Namespace`, say). `None` where JSON has no such value, where a key is no text, and past
    /// the depth or a megabyte.
    pub fn json(&self, id: Id, depth: usize) -> Option<Json> {
        self.json_within(id, depth, &mut (1 << 20))
    }

    /// As [`Pickle::json`], within the bytes `left`, of which it takes what the value costs.
    pub(super) fn json_within(&self, id: Id, depth: usize, left: &mut usize) -> Option<Json> {
        let depth = depth.checked_sub(1)?;
        // Values share each other and their texts, so the file's length bounds neither.
        *left = left.checked_sub(VALUE_BYTES + self.text(id).map_or(0, str::len))?;
        match self.node(id) {
            Node::None => Some(Json::Null),
            Node::Bool(b) => Some((*b).into()),
            Node::Int(i) => Some((*i).into()),
            Node::Float(f) => serde_json::Number::from_f64(*f).map(Json::Number),
            Node::Text(text) => Some(text.as_ref().into()),
            Node::List(items) | Node::Tuple(items) => {
                items.iter().map(|&item| self.json_within(item, depth, left)).collect()
            }
            Node::Object(object) if object.state.is_some() && self.items(id).is_none() => {
                self.json_within(object.state?, depth, left)
            }
            _ => {
                let items = self.items(id)?;
                let mut map = Map::new();
                for (key, value) in items {
                    *left = left.checked_sub(VALUE_BYTES + self.text(key).map_or(0, str::len))?;
                    // An attribute that is no plain value (a device, an array) is left out of the map.
                    if let Some(value) = self.json_within(value, depth, left) {
                        map.insert(self.text(key)?.to_string(), value);
                    }
                }
                Some(Json::Object(map))
            }
        }
    }
}

/// Reads one pickle from the front of `bytes`.
pub fn read(bytes: &[u8]) -> Result<Pickle<'_>> {
    read_within(bytes, MAX_STEPS)
}

/// As [`read`], for a pickle of at most so many opcodes.
pub fn read_within(bytes: &[u8], steps: usize) -> Result<Pickle<'_>> {
    let mut machine = Machine::new(bytes);
    for _ in 0..steps {
        let at = machine.at();
        let done = machine.step().map_err(|what| damaged(&what, at))?;
        if let Some(root) = done {
            let length = machine.at();
            return Ok(Pickle { nodes: machine.into_nodes(), root, length });
        }
    }
    Err(damaged(&format!("it has more than {steps} steps"), machine.at()))
}

fn damaged(what: &str, at: usize) -> Error {
    Error::new(format!("the pickle inside is not sound: {what} (at its byte {at})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(bytes: &[u8]) -> Json {
        let pickle = read(bytes).expect("a sound pickle");
        pickle.json(pickle.root(), 8).expect("plain values")
    }

    fn refused(bytes: &[u8]) -> String {
        read(bytes).expect_err("it must be refused").to_string()
    }

    #[test]
    fn every_protocol_reads_the_same() {
        // pickle.dumps({'a': [1, -2.5, True, None], 'b': ('x', 70000)}, protocol) of Python 3.11
        let zero = b"(dp0\nVa\np1\n(lp2\nI1\naF-2.5\naI01\naNasVb\np3\n(Vx\np4\nI70000\ntp5\ns.";
        let two =
            b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01G\xc0\x04\x00\x00\x00\x00\x00\x00\x88Ne\
            X\x01\x00\x00\x00bq\x03X\x01\x00\x00\x00xq\x04Jp\x11\x01\x00\x86q\x05u.";
        let expected = serde_json::json!({"a": [1, -2.5, true, null], "b": ["x", 70000]});
        assert_eq!(json(zero), expected);
        assert_eq!(json(two), expected);
    }

    #[test]
    fn a_namespace_is_its_attributes() {
        let bytes =
            b"\x80\x02cargparse\nNamespace\n)\x81}(U\x04sizeK\x05U\x01fcos\nsystem\nU\x04echo\x85Rub.";
        let pickle = read(bytes).expect("a sound pickle");
        assert_eq!(pickle.type_name(pickle.root()), "an object of argparse.Namespace");
        // The call among the attributes was recorded, not made, and has no JSON.
        assert_eq!(pickle.json(pickle.root(), 8), Some(serde_json::json!({"size": 5})));
        assert!(pickle.nodes().contains(&Node::Name("os", "system")));
    }

    #[test]
    fn what_refers_to_itself_ends() {
        let pickle = read(b"\x80\x02]q\x00h\x00a.").expect("a list in itself");
        assert_eq!(pickle.json(pickle.root(), 8), None);
    }

    #[test]
    fn hostile_bytes_are_refused() {
        assert!(refused(b"").contains("ends too early"));
        assert!(refused(b"\x80\x02X\xff\xff\xff\x7fab.").contains("ends past the file"));
        assert!(refused(b"\x80\x09.").contains("protocol 9"));
        assert!(refused(b"K\x01(0t.").contains("mark is missing"));
        assert!(refused(b"(K\x01K\x02K\x03d.").contains("without its value"));
        assert!(refused(b"h\x07.").contains("slot 7"));
        assert!(refused(&vec![b'N'; MAX_STEPS + 1]).contains("steps"));
        assert!(refused(&[b"c".as_slice(), &[b'm'; 300], b"\nx\n."].concat()).contains("class name"));
    }
}
