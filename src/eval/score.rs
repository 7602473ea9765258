//! Scoring of a split with the weights of runs or imported checkpoints.
//!
//! Scoring COCO takes hours, so everything that can be known before is checked before: [`Members::open`] opens every
//! member's weights, vocabulary and data, and holds them against each other and the options.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::begun::Begun;
use super::encoded::{Encoded, Scored};
use super::model::{Model, Stored, read_description, run_folder};
use super::sims::{Matrix, Scores};
use super::{EvaluateOptions, Progress, rank};
use crate::data::dataset::{self, Dataset};
use crate::data::identity::Identity;
use crate::data::recipe::Recipe;
use crate::data::{captioned, ids, paths};
use crate::error::{Error, Result};
use crate::eval::choices::remembering;
use crate::gpu::Gpu;
use crate::systems::{Images, Text, kind};
use crate::tensor::Device;

/// Images shown for a caption.
const SHOWN: usize = 3;

/// The runs of an evaluation and their data, opened and checked; nothing is on a device yet.
pub struct Members<'a> {
    options: &'a EvaluateOptions,
    all: Vec<Member>,
    names: Option<Vec<String>>,
}

/// Pairs a second from the end of the first tile on, which compiled kernels.
#[derive(Default)]
struct Rate {
    first: Option<(Instant, u64)>,
    last: Option<(Instant, u64)>,
}

impl Rate {
    fn note(&mut self, done: u64) {
        let now = Some((Instant::now(), done));
        self.first = self.first.or(now);
        self.last = now;
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Some((begun, before)), Some((ended, done))) = (self.first, self.last) else {
            return write!(f, "nothing was scored");
        };
        match done.saturating_sub(before) {
            0 => write!(f, "one tile: too few for a rate of pairs"),
            pairs => {
                let seconds = (ended - begun).as_secs_f64().max(1e-9);
                write!(f, "{:.0} pairs/s after the first tile", pairs as f64 / seconds)
            }
        }
    }
}

struct Member {
    run: PathBuf,
    folder: PathBuf,
    data: Dataset,
}

impl<'a> Members<'a> {
    /// Opens everything that scoring will read.
    ///
    /// # Errors
    /// Files that are missing or wrong; members of different widths, images or captions; folds that do not divide
    /// the images; with `--show`, names that do not match the images.
    pub fn open(options: &'a EvaluateOptions, tell: &mut dyn FnMut(Progress)) -> Result<Self> {
        let mut member = |run: &PathBuf| Member::open(options, run, tell);
        let all: Vec<Member> = options.runs.iter().map(&mut member).collect::<Result<_>>()?;
        let Some(first) = all.first() else { return Ok(Self { options, all, names: None }) };
        for member in &all[1..] {
            one_data(first, member)?;
        }
        if let Some(folds) = options.folds {
            rank::check_folds(first.data.images(), folds)?;
        }
        let data = &first.data;
        let names = match (options.show, data.picture_names()) {
            (0, _) => None,
            (_, Some(names)) => Some(names),
            _ => ids::names(&first.folder, &options.split, data.images(), data.captions())?,
        };
        Ok(Self { options, all, names })
    }

    /// The names of a data folder's splits, as the members that read it know them.
    pub fn splits(&self, folder: &Path) -> Vec<String> {
        let of = self.all.iter().find(|member| member.folder == folder);
        dataset::splits(folder, of.is_some_and(|member| member.data.has_pictures()))
    }

    /// The data folders, each once.
    pub fn folders(&self) -> Vec<&Path> {
        let mut folders: Vec<&Path> = self.all.iter().map(|member| member.folder.as_path()).collect();
        folders.dedup();
        folders
    }

