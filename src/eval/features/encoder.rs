//! The Swin that features are of: from an import's folder, a file of weights, or a run.

use std::path::Path;

use serde_json::Value;

use crate::data::identity;
use crate::data::weights::{self, Weights};
use crate::error::{Error, Kind, Result};
use crate::eval::model::{Stored, read_json, read_system, resampled, run_folder};
use crate::nn::{ParamSpec, Params, begin_values, swin};
use crate::tensor::Device;

const WEIGHTS: &str = "model.safetensors";
/// What the names of inner stages' norms begin with.
const INNER: &str = "norm_";
const EXPECTED: &str =
    "an imported Swin's folder, a safetensors file of a Swin, or a run whose system reads pictures";
const CURE: &str = "import a Swin: cargo run --release --bin import -- swin FILE OUT, then --encoder OUT";

/// A Swin, opened and checked; its weights are on no device yet.
pub(super) struct Encoder {
    weights: Weights,
    /// What its tensors' names begin with.
    prefix: &'static str,
    /// As it was trained.
    pub(super) trained: swin::Config,
    /// For pictures of the size asked for.
    pub(super) config: swin::Config,
    specs: Vec<ParamSpec>,
    /// A hash of its weights.
    pub(super) hash: String,
}

impl Encoder {
    /// Opens one, for pictures of another size than its own if one is given.
    ///
    /// # Errors
    /// What is no Swin, weights that are not finite, a size that makes no windows.
    pub(super) fn open(path: &Path, size: Option<usize>) -> Result<Self> {
        let (weights, prefix, trained) = source(path)?;
        let trained = swin::Config { drop_path_rate: 0.0, ..trained };
        trained.check().map_err(|e| e.at(path.display()))?;
        let config = swin::Config { img_size: size.unwrap_or(trained.img_size), ..trained.clone() };
        config.check().map_err(|e| e.at("--image_size"))?;
        if config.in_chans != 3 {
            return Err(Error::new("this encoder reads no pictures of three colours")
                .at(path.display())
                .found(format!("{} colours", config.in_chans))
                .cure(CURE));
        }
        let specs = config.parameters("");
        let there = |spec: &&ParamSpec| !lacks(&weights, prefix, &spec.name);
        let expected = specs.iter().filter(there).map(|spec| {
            let own = spec.shape.dims();
            let found = weights.shape(&format!("{prefix}{}", spec.name));
            let found = found.filter(|found| swin::resized_table(&spec.name, found, own).is_some());
            (spec.name.clone(), found.unwrap_or(own).to_vec())
        });
        let expected: Vec<_> = expected.collect();
        let found = weights.shapes().filter_map(|(name, shape)| Some((name.strip_prefix(prefix)?, shape)));
        weights::check(weights.path().display(), &expected, found.filter(|(name, _)| !is_more(name)))?;
        let hash = identity::tensors(&weights, prefix, expected.iter().map(|(name, _)| name.as_str()))?;
        Ok(Self { weights, prefix, trained, config, specs, hash })
    }

    /// Whether it has a norm of a stage, from 0: its first task has no use for those of inner ones.
    pub(super) fn has_norm(&self, stage: usize) -> bool {
        stage + 1 == swin::STAGES || !lacks(&self.weights, self.prefix, INNER)
    }

    /// On a device, to give the features of a stage, from 0.
    ///
    /// # Errors
    /// What the device reports.
    pub(super) fn on<'d>(&self, device: &'d Device, stage: usize) -> Result<Running<'d>> {
        self.config.check_on(device)?;
        let params = Params::new(&self.specs, device, &mut |spec| {
            if lacks(&self.weights, self.prefix, &spec.name) {
                return Ok(begin_values(spec, &self.specs, 0));
            }
            resampled(&self.weights, &format!("{}{}", self.prefix, spec.name), spec)
        })?;
        let config = self.config.clone();
        Ok(Running { params, most: config.at_once(device), config, stage, device })
    }
}

/// A Swin on a device.
pub(super) struct Running<'d> {
    params: Params,
    config: swin::Config,
    stage: usize,
    device: &'d Device,
    /// Pictures at a time.
    most: usize,
}

