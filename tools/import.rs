//! The import binary: other programs' weights into a folder that Crossweave opens.

use clap::Parser;
use clap::builder::PossibleValuesParser;
use crossweave::data::import::{self, Imported, Source};
use crossweave::data::tokenizer::{PIECES, Tokenizer, WORDS};
use crossweave::data::words::Vocabulary;
use crossweave::data::{atomic, weights};
use crossweave::eval::{self, model::check_vocab};
use crossweave::nn::{bert, shapes};
use crossweave::systems::{self, Text, kind, kinds};
use crossweave::{Error, Result};
use serde_json::Value as Json;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Turns PyTorch and safetensors weights into a folder that Crossweave opens: model.safetensors, config.json,
/// vocab.txt (vocab.json of a system that reads whole words). Nothing in a file is ever executed.
#[derive(Parser)]
#[command(name = "import", version)]
struct Command {
    /// What the weights are: a BERT encoder (with its bert_config.json and vocab.txt), a checkpoint of a system's
    /// authors (with those of the BERT it was trained on), or plain tensors, each under its own name
    #[arg(value_parser = PossibleValuesParser::new(whats()))]
    what: String,
    /// The weights, or a folder that holds model.safetensors or pytorch_model.bin
    file: PathBuf,
    /// The folder to make
    out: PathBuf,
    /// The configuration [default: bert_config.json or config.json beside FILE]
    #[arg(long)]
    config: Option<PathBuf>,
    /// The vocabulary: pieces, or the words that the captions' ids mean [default: vocab.txt or vocab.json beside FILE]
    #[arg(long)]
    vocab: Option<PathBuf>,
    /// An option that a system's checkpoint does not say, or says wrong, under the authors' name: direction=i2t
    #[arg(long = "set", value_name = "OPTION=VALUE", value_parser = setting)]
    settings: Vec<(String, Json)>,
}

const BERT: &str = "bert";
const TENSORS: &str = "tensors";

fn whats() -> Vec<&'static str> {
    [BERT, TENSORS].into_iter().chain(kinds().iter().map(|kind| kind.name)).collect()
}

fn setting(text: &str) -> std::result::Result<(String, Json), String> {
    let (option, value) = text.split_once('=').ok_or("write it as OPTION=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Json::from(value));
    Ok((option.to_string(), value))
}

fn main() -> ExitCode {
    let said = match Command::try_parse() {
        Ok(command) => run(&command),
        Err(e) if e.use_stderr() => e.exit(),
        Err(e) => show(&e.render().to_string()),
    };
    match said {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command) -> Result<()> {
    atomic::refuse_existing(&command.out)?;
    let file = weights_file(&command.file)?;
    let source = Source::open(&file)?;
    let model = command.what != TENSORS;
    let words = model && command.what != BERT && kind(&command.what)?.text == Text::Words;
    // A system of words has no BERT whose configuration could be beside it.
    let configs: &[&str] = if words { &["config.json"] } else { &["bert_config.json", "config.json"] };
    let own = if words { WORDS } else { PIECES };
    let config = beside(&command.config, &file, configs, model);
    let vocab = beside(&command.vocab, &file, &[own], model);
    let config = config.map(|path| read_json(&path)).transpose()?;
    let imported = match command.what.as_str() {
        BERT => {
            let config =
                config.ok_or_else(|| unknown("the configuration", "--config bert_config.json", &file))?;
            let layout = |json: &Json| Ok(shapes(&bert::Config::read(json)?.parameters("")));
            import::model(&source, &import::BERT, |_, _| Ok(config), layout)?
        }
        TENSORS => Imported { config: config.unwrap_or(Json::Null), ..import::tensors(&source)? },
        name => eval::import::system(kind(name)?, &source, config.as_ref(), &command.settings)?,
    };
    let vocab = match vocab {
        Some(path) if words => {
            let system = (kind(&command.what)?.open)(&imported.config)?;
            check_vocab(&Tokenizer::Words(Vocabulary::open(&path)?), &*system)?;
            Some(read(&path, 64 << 20)?)
        }
        Some(path) => Some(read_vocab(&path, &imported.config)?),
        None if model => return Err(unknown("the vocabulary", &format!("--vocab {own}"), &file)),
        None => None,
    };
    write(&command.out, &imported, vocab.as_deref().map(|vocab| (own, vocab)))?;
    show(&format!(
        "read     {} ({})\n{}wrote    {}\n",
        file.display(),
        source.format(),
        imported.report,
        command.out.display()
    ))
}

/// Prints what was asked for. A reader that closed the pipe has seen enough.
fn show(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::io("write the report", Path::new("standard output"), &e))
        }
        _ => Ok(()),
    }
}

