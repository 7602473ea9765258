//! `crossweave features`: pictures become a folder that systems which read features train and are evaluated on.

mod models;
mod tiny;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crossweave::Kind;
use crossweave::data::captioned;
use crossweave::data::features::Features;
use crossweave::data::pictures::{Asked, Pictures};
use crossweave::data::recipe::Recipe;
use crossweave::data::weights::{self, Entry};
use crossweave::data::words::Vocabulary;
use crossweave::data::{captions, word_ids};
use crossweave::eval::{FeaturesOptions, Progress, features};
use crossweave::host::ratios;
use crossweave::nn::{ParamValues, Params, position_table, swin};
use crossweave::tensor::Device;
use models::small_swin;
use tiny::Tiny;

/// Values that no two parameters share, so that none can be mistaken for another.
fn values(config: &swin::Config, seed: u64) -> HashMap<String, Vec<f32>> {
    let specs = config.parameters("");
    let params = Params::begin(&specs, &Device::Host, seed);
    let own = |name: &str| params.named(name).to_vec().expect("the host works");
    let moved = |(i, v): (usize, f32)| v + 0.01 * ((i * 7 + seed as usize) % 11) as f32;
    specs
        .iter()
        .map(|s| (s.name.clone(), own(&s.name).into_iter().enumerate().map(moved).collect()))
        .collect()
}

/// Writes an imported Swin's folder for pictures of 64 pixels, with or without the norms of its inner stages.
fn write_swin(folder: &Path, seed: u64, inner: bool) -> HashMap<String, Vec<f32>> {
    let config = small_swin(64);
    let all = values(&config, seed);
    let specs = config.parameters("");
    let kept = specs.iter().filter(|s| inner || !s.name.starts_with("norm_"));
    let entries: Vec<Entry> =
        kept.map(|s| Entry::f32s(s.name.clone(), s.shape.dims(), &all[&s.name])).collect();
    std::fs::create_dir_all(folder).expect("made");
    weights::write(&folder.join("model.safetensors"), &entries, &HashMap::new()).expect("written");
    let text = serde_json::to_string(&config).expect("plain data");
    std::fs::write(folder.join("config.json"), text).expect("written");
    all
}

/// Pictures in Karpathy's form, and two encoders.
fn place() -> Tiny {
    let tiny = Tiny::new().with_pictures();
    write_swin(&tiny.path("swin"), 9, true);
    write_swin(&tiny.path("other"), 10, true);
    tiny
}

const MAKE: &str = "features --encoder swin --images data/tiny";

/// Every file of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    entries.map(|path| (name(&path), std::fs::read(&path).expect("a file"))).collect()
}

fn row(file: &Path, row: usize) -> Vec<f64> {
    let mut out = Vec::new();
    Features::open(file).expect("features").read(row, &mut out).expect("a row");
    out.into_iter().map(f64::from).collect()
}

/// What the Swin itself makes of a picture, in f64, its tables resampled from a side of 3.
fn own(values: &HashMap<String, Vec<f32>>, size: usize, stage: usize, picture: &Path) -> Vec<f64> {
    let config = small_swin(size);
    let params = Params::new(&config.parameters(""), &Device::Host, &mut |spec| {
        let held = &values[&spec.name];
        Ok(ParamValues::Values(match spec.name.ends_with(swin::TABLE) {
            true => position_table::resampled(held, 3, spec.shape[0].isqrt(), spec.shape[1]),
            false => held.clone(),
        }))
    });
    let params = params.expect("laid out");
    let pictures = Pictures::open(vec![picture.to_path_buf()], size, false).expect("a picture");
    let pixels = pictures.read(&[Asked { picture: 0, draws: None }], 1).expect("read");
    let x = Device::Host.tensor([1, 3, size, size], &pixels);
    let run = swin::Run { scope: params.root(), config: &config, dropouts: None, recomputed: false };
    run.normed(&run.stages(&x, &mut |_, _| ()), stage - 1).to_f64().expect("the host works")
}

