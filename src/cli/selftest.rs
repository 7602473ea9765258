//! `crossweave selftest`: the registry's ops on this adapter against f64 on the host.

use std::sync::atomic::Ordering;

use clap::Args;

use super::progress::Bar;
use super::{Verdict, interrupt, show, table, text_of};
use crate::error::{Error, Result};
use crate::eval::choices::remembering;
use crate::eval::precisions;
use crate::gpu::{Gpu, Precision};
use crate::ops::registry::{Case, Outcome, cases};
use crate::tensor::Device;

/// What `selftest` takes.
#[derive(Args, Debug)]
pub struct Options {
    /// Only this op
    #[arg(long, value_name = "NAME")]
    op: Option<String>,
    /// The adapter: an index of `crossweave devices`, or part of a name [default: the best]
    #[arg(long, value_name = "DEVICE", env = "CROSSWEAVE_DEVICE", hide_env_values = true)]
    device: Option<String>,
    /// Of products: f32, or f16 operands with f32 sums (needs cooperative matrices)
    #[arg(long, default_value = "f32", value_parser = precisions(), env = "CROSSWEAVE_PRECISION", hide_env_values = true)]
    precision: Precision,
    /// Start of the random inputs
    #[arg(long, value_name = "N", default_value_t = 5)]
    seed: u64,
}

/// An op's worst case.
struct Worst {
    op: &'static str,
    cases: usize,
    failed: usize,
    /// The ratio and its bound, where the ratio took most of it.
    ratio: f64,
    bound: f64,
    place: String,
}

/// Runs the cases.
///
/// # Errors
/// No adapter, an unknown op, a device that fails.
pub fn run(options: &Options) -> Result<Verdict> {
    let wanted = wanted(options.op.as_deref())?;
    let stop = interrupt::watch()?;
    let gpu = Gpu::open(&remembering(options.device.as_deref(), options.precision))?;
    let name = gpu.facts().name.clone();
    let device = Device::Gpu(gpu);
    let mut bar = Bar::new("cases");
    let (mut rows, mut failures) = (Vec::<Worst>::new(), Vec::new());
    for (i, case) in wanted.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            bar.finish();
            return Ok(Verdict::Stopped);
        }
        bar.at(i as u64, wanted.len() as u64, case.op);
        let outcome =
            case.check(&device, options.seed).map_err(|e| e.at(format!("{} ({})", case.op, case.about)))?;
        let bound = case.bound_on(&device);
        if !outcome.passes(bound) {
            failures.push(failure(case, &outcome, bound));
        }
        record(&mut rows, case, &outcome, bound);
    }
    bar.finish();
    show(&report(&name, &rows, &failures))?;
    Ok(if failures.is_empty() { Verdict::Good } else { Verdict::Bad })
}

fn wanted(op: Option<&str>) -> Result<Vec<Case>> {
    let mut all = cases();
    let Some(op) = op else { return Ok(all) };
    let mut names: Vec<_> = all.iter().map(|case| case.op).collect();
    names.sort_unstable();
    names.dedup();
    all.retain(|case| case.op == op);
    if all.is_empty() {
        return Err(Error::new("no such op").at("--op").expected(names.join(", ")).found(op));
    }
    Ok(all)
}

/// Adds a case to its op's row; the registry lists an op's cases together or not.
fn record(rows: &mut Vec<Worst>, case: &Case, outcome: &Outcome, bound: f64) {
    let ways = [("forward", outcome.forward, bound), ("backward", outcome.backward, 4.0 * bound)];
    let at = rows.iter().position(|row| row.op == case.op).unwrap_or_else(|| {
        let (ratio, place) = (0.0, String::new());
        rows.push(Worst { op: case.op, cases: 0, failed: 0, ratio, bound, place });
        rows.len() - 1
    });
    let row = &mut rows[at];
    row.cases += 1;
    row.failed += usize::from(!outcome.passes(bound));
    for (way, ratio, bound) in ways {
        // NaN is the worst there is.
        let worse = ratio.is_nan() || ratio / bound > row.ratio / row.bound;
        if row.place.is_empty() || worse && !row.ratio.is_nan() {
            (row.ratio, row.bound, row.place) = (ratio, bound, format!("{way}, {}", case.about));
        }
    }
}

fn failure(case: &Case, outcome: &Outcome, bound: f64) -> String {
    let repeats = if outcome.repeats { "" } else { ", differs when repeated" };
    format!(
        "{} ({}): forward {:.1e} of {bound:.1e}, backward {:.1e} of {:.1e}{repeats}",
        case.op,
        case.about,
        outcome.forward,
        outcome.backward,
        4.0 * bound
    )
}

fn report(device: &str, rows: &[Worst], failures: &[String]) -> String {
    let mut text = table(&["op", "cases", "worst ratio", "bound", "verdict", "where"], &[1, 2, 3]);
    for row in rows {
        let verdict = if row.failed == 0 { "ok".to_owned() } else { format!("{} WRONG", row.failed) };
        let (ratio, bound) = (format!("{:.1e}", row.ratio), format!("{:.1e}", row.bound));
        text.add_row([row.op, &row.cases.to_string(), &ratio, &bound, &verdict, &row.place]);
    }
    let cases: usize = rows.iter().map(|row| row.cases).sum();
    let mut out = format!("{}\n", text_of(&text));
    for failure in failures {
        out += &format!("wrong: {failure}\n");
    }
    out + &match failures.len() {
        0 => format!(
            "{device}: all {cases} cases agree with f64, forward and backward, and repeat bit for bit\n"
        ),
        n => format!("{device}: {n} of {cases} cases are wrong; try another driver or --device\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_shows_the_worst_and_what_failed() {
        let all = cases();
        let (mut rows, case) = (Vec::new(), &all[0]);
        let good = Outcome { forward: case.bound / 2.0, backward: case.bound, repeats: true };
        let bad = Outcome { forward: f64::NAN, ..good.clone() };
        record(&mut rows, case, &good, case.bound);
        assert!(rows[0].failed == 0 && rows[0].place.starts_with("forward"));
        record(&mut rows, case, &bad, case.bound);
        record(&mut rows, case, &good, case.bound);
        assert!(rows[0].failed == 1 && rows[0].cases == 3 && rows[0].ratio.is_nan());
        let text = report("a device", &rows, &[failure(case, &bad, case.bound)]);
        assert!(text.contains("1 WRONG") && text.contains("NaN") && text.contains("1 of 3"), "{text}");
        assert!(wanted(Some("no such")).is_err());
    }
}
