//! Command lines of authors whose programs are called `with key=value ..`: the words become arguments of options. Values
//! are read as Python reads them.

use std::ffi::{OsStr, OsString};

use clap_lex::OsStrExt;

use super::config::{List, Value};
use crate::error::{Error, Result};
use crate::systems::{Kind, kinds};
use crate::train::options;

const WITH: &str = "with";
/// What is read before the rest is understood.
const BEFORE: [&str; 3] = ["system", "config", "resume"];

/// A command line's parts.
pub struct Line<'a> {
    /// The sets that the words after `with` name: what all else changes.
    pub sets: Vec<OsString>,
    /// What is before `with`, or all.
    pub options: &'a [OsString],
    /// The keys after it.
    pub keys: Vec<OsString>,
}

/// Takes a command line apart.
///
/// # Errors
/// A word that is neither a key with a value nor a set; keys that are unknown or there twice; values that do not parse; a
/// system whose authors' program takes none of it.
pub fn read(kind: Kind, args: &[OsString]) -> Result<Line<'_>> {
    let Some(at) = position(kind, args) else {
        return Ok(Line { sets: Vec::new(), options: args, keys: Vec::new() });
    };
    let (options, words) = (&args[..at], &args[at + 1..]);
    if kind.sets.is_empty() {
        return Err(not_of(kind));
    }
    if words.is_empty() {
        return Err(Error::new("nothing follows `with`").cure("give key=value, or leave out `with`"));
    }
    let mut named: Vec<&str> = Vec::new();
    let mut keys = List::new(kind);
    for word in words {
        let at = |e: Error| e.at(format!("with {}", word.to_string_lossy()));
        match word.split_once("=") {
            _ if word.starts_with("-") => {
                return Err(at(Error::new("an option follows `with`")
                    .cure("give options before `with`, or as key=value")));
            }
            Some((key, value)) => add(kind, &mut keys, key, value).map_err(at)?,
            None => named.push(set(kind, word, &named).map_err(at)?),
        }
    }
    let mut sets = Vec::new();
    for (_, set) in kind.sets.iter().filter(|(name, _)| name.is_empty() || named.contains(name)) {
        let mut list = List::new(kind);
        set.iter().try_for_each(|(key, value)| add(kind, &mut list, key.as_ref(), value.as_ref()))?;
        sets.append(&mut list.arguments);
    }
    Ok(Line { sets, options, keys: keys.arguments })
}

/// Where the word `with` is that is no option's value.
fn position(kind: Kind, args: &[OsString]) -> Option<usize> {
    let is_value = |at: usize| {
        let before = at.checked_sub(1).and_then(|before| args[before].to_str());
        let Some(name) = before.and_then(|before| before.strip_prefix("--")) else { return false };
        let train = options::command(kind);
        let named = |arg: &clap::Arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            aliases.into_iter().chain(arg.get_long()).any(|long| long.starts_with(name))
        };
        train.get_arguments().any(|arg| arg.get_action().takes_values() && named(arg))
    };
    (0..args.len()).find(|&at| args[at] == WITH && !is_value(at))
}

fn not_of(kind: Kind) -> Error {
    let all = kinds();
    let theirs: Vec<&str> = all.iter().filter(|kind| !kind.sets.is_empty()).map(|kind| kind.name).collect();
    Error::new(format!(
        "`with key=value` is how {} may be called, and not {}",
        theirs.join(" or "),
        kind.name
    ))
    .cure(format!("give options (--data_path D), or --system {} before `with`", theirs.join(" or ")))
}

/// The set that a word names.
fn set(kind: Kind, word: &OsStr, before: &[&str]) -> Result<&'static str> {
    let names: Vec<&str> = kind.sets.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
    let Some(name) = names.iter().find(|name| word == **name) else {
        return Err(Error::new("the word sets nothing: it has no =, and no set has that name")
            .expected(format!("key=value, or a set: {}", names.join(", ")))
            .cure("write key=value without blanks, in quotes where the value has some"));
    };
    if before.contains(name) {
        return Err(Error::new("the set is there twice").cure("remove one"));
    }
    Ok(name)
}

