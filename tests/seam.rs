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
use pretend::words::WordsOptions;
use serde_json::{Value, json};
use tiny::Tiny;

fn registered() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        register(Kind::of::<PretendOptions>());
        register(Kind::of::<WordsOptions>());
    });
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

/// Trains the system of words; what it said.
fn train_words(tiny: &Tiny, run: &str, more: &str) -> crossweave::Result<Vec<String>> {
    registered();
    let at = |name: &str| tiny.path(name).display().to_string();
    let line = format!(
        "--system pretend-words --data_path {} --data_name tiny --logger_name {} --num_epochs 2 \
         --learning_rate 1e-2 --log_step 1 {more}",
        at("data"),
        at(run)
    );
    let options = TrainOptions::of(&line.split_whitespace().collect::<Vec<_>>())?;
    let mut said = Vec::new();
    run::train(options, &AtomicBool::new(false), &mut |event| said.push(format!("{event:?}")))?;
    Ok(said)
}

/// The scores of a run.
fn scores(tiny: &Tiny, run: &str, more: &[&str]) -> crossweave::Result<Vec<f32>> {
    let command = EvaluateOptions::augment_args(Command::new("evaluate").no_binary_name(true));
    let folder = tiny.path(run).display().to_string();
    let given = [folder.as_str()].into_iter().chain(more.iter().copied());
    let options = EvaluateOptions::from_arg_matches(&command.get_matches_from(given)).expect("sound");
    let mut matrices = Vec::new();
    Members::open(&options, &mut |_| {})?.score(&AtomicBool::new(false), &mut |_| {}, &mut matrices)?;
    match matrices.remove(0).scores {
        Scores::F32(scores) => Ok(scores),
        Scores::F64(_) => panic!("scores of a run are f32"),
    }
}

/// The steps of a run, of which the seed decides everything.
fn steps(tiny: &Tiny, run: &str) -> Vec<Value> {
    rows(tiny, run).into_iter().filter(|row| row.get("val").is_none()).collect()
}

#[test]
fn a_system_of_words_trains_resumes_and_is_evaluated() {
    let tiny = Tiny::new().with_words();
    for how in ["", "--faithful"] {
        let [whole, stopped] = ["whole", "stopped"].map(|name| format!("{name}{how}"));
        let said = train_words(&tiny, &whole, how).expect("it trains").join(" ");
        assert_eq!(said.contains("divided by the image's size again"), !how.is_empty(), "{said}");
        let losses: Vec<f64> = steps(&tiny, &whole).iter().filter_map(|row| row["loss"].as_f64()).collect();
        assert_eq!(losses.len(), 12, "60 captions in tens, twice");
        assert!(losses[11] < 0.9 * losses[0], "{losses:?}");
        train_words(&tiny, &stopped, &format!("{how} --max-steps 4")).expect("it trains");
        let resume = format!("{how} --resume {}", tiny.path(&stopped).display());
        train_words(&tiny, &stopped, &resume).expect("it goes on");
        // Where it was stopped it was validated once more.
        let due = |row: &Value| row["step"] != 4 || row.get("val").is_none();
        let gone_on: Vec<Value> = rows(&tiny, &stopped).into_iter().filter(due).collect();
        assert_eq!(gone_on, rows(&tiny, &whole));
    }
    assert_ne!(steps(&tiny, "whole"), steps(&tiny, "whole--faithful"), "other boxes");
    let plain = scores(&tiny, "whole", &[]).expect("it scores");
    assert_eq!(plain.len(), 6 * 30);
    assert_eq!(scores(&tiny, "whole", &["--folds", "2"]).expect("it scores"), plain);
    scores(&tiny, "whole--faithful", &["--folds", "2"]).expect("it scores");

    // Plain text is split into the vocabulary's words: the same ids, the same scores.
    for split in ["train", "dev", "test"] {
        std::fs::remove_file(tiny.file(split, "precaps_stan.txt")).expect("removed");
        std::fs::remove_file(tiny.file(split, "caps.json")).expect("removed");
    }
    assert_eq!(scores(&tiny, "whole", &[]).expect("it scores"), plain);
    let vocabulary = tiny.data().join("tiny_vocab.json").display().to_string();
    assert_eq!(scores(&tiny, "whole", &["--vocab", &vocabulary]).expect("it scores"), plain);
    let said = train_words(&tiny, "text", "--max-steps 1").expect("it trains").join(" ");
    assert!(said.contains("is split into the vocabulary's words") && said.contains("no dependency pairs"));
}

