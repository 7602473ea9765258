//! Options from files: a flat one of `name = value` lines (the part of TOML that options need), or a run's own.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::Path;

use serde_json::Value as Json;

use crate::data::paths;
use crate::error::{Error, Result};
use crate::eval::model::read_description;
use crate::systems::Kind;
use crate::train::options;

/// No list of options comes near.
const LARGEST: u64 = 1 << 16;

/// The text of a file of options.
///
/// # Errors
/// A file that cannot be read, is too large, or is no text.
pub fn read(path: &Path) -> Result<String> {
    let io = |e| Error::io("read the configuration", path, &e);
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(LARGEST + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::new("the configuration is too large")
            .at(path.display())
            .expected(format!("at most {LARGEST} bytes")));
    }
    // Windows editors begin a text with a byte order mark.
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes).to_vec();
    String::from_utf8(text)
        .map_err(|e| Error::new("the configuration is no UTF-8 text").at(path.display()).found(e))
}

/// The system that a file of options names.
pub fn system(text: &str) -> Option<String> {
    let of = |line| match entry(line) {
        Ok(Some((key, Value::Text(name)))) if key.eq_ignore_ascii_case("system") => Some(name),
        _ => None,
    };
    text.lines().find_map(of)
}

/// The arguments that a file's text stands for, each checked by itself so that an error names its line.
///
/// # Errors
/// Unknown or repeated names, values that do not parse.
pub fn parse(kind: Kind, text: &str, place: &str) -> Result<Vec<OsString>> {
    let mut list = List::new(kind);
    for (i, line) in text.lines().enumerate() {
        let at = format!("{place}, line {}", i + 1);
        let add = |(key, value)| list.add(key, value);
        entry(line).and_then(|entry| entry.map_or(Ok(()), add)).map_err(|e| e.at(&at))?;
    }
    Ok(list.arguments)
}

/// Arguments of options by their names, each there once and checked by itself.
pub struct List {
    kind: Kind,
    train: clap::Command,
    seen: Vec<clap::Id>,
    /// What was added so far.
    pub arguments: Vec<OsString>,
}

impl List {
    /// Of a system's `train`.
    pub fn new(kind: Kind) -> Self {
        Self { kind, train: options::command(kind), seen: Vec::new(), arguments: Vec::new() }
    }

    /// The option of a name.
    ///
    /// # Errors
    /// None of that name.
    pub fn option(&self, key: &str) -> Result<&clap::Arg> {
        let name = |long: &str| long.replace('-', "_").eq_ignore_ascii_case(&key.replace('-', "_"));
        let named = |arg: &&clap::Arg| {
            arg.get_long().is_some_and(name)
                || arg.get_all_aliases().unwrap_or_default().into_iter().any(name)
        };
        let mut options = self.train.get_arguments().filter(|arg| arg.get_long() != Some("config"));
        options.find(named).ok_or_else(|| {
            options::owned_by_another(key, self.kind).unwrap_or_else(|| {
                let name = self.kind.name;
                Error::new(format!("no such option: {key}"))
                    .expected(format!("an option of `crossweave train --system {name}`"))
                    .cure(format!("`crossweave train --system {name} --help` lists them"))
            })
        })
    }

    /// Adds an option.
    ///
    /// # Errors
    /// Unknown or repeated names, values that do not parse.
    pub fn add(&mut self, key: &str, value: Value) -> Result<()> {
        let option = self.option(key)?;
        if self.seen.contains(option.get_id()) {
            return Err(Error::new(format!("{key} is there twice")).cure("remove one"));
        }
        let long = option.get_long().unwrap_or_default();
        let (takes_values, takes_several) =
            (option.get_action().takes_values(), option.get_value_delimiter().is_some());
        let argument: Option<OsString> = match (takes_values, value) {
            (true, Value::Text(value)) => Some(format!("--{long}={value}").into()),
            (true, Value::List(values)) if takes_several || values.len() == 1 => {
                Some(format!("--{long}={}", values.join(",")).into())
            }
            (true, Value::Raw(value)) => {
                let mut argument = OsString::from(format!("--{long}="));
                argument.push(value);
                Some(argument)
            }
            (false, Value::Flag(true)) => Some(format!("--{long}").into()),
            (false, Value::Flag(false)) => None,
            _ => {
                let expected = match (takes_values, takes_several) {
                    (true, true) => "numbers or strings",
                    (true, false) => "a number or a string",
                    (false, _) => "true or false",
                };
                return Err(Error::new(format!("a wrong kind of value for {key}")).expected(expected));
            }
        };
        if let Some(argument) = &argument {
            try_alone(&self.train, argument, key)?;
        }
        self.seen.push(option.get_id().clone());
        self.arguments.extend(argument);
        Ok(())
    }
}

