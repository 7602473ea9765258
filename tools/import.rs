//! The import binary: other programs' weights into a folder that Crossweave opens.

use clap::Parser;
use clap::builder::PossibleValuesParser;
use crossweave::data::import::{self, Imported, Source};
use crossweave::data::tokenizer::{PIECES, Tokenizer, WHOLE, WORDS, WordPiece};
use crossweave::data::words::Vocabulary;
use crossweave::data::{atomic, weights};
use crossweave::eval::{self, model::check_vocab};
use crossweave::nn::{bert, shapes};
use crossweave::systems::{self, Text, kind, kinds};
use crossweave::{Error, Result};
use serde_json::{Value as Json, json};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Turns PyTorch and safetensors weights into a folder that Crossweave opens: model.safetensors, config.json,
/// vocab.txt (vocab.json of a system that reads whole words, none of a Swin). Nothing in a file is ever executed.
#[derive(Parser)]
#[command(name = "import", version)]
struct Command {
    /// What the weights are: a BERT encoder (with its bert_config.json and vocab.txt), a Swin, a checkpoint of a
    /// system's authors (with those of the BERT it was trained on), or plain tensors, each under its own name
    #[arg(value_parser = PossibleValuesParser::new(whats()))]
    what: String,
    /// The weights, the index of several files, or a folder that holds model.safetensors, pytorch_model.bin or their index
    file: PathBuf,
    /// The folder to make
    out: PathBuf,
    /// The configuration [default: bert_config.json or config.json beside FILE]
    #[arg(long)]
    config: Option<PathBuf>,
    /// The vocabulary: pieces, or the words that the captions' ids mean [default: vocab.txt, tokenizer.json or vocab.json beside FILE]
    #[arg(long)]
    vocab: Option<PathBuf>,
    /// An option that a system's checkpoint does not say, or says wrong, under the authors' name: direction=i2t
    #[arg(long = "set", value_name = "OPTION=VALUE", value_parser = setting)]
    settings: Vec<(String, Json)>,
}

const BERT: &str = "bert";
const SWIN: &str = "swin";
const TENSORS: &str = "tensors";

fn whats() -> Vec<&'static str> {
    [BERT, SWIN, TENSORS].into_iter().chain(kinds().iter().map(|kind| kind.name)).collect()
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
    refuse_unread(command)?;
    let file = weights_file(&command.file)?;
    let source = Source::open(&file)?;
    // Of the others the weights tell everything.
    let model = ![SWIN, TENSORS].contains(&command.what.as_str());
    let words = model && command.what != BERT && kind(&command.what)?.text == Text::Words;
    // A system of words has no BERT whose configuration could be beside it.
    let configs: &[&str] = if words { &["config.json"] } else { &["bert_config.json", "config.json"] };
    let own: &[&str] = if words { &[WORDS] } else { &[PIECES, WHOLE] };
    let config = beside(&command.config, &file, configs, model);
    let vocab = beside(&command.vocab, &file, own, model);
    let config = config.map(|path| read_json(&path)).transpose()?;
    let imported = match command.what.as_str() {
        BERT => {
            let config =
                config.ok_or_else(|| unknown("the configuration", "--config bert_config.json", &file))?;
            let layout = |json: &Json| Ok(shapes(&bert::Config::read(json)?.parameters("")));
            import::model(&source, &import::BERT, |_, _| Ok(config), layout)?
        }
        SWIN => eval::import::swin(&source)?,
        TENSORS => Imported { config: config.unwrap_or(Json::Null), ..import::tensors(&source)? },
        name => eval::import::system(kind(name)?, &source, config.as_ref(), &command.settings)?,
    };
    let tokenizer = match vocab {
        Some(path) if words => {
            let system = (kind(&command.what)?.open)(&imported.config)?;
            let tokenizer = Tokenizer::Words(Vocabulary::open(&path)?);
            check_vocab(&tokenizer, &*system).map_err(|e| e.at(path.display()))?;
            Some(tokenizer)
        }
        Some(path) => Some(Tokenizer::Pieces(read_pieces(&path, &imported.config)?)),
        None if model => return Err(unknown("the vocabulary", &format!("--vocab {}", own[0]), &file)),
        None => None,
    };
    write(&command.out, &imported, tokenizer.as_ref())?;
    let tokens = match &tokenizer {
        Some(Tokenizer::Pieces(pieces)) => of_pieces(pieces, &imported.config),
        Some(Tokenizer::Words(words)) => of_words(words, &imported.config),
        None => String::new(),
    };
    show(&format!(
        "read     {} ({})\n{}{tokens}wrote    {}\n",
        file.display(),
        source.format(),
        imported.report,
        command.out.display()
    ))
}