#[test]
fn a_run_keeps_its_vocabulary() {
    let tiny = Tiny::new().with_words();
    let elsewhere = tiny.path("vocabularies");
    std::fs::create_dir(&elsewhere).expect("made");
    let own = tiny.data().join("tiny_vocab.json");
    std::fs::rename(&own, elsewhere.join("tiny_vocab.json")).expect("moved");
    let error = train_words(&tiny, "run", "").expect_err("no vocabulary").to_string();
    for part in [
        "vocabulary of the captions is missing",
        "data/tiny/tiny_vocab.json or vocab/tiny_vocab.json",
        "--vocab_path",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let given = format!("--vocab_path {}", elsewhere.display());
    train_words(&tiny, "run", &format!("{given} --max-steps 2")).expect("it trains");
    assert!(tiny.path("run/vocab.json").exists() && !tiny.path("run/vocab.txt").exists());
    // Others of the same number would mean other words.
    let text = std::fs::read_to_string(elsewhere.join("tiny_vocab.json")).expect("a vocabulary");
    std::fs::write(elsewhere.join("tiny_vocab.json"), text.replace("\"ram\"", "\"no ram\""))
        .expect("written");
    let resume = format!("{given} --resume {}", tiny.path("run").display());
    let error = train_words(&tiny, "run", &resume).expect_err("another vocabulary").to_string();
    assert!(
        error.contains("not the one that the run was begun with") && error.contains("--vocab_path"),
        "{error}"
    );
    // Without any, the run's own is taken.
    std::fs::remove_file(elsewhere.join("tiny_vocab.json")).expect("removed");
    train_words(&tiny, "run", &format!("--resume {}", tiny.path("run").display())).expect("it goes on");
    // Ids of a vocabulary that the data bring along are not read as another's.
    std::fs::write(&own, text.replace("\"ram\"", "\"no ram\"")).expect("written");
    let error = scores(&tiny, "run", &[]).expect_err("another vocabulary").to_string();
    assert!(error.contains("of another vocabulary") && error.contains("test_precaps_stan.txt"), "{error}");
    std::fs::remove_file(tiny.file("test", "precaps_stan.txt")).expect("removed");
    scores(&tiny, "run", &[]).expect("as the cure says");
}

#[test]
fn a_system_of_words_has_no_options_of_a_bert() {
    registered();
    let of = |line: &str| TrainOptions::of(&line.split_whitespace().collect::<Vec<_>>());
    for option in [
        "--bert-init random",
        "--bert-layers 2",
        "--bert_path bert",
        "--finetune-bert",
        "--cache-text",
        "--vocab-size 90",
        "--bert-dropout auto",
    ] {
        let error = of(&format!("--system pretend-words {option}")).expect_err(option).to_string();
        let name = option.split_whitespace().next().expect("a name");
        assert!(
            error.contains(name) && error.contains("about a BERT, and pretend-words has none"),
            "{error}"
        );
    }
    let words = of("--system pretend-words --vocab_path v").expect("sound");
    let stored = words.stored();
    let stored = stored.as_object().expect("an object");
    assert!(
        stored.keys().all(|name| !name.contains("bert")) && !stored.contains_key("cache_text"),
        "{stored:?}"
    );
    assert_eq!(stored["vocab_path"], "v");
    let help = |name: &str| {
        let kind = crossweave::systems::kind(name).expect("a system");
        crossweave::train::options::command(kind).render_long_help().to_string().to_lowercase()
    };
    assert!(!help("pretend-words").contains("bert") && help("pretend").contains("--bert-init"));
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

#[test]
fn a_checkpoint_of_words_needs_no_bert() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("theirs.safetensors");
    let (map, bias, boxes, words) = ([0.5f32; 16], [0.25f32; 8], [1f32; 32], [1f32; 48]);
    let entries = [
        Entry::f32s("img.map.weight", &[8, 2], &map),
        Entry::f32s("img.map.bias", &[8], &bias),
        Entry::f32s("img.boxes.weight", &[8, 4], &boxes),
        Entry::f32s("img.boxes.bias", &[8], &bias),
        Entry::f32s("txt.words", &[6, 8], &words),
    ];
    weights::write(&path, &entries, &HashMap::new()).expect("written");
    let source = Source::open(&path).expect("a file");
    let imported = system(Kind::of::<WordsOptions>(), &source, None, &[]).expect("it is imported");
    assert_eq!((&imported.config["img_dim"], &imported.config["vocab"]), (&json!(2), &json!(6)));
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