/// Adds what a key stands for.
fn add(kind: Kind, list: &mut List, key: &OsStr, value: &OsStr) -> Result<()> {
    let Some(key) = key.to_str().filter(|key| !key.is_empty()) else {
        return Err(Error::new("there is no key before the =").cure("write key=value"));
    };
    let key = key.replace('-', "_");
    if BEFORE.contains(&key.as_str()) {
        return Err(Error::new(format!("{key} is no key")).cure(format!("give --{key} before `with`")));
    }
    let Some(text) = value.to_str() else {
        return list.add((kind.key)(&key, "").0, Value::Raw(value.to_owned()));
    };
    let literal = literal(text)?;
    let value = if let Literal::Text(value) = &literal { value } else { text };
    let (name, value) = (kind.key)(&key, value);
    let option = list.option(name)?;
    let takes_values = option.get_action().takes_values();
    let value = match literal {
        Literal::None if takes_values && option.get_default_values().is_empty() => return Ok(()),
        Literal::None => {
            return Err(Error::new(format!("None is no value of {key}")).cure(format!("leave out {key}")));
        }
        Literal::List(ref values) => Value::List(values.clone()),
        Literal::Flag(_) if takes_values => Value::Text(value.to_owned()),
        Literal::Flag(flag) => Value::Flag(flag),
        Literal::Text(_) if takes_values => Value::Text(value.to_owned()),
        Literal::Text(_) => {
            return Err(Error::new(format!("a wrong kind of value for {key}"))
                .expected("True or False")
                .found(text));
        }
    };
    list.add(name, value)
}

/// A value as Python writes it.
#[derive(Debug, PartialEq)]
enum Literal {
    None,
    Flag(bool),
    /// A number, a string's content, or what is none of these: a string without quotes.
    Text(String),
    List(Vec<String>),
}

fn literal(text: &str) -> Result<Literal> {
    let text = text.trim();
    let brackets = |open, close| text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
    match text {
        "" => return Err(Error::new("there is no value after the =").cure("write key=value")),
        "None" => return Ok(Literal::None),
        "True" | "true" => return Ok(Literal::Flag(true)),
        "False" | "false" => return Ok(Literal::Flag(false)),
        _ => {}
    }
    match brackets('[', ']').or_else(|| brackets('(', ')')) {
        Some(list) => {
            let values = list.split(',').map(str::trim).filter(|value| !value.is_empty());
            values.map(content).collect::<Result<_>>().map(Literal::List)
        }
        None => content(text).map(Literal::Text),
    }
}

/// A string without its quotes; other text as it is.
fn content(text: &str) -> Result<String> {
    let Some(quote) = text.chars().next().filter(|c| "'\"".contains(*c)) else { return Ok(text.to_owned()) };
    let inner = text[1..].strip_suffix(quote).filter(|inner| !inner.contains(quote));
    inner.map(str::to_owned).ok_or_else(|| {
        Error::new("the string's quotes do not fit").found(text).cure("leave out the quotes, or close them")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_python_reads_them() {
        let text = |text: &str| Literal::Text(text.into());
        let cases = [
            ("58", text("58")),
            ("1e-4", text("1e-4")),
            ("data/a b", text("data/a b")),
            ("'t2i'", text("t2i")),
            ("\"it's\"", text("it's")),
            ("'None'", text("None")),
            ("None", Literal::None),
            ("True", Literal::Flag(true)),
            ("False", Literal::Flag(false)),
            ("[\"f30k\"]", Literal::List(vec!["f30k".into()])),
            ("(2, 2,18,2)", Literal::List(["2", "2", "18", "2"].map(String::from).to_vec())),
        ];
        for (written, read) in cases {
            assert_eq!(literal(written).expect(written), read, "{written}");
        }
        for wrong in ["", "'", "'a", "'a'b'", "['a, 'b']"] {
            assert!(literal(wrong).is_err(), "{wrong}");
        }
    }
}
