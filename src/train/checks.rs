//! What a run reads, opened and checked before anything is written or computed.

use std::path::Path;

use super::options::TrainOptions;
use super::{Event, checkpoint, metrics};
use crate::data::captioned;
use crate::data::dataset::{self, Dataset};
use crate::data::tokenizer::{TokenTable, Tokenizer};
use crate::data::weights::listing;
use crate::error::{Error, Result};
use crate::eval::Progress;
use crate::eval::begun::Begun;
use crate::eval::model::{Model, open_tokenizer, read_description, read_system};
use crate::systems::{Images, System, Text};

/// The split that is trained on and the one that checkpoints are chosen on.
pub(super) struct Splits {
    pub(super) train: Dataset,
    pub(super) dev: Dataset,
}

impl Splits {
    /// Opens both and checks that they fit each other and the options.
    pub(super) fn open(options: &TrainOptions, tell: &mut dyn FnMut(Event)) -> Result<Self> {
        let folder = options.data_folder();
        let open = |split: &str, limit| {
            let captions_per_image = options.fixed.captions_per_image;
            let (strict, words) = (options.run.strict, options.kind.text == Text::Words);
            let pictures = options.kind.images == Images::Pictures;
            let wanted = dataset::Options { captions_per_image, strict, limit, words, pictures };
            Dataset::open(&folder, split, &wanted).map_err(|e| match &options.run.resume {
                Some(run) if !folder.is_dir() => {
                    e.found(format!("no such folder; it is where {} had its data", run.display()))
                }
                _ => e,
            })
        };
        let train = open("train", None)?;
        let dev = open(&options.fixed.dev_split, options.fixed.dev_limit)?;
        if train.dim() != dev.dim() {
            return Err(Error::new("the splits' features have different widths")
                .at(folder.display())
                .expected(train.dim())
                .found(dev.dim()));
        }
        if train.regions() != dev.regions() {
            tell(Event::notice(format!(
                "train has {} regions an image and {} {}",
                train.regions(),
                options.fixed.dev_split,
                dev.regions()
            )));
        }
        match options.run.img_dim.filter(|n| *n != train.dim()) {
            Some(asked) => Err(Error::new("the features have another width than --img_dim says")
                .at(folder.display())
                .expected(asked)
                .found(train.dim())
                .cure("give the data's width, leave out --img_dim (there, or in the file of --config) to take it, or give the data meant")),
            None => Ok(Self { train, dev }),
        }
    }

    /// Keeps what evaluation sees of pictures in files of the run: every validation reads dev, and training the train
    /// split again and again if it sees no parts of them.
    pub(super) fn keep_pictures(
        &mut self,
        folder: &Path,
        model: &Model,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let mut keep = |split: &mut Dataset, name: &str| {
            let tell = &mut |done, total| {
                tell(Event::Progress(Progress::Reading { done: done as u64, total: total as u64 }));
            };
            split.keep_pictures(&folder.join(format!("pictures-{name}.u8")), stop, tell)
        };
        if model.system.inputs().crop == 0.0 {
            keep(&mut self.train, "train")?;
        }
        keep(&mut self.dev, "dev")
    }

    /// Checks both against the model, says what they are, and gives their captions as the model reads them.
    pub(super) fn prepare(&mut self, model: &Model, tell: &mut dyn FnMut(Event)) -> Result<[TokenTable; 2]> {
        let inputs = model.system.inputs();
        let mut told: Vec<String> = Vec::new();
        for set in [&mut self.train, &mut self.dev] {
            set.prepare(&inputs, &model.tokenizer)?;
            tell(Event::notice(set.describe()));
            for notice in set.notices() {
                if !told.contains(notice) {
                    told.push(notice.clone());
                    tell(Event::notice(notice.clone()));
                }
            }
        }
        let tokens = |set: &Dataset| set.tokens(&model.tokenizer, inputs.max_words);
        Ok([tokens(&self.train)?, tokens(&self.dev)?])
    }
}

/// What the run to go on with was begun with, if all of it is there as it was.
pub(super) fn resumed_with(options: &TrainOptions) -> Result<Begun> {
    let folder = options.run_folder();
    let description = read_description(&folder)?;
    options.goes_on(&description["options"]).map_err(|e| e.at(folder.display()))?;
    let (_, system) = read_system(&folder)?;
    let now = now(options, &*system, &open_tokenizer(&folder, None, options.kind.text)?)?;
    // Runs of before this was kept go on with what is there.
    let Some(begun) = Begun::of_run(&description) else { return Ok(now) };
    begun.refuse_other_features(now.recipe.as_ref(), &folder, &options.data_folder())?;
    let dev = match options.kind.images {
        Images::Pictures => captioned::canonical(&options.fixed.dev_split),
        Images::Features => &options.fixed.dev_split,
    };
    let differing = begun.differences(&now, &["train", dev]);
    if differing.is_empty() {
        return Ok(begun);
    }
    let cure =
        "give the run what it was begun with (--data_path, --data_name, --bert_path), or begin a new run";
    Err(Error::new("the data or the text encoder are not those that the run was begun with")
        .at(folder.display())
        .found(listing(&differing))
        .cure(cure))
}

/// What is there for a run to begin with.
pub(super) fn now(options: &TrainOptions, system: &dyn System, tokenizer: &Tokenizer) -> Result<Begun> {
    let captions_per_image = options.fixed.captions_per_image;
    let words = options.kind.text == Text::Words;
    let pictures = options.kind.images == Images::Pictures;
    let wanted = dataset::Options { captions_per_image, words, pictures, ..Default::default() };
    let frozen = (!options.trains_text()).then_some(options.run.bert_path.as_path());
    Begun::now(&options.data_folder(), &wanted, &system.inputs(), tokenizer, frozen)
}

/// One run a folder, and one run's logs.
pub(super) fn refuse_run(options: &TrainOptions) -> Result<()> {
    let (folder, logs) = (options.run_folder(), options.log_folder());
    let held = |folder: &Path| folder.join(checkpoint::FILE).exists() || folder.join(metrics::FILE).exists();
    if held(&folder) {
        let option = if folder == logs { "--logger_name" } else { "--model_name" };
        return Err(Error::new("this folder holds a run already")
            .at(folder.display())
            .cure(format!("give another {option}, or go on with --resume {}", folder.display())));
    }
    if held(&logs) {
        return Err(Error::new("this folder holds another run's logs")
            .at(logs.display())
            .cure("give another --logger_name"));
    }
    Ok(())
}
