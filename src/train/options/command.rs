//! The command `train` of a system, and what is wrong with options as they are given.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, Command};
use clap_lex::OsStrExt;

use super::{FixedOptions, RULES, RunOptions, TEXT, clash};
use crate::error::{Error, Result};
use crate::systems::{Kind, Text, kinds};

/// The command `train` of a system: its options beside the common ones, with its authors' defaults.
pub fn command(kind: Kind) -> Command {
    let named = kind
        .aliases
        .iter()
        .fold(common(), |command, (theirs, ours)| command.mut_arg(*ours, |arg| arg.visible_alias(*theirs)));
    let command = both_spellings((kind.augment)(named)).args_override_self(true).infer_long_args(true);
    // A later list replaces an earlier one, too, as of other values.
    let command = command.mut_args(|arg| match arg.get_action() {
        ArgAction::Append => {
            let id = arg.get_id().clone();
            arg.overrides_with(id)
        }
        _ => arg,
    });
    let mut command = command.mut_arg("system", |arg| arg.default_value(kind.name));
    if kind.text == Text::Words {
        command =
            of_bert().into_iter().fold(command, |command, id| command.mut_arg(id, |arg| arg.hide(true)));
    }
    let nothing = command.clone().no_binary_name(true).try_get_matches_from::<_, OsString>([]);
    let own = nothing.and_then(|matches| (kind.parse)(&matches)).expect("the options' own defaults parse");
    with_defaults(command, &own.common(false))
}

fn common() -> Command {
    FixedOptions::augment_args(RunOptions::augment_args(Command::new("train")))
}

/// The common options that are about a BERT.
pub(super) fn of_bert() -> Vec<clap::Id> {
    let is = |arg: &&clap::Arg| arg.get_help_heading() == Some(TEXT) || arg.get_id() == "bert_dropout";
    common().get_arguments().filter(is).map(|arg| arg.get_id().clone()).collect()
}

/// For a system without a BERT: what the user gives of its options.
pub(super) fn refuse_bert(command: &Command, matches: &ArgMatches, kind: Kind) -> Result<()> {
    let of_bert = of_bert();
    let given = |arg: &&clap::Arg| {
        of_bert.contains(arg.get_id())
            && matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
    };
    match command.get_arguments().find(given).and_then(clap::Arg::get_long) {
        Some(option) => {
            Err(Error::new(format!("--{option} is about a BERT, and {} has none: it reads words", kind.name))
                .cure("leave it out"))
        }
        None => Ok(()),
    }
}

pub(super) fn with_defaults(command: Command, defaults: &[(&'static str, String)]) -> Command {
    defaults.iter().fold(command, |command, (name, value)| {
        let value = value.clone();
        command.mut_arg(name, |arg| arg.default_value(value))
    })
}

/// Under `--faithful`, what the user gives of the options in that group must be the authors' values.
pub(super) fn refuse_ours(
    command: &Command,
    matches: &ArgMatches,
    theirs: &[(&'static str, String)],
) -> Result<()> {
    let rule = |name: &str| {
        command.get_arguments().any(|arg| arg.get_id() == name && arg.get_help_heading() == Some(RULES))
    };
    for (name, value) in theirs.iter().filter(|(name, _)| rule(name)) {
        let given = matches.value_source(name) == Some(ValueSource::CommandLine);
        let last = matches.get_raw(name).into_iter().flatten().next_back();
        if let Some(ours) = last.filter(|raw| given && *raw != value.as_str()) {
            let option = format!("--{} {}", name.replace('_', "-"), ours.to_string_lossy());
            return Err(clash(&option, "--faithful", "--faithful takes the authors' side"));
        }
    }
    Ok(())
}

/// For an unknown argument that is another system's option: an error that says whose it is.
pub(super) fn whose(error: &clap::Error, kind: Kind) -> Option<Error> {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidArg) else { return None };
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    owned_by_another(name.trim_start_matches('-').split('=').next().unwrap_or_default(), kind)
}

/// For an option, perhaps shortened, of another system than `kind`: an error that says whose it is.
pub fn owned_by_another(name: &str, kind: Kind) -> Option<Error> {
    let knows = |kind: Kind| {
        let names = |arg: &clap::Arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            aliases.into_iter().chain(arg.get_long()).any(|long| long.starts_with(name))
        };
        !name.is_empty() && command(kind).get_arguments().any(names)
    };
    if knows(kind) {
        return None;
    }
    let owners: Vec<&str> = kinds().iter().filter(|k| knows(**k)).map(|k| k.name).collect();
    let first = owners.first()?;
    Some(
        Error::new(format!("--{name} is an option of {}, not of {}", owners.join(" and "), kind.name))
            .cure(format!("leave it out, or train that system: --system {first}")),
    )
}

/// The last value that arguments give to a common option; shortened names count from three letters on.
pub fn value_of(args: &[OsString], option: &str) -> Option<OsString> {
    let mut found = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(rest) = arg.strip_prefix("--") else { continue };
        let (name, value) = rest.split_once("=").map_or((rest, None), |(name, value)| (name, Some(value)));
        let name = name.to_string_lossy().to_lowercase();
        if name.len() >= 3 && option.starts_with(&name) {
            found = value.map(OsString::from).or_else(|| args.next().cloned());
        }
    }
    found
}

/// Gives every option of a command the other spellings of its names: `data_path` and `data-path`, lower case too. A
/// negative number is a value, so that where it is wrong the error names the option.
pub fn both_spellings(command: Command) -> Command {
    command.mut_args(|arg| {
        let Some(long) = arg.get_long().map(str::to_owned) else { return arg };
        let mut taken: Vec<String> =
            arg.get_all_aliases().unwrap_or_default().iter().map(|a| (*a).into()).collect();
        taken.push(long);
        let mut others = Vec::new();
        for spelling in taken.clone().iter().flat_map(|name| [name.replace('_', "-"), name.replace('-', "_")])
        {
            for name in [spelling.to_lowercase(), spelling] {
                if !taken.contains(&name) {
                    taken.push(name.clone());
                    others.push(name);
                }
            }
        }
        let takes_values = arg.get_action().takes_values();
        arg.aliases(others).allow_negative_numbers(takes_values)
    })
}
