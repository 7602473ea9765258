//! A system that reads pictures trains on folders of them, goes on, is evaluated and has its data checked.

mod pretend;

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::AtomicBool;

use clap::{Args, Command, FromArgMatches};
use crossweave::Result;
use crossweave::data::batches::{Batch, BatchPlan, Varied, assemble};
use crossweave::data::captioned;
use crossweave::data::check::{Report, scan, scan_for};
use crossweave::data::dataset::{Dataset, Options};
use crossweave::data::tokenizer::{Tokenizer, WordPiece, build_vocab};
use crossweave::eval::score::Members;
use crossweave::eval::sims::{Matrix, Scores};
use crossweave::eval::{EvaluateOptions, Progress};
use crossweave::host::Inputs;
use crossweave::systems::{Kind, register};
use crossweave::train::options::TrainOptions;
use crossweave::train::{Event, metrics, run};
use pretend::pictures::PicturesOptions;
use serde_json::Value;
use tempfile::TempDir;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
const EMOJITINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/emojitiny_precomp");

/// Where runs are made, and data of one's own in `data/own`.
struct Place(TempDir);

/// What training said.
#[derive(Default)]
struct Said {
    text: String,
    /// Pictures read for files of them.
    kept: u64,
}

impl Place {
    fn new() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| register(Kind::of::<PicturesOptions>()));
        let place = Self(tempfile::tempdir().expect("a folder"));
        std::fs::create_dir_all(place.own()).expect("made");
        place
    }

    /// With so many pictures of emojitiny's training split and one caption file over them all.
    fn with_pictures(n: usize) -> Self {
        let place = Self::new();
        let all = captioned::open(Path::new(EMOJITINY), "train", None).expect("emojitiny");
        let mut lines = String::new();
        for (file, texts) in all.files.iter().zip(all.texts.chunks(5)).take(n) {
            let name = file.file_name().expect("a name").to_str().expect("text");
            std::fs::copy(file, place.own().join(name)).expect("copied");
            texts.iter().for_each(|text| lines += &format!("{name}\t{text}\n"));
        }
        place.write("captions.tsv", lines.as_bytes());
        place
    }

    fn own(&self) -> PathBuf {
        self.path("data/own")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.own().join(name), bytes).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn train(&self, run: &str, more: &str) -> Result<Said> {
        let (data, run) = (self.path("data").display().to_string(), self.path(run).display().to_string());
        let line = format!(
            "--system pretend-pictures --data_path {data} --data_name own --logger_name {run} --bert-init random \
             --num_epochs 2 --learning_rate 3e-3 --log_step 1 --val_step 1000 {more}"
        );
        let options = TrainOptions::of(&line.split_whitespace().collect::<Vec<_>>())?;
        let mut said = Said::default();
        run::train(options, &AtomicBool::new(false), &mut |event| {
            if let Event::Progress(Progress::Reading { done, total }) = event {
                said.kept += if done == total { total } else { 0 };
            }
            said.text += &format!("{event:?}\n");
        })?;
        Ok(said)
    }

    fn evaluate(&self, run: &str, more: &[&str]) -> Result<(Matrix, String, String)> {
        let command = EvaluateOptions::augment_args(Command::new("evaluate").no_binary_name(true));
        let run = self.path(run).display().to_string();
        let given = [run.as_str(), "--show", "2"].into_iter().chain(more.iter().copied());
        let options = EvaluateOptions::from_arg_matches(&command.get_matches_from(given)).expect("sound");
        let (mut said, mut matrices) = (String::new(), Vec::new());
        let stop = AtomicBool::new(false);
        let members = Members::open(&options, &mut |progress| said += &format!("{progress:?}\n"))?;
        members.score(&stop, &mut |_| {}, &mut matrices)?;
        let shown = members.show(&matrices[0], &stop)?;
        Ok((matrices.remove(0), said, shown))
    }

    fn rows(&self, run: &str) -> Vec<Value> {
        metrics::read(&self.path(run).join("metrics.jsonl")).expect("metrics")
    }

    fn losses(&self, run: &str) -> Vec<f64> {
        self.rows(run).iter().filter_map(|row| row["loss"].as_f64()).collect()
    }
}

fn contains(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in {text}"));
}

