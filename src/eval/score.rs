//! Scoring of a split with the weights of runs or imported checkpoints.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::encoded::{Encoded, Scored};
use super::model::{Model, read_description};
use super::sims::{Matrix, Scores};
use super::{EvaluateOptions, Progress};
use crate::data::dataset::{self, Dataset};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Options};
use crate::systems::{Text, kind};
use crate::tensor::Device;

/// Images shown for a caption.
const SHOWN: usize = 3;

/// Scores every pair of the split with each run, in the order of `options.runs`.
///
/// # Errors
/// Bad input, a device that fails; [`crate::Kind::Interrupted`] when `stop` is set.
pub fn score(
    options: &EvaluateOptions,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Progress),
) -> Result<Vec<Matrix>> {
    let device = open(options)?;
    options
        .runs
        .iter()
        .map(|run| Split::open(options, run, &device, stop, tell)?.score(options, stop, tell))
        .collect()
}

/// For the first `options.show` captions: the images ranked first and why, as text.
///
/// # Errors
/// As [`score`].
pub fn show(options: &EvaluateOptions, sims: &Matrix, stop: &AtomicBool) -> Result<String> {
    let device = open(options)?;
    let Some(run) = options.runs.first() else { return Ok(String::new()) };
    let split = Split::open(options, run, &device, stop, &mut |_| ())?;
    let names = image_names(&split.folder, &options.split);
    let name = |i: usize| names.get(i).cloned().unwrap_or_else(|| format!("image {i}"));
    let captions = split.data.captions();
    let score = |image: usize, caption: usize| match &sims.scores {
        Scores::F32(v) => f64::from(v[image * captions + caption]),
        Scores::F64(v) => v[image * captions + caption],
    };
    let mut text = String::new();
    // Captions of different images say more than those of one.
    for shown in 0..options.show.min(split.data.images()) {
        let caption = shown * split.data.captions_per_image();
        let own = split.data.image_of(caption);
        text += &format!("\n\"{}\" ({})\n", split.data.text(caption), name(own));
        let mut order: Vec<usize> = (0..split.data.images()).collect();
        order.sort_by(|a, b| score(*b, caption).total_cmp(&score(*a, caption)).then(b.cmp(a)));
        for (rank, image) in order.iter().take(SHOWN).enumerate() {
            let why = split.encoded.explain(&split.model, &device, *image, caption)?.unwrap_or_default();
            let own = if *image == own { "*" } else { " " };
            let line =
                format!("  {}.{own} {:<24} {:.3}  {why}", rank + 1, name(*image), score(*image, caption));
            text += &format!("{}\n", line.trim_end());
        }
    }
    let legend = match split.model.system.explanation() {
        "" => String::new(),
        words => format!("; {words}"),
    };
    Ok(format!("{text}\n* the caption's own image{legend}\n"))
}

/// The images' names, from `{split}_ids.txt` where the folder has it.
fn image_names(folder: &Path, split: &str) -> Vec<String> {
    let path = folder.join(format!("{split}_ids.txt"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|l| l.trim().to_string()).collect()
}

fn open(options: &EvaluateOptions) -> Result<Device> {
    Ok(Device::Gpu(Gpu::open(&Options {
        device: options.device.clone(),
        precision: Some(options.precision),
        ..Options::default()
    })?))
}

/// A split encoded with a run's weights.
struct Split<'a> {
    model: Model,
    data: Dataset,
    encoded: Encoded,
    folder: PathBuf,
    device: &'a Device,
}

impl<'a> Split<'a> {
    fn open(
        options: &EvaluateOptions,
        run: &Path,
        device: &'a Device,
        stop: &AtomicBool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let model = Model::open(run, options.vocab.as_deref(), device)?;
        let folder = data_folder(options, run)?;
        let wanted = dataset::Options {
            captions_per_image: options.captions_per_image,
            words: kind(&model.name)?.text == Text::Words,
            ..Default::default()
        };
        let mut data = Dataset::open(&folder, &options.split, &wanted)?;
        let inputs = model.system.inputs();
        data.prepare(&inputs, &model.tokenizer)?;
        tell(Progress::Notice(data.describe()));
        data.notices().iter().for_each(|n| tell(Progress::Notice(n.clone())));
        if data.dim() != inputs.dim {
            return Err(Error::new("the features have another width than the model")
                .at(folder.display())
                .expected(inputs.dim)
                .found(data.dim()));
        }
        let tokens = data.tokens(&model.tokenizer, inputs.max_words)?;
        let scored = Scored { folds: options.folds.is_some(), before: 0 };
        let stop = || stop.load(Ordering::Relaxed);
        let encoded = Encoded::new(&model, &data, &tokens, None, scored, device, &stop)?;
        Ok(Self { model, data, encoded, folder, device })
    }

    fn score(
        &self,
        options: &EvaluateOptions,
        stop: &AtomicBool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Matrix> {
        let stopped = || stop.load(Ordering::Relaxed);
        let scores = self.encoded.score(&self.model, self.device, options.tile, &stopped, tell)?;
        Ok(Matrix {
            images: self.data.images(),
            captions_per_image: self.data.captions_per_image(),
            scores: Scores::F32(scores),
        })
    }
}

/// The data's folder: as the options say, else as in the run's training.
fn data_folder(options: &EvaluateOptions, run: &Path) -> Result<PathBuf> {
    let description = read_description(run)?;
    let trained = |name: &str| {
        let own = description["options"][name].as_str().or_else(|| description[name].as_str());
        own.map(PathBuf::from)
    };
    let path = options.data_path.clone().or_else(|| trained("data_path"));
    let name = options.data_name.clone().map(PathBuf::from).or_else(|| trained("data_name"));
    match (path, name) {
        (Some(path), Some(name)) => Ok(path.join(name)),
        _ => Err(Error::new("the run does not say what data it was trained on")
            .at(run.display())
            .cure("give --data_path and --data_name")),
    }
}
