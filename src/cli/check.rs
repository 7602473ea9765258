//! `crossweave check`.

use std::path::PathBuf;

use clap::Args;

use super::progress::Bar;
use super::{Verdict, show};
use crate::data::check::{Report, scan};
use crate::error::Result;

/// What `check` takes.
#[derive(Args, Debug)]
pub struct Options {
    /// The folder that holds {train,dev,test}_ims.npy and _caps.txt
    #[arg(value_name = "DATA")]
    folder: PathBuf,
    /// Captions an image, where the counts of rows and captions do not tell
    #[arg(long = "captions-per-image", value_name = "N")]
    captions_per_image: Option<usize>,
}

/// Scans the folder.
///
/// # Errors
/// A folder that cannot be listed.
pub fn run(options: &Options) -> Result<Verdict> {
    let mut bar = Bar::new("rows");
    let scanned = scan(&options.folder, options.captions_per_image, &mut |at| {
        bar.at(at.done as u64, at.rows as u64, at.split);
    });
    bar.finish();
    let report = scanned?;
    show(&text(&report))?;
    Ok(if report.is_ok() { Verdict::Good } else { Verdict::Bad })
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    for split in &report.splits {
        out += &format!("{split}\n");
    }
    for notice in &report.notices {
        out += &format!("notice: {notice}\n");
    }
    for problem in &report.problems {
        out += &format!("wrong: {problem}\n");
    }
    out + &match report.problems.len() {
        0 => "nothing is wrong\n".to_owned(),
        1 => "1 problem\n".to_owned(),
        n => format!("{n} problems\n"),
    }
}