#[test]
fn it_trains_on_pixels_resumes_and_is_evaluated() {
    let place = Place::new();
    let emojitiny = format!("--data_path {DATA} --data_name emojitiny_precomp");
    for (how, kept) in [("", 300), ("--pretend_crop", 60)] {
        let [whole, stopped] = ["whole", "stopped"].map(|name| format!("{name}{how}"));
        let said = place.train(&whole, &format!("{emojitiny} {how}")).expect("it trains");
        contains(&said.text, &["240 pictures read at 8 x 8, 1200 captions (5 captions an image)"]);
        assert_eq!(said.kept, kept);
        let losses = place.losses(&whole);
        assert_eq!(losses.len(), 60, "1200 captions in forties, twice");
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        assert!(mean(&losses[50..]) < 0.9 * mean(&losses[..10]), "{losses:?}");

        place.train(&stopped, &format!("{emojitiny} {how} --max-steps 34")).expect("it trains");
        let resume = format!("{emojitiny} {how} --resume {}", place.path(&stopped).display());
        let said = place.train(&stopped, &resume).expect("it goes on");
        assert_eq!(said.kept, 0, "what was kept is there");
        // Where it was stopped it was validated once more.
        let due = |row: &Value| row["step"] != 34 || row.get("val").is_none();
        let gone_on: Vec<Value> = place.rows(&stopped).into_iter().filter(due).collect();
        assert_eq!(gone_on, place.rows(&whole));
        let held = |name: &str| place.path(&whole).join(name).exists();
        assert_eq!((held("pictures-dev.u8"), held("pictures-train.u8")), (true, how.is_empty()));
    }
    assert_ne!(place.losses("whole"), place.losses("whole--pretend_crop"));
    let (matrix, _, shown) = place.evaluate("whole", &[]).expect("it scores");
    assert_eq!((matrix.images, matrix.captions_per_image), (60, 5));
    contains(&shown, &[".png"]);
    let (dev, _, _) = place.evaluate("whole", &["--split", "dev"]).expect("it scores");
    let best = place.rows("whole").iter().filter_map(|row| row["val"]["rsum"].as_f64()).fold(0.0, f64::max);
    let (folds, _) = dev.metrics(None).expect("metrics");
    assert!((folds[0].rsum() - best).abs() < 1e-6, "training's own validation, from kept pictures");
}

#[test]
fn a_folder_with_one_caption_file_is_enough() {
    let place = Place::with_pictures(24);
    let said = place.train("run", "--pretend_crop").expect("it trains");
    contains(&said.text, &["pictures read at 8 x 8"]);
    assert_eq!(said.text.matches("captions.tsv: pictures are divided by their names").count(), 1);
    let (matrix, _, _) = place.evaluate("run", &[]).expect("it scores");
    let Scores::F32(scores) = &matrix.scores else { panic!("scores of a run are f32") };
    assert_eq!(scores.len(), 5 * matrix.images * matrix.images);

    // Pictures that changed since are noticed, and a run does not go on with them.
    let data = captioned::open(&place.own(), "test", None).expect("a split");
    std::fs::copy(
        &captioned::open(Path::new(EMOJITINY), "dev", None).expect("emojitiny").files[0],
        &data.files[0],
    )
    .expect("copied");
    let (_, said, _) = place.evaluate("run", &[]).expect("it scores");
    contains(&said, &["the test split is not as it was", "other pictures"]);
    let train = captioned::open(&place.own(), "train", None).expect("a split");
    std::fs::copy(&train.files[0], &train.files[1]).expect("copied");
    let resume = format!("--pretend_crop --num_epochs 3 --resume {}", place.path("run").display());
    let refused = place.train("run", &resume).err().expect("other data").to_string();
    contains(&refused, &["train: other pictures"]);
}

#[test]
fn pictures_that_are_missing_or_wrong_are_named_before_training() {
    let place = Place::with_pictures(24);
    let refused = |parts: &[&str]| {
        let error = place.train("run", "").err().expect("wrong data").to_string();
        contains(&error, parts);
        assert!(!place.path("run").exists(), "nothing is written");
    };
    let train = captioned::open(&place.own(), "train", None).expect("a split");
    let (first, second) = (train.files[0].display().to_string(), train.files[1].display().to_string());
    std::fs::write(&train.files[0], b"no picture").expect("written");
    refused(&[&first]);
    std::fs::write(&train.files[1], b"\x89PNG\r\n\x1a\n").expect("written");
    refused(&[&first, &second]);
    std::fs::remove_file(&train.files[0]).expect("removed");
    let name = train.files[0].file_name().expect("a name").to_str().expect("text");
    refused(&["a picture is missing", name, "captions.tsv"]);
    let error = place.train("run", "--img_dim 3").err().expect("no features").to_string();
    contains(&error, &["--img_dim", "pretend-pictures reads pictures", "leave out"]);
}

/// A system's inputs at 8 x 8.
fn inputs(crop: bool) -> Inputs {
    Inputs {
        images: &["image"],
        captions: &["input_ids"],
        image_size: 8,
        crop: if crop { 0.08 } else { 0.0 },
        max_words: 16,
        ..Inputs::default()
    }
}

fn prepared(crop: bool) -> (Dataset, Tokenizer) {
    let options = Options { pictures: true, ..Options::default() };
    let mut data = Dataset::open(Path::new(EMOJITINY), "dev", &options).expect("emojitiny");
    let pieces = WordPiece::from_vocab(build_vocab(data.texts(), 100)).expect("a vocabulary");
    let tokenizer = Tokenizer::Pieces(pieces);
    data.prepare(&inputs(crop), &tokenizer).expect("pictures");
    (data, tokenizer)
}

