//! The program: its commands, and what it shows to a person.
//!
//! Results go to stdout, progress, notices and errors to stderr. A command is a function from its arguments to a
//! verdict or an error, which [`main`] turns into the exit status.

mod check;
mod config;
mod devices;
mod evaluate;
mod features;
mod interrupt;
mod parity;
pub mod plot;
mod progress;
mod recall;
mod selftest;
mod test_only;
mod train;
mod with;

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use comfy_table::{CellAlignment, Table, presets};

use crate::error::{Error, Kind, Result};
use crate::eval::model::run_folder;
use crate::eval::{EvaluateOptions, FeaturesOptions};
use crate::systems::{self, kind, kinds};
use crate::train::options::{self, TrainOptions, both_spellings, value_of};

const ABOUT: &str = "\
Crossweave trains and evaluates image-text matching models on any GPU that wgpu reaches, or on a software Vulkan \
driver where there is none.

It reads image features and captions in the layout of SCAN's \"precomp\" folders, and takes the command lines of \
the systems' authors as they are. `crossweave COMMAND --help` describes a command, `crossweave train --system NAME \
--help` the options of one system.";

const AFTER: &str = "\
Examples:
  crossweave devices
  crossweave selftest
  crossweave check data/f30k_precomp
  crossweave train --system dime --data_path data --data_name f30k_precomp --bert_path bert \\
      --logger_name runs/i2t --direction i2t --extra_stc 1 --lambda_softmax 4
  crossweave features --encoder swin --images data/mine --out data/mine_precomp
  crossweave evaluate runs/i2t runs/t2i
  crossweave evaluate --sims coco.npy --folds 5

Environment:
  CROSSWEAVE_DEVICE     the adapter, as --device
  CROSSWEAVE_PRECISION  f32 or f16, as --precision
  CROSSWEAVE_BACKEND    gl: also ask OpenGL drivers

Exit status:
  0    done, and every check passed
  1    a check failed (selftest, parity, check)
  2    bad input, no adapter, or a device that failed
  130  stopped by Ctrl-C, with everything saved";

const TRAIN_AFTER: &str = "\
Options can be written with underscores or hyphens and shortened as long as they stay clear. A later one replaces \
an earlier one; --config FILE goes before the command line.

Ctrl-C finishes the step, saves and exits with status 130; a second Ctrl-C exits at once. \
`crossweave train --resume RUN` goes on from there.";

const EVALUATE_AFTER: &str = "\
The table has the recalls at 1, 5 and 10 in percent, median and mean rank (from 1), both ways, rsum (the six \
recalls' sum), and what chance would give. Among equal scores the higher index ranks first.

Examples:
  crossweave evaluate runs/i2t
  crossweave evaluate runs/i2t runs/t2i --save-sims both.npy
  crossweave evaluate imported/dime --data_path data --data_name coco_precomp --split testall --folds 5
  crossweave evaluate --sims i2t.npy t2i.npy --json";

const FEATURES_AFTER: &str = "\
The folder of the pictures is one that a system which reads pictures trains on: Karpathy's dataset_*.json or COCO's \
annotations with images/, or captions.tsv (for each caption a line with the picture's name, a TAB and the caption), whose \
pictures are divided into train, dev and test by their names.

Every system that reads features trains on the result and is evaluated on it. features.json in it says what it was made \
with; a run refuses features that were made otherwise.

Ctrl-C finishes the batch and exits with status 130; the same command goes on from there.

Examples:
  crossweave features --encoder swin --images data/mine --out data/mine_precomp
  crossweave features --encoder runs/pictures --images data/f30k --out data/f30k_grid --stage 3
  crossweave check data/mine_precomp";

#[derive(Parser)]
#[command(
    name = "crossweave",
    version,
    about = "Trains and evaluates image-text matching models on any GPU",
    long_about = ABOUT,
    after_long_help = AFTER,
    infer_long_args = true,
    args_override_self = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the adapters, their limits and features, and says which one is taken
    Devices(devices::Options),
    /// Runs every op, forward and backward, and compares it with f64 on the host
    Selftest(selftest::Options),
    /// Scans a data folder whole and reports everything wrong with it
    Check(check::Options),
    /// Compares the systems with reference fixtures, tensor by tensor
    Parity(parity::Options),
    /// Evaluates runs, imported checkpoints or saved similarities
    #[command(after_long_help = EVALUATE_AFTER)]
    Evaluate(Box<EvaluateOptions>),
    /// Makes a data folder of image features from pictures and their captions
    #[command(after_long_help = FEATURES_AFTER)]
    Features(Box<FeaturesOptions>),
}

/// How a command that ran to its end ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// A check failed.
    Bad,
    /// The user stopped it.
    Stopped,
}

/// Runs the program on its arguments, the program's name first.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match parse(args).and_then(run) {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Ok(Verdict::Stopped) => ExitCode::from(130),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(if error.kind() == Kind::Interrupted { 130 } else { 2 })
        }
    }
}

