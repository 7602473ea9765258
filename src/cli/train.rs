//! `crossweave train`.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::progress::Reporter;
use super::{Verdict, interrupt, note};
use crate::error::{Error, Result};
use crate::train::options::TrainOptions;
use crate::train::{model, run};

/// Options that a resumed run may change: they do not touch what its steps compute, or are meant to.
const FREE: [&str; 8] = [
    "num_epochs",
    "learning_rate",
    "lr_update",
    "log_step",
    "val_step",
    "workers",
    "skip_nonfinite",
    "data_path",
];
/// Options that name the run itself.
const OWN: [&str; 2] = ["logger_name", "resume"];

/// The options a run began with, and those given now that may change.
fn resumed(given: TrainOptions, folder: &Path) -> Result<TrainOptions> {
    let mut saved = model::read_description(folder)?["options"].take();
    let json = |options: &TrainOptions| serde_json::to_value(options).expect("options are plain data");
    let (now, usual) = (json(&given), json(&TrainOptions::default()));
    for (name, value) in now.as_object().into_iter().flatten() {
        if OWN.contains(&name.as_str()) || *value == usual[name] || *value == saved[name] {
            continue;
        }
        if !FREE.contains(&name.as_str()) {
            return Err(Error::new("this option was fixed when the run began")
                .at(format!("--{name}"))
                .expected(&saved[name])
                .found(value)
                .cure("leave it out, or begin a new run"));
        }
        saved[name] = value.clone();
    }
    let place = folder.join("config.json");
    let saved: TrainOptions = serde_json::from_value(saved).map_err(|e| {
        Error::new(format!("the run's options are not understood: {e}"))
            .at(place.display())
            .cure("an imported checkpoint has no run to resume: begin one")
    })?;
    let TrainOptions { resume, config, device, time_limit, max_steps, stats, .. } = given;
    Ok(TrainOptions { resume, config, device, time_limit, max_steps, stats, ..saved })
}

/// Trains.
///
/// # Errors
/// Options that contradict each other, and all that [`run::train`] reports.
pub fn run(options: TrainOptions) -> Result<Verdict> {
    let options = match options.resume.clone() {
        Some(folder) => resumed(options, &folder)?,
        None => options,
    };
    let (options, warnings) = options.resolve()?;
    for warning in &warnings {
        note("warning", warning);
    }
    let stop = interrupt::watch()?;
    let mut reporter = Reporter::new();
    let trained = run::train(&options, stop, &mut |event| reporter.tell(event));
    reporter.finish();
    trained?;
    Ok(if stop.load(Ordering::Relaxed) { Verdict::Stopped } else { Verdict::Good })
}
