//! The program: its commands, and what it shows to a person.
//!
//! Results go to stdout, progress, notices and errors to stderr. A command is a function from its arguments to a
//! verdict or an [`Error`], which [`main`] turns into the exit status.

mod check;
mod config;
mod devices;
mod evaluate;
mod fixtures;
mod interrupt;
pub mod parity;
pub mod plot;
mod progress;
mod recall;
mod selftest;
mod train;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use comfy_table::{CellAlignment, Table, presets};

use crate::error::{Error, Kind, Result};
use crate::train::options::{EvaluateOptions, TrainOptions, both_spellings};

const ABOUT: &str = "\
Crossweave trains and evaluates image-text matching models on any GPU that wgpu reaches, or on a software Vulkan \
driver where there is none.

It reads image features and captions in the layout of SCAN's \"precomp\" folders, and takes the command lines of \
DIME's authors as they are. `crossweave COMMAND --help` describes a command.";

const AFTER: &str = "\
Examples:
  crossweave devices
  crossweave selftest
  crossweave check data/f30k_precomp
  crossweave train --system dime --data_path data --data_name f30k_precomp --bert_path bert \\
      --logger_name runs/i2t --direction i2t --extra_stc 1 --lambda_softmax 4
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
`crossweave train --resume RUN` goes on from there.

Examples:
  crossweave train --data_path data --data_name f30k_precomp --bert_path bert --logger_name runs/i2t \\
      --direction i2t --extra_stc 1 --lambda_softmax 4
  crossweave train --data_path data --data_name f30k_precomp --bert_path bert --logger_name runs/t2i \\
      --direction t2i --extra_img 1 --lambda_softmax 9 --cache-text
  crossweave train --config tools/demo.toml --seed 2";

const EVALUATE_AFTER: &str = "\
The table has the recalls at 1, 5 and 10 in percent, median and mean rank (from 1), both ways, rsum (the six \
recalls' sum), and what chance would give. Among equal scores the higher index ranks first.

Examples:
  crossweave evaluate runs/i2t
  crossweave evaluate runs/i2t runs/t2i --save-sims both.npy
  crossweave evaluate imported/dime --data_path data --data_name coco_precomp --split testall --folds 5
  crossweave evaluate --sims i2t.npy t2i.npy --json";

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
    Parity(fixtures::Options),
    /// Trains a system
    #[command(after_long_help = TRAIN_AFTER)]
    Train(Box<TrainOptions>),
    /// Evaluates runs, imported checkpoints or saved similarities
    #[command(after_long_help = EVALUATE_AFTER)]
    Evaluate(Box<EvaluateOptions>),
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

fn command() -> clap::Command {
    // Every subcommand's options get both spellings; the help shows the declared one.
    Cli::command().mut_subcommands(both_spellings)
}

/// Parses the arguments; those of a run to resume and of a `--config` file go in front of the subcommand's own.
fn parse(args: Vec<OsString>) -> Result<Command> {
    let parsed = |args: &[OsString]| {
        // A wrong usage ends here, with clap's own message and status 2; so do --help and --version.
        let matches = command().get_matches_from(args);
        Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit()).command
    };
    let command = parsed(&args);
    let Command::Train(options) = &command else { return Ok(command) };
    let mut first = match &options.resume {
        Some(run) => config::of_run(run)?,
        None => Vec::new(),
    };
    if let Some(file) = &options.config {
        first.extend(config::arguments(file)?);
    }
    let at = args.iter().position(|arg| arg == "train").ok_or_else(|| Error::new("no train command"))?;
    let (before, after) = args.split_at(at + 1);
    Ok(parsed(&[before, &first, after].concat()))
}

fn run(command: Command) -> Result<Verdict> {
    match command {
        Command::Devices(options) => devices::run(&options),
        Command::Selftest(options) => selftest::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Parity(options) => fixtures::run(&options),
        Command::Train(options) => train::run(*options),
        Command::Evaluate(options) => evaluate::run(&options),
    }
}

/// Prints a result. A reader that closed the pipe has seen enough.
fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
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
    fn the_declaration_is_sound() {
        super::command().debug_assert();
    }
}