#[test]
fn features_are_what_the_encoder_makes_of_each_picture() {
    let tiny = place();
    let all = write_swin(&tiny.path("swin"), 9, true);
    tiny.run(&format!("{MAKE} --out data/last --batch 5")).with(0);
    // Of a bare file the sizes are told by the tensors.
    let larger = "--encoder swin/model.safetensors --stage 3 --image-size 96 --f32";
    tiny.run(&format!("features --images data/tiny --out data/larger {larger}")).with(0);
    for (split, n) in [("train", 12), ("dev", 4), ("test", 6)] {
        let pictures = captioned::open(&tiny.data(), split, None).expect("pictures").files;
        for picture in [0, n - 1] {
            let file = |name: &str| tiny.path(name).join(format!("{split}_ims.npy"));
            let last = Features::open(&file("data/last")).expect("features");
            assert_eq!((last.len(), last.regions(), last.dim(), last.row_bytes()), (n, 4, 64, 2 * 4 * 64));
            let worst = ratios(&row(&file("data/last"), picture), &own(&all, 64, 4, &pictures[picture])).norm;
            assert!(worst < 1e-3, "{split} {picture}: {worst}");
            let larger = Features::open(&file("data/larger")).expect("features");
            assert_eq!((larger.len(), larger.regions(), larger.dim()), (n, 36, 32));
            let worst =
                ratios(&row(&file("data/larger"), picture), &own(&all, 96, 3, &pictures[picture])).norm;
            assert!(worst < 1e-5, "{split} {picture}: {worst}");
        }
    }
    // A backbone whose first task had no use for inner norms.
    write_swin(&tiny.path("bare"), 9, false);
    let bare = "features --encoder bare --images data/tiny";
    let said = tiny.run(&format!("{bare} --out data/inner --stage 2")).with(0);
    assert!(said.err.contains("no norm of stage 2"), "{}", said.err);
    tiny.run(&format!("{bare} --out data/same --batch 5")).with(0);
    let last = |name: &str| std::fs::read(tiny.path(name).join("train_ims.npy")).expect("features");
    assert!(last("data/same") == last("data/last"), "the last norm is there");
}

#[test]
fn every_file_says_the_same_of_pictures_and_captions() {
    let tiny = place();
    tiny.run(&format!("{MAKE} --out data/made")).with(0);
    let made = tiny.path("data/made");
    let words = Vocabulary::open(&made.join("made_vocab.json")).expect("a vocabulary");
    for split in ["train", "dev", "test"] {
        let known = captioned::open(&tiny.data(), split, None).expect("pictures");
        let texts = captions::read(&made.join(format!("{split}_caps.txt")), true).expect("captions").texts;
        assert_eq!(texts, known.texts);
        let ids = word_ids::read(&made.join(format!("{split}_precaps_stan.txt"))).expect("ids");
        let rows: Vec<&[u32]> = ids.rows().collect();
        assert_eq!(rows, texts.iter().map(|text| words.encode(text)).collect::<Vec<_>>());
        if split == "train" {
            assert!(rows.iter().all(|row| !row.contains(&3)), "every word of few captions is known");
        }
        let names = std::fs::read_to_string(made.join(format!("{split}_ids.txt"))).expect("names");
        let wanted = known.files.iter().map(|file| captioned::name_of(&tiny.data(), file));
        assert_eq!(names.lines().collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
    }
    let recipe = Recipe::open(&made).expect("understood").expect("there");
    assert_eq!((recipe.stage, recipe.image_size, recipe.captions_per_image("dev")), (4, 64, Some(5)));
    let rare = tiny.run(&format!("{MAKE} --out data/rare --min-count 3")).with(0);
    let fewer = Vocabulary::open(&tiny.path("data/rare/rare_vocab.json")).expect("a vocabulary");
    assert!(fewer.size() < words.size() && rare.out.contains("train: 12 images of 4 x 64, 60 captions"));
}

/// Two captions a picture, of pictures of any shape, in a file elsewhere.
#[test]
fn a_caption_file_and_pictures_that_are_not_square_are_enough() {
    let tiny = place();
    std::fs::create_dir(tiny.path("own")).expect("made");
    let mut lines = String::new();
    for i in 0..12_u32 {
        let name = format!("own/{i}.png");
        let pixel = |x: u32, y: u32| image::Rgb([(x * i) as u8, (y * 3) as u8, 40]);
        image::RgbImage::from_fn(if i == 0 { 128 } else { 40 + i }, 64, pixel)
            .save(tiny.path(&name))
            .expect("saved");
        lines += &format!("{i}.png\ta dog number {i}\n{i}.png\tit is picture {i}\n");
    }
    std::fs::write(tiny.path("words.tsv"), lines).expect("written");
    let out = "--encoder swin --images own --captions words.tsv --out data/made";
    tiny.run(&format!("features {out}")).with(0);
    let check = tiny.run("check data/made").with(0);
    assert!(!check.out.contains("notice") && check.out.contains("2 an image"), "{}", check.out);
    let mut found = None;
    for split in ["train", "dev", "test"] {
        let file = |name: &str| tiny.path("data/made").join(format!("{split}_{name}"));
        let names = std::fs::read_to_string(file("ids.txt")).expect("names");
        let Some(place) = names.lines().position(|name| name == "0.png") else { continue };
        let after = |path: &Path, row: usize| {
            let bytes = std::fs::read(path).expect("a file");
            let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]])) + place * row;
            bytes[start..start + row].to_vec()
        };
        let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let boxes: Vec<f32> = after(&file("ims_bbx.npy"), 64).chunks(4).map(number).collect();
        let sizes: Vec<u8> = after(&file("ims_size.npy"), 8);
        assert_eq!(sizes, [128_i32.to_le_bytes(), 64_i32.to_le_bytes()].concat());
        found = Some(boxes);
    }
    // 128 x 64 is read at 146 x 73, and of that the 64 x 64 from 41, 4 on, in cells of 32.
    let (x, y) = (|at: f32| at * 128.0 / 146.0, |at: f32| at * 64.0 / 73.0);
    let wanted = [[41.0, 4.0], [73.0, 4.0], [41.0, 36.0], [73.0, 36.0]]
        .map(|[left, top]| [x(left), y(top), x(left + 32.0), y(top + 32.0)])
        .concat();
    let found = found.expect("the picture is in a split");
    assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?} {wanted:?}");
    // The recipe says how many captions a picture has.
    tiny.train("run", "--data_name made --max-steps 2");
    tiny.run("evaluate run").with(0);
}