/// The weights of a Swin tell its sizes; there is nothing else to say.
fn refuse_unread(command: &Command) -> Result<()> {
    let given = [
        ("--config", command.config.is_some()),
        ("--vocab", command.vocab.is_some()),
        ("--set", !command.settings.is_empty()),
    ];
    match given.iter().find(|(_, given)| *given && command.what == SWIN) {
        Some((option, _)) => Err(Error::new(format!("{option} is of no use to a Swin")).cure("leave it out")),
        None => Ok(()),
    }
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

fn write(out: &Path, imported: &Imported, tokenizer: Option<&Tokenizer>) -> Result<()> {
    atomic::folder(out, |folder| {
        weights::write(&folder.join("model.safetensors"), &imported.entries, &imported.metadata)?;
        if !imported.config.is_null() {
            let text = format!("{:#}\n", imported.config);
            atomic::file(&folder.join("config.json"), |file| file.write_all(text.as_bytes()))?;
        }
        tokenizer.map_or(Ok(()), |tokenizer| tokenizer.save(folder))
    })
}

/// The file meant by a path: itself, or the weights in a folder.
fn weights_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let names = [
        "model.safetensors",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    ];
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

/// Reads a vocabulary of pieces and checks it against the configuration: tokens BERT cannot do without, and a row of
/// the word table for each piece. A checkpoint's own options say how captions are cleaned before the tokenizer's files.
fn read_pieces(path: &Path, config: &Json) -> Result<WordPiece> {
    let mut pieces = WordPiece::open(path)?;
    let bert = config.get(systems::BERT).unwrap_or(config);
    for options in [bert, config].into_iter().filter(|options| options["do_lower_case"].is_boolean()) {
        let of_case = json!({"do_lower_case": options["do_lower_case"]});
        let settings = pieces.settings().0.overruled(&of_case)?;
        pieces = pieces.with_settings(settings, "the checkpoint's do_lower_case");
    }
    let wrong = |what: String| {
        Err(Error::new(what).at(path.display()).cure("give the vocab.txt that belongs to these weights"))
    };
    for token in ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] {
        if !pieces.vocab().iter().any(|piece| piece == token) {
            return wrong(format!("the vocabulary has no {token}"));
        }
    }
    let (tokens, rows) = (pieces.size(), rows(config));
    match rows {
        Some(rows) if tokens > rows => {
            wrong(format!("the vocabulary has {tokens} tokens, but the weights have {rows} (vocab_size)"))
        }
        _ => Ok(pieces),
    }
}

/// Rows of the word table.
fn rows(config: &Json) -> Option<usize> {
    let bert = config.get(systems::BERT).unwrap_or(config);
    bert["vocab_size"].as_u64().and_then(|rows| usize::try_from(rows).ok())
}

/// What the report says of a vocabulary of words that is no more than a part of the model's.
fn of_words(words: &Vocabulary, config: &Json) -> String {
    match config["vocab_size"].as_u64().filter(|rows| words.size() as u64 != *rows) {
        Some(rows) => format!(
            "notice   the weights have {rows} words, the vocabulary {}: is it the one that the model was trained with?\n",
            words.size()
        ),
        None => String::new(),
    }
}

/// What the report says of a vocabulary.
fn of_pieces(pieces: &WordPiece, config: &Json) -> String {
    let (settings, said_by) = pieces.settings();
    let mut lines = format!("tokens   {}: {settings} ({said_by})\n", pieces.size());
    // A table that is longer than its vocabulary is common: some pad it. One that is much longer is another model's.
    if let Some(rows) = rows(config).filter(|rows| *rows > pieces.size()) {
        lines += &format!(
            "notice   the weights have {rows} rows of tokens, more than the vocabulary's {}\n",
            pieces.size()
        );
    }
    lines
}
