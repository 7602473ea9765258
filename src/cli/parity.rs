//! `crossweave parity`: shows what [`crate::parity`] compares.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::Args;

use super::{Verdict, interrupt, note, show, table, text_of};
use crate::error::{Error, Result};
use crate::eval::choices::remembering;
use crate::eval::precisions;
use crate::gpu::{Gpu, Precision};
use crate::parity::{Row, check};
use crate::tensor::Device;

/// What `parity` takes.
#[derive(Args, Debug)]
pub struct Options {
    /// Reference fixtures: safetensors files with a `spec` in their metadata
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// On the host twin, in f64, instead of the GPU
    #[arg(long, conflicts_with = "both")]
    host: bool,
    /// On the host twin and on the GPU
    #[arg(long)]
    both: bool,
    /// The adapter: an index of `crossweave devices`, or part of a name [default: the best]
    #[arg(long, value_name = "DEVICE", env = "CROSSWEAVE_DEVICE", hide_env_values = true)]
    device: Option<String>,
    /// Of products on the GPU: f32, or f16 operands with f32 sums (needs cooperative matrices; bounds of its own)
    #[arg(long, default_value = "f32", value_parser = precisions(), env = "CROSSWEAVE_PRECISION", hide_env_values = true)]
    precision: Precision,
    /// Prints only what fails, and a line a file
    #[arg(long)]
    brief: bool,
}

/// Compares every file; one that cannot be run does not stop the others.
///
/// # Errors
/// No adapter, or files that could not be run (after all others were).
pub fn run(options: &Options) -> Result<Verdict> {
    let stop = interrupt::watch()?;
    let mut devices = Vec::new();
    if options.host || options.both {
        devices.push(("host", Device::Host));
    }
    if !options.host {
        let gpu = Gpu::open(&remembering(options.device.as_deref(), options.precision))?;
        devices.push(("GPU", Device::Gpu(gpu)));
    }
    let (mut failed, mut broken) = (0, 0);
    for file in &options.files {
        for (side, device) in &devices {
            if stop.load(Ordering::Relaxed) {
                return Ok(Verdict::Stopped);
            }
            let rows = check(file, device).and_then(|rows| match rows.is_empty() {
                true => Err(Error::new("the fixture has nothing to compare").at(file.display())),
                false => Ok(rows),
            });
            match rows {
                Ok(rows) => {
                    failed += usize::from(!rows.iter().all(Row::passes));
                    show(&report(&file.display().to_string(), side, &rows, options.brief))?;
                }
                Err(e) => {
                    broken += 1;
                    note("error", &e.to_string());
                }
            }
        }
    }
    let runs = options.files.len() * devices.len();
    if broken > 0 {
        return Err(Error::new(format!("{broken} of {runs} comparisons could not be run")));
    }
    show(&format!("{} of {runs} comparisons pass\n", runs - failed))?;
    Ok(if failed == 0 { Verdict::Good } else { Verdict::Bad })
}

fn report(file: &str, side: &str, rows: &[Row], brief: bool) -> String {
    let mut text = table(&["path", "tensor", "worst", "bound", "verdict"], &[2, 3]);
    let mut shown = 0;
    for row in rows.iter().filter(|row| !brief || !row.passes()) {
        let verdict = match (&row.problem, row.passes()) {
            (Some(problem), _) => problem,
            (None, true) if row.raised => "ok: rounding the fixture's inputs moves it so far",
            (None, true) => "ok",
            (None, false) => "EXCESS",
        };
        let (worst, bound) = (format!("{:.1e}", row.worst), format!("{:.1e}", row.bound));
        text.add_row([row.path, &row.name, &worst, &bound, verdict]);
        shown += 1;
    }
    let failed = rows.iter().filter(|row| !row.passes()).count();
    let share = rows.iter().filter(|r| r.bound > 0.0).map(|r| r.worst / r.bound).fold(0.0, f64::max);
    let verdict = match failed {
        0 => {
            let raised = rows.iter().filter(|row| row.raised).count();
            let raised = match raised {
                0 => String::new(),
                n => format!(", {n} by what rounding the fixture's inputs moves"),
            };
            format!("ok, the worst at {:.0}% of its bound{raised}", 100.0 * share)
        }
        n => format!("{n} WRONG"),
    };
    let rows_text = if shown == 0 { String::new() } else { text_of(&text) };
    format!("{rows_text}{file}, {side}: {} tensors, {verdict}\n", rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(worst: f64, problem: Option<&str>) -> Row {
        let problem = problem.map(str::to_owned);
        Row { path: "fast", name: "out.sims".into(), worst, bound: 1e-3, raised: false, problem }
    }

    #[test]
    fn excess_and_absence_show() {
        let text =
            report("f", "GPU", &[row(1e-4, None), row(2e-3, None), row(f64::NAN, Some("missing"))], true);
        assert!(text.contains("EXCESS") && text.contains("missing") && text.contains("2 WRONG"), "{text}");
        assert!(!text.contains("1.0e-4"), "{text}");
        let text = report("f", "host", &[row(1e-4, None)], true);
        assert_eq!(text, "f, host: 1 tensors, ok, the worst at 10% of its bound\n");
    }
}