const GSMN: &str = "train --system gsmn --data_path data --data_name made --logger_name words --bi_gru --max_violation \
    --embed_size 16 --hid_dim 8 --num_block 2 --feat_dim 2 --word_dim 8 --batch_size 8 --max-steps 2";

#[test]
fn systems_train_on_them_and_refuse_those_made_otherwise() {
    let tiny = place();
    tiny.run(&format!("{MAKE} --out data/made")).with(0);
    tiny.run("features --encoder other --images data/tiny --out data/otherwise").with(0);
    tiny.run(&format!("{MAKE} --out data/again --f32 --min-count 2")).with(0);
    let check = tiny.run("check data/made").with(0);
    assert!(!check.out.contains("notice") && check.out.contains("nothing is wrong"), "{}", check.out);
    assert_eq!(check.err, "");

    tiny.train("run", "--data_name made --max-steps 2");
    tiny.run(GSMN).with(0);
    for run in ["run", "words"] {
        let table = tiny.run(&format!("evaluate {run}")).with(0);
        assert!(table.out.contains("rsum"), "{}", table.out);
        let refused = tiny.run(&format!("evaluate {run} --data_name otherwise")).with(2).err;
        for part in ["data/otherwise", "encoder", "crossweave features --encoder", "swin --stage 4"] {
            assert!(refused.contains(part), "no {part:?} in {refused}");
        }
        let refused =
            tiny.run(&format!("train --resume {run} --data_name otherwise --max-steps 4")).with(2).err;
        assert!(refused.contains("not made as those"), "{refused}");
    }
    // The number type is no difference, and a folder that says nothing is as before: told, not refused.
    tiny.run("evaluate run --data_name again").with(0);
    std::fs::remove_file(tiny.path("data/otherwise/features.json")).expect("removed");
    let told = tiny.run("evaluate run --data_name otherwise").with(0).err;
    assert!(told.contains("other features"), "{told}");
    tiny.run("train --resume run --max-steps 4").with(0);
}

#[test]
fn a_runs_own_encoder_makes_features_too() {
    let tiny = place();
    let model = "--bert-init random --bert-layers 10 --bert-hidden 8 --bert-heads 2 --bert-intermediate 16 \
        --vocab-size 120 --max_text_len 10 --image_size 64 --hidden_size 12 --batch_size 15 --swin_path swin";
    let train = "train --system hat --data_path data --data_name tiny --logger_name pictures --max-steps 1";
    tiny.run(&format!("{train} {model} --frozen-epochs 1")).with(0);
    tiny.run(&format!("{MAKE} --out data/imported")).with(0);
    tiny.run("features --encoder pictures --images data/tiny --out data/trained").with(0);
    let [imported, trained] = ["imported", "trained"].map(|name| files(&tiny.path("data").join(name)));
    assert!(imported["train_ims.npy"] == trained["train_ims.npy"], "the encoder was frozen");
}