    /// Scores every pair of the split with each run in turn; `done` has the matrices of those that were scored whole
    /// whatever happens to the others.
    ///
    /// # Errors
    /// What the device reports, features that hold no numbers; [`crate::Kind::Interrupted`] when `stop` is set.
    pub fn score(
        &self,
        stop: &AtomicBool,
        tell: &mut dyn FnMut(Progress),
        done: &mut Vec<Matrix>,
    ) -> Result<()> {
        let device = open(self.options)?;
        let stopped = || stop.load(Ordering::Relaxed);
        for member in &self.all {
            let mut rate = Rate::default();
            let mut noting = |progress| {
                if let Progress::Evaluating { done, .. } = progress {
                    rate.note(done);
                }
                tell(progress);
            };
            let scores = member.encoded(self.options, &device, stop, |model, encoded| {
                encoded.score(model, &device, self.options.tile, &stopped, &mut noting)
            })?;
            if self.options.stats {
                tell(Progress::Notice(format!("{}: {rate}", member.run.display())));
            }
            done.push(Matrix {
                images: member.data.images(),
                captions_per_image: member.data.captions_per_image(),
                scores: Scores::F32(scores),
            });
        }
        if let Some(gpu) = device.gpu().filter(|_| self.options.stats) {
            tell(Progress::Notice(gpu.stats().to_string()));
        }
        Ok(())
    }

    /// For the first `options.show` captions: the images ranked first and why, as text.
    ///
    /// # Errors
    /// As [`Members::score`].
    pub fn show(&self, sims: &Matrix, stop: &AtomicBool) -> Result<String> {
        let Some(member) = self.all.first() else { return Ok(String::new()) };
        let (device, data) = (open(self.options)?, &member.data);
        member.encoded(self.options, &device, stop, |model, encoded| {
            self.shown(data, sims, model, encoded, &device)
        })
    }

    fn shown(
        &self,
        data: &Dataset,
        sims: &Matrix,
        model: &Model,
        encoded: &Encoded,
        device: &Device,
    ) -> Result<String> {
        let name = |i: usize| match &self.names {
            Some(names) => names[i].clone(),
            None => format!("image {i}"),
        };
        let captions = data.captions();
        let score = |image: usize, caption: usize| match &sims.scores {
            Scores::F32(v) => f64::from(v[image * captions + caption]),
            Scores::F64(v) => v[image * captions + caption],
        };
        let mut text = String::new();
        // Captions of different images say more than those of one.
        for shown in 0..self.options.show.min(data.images()) {
            let caption = shown * data.captions_per_image();
            let own = data.image_of(caption);
            text += &format!("\n\"{}\" ({})\n", data.text(caption), name(own));
            let mut order: Vec<usize> = (0..data.images()).collect();
            order.sort_by(|a, b| score(*b, caption).total_cmp(&score(*a, caption)).then(b.cmp(a)));
            for (rank, image) in order.iter().take(SHOWN).enumerate() {
                let why = encoded.explain(model, device, *image, caption)?.unwrap_or_default();
                let own = if *image == own { "*" } else { " " };
                let line =
                    format!("  {}.{own} {:<24} {:.3}  {why}", rank + 1, name(*image), score(*image, caption));
                text += &format!("{}\n", line.trim_end());
            }
        }
        let legend = match model.system.explanation() {
            "" => String::new(),
            words => format!("; {words}"),
        };
        Ok(format!("{text}\n* the caption's own image{legend}\n"))
    }
}

