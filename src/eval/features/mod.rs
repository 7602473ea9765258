//! Features of anyone's pictures, in the form of SCAN's "precomp" folders: the grid of a Swin's stage is what other
//! folders have a detector's regions for.
//!
//! A folder is made under another name, its recipe first, and features are appended as they come: whatever ends the
//! work, the same call goes on after the last whole batch.

mod encoder;
mod files;
mod options;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

pub use options::FeaturesOptions;

use super::Progress;
use crate::data::captioned::{self, Captioned};
use crate::data::pictures::{Asked, Pictures};
use crate::data::recipe::{Part, Recipe};
use crate::data::words::Vocabulary;
use crate::data::{boxes, identity, paths, word_ids};
use crate::error::{Error, Kind, Result};
use crate::eval::choices::remembering;
use crate::gpu::{Gpu, Precision};
use crate::tensor::Device;
use encoder::{Encoder, Running};
use files::{Held, Place, Rows};

/// Up to so many training captions, a vocabulary has every word.
const FEW: usize = 1000;
/// Of more, the words that they have so often.
const LEAST: usize = 4;

/// A split's pictures and captions.
struct Split {
    name: String,
    names: Vec<String>,
    texts: Vec<String>,
    captions_per_image: usize,
    pictures: Pictures,
}

/// Makes a folder of features and returns what it holds, a line for each split. `tell` hears how far it is; after `stop`
/// is set it ends with the batch.
///
/// # Errors
/// Options, captions, pictures or an encoder that are wrong, each before any work; an output that is there already;
/// [`Kind::Interrupted`] after `stop`; a full disk, what the device reports.
pub fn make(
    options: &FeaturesOptions,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Progress),
) -> Result<Vec<String>> {
    options.check()?;
    let place = Place::of(&options.out)?;
    let encoder = Encoder::open(&options.encoder, options.image_size)?;
    let splits = open(options, encoder.config.img_size, tell)?;
    let least = least(options, &splits);
    let recipe = recipe(options, &encoder, &splits, least);
    let words = splits.iter().find(|split| split.name == "train");
    let words = words.map(|train| Vocabulary::of_captions(train.texts.iter().map(String::as_str), least));
    let ids = splits.iter().map(|split| lines(split, words.as_ref())).collect::<Result<Vec<_>>>()?;
    if words.is_none() {
        tell(Progress::Notice(
            "there is no train split: no vocabulary and no word ids are written, captions are split into the words of the \
             model that reads them"
                .into(),
        ));
    }
    let (stage, config) = (options.stage - 1, &encoder.config);
    if !encoder.has_norm(stage) {
        let of = options.stage;
        tell(Progress::Notice(format!(
            "the encoder has no norm of stage {of}: one that changes no scale is taken"
        )));
    }
    let device = Device::Gpu(Gpu::open(&remembering(options.device.as_deref(), Precision::F32))?);
    let mut swin = encoder.on(&device, stage)?;
    let vocabulary = place.vocabulary();
    let held = place.begin(&recipe)?;
    if let Some(words) = &words {
        words.save(&held.file(&vocabulary))?;
    }
    let grid = config.grid(stage);
    for (split, ids) in splits.iter().zip(&ids) {
        split.write(&held, ids.as_deref(), config.img_size, grid, tell)?;
    }
    let shape = [grid * grid, config.width(stage)];
    extract_all(options, &splits, shape, &held, &mut swin, stop, tell)?;
    held.finish()?;
    let about = |split: &Split| {
        let (n, k) = (split.pictures.len(), split.captions_per_image);
        let captions = split.texts.len();
        format!(
            "{}: {n} images of {} x {}, {captions} captions ({k} an image)",
            split.name, shape[0], shape[1]
        )
    };
    Ok(splits.iter().map(about).collect())
}

/// Opens every split and looks at every picture.
fn open(options: &FeaturesOptions, size: usize, tell: &mut dyn FnMut(Progress)) -> Result<Vec<Split>> {
    let folder = &options.images;
    let all = captioned::every(folder, options.captions.as_deref(), options.captions_per_image)?;
    let mut homes: HashMap<PathBuf, String> = HashMap::new();
    let (mut splits, mut said) = (Vec::new(), Vec::new());
    for (name, Captioned { files, texts, captions_per_image, notices, .. }) in all {
        check_name(&name, folder)?;
        for file in &files {
            if let Some(other) = homes.insert(file.clone(), name.clone()) {
                return Err(Error::new(format!("a picture of the {name} split is in {other} too"))
                    .at(file.display())
                    .cure("keep it in one of them: scores of what was trained on say nothing"));
            }
        }
        // Of captions that are divided here, every split says the same.
        for notice in notices {
            if !said.contains(&notice) {
                tell(Progress::Notice(notice.clone()));
                said.push(notice);
            }
        }
        let names = files.iter().map(|file| one_line(&captioned::name_of(folder, file))).collect();
        let texts = texts.iter().map(|text| one_line(text)).collect();
        let pictures = Pictures::open(files, size, false)?;
        splits.push(Split { name, names, texts, captions_per_image, pictures });
    }
    if splits.is_empty() {
        return Err(Error::new("there are no pictures with captions here")
            .at(options.captions.as_ref().unwrap_or(folder).display())
            .cure(
                "write captions.tsv: for each caption a line with the picture's name, a TAB and the caption",
            ));
    }
    Ok(splits)
}

/// Files are named after splits.
fn check_name(split: &str, folder: &Path) -> Result<()> {
    if !split.starts_with('.') && split.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)) {
        return Ok(());
    }
    Err(Error::new("a split has a name that no file can have")
        .at(folder.display())
        .expected("letters, digits, - and _")
        .found(split.escape_debug())
        .cure("give the split another name"))
}

