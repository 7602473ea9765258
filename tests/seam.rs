//! A system that the crate does not know trains, goes on, is evaluated and compared with fixtures, from one module.

mod pretend;
mod tiny;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::AtomicBool;

use clap::{Args, Command, FromArgMatches};
use crossweave::data::import::Source;
use crossweave::data::weights::{self, Entry};
use crossweave::eval::EvaluateOptions;
use crossweave::eval::import::system;
use crossweave::eval::model::Model;
use crossweave::eval::score::Members;
use crossweave::eval::sims::Scores;
use crossweave::host::Rng;
use crossweave::parity;
use crossweave::systems::{Kind, register};
use crossweave::tensor::Device;
use crossweave::train::options::TrainOptions;
use crossweave::train::{metrics, run};
use pretend::PretendOptions;
use serde_json::{Value, json};
use tiny::Tiny;

fn registered() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| register(Kind::of::<PretendOptions>()));
}

fn train(tiny: &Tiny, run: &str, more: &str) {
    registered();
    let at = |name: &str| tiny.path(name).display().to_string();
    let line = format!(
        "--system pretend --data_path {} --data_name tiny --logger_name {} --bert-init random --vocab-size 90 \
         --num_epochs 2 --learning_rate 1e-2 --log_step 1 {more}",
        at("data"),
        at(run)
    );
    let options = TrainOptions::of(&line.split_whitespace().collect::<Vec<_>>()).expect("sound options");
    run::train(options, &AtomicBool::new(false), &mut |_| {}).expect("it trains");
}

fn rows(tiny: &Tiny, run: &str) -> Vec<Value> {
    metrics::read(&tiny.path(run).join("metrics.jsonl")).expect("metrics")
}

#[test]
fn it_trains_resumes_and_is_evaluated() {
    let tiny = Tiny::new();
    train(&tiny, "whole", "");
    let whole = rows(&tiny, "whole");
    let losses: Vec<f64> = whole.iter().filter_map(|row| row["loss"].as_f64()).collect();
    assert_eq!(losses.len(), 12, "60 captions in tens, twice");
    assert!(losses[11] < 0.9 * losses[0], "{losses:?}");

    train(&tiny, "stopped", "--max-steps 4");
    let resume = format!("--resume {}", tiny.path("stopped").display());
    train(&tiny, "stopped", &resume);
    assert_eq!(
        rows(&tiny, "stopped").iter().filter(|row| row.get("val").is_none()).collect::<Vec<_>>(),
        whole.iter().filter(|row| row.get("val").is_none()).collect::<Vec<_>>()
    );

    let command = EvaluateOptions::augment_args(Command::new("evaluate").no_binary_name(true));
    let folder = tiny.path("whole");
    let options = EvaluateOptions::from_arg_matches(&command.get_matches_from([&folder])).expect("sound");
    let mut matrices = Vec::new();
    let members = Members::open(&options, &mut |_| {}).expect("they open");
    members.score(&AtomicBool::new(false), &mut |_| {}, &mut matrices).expect("it scores");
    let Scores::F32(scores) = &matrices[0].scores else { panic!("scores of a run are f32") };
    assert_eq!((matrices[0].images, scores.len()), (6, 6 * 30));
    assert!(scores.iter().all(|s| s.abs() < 1.001));
    assert_eq!(Model::open(&folder, None, &Device::Host).expect("its folder").name, "pretend");
}

#[test]
fn its_options_are_its_own() {
    registered();
    let error = TrainOptions::of(&["--pretend_width", "3"]).expect_err("another system's").to_string();
    assert!(error.contains("an option of pretend") && error.contains("--system pretend"), "{error}");
    let error = TrainOptions::of(&["--system", "pretend", "--pretend_width", "0"]).expect_err("a zero");
    assert!(error.to_string().contains("--pretend_width"), "{error}");
    let options = TrainOptions::of(&["--system", "pretend"]).expect("sound");
    assert_eq!(options.fixed.batch_size, 10, "the system's own default");
}

/// Writes a fixture of 2 images with 3 regions of 2 numbers and 3 captions of 2 words, `off` by so much.
fn fixture(path: &Path, off: f32) {
    let mut rng = Rng::new(4);
    let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>();
    let (map, bias, words, images) = (draw(8), draw(4), draw(20), draw(12));
    let (ids, mask) = ([1f32, 2., 3., 0., 4., 1.], [1f32, 1., 1., 0., 1., 1.]);
    let unit = |v: [f32; 4]| {
        let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
        v.map(|x| x / norm)
    };
    let mut sims = Vec::new();
    for image in images.chunks(6) {
        let mean = [0, 1].map(|k| (image[k] + image[2 + k] + image[4 + k]) / 3.0);
        let a = unit([0, 1, 2, 3].map(|i| map[2 * i] * mean[0] + map[2 * i + 1] * mean[1] + bias[i]));
        for c in 0..3 {
            let word = |w: usize, i: usize| mask[2 * c + w] * words[4 * ids[2 * c + w] as usize + i];
            let b = unit([0, 1, 2, 3].map(|i| word(0, i) + word(1, i)));
            sims.push(a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>() + off);
        }
    }
    let lengths = [2f32, 1., 2.];
    let entries = [
        Entry::f32s("param.img.map.weight", &[4, 2], &map),
        Entry::f32s("param.img.map.bias", &[4], &bias),
        Entry::f32s("param.txt.words", &[5, 4], &words),
        Entry::f32s("in.images", &[2, 3, 2], &images),
        Entry::f32s("in.input_ids", &[3, 2], &ids),
        Entry::f32s("in.attention_mask", &[3, 2], &mask),
        Entry::f32s("in.lengths", &[3], &lengths),
        Entry::f32s("out.sims", &[2, 3], &sims),
    ];
    let spec = json!({
        "system": "pretend", "mode": "eval", "config": {"pretend_width": 4, "img_dim": 2, "vocab": 5},
    });
    let about = HashMap::from([("spec".to_string(), spec.to_string())]);
    weights::write(path, &entries, &about).expect("written");
}

#[test]
fn its_checkpoints_are_imported() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("theirs.safetensors");
    let (map, bias, words) = ([0.5f32; 6], [0.25f32; 3], [1f32; 12]);
    // As DataParallel names them.
    let entries = [
        Entry::f32s("img.module.map.weight", &[3, 2], &map),
        Entry::f32s("img.module.map.bias", &[3], &bias),
        Entry::f32s("txt.module.words", &[4, 3], &words),
    ];
    weights::write(&path, &entries, &HashMap::new()).expect("written");
    let source = Source::open(&path).expect("a file");
    let imported = system(Kind::of::<PretendOptions>(), &source, None, &[]).expect("it is imported");
    let names: Vec<&str> = imported.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["img.map.bias", "img.map.weight", "txt.words"]);
    assert_eq!((&imported.config["system"], &imported.config["vocab"]), (&json!("pretend"), &json!(4)));
}

#[test]
fn parity_runs_it() {
    registered();
    let folder = tempfile::tempdir().expect("a folder");
    for (off, passes) in [(0.0, true), (1e-3, false)] {
        let path = folder.path().join("pretend.safetensors");
        fixture(&path, off);
        let rows = parity::check(&path, &Device::Host).expect("it runs");
        assert_eq!(rows.len(), 2, "two forms");
        assert_eq!(rows.iter().all(parity::Row::passes), passes, "{rows:?}");
    }
}