impl Running<'_> {
    /// The features `[n, cells, width]` of pictures `[n, 3, size, size]`.
    ///
    /// # Errors
    /// What the device reports; with too little memory, fewer pictures are taken at a time first.
    pub(super) fn features(&mut self, pixels: &[f32]) -> Result<Vec<f32>> {
        let each = 3 * self.config.img_size.pow(2);
        let (mut all, mut rest) = (Vec::new(), pixels);
        while !rest.is_empty() {
            let count = self.most.min(rest.len() / each);
            let (part, after) = rest.split_at(count * each);
            match self.of_part(part, count) {
                Err(e) if e.kind() == Kind::OutOfMemory && count > 1 => {
                    if let Some(gpu) = self.device.gpu() {
                        gpu.trim();
                    }
                    self.most = count.div_ceil(2);
                }
                values => {
                    all.extend(values?);
                    rest = after;
                }
            }
        }
        Ok(all)
    }

    fn of_part(&self, pixels: &[f32], n: usize) -> Result<Vec<f32>> {
        let Self { params, config, .. } = self;
        let x = self.device.tensor([n, 3, config.img_size, config.img_size], pixels);
        let run = swin::Run { scope: params.root(), config, dropouts: None, recomputed: false };
        let stages = run.stages(&x, &mut |_, _| ());
        run.normed(&stages, self.stage).to_vec()
    }
}

/// Whether a tensor is one that the weights may lack and do: norms of inner stages, all of them.
fn lacks(weights: &Weights, prefix: &str, name: &str) -> bool {
    let inner = format!("{prefix}{INNER}");
    name.starts_with(INNER) && !weights.names().any(|name| name.starts_with(&inner))
}

/// Whether a tensor is one that published checkpoints have besides the backbone: the classifier's, and tables that follow
/// from sizes.
fn is_more(name: &str) -> bool {
    name.starts_with("head.") || name.ends_with(".relative_position_index") || name.ends_with(".attn_mask")
}

/// Weights, what their names begin with, and their sizes.
fn source(path: &Path) -> Result<(Weights, &'static str, swin::Config)> {
    let no = |what: &str| Error::new(what).at(path.display()).expected(EXPECTED).cure(CURE);
    if !path.exists() {
        return Err(no("there is no such encoder"));
    }
    let is_run = |folder: &Path| {
        let description = read_json::<Value>(&folder.join("config.json"));
        description.is_ok_and(|description| description.get("system").is_some())
    };
    if path.is_file() {
        let beside = path.file_name().is_some_and(|name| name == WEIGHTS);
        return match path.parent().filter(|parent| beside && is_run(parent)) {
            Some(run) => of_run(run),
            None => of_file(path),
        };
    }
    if is_run(path) {
        return of_run(path);
    }
    let (file, config) = (path.join(WEIGHTS), path.join("config.json"));
    match (file.is_file(), config.is_file()) {
        (true, true) => {
            let read = read_json::<swin::Config>(&config);
            let config = read.map_err(|e| e.expected("the configuration of a Swin").cure(CURE))?;
            Ok((open(&file)?, "", config))
        }
        (true, false) => of_file(&file),
        // A folder of runs says which run it holds.
        _ => Err(run_folder(path).err().unwrap_or_else(|| no("there is no encoder in this folder"))),
    }
}

fn open(file: &Path) -> Result<Weights> {
    let weights = Weights::open(file)?;
    weights.check_finite()?;
    Ok(weights)
}

fn of_file(file: &Path) -> Result<(Weights, &'static str, swin::Config)> {
    let weights = open(file)?;
    let shape = |name: &str| weights.shape(name).map(<[usize]>::to_vec);
    let config = swin::Config::of_shapes(&shape).map_err(|e| e.at(file.display()).cure(CURE))?;
    Ok((weights, "", config))
}

fn of_run(run: &Path) -> Result<(Weights, &'static str, swin::Config)> {
    let (_, system) = read_system(run)?;
    let Some(encoder) = system.image_encoder() else {
        return Err(Error::new("this run has no image encoder: its system reads features")
            .at(run.display())
            .expected(EXPECTED)
            .cure(CURE));
    };
    Ok((Stored::open(run, None)?.into_weights(), encoder.prefix, encoder.config.clone()))
}
