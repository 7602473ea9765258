//! A run's whole state in one file, replaced atomically: weights, optimiser, place in the data.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::weights::{self, Entry, Weights};
use crate::error::{Error, Result};
use crate::eval::model::{Model, entry, stored};
use crate::eval::rank::Metrics;
use crate::gpu::Choices;
use crate::nn::Role;
use crate::nn::optim::{Optimizer, Taken};

/// The file in a run's folder.
pub const FILE: &str = "last.safetensors";
/// The version of the state's form.
const VERSION: u64 = 1;

/// How far a run is, besides its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The version of this form.
    pub version: u64,
    /// Steps done.
    pub step: u64,
    /// Captions scored at a time in a step.
    pub tile: usize,
    /// The best validation so far: its score, its step and its recalls.
    pub best: Option<(f64, u64, Metrics)>,
    /// Seconds trained.
    pub seconds: f64,
    /// Optimiser steps of each parameter.
    pub steps: BTreeMap<String, u32>,
    /// The tiles that were measured to be fastest: others would sum in another order.
    #[serde(default)]
    pub choices: Choices,
}

impl State {
    /// The state of a run that begins.
    pub fn begin(tile: usize) -> Self {
        Self {
            version: VERSION,
            step: 0,
            tile,
            best: None,
            seconds: 0.0,
            steps: BTreeMap::new(),
            choices: Choices::default(),
        }
    }
}

/// Writes a run's state; a frozen text encoder is left out, as it is not the run's.
///
/// # Errors
/// What the device reports; a file that cannot be written, in which case the former one stays.
pub fn save(
    folder: &Path,
    model: &Model,
    optimizer: &Optimizer,
    state: &State,
    with_text: bool,
) -> Result<()> {
    let mut state = state.clone();
    let values = model.values(|role| with_text || role != Role::Encoder)?;
    let mut entries: Vec<Entry> = values.iter().map(|(spec, v)| entry(spec, v)).collect();
    let taken = optimizer.read(&model.params)?;
    for Taken { spec, m, v, steps } in &taken {
        state.steps.insert(spec.name.clone(), *steps);
        for (moment, values) in [("m", m), ("v", v)] {
            entries.push(Entry::f32s(format!("adam.{moment}.{}", spec.name), spec.shape.dims(), values));
        }
    }
    let text = serde_json::to_string(&state).expect("the state is plain data");
    weights::write(&folder.join(FILE), &entries, &HashMap::from([("state".into(), text)]))
}

/// The steps done when the run's state was written.
///
/// # Errors
/// No file, a broken one, one of a newer version.
pub fn step(folder: &Path) -> Result<u64> {
    Ok(state_of(&Weights::open(&folder.join(FILE))?)?.step)
}

/// The tiles that a run was trained with.
///
/// # Errors
/// As [`step`].
pub fn choices(folder: &Path) -> Result<Choices> {
    Ok(state_of(&Weights::open(&folder.join(FILE))?)?.choices)
}

fn state_of(file: &Weights) -> Result<State> {
    let broken = |what: String| {
        Error::new(what).at(file.path().display()).cure("evaluate the run's best weights, or begin a new run")
    };
    let text = file.metadata().get("state").ok_or_else(|| broken("this is no run's state".into()))?;
    let state: State =
        serde_json::from_str(text).map_err(|e| broken(format!("the state is not understood: {e}")))?;
    if state.version > VERSION {
        return Err(broken(format!(
            "the state has version {}, written by a newer crossweave",
            state.version
        )));
    }
    Ok(state)
}

/// Takes a run up where its file left it.
///
/// # Errors
/// No file, a broken one, one of a newer version or of other shapes.
pub fn load(folder: &Path, model: &mut Model, optimizer: &mut Optimizer, with_text: bool) -> Result<State> {
    let path = folder.join(FILE);
    let file = Weights::open(&path)?;
    let state = state_of(&file)?;
    let mut expected: Vec<(String, Vec<usize>)> = Vec::new();
    for spec in model.specs.iter().filter(|s| with_text || s.role != Role::Encoder) {
        expected.push((spec.name.clone(), spec.shape.dims().to_vec()));
        if state.steps.contains_key(&spec.name) {
            for moment in ["m", "v"] {
                expected.push((format!("adam.{moment}.{}", spec.name), spec.shape.dims().to_vec()));
            }
        }
    }
    weights::check(path.display(), &expected, file.shapes())?;
    let wanted = |role| with_text || role != Role::Encoder;
    model.params.reload(wanted, &mut |spec| stored(&file, &spec.name, spec))?;
    *optimizer = Optimizer::resume(&model.params, &state.steps, &mut |moment, spec| {
        stored(&file, &format!("adam.{moment}.{}", spec.name), spec)
    })?;
    Ok(state)
}