/// Files have a caption, or a name, a line.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// How often a word is there at least to be in the vocabulary.
fn least(options: &FeaturesOptions, splits: &[Split]) -> usize {
    let captions = splits.iter().find(|split| split.name == "train").map_or(0, |train| train.texts.len());
    options.min_count.unwrap_or(if captions > FEW { LEAST } else { 1 })
}

fn recipe(options: &FeaturesOptions, encoder: &Encoder, splits: &[Split], least: usize) -> Recipe {
    let source = paths::absolute(&options.encoder).display().to_string();
    let trained = serde_json::to_value(&encoder.trained).expect("a configuration is plain data");
    let mut recipe =
        Recipe::new(encoder.hash.clone(), source, trained, options.stage, encoder.config.img_size);
    recipe.numbers = if options.f32 { "f32" } else { "f16" }.into();
    recipe.min_count = least;
    recipe.splits = splits.iter().map(|split| (split.name.clone(), split.part())).collect();
    recipe
}

/// The lines of a split's word ids, if there is a vocabulary.
fn lines(split: &Split, words: Option<&Vocabulary>) -> Result<Option<String>> {
    let Some(words) = words else { return Ok(None) };
    let line = |(i, text): (usize, &String)| {
        let picture = i / split.captions_per_image;
        word_ids::line(&words.encode(text)).map_err(|e| e.at(split.pictures.file(picture).display()))
    };
    split.texts.iter().enumerate().map(line).collect::<Result<String>>().map(Some)
}

impl Split {
    fn sides(&self) -> Vec<[usize; 2]> {
        (0..self.pictures.len()).map(|picture| self.pictures.dimensions(picture)).collect()
    }

    fn part(&self) -> Part {
        let sides: Vec<String> = self.sides().iter().map(|[w, h]| format!("{w} x {h}")).collect();
        let all = self.names.iter().chain(&sides).chain(&self.texts);
        Part {
            pictures: self.pictures.len(),
            captions_per_image: self.captions_per_image,
            content: identity::texts(all.map(String::as_str)),
        }
    }

    /// Writes everything but the features.
    fn write(
        &self,
        held: &Held,
        ids: Option<&str>,
        size: usize,
        grid: usize,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let name = |file: &str| format!("{}{file}", self.name);
        let lines = |all: &[String]| all.iter().map(|line| format!("{line}\n")).collect::<String>();
        held.write(&name("_caps.txt"), lines(&self.texts).as_bytes())?;
        held.write(&name("_ids.txt"), lines(&self.names).as_bytes())?;
        if let Some(ids) = ids {
            held.write(&name("_precaps_stan.txt"), ids.as_bytes())?;
        }
        let sides = self.sides();
        if 16 * (grid * grid * sides.len()) as u64 >= boxes::MAX_FILE {
            tell(Progress::Notice(format!(
                "{}: no boxes are written, they would be more than a model reads; a later --stage has fewer",
                self.name
            )));
            return Ok(());
        }
        held.write(&name("_ims_bbx.npy"), &files::boxes(&sides, size, grid))?;
        held.write(&name("_ims_size.npy"), &files::sizes(&sides))
    }
}

/// Appends what is missing of every split's features, of so many regions and numbers.
fn extract_all(
    options: &FeaturesOptions,
    splits: &[Split],
    [regions, width]: [usize; 2],
    held: &Held,
    swin: &mut Running,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Progress),
) -> Result<()> {
    let open = |split: &Split| {
        let path = held.file(&format!("{}_ims.npy", split.name));
        Rows::open(path, [split.pictures.len(), regions, width], options.f32, options.batch)
    };
    let rows: Vec<Rows> = splits.iter().map(open).collect::<Result<_>>()?;
    let all: usize = splits.iter().map(|split| split.pictures.len()).sum();
    let before: usize = rows.iter().map(Rows::done).sum();
    if before > 0 {
        tell(Progress::Notice(format!("{before} of {all} pictures are done: going on after them")));
    }
    let mut done = 0;
    for (split, mut rows) in splits.iter().zip(rows) {
        extract(&split.pictures, &mut rows, options.batch, swin, &mut |pictures| {
            done += pictures;
            tell(Progress::Extracting { done: done as u64, total: (all - before) as u64 });
            if stop.load(Ordering::Relaxed) && before + done < all {
                let what = format!("interrupted after {} of {all} pictures", before + done);
                return Err(Error::of(Kind::Interrupted, what).cure("the same command goes on from there"));
            }
            Ok(())
        })?;
        rows.finish()?;
    }
    Ok(())
}

/// Appends the rows that are missing, batch by batch; `after` hears of each, and may end it. The next batch is read while
/// the device works on one.
fn extract(
    pictures: &Pictures,
    rows: &mut Rows,
    batch: usize,
    swin: &mut Running,
    after: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<()> {
    let (first, n) = (rows.done(), pictures.len());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let (ready, batches) = sync_channel(1);
        scope.spawn(move || {
            for start in (first..n).step_by(batch) {
                let asked = (start..n.min(start + batch)).map(|picture| Asked { picture, draws: None });
                let asked: Vec<Asked> = asked.collect();
                let read = pictures.read(&asked, threads).map(|pixels| (asked.len(), pixels));
                let failed = read.is_err();
                // A closed channel says that no more are wanted.
                if ready.send(read).is_err() || failed {
                    return;
                }
            }
        });
        for read in batches {
            let (count, pixels) = read?;
            let values = swin.features(&pixels)?;
            rows.append(&values, count, |row| pictures.file(row).to_path_buf())?;
            after(count)?;
        }
        Ok(())
    })
}