#[test]
fn parts_are_drawn_for_each_epoch_and_caption() {
    let (data, tokenizer) = prepared(true);
    let tokens = data.tokens(&tokenizer, 16).expect("tokens");
    let batch = |crop, captions: &[usize], epoch: Option<u64>| -> Batch {
        let images = captions.iter().map(|c| c / 5).collect();
        let plan = BatchPlan { captions: captions.to_vec(), images, ..BatchPlan::default() };
        let varied = epoch.map(|epoch| Varied { seed: 7, epoch });
        assemble(&data, &tokens, &inputs(crop), &plan, varied).expect("a batch")
    };
    let values = |batch: &Batch| batch.images.at("image").values.clone();
    let first = batch(true, &[0, 1, 5], Some(0));
    assert_eq!(first.images.at("image").row, [3, 8, 8]);
    assert_eq!(first, batch(true, &[0, 1, 5], Some(0)));
    let row = 3 * 8 * 8;
    assert_ne!(values(&first)[..row], values(&first)[row..2 * row], "two captions of one picture");
    assert_ne!(values(&first), values(&batch(true, &[0, 1, 5], Some(1))), "another epoch");
    // A caption's part does not depend on the batch it is in.
    assert_eq!(values(&batch(true, &[5, 0], Some(0)))[row..], values(&first)[..row]);
    let plain = values(&batch(true, &[0, 1, 5], None));
    assert_eq!(plain, values(&batch(false, &[0, 1, 5], Some(0))), "no part where none is wanted");
    assert_eq!(plain[..row], plain[row..2 * row]);
    let mut alone = Vec::new();
    data.image(1, &mut alone).expect("a picture");
    assert_eq!(alone, plain[2 * row..]);
}

#[test]
fn a_limit_and_strictness_hold_for_pictures_too() {
    let open = |folder: &Path, options: Options| {
        Dataset::open(folder, "train", &Options { pictures: true, ..options })
    };
    let few =
        open(Path::new(EMOJITINY), Options { limit: Some(12), ..Options::default() }).expect("emojitiny");
    assert_eq!((few.images(), few.captions(), few.picture_names().expect("names").len()), (2, 10, 2));
    assert_eq!((few.regions(), few.dim(), few.has_pictures()), (0, 3, true));
    let error = few.pictures(&[]).expect_err("no model yet").to_string();
    contains(&error, &["prepare"]);
    let place = Place::with_pictures(4);
    let names: Vec<String> =
        open(&place.own(), Options::default()).expect("data").picture_names().expect("names");
    place.write("captions.tsv", format!("{}\t\n", names[0]).as_bytes());
    std::fs::rename(place.own().join("captions.tsv"), place.own().join("train_captions.tsv")).expect("moved");
    assert_eq!(open(&place.own(), Options::default()).expect("legal").notices().len(), 1);
    let error =
        open(&place.own(), Options { strict: true, ..Options::default() }).expect_err("strict").to_string();
    contains(&error, &["not clean", &names[0], "--strict"]);
}

#[test]
fn folders_of_pictures_are_checked() {
    let report = scan_for(true, Path::new(EMOJITINY), None, &mut |_| ()).expect("a folder");
    assert_eq!((&report.problems, &report.notices), (&Vec::new(), &Vec::new()));
    contains(
        &report.splits.join("\n"),
        &["train: 240 pictures of 64 x 64 pixels, 1200 captions (5 a picture)"],
    );
    let features = scan(Path::new(EMOJITINY), None, &mut |_| ()).expect("a folder");
    contains(&features.splits.join("\n"), &["240 images, 240 rows"]);

    let place = Place::with_pictures(12);
    let scanned = || -> Report { scan(&place.own(), None, &mut |_| ()).expect("a folder") };
    let report = scanned();
    assert!(report.is_ok() && report.splits.len() == 3, "{report:?}");
    assert_eq!(report.notices.len(), 1, "said once: {:?}", report.notices);
    contains(&report.notices[0], &["pictures are divided"]);
    // A picture that ends early has a sound header; it is found all the same.
    let train = captioned::open(&place.own(), "train", None).expect("a split");
    let bytes = std::fs::read(&train.files[0]).expect("a picture");
    std::fs::write(&train.files[0], &bytes[..bytes.len() / 2]).expect("written");
    let problems = scanned().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    contains(&problems[0], &[&train.files[0].display().to_string()]);
    std::fs::write(&train.files[0], &bytes).expect("written");
    // One file for each split, of which two share a picture.
    let name = |i: usize| train.files[i].file_name().expect("a name").to_str().expect("text").to_owned();
    std::fs::remove_file(place.own().join("captions.tsv")).expect("removed");
    place.write("train_captions.tsv", format!("{}\ta\n{}\tb\n", name(0), name(1)).as_bytes());
    place.write("test_captions.tsv", format!("{}\ta\n", name(1)).as_bytes());
    let report = scanned();
    assert_eq!(report.notices, ["there is no dev split"]);
    contains(&report.problems[0], &["a picture of the train split is in test too", &name(1)]);
    place.write("test_captions.tsv", b"nothing\n");
    contains(&scanned().problems[0], &["no TAB"]);
    // Whatever hides the splits is said.
    place.write("captions.json", b"{}");
    contains(&scanned().problems[0], &["captions.json and "]);
    let nothing = tempfile::tempdir().expect("a folder");
    let report = scan(nothing.path(), None, &mut |_| ()).expect("a folder");
    contains(&report.problems[0], &["holds no split", "captions.tsv"]);
}