fn write(out: &Path, imported: &Imported, vocab: Option<(&str, &[u8])>) -> Result<()> {
    atomic::folder(out, |folder| {
        weights::write(&folder.join("model.safetensors"), &imported.entries, &imported.metadata)?;
        if !imported.config.is_null() {
            let text = format!("{:#}\n", imported.config);
            atomic::file(&folder.join("config.json"), |file| file.write_all(text.as_bytes()))?;
        }
        match vocab {
            Some((name, vocab)) => atomic::file(&folder.join(name), |file| file.write_all(vocab)),
            None => Ok(()),
        }
    })
}

/// The file meant by a path: itself, or the weights in a folder.
fn weights_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let names = ["model.safetensors", "pytorch_model.bin"];
    let found = names.iter().map(|name| path.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let error = Error::new("the folder holds no weights").at(path.display());
        error.expected(names.join(" or ")).cure("give the weights file itself")
    })
}

/// The file an option names, or else, if `look`, the first of these names beside the weights.
fn beside(option: &Option<PathBuf>, file: &Path, names: &[&str], look: bool) -> Option<PathBuf> {
    let beside = || names.iter().map(|name| file.with_file_name(name)).find(|path| path.is_file());
    option.clone().or_else(|| if look { beside() } else { None })
}

fn unknown(what: &str, option: &str, file: &Path) -> Error {
    let error = Error::new(format!("{what} is not known: it is not beside the weights")).at(file.display());
    error.cure(format!("give it: {option}"))
}

/// Reads a whole small file.
fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let io = |e| Error::io("read the file", path, &e);
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(most + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > most {
        let error = Error::new("the file is too large for what it should be").at(path.display());
        return Err(error
            .expected(format!("at most {most} bytes"))
            .cure("check which file the option names"));
    }
    Ok(bytes)
}

fn read_json(path: &Path) -> Result<Json> {
    let json: Json = serde_json::from_slice(&read(path, 1 << 20)?).map_err(|e| {
        let error = Error::new("the configuration is not JSON").at(path.display());
        error.found(e).cure("give a bert_config.json or config.json")
    })?;
    match json.is_object() {
        true => Ok(json),
        false => Err(Error::new("the configuration is no JSON object").at(path.display())),
    }
}

/// Reads a vocabulary and checks it against the configuration: tokens BERT cannot do without, and a row of the
/// word table for each line.
fn read_vocab(path: &Path, config: &Json) -> Result<Vec<u8>> {
    let bytes = read(path, 64 << 20)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        Error::new("the vocabulary is not UTF-8 text").at(path.display()).found(e).cure("give a vocab.txt")
    })?;
    let wrong = |what: String| {
        Err(Error::new(what).at(path.display()).cure("give the vocab.txt that belongs to these weights"))
    };
    for token in ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] {
        if !text.lines().any(|line| line.trim() == token) {
            return wrong(format!("the vocabulary has no {token}"));
        }
    }
    let bert = config.get(systems::BERT).unwrap_or(config);
    let lines = text.lines().count() as u64;
    match bert.get("vocab_size").and_then(Json::as_u64) {
        Some(rows) if lines > rows => {
            wrong(format!("the vocabulary has {lines} tokens, but the weights have {rows} (vocab_size)"))
        }
        _ => Ok(bytes),
    }
}
