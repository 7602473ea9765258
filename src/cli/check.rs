//! `crossweave check`.

use std::path::PathBuf;

use clap::Args;

use super::progress::Bar;
use super::{Verdict, show};
use crate::data::check::{Progress, Report, scan, scan_for};
use crate::error::Result;
use crate::systems::{Images, kind};

/// What `check` takes.
#[derive(Args, Debug)]
pub struct Options {
    /// The folder that holds {train,dev,test}_ims.npy and _caps.txt, or pictures with captions
    #[arg(value_name = "DATA")]
    folder: PathBuf,
    /// The system that is to read the folder: of features and pictures only what it reads
    #[arg(long, value_name = "NAME")]
    system: Option<String>,
    /// Captions an image, where the counts of rows and captions do not tell
    #[arg(long = "captions-per-image", value_name = "N")]
    captions_per_image: Option<usize>,
}

/// Scans the folder.
///
/// # Errors
/// A folder that cannot be listed.
pub fn run(options: &Options) -> Result<Verdict> {
    let kind = options.system.as_deref().map(kind).transpose().map_err(|e| e.at("--system"))?;
    let mut bar = Bar::new("read");
    let (folder, k) = (&options.folder, options.captions_per_image);
    let tell = &mut |at: &Progress| bar.at(at.done as u64, at.rows as u64, at.split);
    let scanned = match kind {
        Some(kind) => scan_for(kind.images == Images::Pictures, folder, k, tell),
        None => scan(folder, k, tell),
    };
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
