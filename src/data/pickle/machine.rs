//! The opcodes of a pickle, run without resolving anything.

use super::{Id, MAX_NAME, Node, Object};
use std::borrow::Cow;
use std::collections::HashMap;

/// What a step reports: a reason to refuse the pickle.
pub(super) type Step<T> = std::result::Result<T, String>;

/// The stack machine that a pickle is a program of. Its values go to the arena, its effects nowhere.
#[derive(Default)]
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// How many bytes were read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn into_nodes(self) -> Vec<Node<'a>> {
        self.nodes
    }

    /// Runs one opcode; the root once it is STOP.
    pub(super) fn step(&mut self) -> Step<Option<Id>> {
        let [opcode] = self.array()?;
        match opcode {
            b'.' => return Ok(Some(self.pop()?)),
            0x80 => {
                let [version] = self.array()?;
                if version > 5 {
                    return Err(format!("protocol {version} is not known"));
                }
            }
            0x95 => self.skip_frame()?,
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.pop_value_or_mark()?,
            b'1' => drop(self.above_mark()?),
            b'2' => self.stack.push(self.top()?),
            b'N' | 0x88 | 0x89 | b'I' | b'L' | b'F' | b'J' | b'K' | b'M' | b'G' | 0x8a | 0x8b => {
                self.number(opcode)?;
            }
            b'S' | b'T' | b'U' | b'V' | b'X' | 0x8c | 0x8d | b'B' | b'C' | 0x8e | 0x96 => {
                self.string(opcode)?;
            }
            b'g' | b'h' | b'j' | b'p' | b'q' | b'r' | 0x94 => self.memo(opcode)?,
            b'c' | 0x93 | b'P' | b'Q' | b'R' | 0x81 | 0x92 | b'i' | b'o' | b'b' => self.object(opcode)?,
            _ => self.container(opcode)?,
        }
        Ok(None)
    }

    fn number(&mut self, opcode: u8) -> Step<()> {
        let node = match opcode {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Node::Int(u8::from_le_bytes(self.array()?).into()),
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()),
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            0x8a => {
                let length = u8::from_le_bytes(self.array()?);
                long(self.take(length.into())?)
            }
            0x8b => {
                let length = u32::from_le_bytes(self.array()?);
                long(self.take(length.into())?)
            }
            b'F' => Node::Float(parse(self.line()?)?),
            // Protocol 0 writes its bools as ints of two digits.
            b'I' => match self.line()? {
                "00" => Node::Bool(false),
                "01" => Node::Bool(true),
                line => Node::Int(parse(line)?),
            },
            _ => Node::Int(parse(self.line()?.trim_end_matches('L'))?),
        };
        self.push(node);
        Ok(())
    }

    fn string(&mut self, opcode: u8) -> Step<()> {
        let length = match opcode {
            b'S' | b'V' => 0,
            b'U' | 0x8c | b'C' => u8::from_le_bytes(self.array()?).into(),
            b'T' | b'X' | b'B' => u32::from_le_bytes(self.array()?).into(),
            _ => u64::from_le_bytes(self.array()?),
        };
        let node = match opcode {
            b'S' => {
                let line = self.line()?;
                let quoted = |q| line.strip_prefix(q).and_then(|l: &str| l.strip_suffix(q));
                let text = quoted('\'').or_else(|| quoted('"')).ok_or("a str without quotes")?;
                match text.contains('\\') {
                    true => return Err("a str with escapes, which only protocol 0 of Python 2 wrote".into()),
                    false => Node::Text(text.into()),
                }
            }
            b'V' => Node::Text(unescape(self.line()?)?),
            b'B' | b'C' | 0x8e | 0x96 => Node::Bytes(self.take(length)?),
            b'U' | b'T' => {
                let bytes = self.take(length)?;
                std::str::from_utf8(bytes).map_or(Node::Bytes(bytes), |text| Node::Text(text.into()))
            }
            _ => {
                let text = std::str::from_utf8(self.take(length)?);
                Node::Text(text.map_err(|_| "a str that is not UTF-8")?.into())
            }
        };
        self.push(node);
        Ok(())
    }

    fn memo(&mut self, opcode: u8) -> Step<()> {
        let slot = match opcode {
            b'g' | b'p' => parse(self.line()?)?,
            b'h' | b'q' => u8::from_le_bytes(self.array()?).into(),
            b'j' | b'r' => u32::from_le_bytes(self.array()?).into(),
            _ => self.memo.len() as u64,
        };
        if matches!(opcode, b'g' | b'h' | b'j') {
            let id = *self.memo.get(&slot).ok_or(format!("memo slot {slot} was never filled"))?;
            self.stack.push(id);
        } else {
            self.memo.insert(slot, self.top()?);
        }
        Ok(())
    }

    fn container(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b')' => self.push(Node::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Node::List(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0..opcode - 0x84 {
                    items.insert(0, self.pop()?);
                }
                self.push(Node::Tuple(items));
            }
            b't' | b'l' | 0x91 => {
                let items = self.above_mark()?;
                self.push(if opcode == b't' { Node::Tuple(items) } else { Node::List(items) });
            }
            b'd' => {
                let items = pairs(&self.above_mark()?)?;
                self.push(Node::Dict(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.above_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set_items(&items)?;
            }
            _ => return Err(format!("opcode {opcode:#04x} is not one that checkpoints use")),
        }
        Ok(())
    }

    fn object(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.nodes[module as usize], &self.nodes[name as usize]) {
                    (&Node::Text(Cow::Borrowed(module)), &Node::Text(Cow::Borrowed(name))) => {
                        self.name(module, name)?;
                    }
                    _ => return Err("a class whose name is no text".into()),
                }
            }
            b'P' => {
                let line = self.line()?;
                self.push(Node::Text(line.into()));
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            b'R' | 0x81 => {
                let (args, class) = (self.pop()?, self.pop()?);
                self.call(class, args);
            }
            0x92 => {
                let (_keywords, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(class, args);
            }
            b'b' => {
                let (state, target) = (self.pop()?, self.top()?);
                // A state on a plain dict or list (a subclass of one) is of no interest.
                if let Node::Object(object) = &mut self.nodes[target as usize] {
                    object.state = Some(state);
                }
            }
            _ => return Err("it makes an old-style class instance, which no checkpoint holds".into()),
        }
        Ok(())
    }

    fn call(&mut self, class: Id, args: Id) {
        let object = Object { class, args, state: None, items: Vec::new(), list: Vec::new() };
        self.push(Node::Object(Box::new(object)));
    }

    fn name(&mut self, module: &'a str, name: &'a str) -> Step<()> {
        if module.len() > MAX_NAME || name.len() > MAX_NAME {
            return Err(format!("a class name longer than {MAX_NAME} bytes"));
        }
        self.push(Node::Name(module, name));
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Step<()> {
        let top = self.top()?;
        match &mut self.nodes[top as usize] {
            Node::List(list) => list.extend(items),
            Node::Object(object) => object.list.extend(items),
            _ => return Err("items are appended to what is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Step<()> {
        let items = pairs(items)?;
        let top = self.top()?;
        match &mut self.nodes[top as usize] {
            Node::Dict(dict) => dict.extend(items),
            Node::Object(object) => object.items.extend(items),
            _ => return Err("items are set on what is no dict".into()),
        }
        Ok(())
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
    }

    /// The height below which values belong to an enclosing mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Id> {
        let top = self.stack[self.floor()..].last();
        top.copied().ok_or_else(|| "a value is taken from an empty stack".into())
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_value_or_mark(&mut self) -> Step<()> {
        if self.stack.len() == self.floor() && self.marks.pop().is_some() {
            return Ok(());
        }
        self.pop().map(|_| ())
    }

    fn above_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    fn skip_frame(&mut self) -> Step<()> {
        let length = u64::from_le_bytes(self.array()?);
        match length > (self.bytes.len() - self.at) as u64 {
            true => Err("a frame that ends past the file".into()),
            false => Ok(()),
        }
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.bytes[self.at..].first_chunk().ok_or("it ends too early")?;
        self.at += N;
        Ok(*bytes)
    }

    fn take(&mut self, length: u64) -> Step<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        let length = usize::try_from(length).ok().filter(|&n| n <= left);
        let length = length.ok_or("a string that ends past the file")?;
        let bytes = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(bytes)
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.at..];
        // A line is a number or a name: a scan through a whole file for its end would be quadratic.
        let rest = &rest[..rest.len().min(1 << 16)];
        let length = rest.iter().position(|&b| b == b'\n').ok_or("a line without an end")?;
        self.at += length + 1;
        let line = std::str::from_utf8(&rest[..length]).map_err(|_| "a line that is not UTF-8")?;
        Ok(line.strip_suffix('\r').unwrap_or(line))
    }
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks();
    match rest.is_empty() {
        true => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        false => Err("a key without its value".into()),
    }
}

fn parse<T: std::str::FromStr>(line: &str) -> Step<T> {
    line.parse().map_err(|_| format!("`{}` is no number", line.chars().take(40).collect::<String>()))
}

fn long(bytes: &[u8]) -> Node<'_> {
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    match bytes.len() {
        0..=8 => {
            wide[..bytes.len()].copy_from_slice(bytes);
            Node::Int(i64::from_le_bytes(wide))
        }
        _ => Node::Long(bytes),
    }
}

/// Undoes the `\uXXXX` escapes of protocol 0.
fn unescape(line: &str) -> Step<Cow<'_, str>> {
    let mut parts = line.split("\\u");
    let mut text = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let code = part.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
        text.push(code.ok_or("a str with an escape that is no character")?);
        text.push_str(&part[4..]);
    }
    Ok(if text == line { Cow::Borrowed(line) } else { Cow::Owned(text) })
}
