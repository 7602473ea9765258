//! Runs a system, or a part of one, on a reference fixture and compares every tensor with it.

mod compare;
mod levels;
mod parts;
mod pipeline;
mod system;
mod tables;
mod transform;

use std::collections::BTreeMap;
use std::path::Path;

use compare::is_half;
pub use compare::{Row, Rules};

use crate::data::weights::Weights;
use crate::error::{Error, Result};
use crate::host::Rng;
use crate::nn::{ParamSpec, ParamValues};
use crate::shape::Shape;
use crate::systems::kind;
use crate::tensor::Device;

/// The seed of the nudges.
const NUDGE: u64 = 0x9d6e;
/// What rounding to f16 moves a value by, at most, as a share of it.
const HALF: f32 = 1.0 / 2048.0;
/// Draws of f16's nudges, and what a further one may move a result by, of what the worst of them did.
const DRAWS: u64 = 4;
const FURTHER: f64 = 2.0;

/// A fixture: its specification and tensors.
#[derive(Default)]
pub struct Fixture {
    /// The file.
    pub place: String,
    /// The `spec` of its metadata.
    pub spec: serde_json::Value,
    /// Every tensor by its full name.
    pub tensors: BTreeMap<String, (Shape, Vec<f32>)>,
    /// Whether results are measured as those of products in f16, wherever they come from.
    half: bool,
}

impl Fixture {
    /// Reads a fixture whole.
    ///
    /// # Errors
    /// No safetensors file, no `spec`, or more than five dimensions.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Weights::open(path)?;
        let place = path.display().to_string();
        let broken = |what: String| Error::new(what).at(&place).expected("a fixture with a JSON `spec`");
        let text = file.metadata().get("spec").ok_or_else(|| broken("no `spec` in the metadata".into()))?;
        let spec = serde_json::from_str(text).map_err(|e| broken(format!("`spec` is no JSON: {e}")))?;
        let mut tensors = BTreeMap::new();
        for (name, shape) in file.shapes() {
            if shape.len() > crate::shape::MAX_RANK {
                return Err(broken(format!("{name} has {} dimensions", shape.len())));
            }
            let values = match file.f32s(name) {
                Ok(values) => values,
                Err(_) => file.ints(name)?.iter().map(|v| *v as f32).collect(),
            };
            tensors.insert(name.to_string(), (Shape::new(shape), values));
        }
        Ok(Self { place, spec, tensors, half: false })
    }

    /// A tensor that has to be there.
    fn tensor(&self, name: &str) -> Result<&(Shape, Vec<f32>)> {
        self.tensors.get(name).ok_or_else(|| Error::new(format!("{name} is missing")).at(&self.place))
    }

    /// A tensor on a device.
    fn upload(&self, device: &Device, name: &str) -> Result<crate::tensor::Tensor> {
        let (shape, values) = self.tensor(name)?;
        Ok(device.tensor(*shape, values))
    }

    /// A parameter's values.
    fn stored(&self, spec: &ParamSpec) -> Result<ParamValues<'static>> {
        let (_, values) = self.tensor(&format!("param.{}", spec.name))?;
        Ok(ParamValues::Values(values.clone()))
    }

    /// The names that begin with a prefix, without it.
    fn family<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.tensors.keys().filter_map(move |name| name.strip_prefix(prefix))
    }

    fn config<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.spec["config"].clone())
            .map_err(|e| Error::new(format!("its configuration is not understood: {e}")).at(&self.place))
    }

    fn number(&self, option: &str) -> Result<f64> {
        self.spec["config"][option].as_f64().ok_or_else(|| {
            Error::new(format!("`{option}` is no number in its configuration")).at(&self.place)
        })
    }

    /// Moves inputs and parameters that are no whole numbers up or down: by a unit in their last place, or with `half` by
    /// what rounding to f16 moves them at most.
    fn nudge(&mut self, draw: u64) {
        let half = self.half;
        let read = |name: &str| name.starts_with("in.") || name.starts_with("param.");
        let mut rng = Rng::of(NUDGE + draw, &[]);
        for (_, (_, values)) in self.tensors.iter_mut().filter(|(name, _)| read(name)) {
            if values.iter().all(|v| v.fract() == 0.0) {
                continue;
            }
            for v in values.iter_mut().filter(|v| v.is_normal()) {
                let up = rng.next_u64().is_multiple_of(2);
                *v = match (half, up) {
                    (true, true) => *v * (1.0 + HALF),
                    (true, false) => *v * (1.0 - HALF),
                    (false, true) => v.next_up(),
                    (false, false) => v.next_down(),
                };
            }
        }
    }

    fn is_train(&self) -> bool {
        self.spec["mode"] == "train"
    }
}

/// Compares one fixture on one device, every path the fixtures' README names.
///
/// References are computed in f64 from values that the file holds as f32. A result that this rounding moves further than the
/// host's bound has no such accuracy in the file: where a row exceeds, the fixture is run again with its values moved by a
/// unit in their last place, and the row's bound becomes the change of its distance, the least that the result has moved.
/// Products in f16 round their operands: where a row exceeds, its bound becomes what the host twin's result is off by, in
/// the same measure, when inputs and parameters are moved by as much: twice the worst of four draws.
///
/// # Errors
/// A fixture of an unknown system, or one that cannot be run at all.
pub fn check(path: &Path, device: &Device) -> Result<Vec<Row>> {
    let mut fixture = Fixture::open(path)?;
    let mut rows = run(&fixture, device)?;
    let exceeds = |row: &Row| !row.passes() && row.problem.is_none();
    if !rows.iter().any(exceeds) {
        return Ok(rows);
    }
    if device.gpu().is_none() {
        fixture.nudge(0);
        for (row, moved) in rows.iter_mut().zip(run(&fixture, device)?).filter(|(row, _)| exceeds(row)) {
            row.raise((row.worst - moved.worst).abs());
        }
    } else if is_half(device) {
        let mut moved: BTreeMap<String, f64> = BTreeMap::new();
        for draw in 0..DRAWS {
            let mut fixture = Fixture { half: true, ..Fixture::open(path)? };
            fixture.nudge(draw);
            for row in run(&fixture, &Device::Host)? {
                let most = moved.entry(row.name).or_default();
                *most = most.max(row.worst);
            }
        }
        for row in rows.iter_mut().filter(|row| exceeds(row)) {
            row.raise(FURTHER * moved.get(&row.name).copied().unwrap_or_default());
        }
    }
    Ok(rows)
}

fn run(fixture: &Fixture, device: &Device) -> Result<Vec<Row>> {
    match fixture.spec["system"].as_str().unwrap_or_default() {
        "bert" => parts::bert(fixture, device),
        "loss" => parts::loss(fixture, device),
        "adam" => parts::adam(fixture, device),
        "recall" => parts::recall(fixture),
        _ if transform::is_one(fixture) => transform::check(fixture),
        _ if tables::is_of_tables(fixture) => tables::check(fixture),
        name => {
            let kind = kind(name).map_err(|e| e.at(&fixture.place))?;
            if fixture.tensors.contains_key(pipeline::BOXES) {
                return pipeline::check(fixture, kind, device);
            }
            levels::check(fixture, kind, device).unwrap_or_else(|| system::check(fixture, kind, device))
        }
    }
}