/// The arguments that a run was begun with, so that `--resume RUN` needs no others.
///
/// # Errors
/// A folder that holds no run of this program.
pub fn of_run(folder: &Path) -> Result<Vec<OsString>> {
    let description = read_description(folder)?;
    let Some(options) = description["options"].as_object() else {
        return Err(Error::new("this folder holds a model but no run")
            .at(folder.display())
            .expected("a folder that `crossweave train` made")
            .cure("begin a run with `crossweave train --logger_name`"));
    };
    let argument = |(name, value): (&String, &Json)| match value {
        // The width is in the model's configuration; older runs have the authors' default here, whatever it was.
        _ if ["resume", "img_dim"].contains(&name.as_str()) => None,
        // The run is where it is found; its logs may have a folder of their own.
        _ if name == "logger_name" && options.get("model_name").is_none_or(Json::is_null) => None,
        _ if paths::from_json(value).is_some() => {
            let mut argument = OsString::from(format!("--{name}="));
            argument.push(paths::from_json(value)?);
            Some(argument)
        }
        Json::Bool(true) => Some(format!("--{name}").into()),
        Json::Number(n) => Some(format!("--{name}={n}").into()),
        Json::Array(values) => {
            let values: Vec<String> = values.iter().map(Json::to_string).collect();
            Some(format!("--{name}={}", values.join(",")).into())
        }
        _ => None,
    };
    Ok(options.iter().filter_map(argument).collect())
}

fn try_alone(train: &clap::Command, argument: &OsStr, key: &str) -> Result<()> {
    let parsed = train.clone().try_get_matches_from([OsStr::new("train"), argument]);
    let first = |e: clap::Error| {
        let text = e.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let help: Vec<_> = text.lines().skip(1).map(str::trim).filter(|l| l.starts_with('[')).collect();
        let error = Error::new(format!("{key}: {first}"));
        if help.is_empty() { error } else { error.expected(help.join(" ")) }
    };
    parsed.map(|_| ()).map_err(first)
}

/// A value as options take it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Whether a flag is given.
    Flag(bool),
    /// A number as written, or a string's content.
    Text(String),
    /// Several of these.
    List(Vec<String>),
    /// What is no text, a path most likely.
    Raw(OsString),
}

/// A line's key and value; `None` for an empty line or a comment.
fn entry(line: &str) -> Result<Option<(&str, Value)>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let wrong = |what: &str| {
        Err(Error::new(what.to_owned())
            .expected("name = value, with a number, a list [1, 2] of them, true, false or a \"string\"")
            .found(line.chars().take(80).collect::<String>()))
    };
    let Some((key, rest)) = line.split_once('=') else { return wrong("the line sets nothing") };
    let (key, rest) = (key.trim(), rest.trim());
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if key.is_empty() || !key.chars().all(plain) {
        return wrong("the name is none");
    }
    let (value, after) = match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => match string(rest, quote) {
            Some((text, after)) => (Value::Text(text), after),
            None => return wrong("the string has no end, or an unknown escape"),
        },
        _ => {
            let (word, after) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
            match word.trim() {
                "true" => (Value::Flag(true), after),
                "false" => (Value::Flag(false), after),
                list if list.starts_with('[') => match numbers(list) {
                    Some(numbers) => (Value::List(numbers), after),
                    None => return wrong("the value is no list of numbers"),
                },
                number if number.parse::<f64>().is_ok() => (Value::Text(number.to_owned()), after),
                _ => return wrong("the value is none"),
            }
        }
    };
    let after = after.trim_start();
    if after.is_empty() || after.starts_with('#') {
        Ok(Some((key, value)))
    } else {
        wrong("something follows the value")
    }
}

/// The numbers of a list in brackets.
fn numbers(list: &str) -> Option<Vec<String>> {
    let entries = list.strip_prefix('[')?.strip_suffix(']')?.split(',').map(str::trim);
    let number = |entry: &str| entry.parse::<f64>().ok().map(|_| entry.to_owned());
    entries.map(number).collect()
}