impl Member {
    fn open(options: &EvaluateOptions, run: &Path, tell: &mut dyn FnMut(Progress)) -> Result<Self> {
        let run = run_folder(run)?;
        let stored = Stored::open(&run, options.vocab.as_deref())?;
        let (folder, remembered) = data_folder(options, &run)?;
        let kind = kind(&stored.name)?;
        let wanted = dataset::Options {
            captions_per_image: options.captions_per_image,
            words: kind.text == Text::Words,
            pictures: kind.images == Images::Pictures,
            ..Default::default()
        };
        let mut data = Dataset::open(&folder, &options.split, &wanted).map_err(|e| match remembered {
            true if !folder.is_dir() => {
                e.found(format!("no such folder; it is where {} had its data in training", run.display()))
            }
            _ => e,
        })?;
        let begun = Begun::of_run(&read_description(&run)?).unwrap_or_default();
        if begun.recipe.is_some() {
            begun.refuse_other_features(Recipe::open(&folder)?.as_ref(), &run, &folder)?;
        }
        let inputs = stored.system.inputs();
        data.prepare(&inputs, &stored.tokenizer)?;
        tell(Progress::Notice(data.describe()));
        data.notices().iter().for_each(|n| tell(Progress::Notice(n.clone())));
        if !data.has_pictures() && data.dim() != inputs.dim {
            return Err(Error::new("the features have another width than the model")
                .at(folder.display())
                .expected(inputs.dim)
                .found(data.dim())
                .cure("give the features that the model was trained on: --data_path, --data_name"));
        }
        if let Some(train) = begun.data.get("train").filter(|train| train.regions != data.regions()) {
            let (own, trained) = (data.regions(), train.regions);
            tell(Progress::Notice(format!("{own} regions an image, where training had {trained}")));
        }
        let split = match data.has_pictures() {
            true => captioned::canonical(&options.split),
            false => &options.split,
        };
        if let Some(before) = begun.data.get(split) {
            let differences = before.differences(&Identity::of(&data)?);
            if !differences.is_empty() {
                let split = &options.split;
                tell(Progress::Notice(format!(
                    "{}: the {split} split is not as it was when {} was trained: {}",
                    folder.display(),
                    run.display(),
                    differences.join(", ")
                )));
            }
        }
        Ok(Self { run, folder, data })
    }

    /// What `f` makes of the model on the device, and of the split encoded by it.
    fn encoded<T>(
        &self,
        options: &EvaluateOptions,
        device: &Device,
        stop: &AtomicBool,
        f: impl FnOnce(&Model, &Encoded) -> Result<T>,
    ) -> Result<T> {
        let model = Model::open(&self.run, options.vocab.as_deref(), device)?;
        let tokens = self.data.tokens(&model.tokenizer, model.system.inputs().max_words)?;
        let scored = Scored { folds: options.folds.is_some(), before: 0 };
        let stop = || stop.load(Ordering::Relaxed);
        let encoded = Encoded::new(&model, &self.data, &tokens, None, scored, device, &stop)?;
        f(&model, &encoded)
    }
}

/// Whether two members score the same images and captions: features may differ.
fn one_data(first: &Member, other: &Member) -> Result<()> {
    let differ = |expected: String, found: String| {
        Err(Error::new("the members of the ensemble have different data")
            .at(other.folder.display())
            .expected(format!("{expected}, as {} has", first.folder.display()))
            .found(found)
            .cure("give all of them the same data: --data_path, --data_name, --split"))
    };
    let sizes = |m: &Member| format!("{} images, {} captions", m.data.images(), m.data.captions());
    if sizes(first) != sizes(other) {
        return differ(sizes(first), sizes(other));
    }
    let pairs = first.data.texts().iter().zip(other.data.texts());
    match pairs.enumerate().find(|(_, (a, b))| a != b) {
        Some((caption, (a, b))) => differ(format!("\"{a}\" as caption {caption}"), format!("\"{b}\"")),
        None => Ok(()),
    }
}

fn open(options: &EvaluateOptions) -> Result<Device> {
    Ok(Device::Gpu(Gpu::open(&remembering(options.device.as_deref(), options.precision))?))
}

/// The data's folder: as the options say, else as in the run's training; and whether the run remembers it.
fn data_folder(options: &EvaluateOptions, run: &Path) -> Result<(PathBuf, bool)> {
    let description = read_description(run)?;
    let trained = |name: &str| {
        paths::from_json(&description["options"][name]).or_else(|| paths::from_json(&description[name]))
    };
    let path = options.data_path.clone().or_else(|| trained("data_path"));
    let name = options.data_name.clone().or_else(|| trained("data_name"));
    let remembered = options.data_path.is_none() || options.data_name.is_none();
    match (path, name) {
        (Some(path), Some(name)) => Ok((path.join(name), remembered)),
        (path, _) => Err(Error::new("the folder does not say what data it was trained on")
            .at(run.display())
            .expected("--data_path DIR --data_name NAME: the data are in DIR/NAME")
            .cure(match path {
                None => "give --data_path and --data_name",
                Some(_) => "give --data_name too",
            })),
    }
}