/// The program's commands; `train` with the options of one system.
fn command(kind: systems::Kind) -> clap::Command {
    let names: Vec<String> = kinds().iter().map(|k| format!("  {:8}{}", k.name, k.title)).collect();
    let (names, examples) = (names.join("\n"), kind.examples);
    let after = format!("Systems (--system):\n{names}\n\n{TRAIN_AFTER}\n\nExamples:\n{examples}");
    let train = options::command(kind).about("Trains a system").after_long_help(after);
    // Every subcommand's options get both spellings; the help shows the declared one.
    Cli::command().mut_subcommands(both_spellings).subcommand(train)
}

/// What the arguments ask for.
enum Asked {
    Train(Box<TrainOptions>),
    Other(Command),
}

fn parse(args: Vec<OsString>) -> Result<Asked> {
    if args.get(1).is_some_and(|arg| arg == "train") {
        return Ok(Asked::Train(Box::new(train_options(&args[2..])?)));
    }
    let matches = command(kind(systems::DEFAULT)?).try_get_matches_from(args);
    let parsed = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    Ok(Asked::Other(parsed.unwrap_or_else(|e| leave(&e)).command))
}

/// Ends the program with clap's own message: of a wrong usage, or the help or version that was asked for.
fn leave(e: &clap::Error) -> ! {
    match e.print().and_then(|()| std::io::stdout().flush()) {
        Err(io) if !e.use_stderr() && io.kind() != ErrorKind::BrokenPipe => {
            note("error", &unwritten(&io).to_string());
            std::process::exit(2)
        }
        _ => std::process::exit(e.exit_code()),
    }
}

/// The options of `train`; those of a run to resume and of a `--config` file go before the arguments.
fn train_options(args: &[OsString]) -> Result<TrainOptions> {
    let resumed = value_of(args, "resume").map(|run| run_folder(Path::new(&run))).transpose()?;
    let run = resumed.as_deref().map(config::of_run).transpose()?.unwrap_or_default();
    let file = value_of(args, "config").map(PathBuf::from);
    let text = file.as_deref().map(config::read).transpose()?;
    let named = |args: &[OsString]| value_of(args, "system").map(|name| name.to_string_lossy().into_owned());
    let in_file = text.as_deref().and_then(config::system);
    let name = named(args).or(in_file).or_else(|| named(&run));
    let kind = kind(name.as_deref().unwrap_or(systems::DEFAULT)).map_err(|e| e.at("--system"))?;
    let line = with::read(kind, args)?;
    let mut all = [line.sets, run].concat();
    if let (Some(file), Some(text)) = (&file, &text) {
        all.extend(config::parse(kind, text, &file.display().to_string())?);
    }
    all.extend_from_slice(line.options);
    all.extend(line.keys);
    let options = TrainOptions::parse(kind, &all, |e| {
        // As the whole program would say it: its usage, its help, its status.
        let line = [&["crossweave".into(), "train".into()], all.as_slice()].concat();
        match command(kind).try_get_matches_from(line) {
            Err(same) => leave(&same),
            Ok(_) => leave(&e),
        }
    })?;
    if (&options.run.resume, &options.run.config) != (&resumed, &file) {
        return Err(Error::new("--resume and --config cannot be shortened so far").cure("write them out"));
    }
    Ok(options)
}

fn run(asked: Asked) -> Result<Verdict> {
    match asked {
        Asked::Train(options) => match options.own.tested() {
            Some(checkpoint) => test_only::run(&options, checkpoint),
            None => train::run(*options),
        },
        Asked::Other(Command::Devices(options)) => devices::run(&options),
        Asked::Other(Command::Selftest(options)) => selftest::run(&options),
        Asked::Other(Command::Check(options)) => check::run(&options),
        Asked::Other(Command::Parity(options)) => parity::run(&options),
        Asked::Other(Command::Evaluate(options)) => evaluate::run(&options),
        Asked::Other(Command::Features(options)) => features::run(&options),
    }
}

/// Prints a result. A reader that closed the pipe has seen enough.
///
/// # Errors
/// A standard output that cannot be written, on a full disk, say.
fn show(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(unwritten(&e)),
        _ => Ok(()),
    }
}

fn unwritten(e: &std::io::Error) -> Error {
    Error::io("write the result", Path::new("standard output"), e)
}

/// Prints a notice or a warning.
fn note(label: &str, text: &str) {
    let _ = writeln!(std::io::stderr(), "{label}: {text}");
}

/// A plain table; the columns named in `right` hold numbers.
fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if i == 0 { 0 } else { 1 }, 1));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The table's text, without blanks at the ends of lines.
fn text_of(table: &Table) -> String {
    table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_systems_declaration_is_sound() {
        for kind in crate::systems::kinds() {
            super::command(kind).debug_assert();
        }
    }
}