/// The string at the start of `text`, and what follows it. Only double quotes know escapes.
fn string(text: &str, quote: char) -> Option<(String, &str)> {
    let (mut content, mut chars) = (String::new(), text.char_indices().skip(1));
    while let Some((i, c)) = chars.next() {
        match c {
            c if c == quote => return Some((content, &text[i + 1..])),
            '\\' if quote == '"' => content.push(match chars.next()?.1 {
                c @ ('"' | '\\') => c,
                't' => '\t',
                _ => return None,
            }),
            c => content.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dime() -> Kind {
        crate::systems::kind(crate::systems::DEFAULT).expect("the default is a system")
    }

    #[test]
    fn lines_become_arguments() {
        let text = "# a comment\n\nbatch_size = 8 # eight\nlearning-rate=1e-3\ndirection = \"t2i\"\n\
                    data_path = 'C:\\data # 1'\nstrict = true\nfaithful = false\nlambda_softmax = 9\n";
        let want = [
            "--batch_size=8",
            "--learning_rate=1e-3",
            "--direction=t2i",
            "--data_path=C:\\data # 1",
            "--strict",
            "--lambda_softmax_CMRC=9",
        ];
        assert_eq!(parse(dime(), text, "x.toml").expect("a good file"), want.map(OsString::from));
        let hrem = crate::systems::kind("hrem").expect("a system");
        let lists = parse(hrem, "lr_schedules = [15, 25] # epochs", "x.toml").expect("a good file");
        assert_eq!(lists, ["--lr_schedules=15,25"].map(OsString::from));
    }

    /// Whatever a run keeps of its options, an unusual one of every system among them, is asked for again on resuming.
    #[test]
    fn every_option_of_a_run_comes_back() {
        let unusual = |name: &str| match name {
            "hrem" => "--lr_schedules 2 4 7 --decay_rate 0.5 --no_txtnorm",
            _ => "--seed 9",
        };
        for kind in crate::systems::kinds() {
            let line = format!("--system {} {}", kind.name, unusual(kind.name));
            let begun =
                options::TrainOptions::of(&line.split_whitespace().collect::<Vec<_>>()).expect("sound");
            let folder = tempfile::tempdir().expect("a folder");
            let text = serde_json::json!({"system": kind.name, "version": 1, "options": begun.stored()});
            std::fs::write(folder.path().join("config.json"), text.to_string()).expect("written");
            let arguments = of_run(folder.path()).expect("a run");
            let again =
                options::TrainOptions::parse(kind, &arguments, |e| Error::new(e.to_string())).expect("sound");
            let mut expected = begun.stored();
            // The run's folder is the one that is resumed.
            expected["logger_name"] = again.stored()["logger_name"].clone();
            assert_eq!(again.stored(), expected, "{}", kind.name);
        }
    }

    #[test]
    fn bad_lines_are_named() {
        let cases = [
            ("batch_size = 8\nbatches = 9", &["x.toml, line 2", "batches"][..]),
            ("config = \"y.toml\"", &["no such option: config"]),
            ("batch_size = 8\nbatch-size = 9", &["line 2", "twice"]),
            ("batch_size = eight", &["the value is none"]),
            ("batch_size = true", &["batch_size", "a number or a string"]),
            ("strict = 1", &["strict", "true or false"]),
            ("batch_size = \"eight\"", &["line 1", "batch_size", "invalid"]),
            ("direction = \"both\"", &["direction", "i2t, t2i"]),
            ("[table]", &["sets nothing"]),
            ("data_name = \"a", &["no end"]),
            ("data_name = \"a\" b", &["follows"]),
            ("data name = 1", &["the name is none"]),
            ("batch_size = [8, 9]", &["batch_size", "a number or a string"]),
            ("batch_size = [8", &["no list"]),
            ("batch_size = [8, x]", &["no list"]),
            ("lr_schedules = \"2,4\"", &["an option of hrem", "--system hrem", "line 1"]),
        ];
        for (text, parts) in cases {
            let error = parse(dime(), text, "x.toml").expect_err(text).to_string();
            for part in parts {
                assert!(error.contains(part), "{text}: no {part:?} in {error}");
            }
        }
    }
}
