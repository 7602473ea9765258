//! `crossweave train`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::plot::{self, Curve};
use super::progress::Reporter;
use super::{Verdict, interrupt, note};
use crate::error::Result;
use crate::train::options::TrainOptions;
use crate::train::{Event, metrics, run};

const RECALLS: [(&str, &str); 6] = [
    ("val.i2t.r1", "i2t R@1"),
    ("val.i2t.r5", "i2t R@5"),
    ("val.i2t.r10", "i2t R@10"),
    ("val.t2i.r1", "t2i R@1"),
    ("val.t2i.r5", "t2i R@5"),
    ("val.t2i.r10", "t2i R@10"),
];

/// Trains.
///
/// # Errors
/// Options that contradict each other, and all that [`run::train`] reports.
pub fn run(options: TrainOptions) -> Result<Verdict> {
    for warning in &options.warnings {
        note("warning", warning);
    }
    let stop = interrupt::watch()?;
    let mut reporter = Reporter::new();
    let mut folder = None;
    let trained = run::train(options, stop, &mut |event| {
        if let Event::Start { logs, .. } = &event {
            folder = Some(logs.clone());
        }
        let validated = matches!(event, Event::Validation { .. });
        reporter.tell(event);
        if let (true, Some(folder)) = (validated, &folder) {
            draw(folder);
        }
    });
    reporter.finish();
    if let Some(folder) = &folder {
        draw(folder);
    }
    trained?;
    Ok(if stop.load(Ordering::Relaxed) { Verdict::Stopped } else { Verdict::Good })
}

/// Draws the run's curves anew. Training goes on without them: a failure is only told.
fn draw(folder: &Path) {
    let drawn = metrics::read(&folder.join(metrics::FILE)).and_then(|rows| {
        let curve = |(key, label): &(&str, &str)| Curve::from_rows(&rows, key, *label);
        let losses: Vec<Curve> = losses(&rows).iter().map(|(key, label)| curve(&(key, label))).collect();
        let recalls: Vec<Curve> = RECALLS.iter().map(curve).collect();
        plot::write(&folder.join("curves.svg"), &losses, &recalls)
    });
    if let Err(error) = drawn {
        note("warning", &error.to_string());
    }
}

/// The keys of losses in the rows, and what their curves are called: the loss, then its terms.
fn losses(rows: &[Value]) -> Vec<(String, String)> {
    let keys: BTreeSet<&String> =
        rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()).collect();
    let named = |key: &String| {
        let label = if key == "loss" { Some("loss") } else { key.strip_prefix("loss_") };
        label.map(|label| (key.clone(), label.to_string()))
    };
    keys.into_iter().filter_map(named).collect()
}