#[test]
fn what_was_stopped_goes_on_to_the_same_bytes() {
    let tiny = place();
    tiny.run(&format!("{MAKE} --out whole/made --batch 5")).with(0);
    let whole = files(&tiny.path("whole/made"));
    let options = FeaturesOptions {
        encoder: tiny.path("swin"),
        images: tiny.path("data/tiny"),
        out: tiny.path("stopped/made"),
        captions: None,
        captions_per_image: None,
        stage: 4,
        image_size: None,
        batch: 5,
        f32: false,
        min_count: None,
        device: None,
    };
    // After the second batch, whatever split that is in.
    let (stop, mut batches) = (AtomicBool::new(false), 0);
    let stopped = features::make(&options, &stop, &mut |progress| {
        if matches!(progress, Progress::Extracting { .. }) {
            batches += 1;
            stop.store(batches == 2, Ordering::Relaxed);
        }
    });
    let error = stopped.expect_err("stopped");
    assert!(error.kind() == Kind::Interrupted && error.to_string().contains("of 22 pictures"), "{error}");
    assert!(batches == 2 && !tiny.path("stopped/made").exists());

    let again = |more: &str| tiny.run(&format!("{MAKE} --out stopped/made --batch 5 {more}"));
    let refused = again("--stage 3").with(2).err;
    assert!(refused.contains("made.partial") && refused.contains("stage 3 instead of 4"), "{refused}");
    let said = again("").with(0);
    assert!(said.err.contains("9 of 22 pictures are done") && !tiny.path("stopped/made.partial").exists());
    assert!(files(&tiny.path("stopped/made")) == whole, "other bytes");

    // Killed while it wrote: half a batch, and a file that was not whole yet.
    let partial = tiny.path("stopped/made.partial");
    std::fs::rename(tiny.path("stopped/made"), &partial).expect("renamed");
    let train = &whole["train_ims.npy"];
    std::fs::write(partial.join("train_ims.npy"), &train[..train.len() - 700]).expect("written");
    std::fs::write(partial.join(".dev_caps.txt.1-1.tmp"), "a").expect("written");
    again("").with(0);
    assert!(files(&tiny.path("stopped/made")) == whole, "other bytes");
    let refused = again("").with(2).err;
    assert!(refused.contains("already there"), "{refused}");
}

#[test]
fn what_is_wrong_is_said_before_any_work() {
    let tiny = place();
    let config = small_swin(64);
    let bias = vec![0.0; config.embed_dim];
    let one = [Entry::f32s("a.bias", &[config.embed_dim], &bias)];
    weights::write(&tiny.path("alien.safetensors"), &one, &HashMap::new()).expect("written");
    for folder in ["empty", "missing", "broken"] {
        std::fs::create_dir(tiny.path(folder)).expect("made");
    }
    std::fs::write(tiny.path("missing/captions.tsv"), "gone.png\ta dog\n").expect("written");
    std::fs::write(tiny.path("broken/captions.tsv"), "a.png\ta dog\n").expect("written");
    std::fs::write(tiny.path("broken/a.png"), "no picture").expect("written");
    tiny.train("run", "--max-steps 1");
    let cases = [
        ("--encoder swin --images empty", "no captions of pictures"),
        ("--encoder swin --images nowhere", "nowhere"),
        ("--encoder swin --images missing", "gone.png"),
        ("--encoder swin --images broken", "broken/a.png"),
        ("--encoder swin --images data/tiny --captions nowhere.tsv", "nowhere.tsv"),
        ("--encoder nowhere --images data/tiny", "no such encoder"),
        ("--encoder empty --images data/tiny", "no encoder in this folder"),
        ("--encoder alien.safetensors --images data/tiny", "no weights of a Swin"),
        ("--encoder run --images data/tiny", "no image encoder"),
        ("--encoder swin --images data/tiny --stage 5", "--stage"),
        ("--encoder swin --images data/tiny --batch 0", "--batch"),
        ("--encoder swin --images data/tiny --image_size 50", "--image_size"),
        ("--encoder swin --images data/tiny --captions-per-image 6", "captions-per-image"),
        ("--encoder swin --images data/tiny --device nowhere", "nowhere"),
    ];
    for (options, named) in cases {
        let said = tiny.run(&format!("features {options} --out data/made")).with(2).err;
        assert!(said.matches("error: ").count() == 1 && said.contains(named), "{options}: {said}");
        let made = ["data/made", "data/made.partial"].map(|name| tiny.path(name).exists());
        assert_eq!(made, [false; 2], "{options}");
    }
    let refused = tiny.run(&format!("{MAKE} --out data/tiny")).with(2).err;
    assert!(refused.contains("already there"), "{refused}");
    std::fs::create_dir(tiny.path("data/made.partial")).expect("made");
    std::fs::write(tiny.path("data/made.partial/mine"), "").expect("written");
    let refused = tiny.run(&format!("{MAKE} --out data/made")).with(2).err;
    assert!(refused.contains("in the way"), "{refused}");
}
