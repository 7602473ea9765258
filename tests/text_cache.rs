//! Training on kept text states against training that runs the encoder at every step.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crossweave::data::weights::{self, Entry};
use crossweave::eval::Progress;
use crossweave::host::Rng;
use crossweave::nn::bert::Config;
use crossweave::train::options::TrainOptions;
use crossweave::train::{Event, run};
use serde_json::{Value, json};

const WORDS: [&str; 8] = ["red", "green", "round", "flat", "cat", "dog", "hat", "tree"];

/// A data folder and a BERT folder, with everything in them random but fixed.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::create_dir(world.at("data")).expect("a folder");
        world.split("train", 12, 1);
        world.split("dev", 4, 2);
        world.bert(3);
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn split(&self, name: &str, images: usize, seed: u64) {
        let mut rng = Rng::new(seed);
        let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({images}, 4, 6), }}");
        let mut file = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        file.extend(format!("{text:<117}\n").bytes());
        file.extend((0..images * 24).flat_map(|_| (rng.normal() as f32).to_le_bytes()));
        fs::write(self.at("data").join(format!("{name}_ims.npy")), file).expect("features");
        let caption = |rng: &mut Rng| {
            let words: Vec<&str> = (0..1 + rng.below(6)).map(|_| WORDS[rng.below(8)]).collect();
            words.join(" ") + "\n"
        };
        let captions: String = (0..5 * images).map(|_| caption(&mut rng)).collect();
        fs::write(self.at("data").join(format!("{name}_caps.txt")), captions).expect("captions");
    }

    fn bert(&self, seed: u64) {
        let folder = self.at("bert");
        fs::create_dir_all(&folder).expect("a folder");
        let vocab: Vec<&str> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].into_iter().chain(WORDS).collect();
        fs::write(folder.join("vocab.txt"), vocab.join("\n") + "\n").expect("a vocabulary");
        let config = json!({"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 10});
        fs::write(folder.join("config.json"), config.to_string()).expect("a configuration");
        let mut rng = Rng::new(seed);
        let specs = Config::read(&config).expect("a BERT").parameters("");
        let values: Vec<Vec<f32>> =
            specs.iter().map(|s| (0..s.shape.len()).map(|_| 0.3 * rng.normal() as f32).collect()).collect();
        // As many published encoders: without the pooler.
        let entries: Vec<Entry> = specs
            .iter()
            .zip(&values)
            .filter(|(s, _)| !s.name.starts_with("pooler."))
            .map(|(s, v)| Entry::f32s(s.name.clone(), s.shape.dims(), v))
            .collect();
        weights::write(&folder.join("model.safetensors"), &entries, &Default::default()).expect("weights");
    }

    fn options(&self, run: &str, more: &str) -> TrainOptions {
        let at = |name: &str| self.at(name).display().to_string();
        let line = format!(
            "--data_path {} --data_name data --bert_path {} --logger_name {} --max_words 8 --embed_size 8 \
             --num_head_IMRC 2 --hid_IMRC 8 --hid_router 8 --batch_size 6 --extra_stc 1 --val_step 3 --log_step 1 \
             --max-steps 6 --learning_rate 1e-2 {more}",
            self.folder.path().display(),
            at("bert"),
            at(run),
        );
        TrainOptions::of(&line.split_whitespace().collect::<Vec<_>>()).expect("sound options")
    }

    /// Options that go on with a run up to a step.
    fn resumed(&self, run: &str, steps: u64) -> TrainOptions {
        let run_folder = self.at(run).display().to_string();
        self.options(run, &format!("--cache-text --resume {run_folder} --max-steps {steps}"))
    }

    /// The files of kept states in a run's folder, with their bytes.
    fn kept(&self, run: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let files = fs::read_dir(self.at(run)).expect("the run").map(|f| f.expect("a file").path());
        let mut kept: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "npy")).collect();
        kept.sort();
        kept.into_iter().map(|p| (p.clone(), fs::read(p).expect("its bytes"))).collect()
    }
}

/// Trains, and counts the captions that the encoder ran over for a file.
fn train(options: TrainOptions) -> u64 {
    let mut encoded = 0;
    let tell = &mut |event| {
        if let Event::Progress(Progress::Encoding { done, total }) = event {
            encoded += if done == total { total } else { 0 };
        }
    };
    run::train(options, &AtomicBool::new(false), tell).unwrap_or_else(|e| panic!("{e}"));
    encoded
}

fn metrics(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).expect("the metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Trains with and without kept states, and compares what both wrote down.
fn same_with_kept_states(world: &World, more: &str) {
    assert_eq!(train(world.options("direct", more)), 0);
    assert!(world.kept("direct").is_empty());
    assert_eq!(train(world.options("cached", &format!("--cache-text {more}"))), 80);
    let (direct, cached) = (metrics(&world.at("direct")), metrics(&world.at("cached")));
    assert_eq!(direct.len(), 8, "six steps and two validations");
    assert_eq!(direct.len(), cached.len());
    for (a, b) in direct.iter().zip(&cached) {
        assert_eq!(a["val"], b["val"]);
        for name in ["loss", "loss_rank", "loss_path", "grad_norm"] {
            let (a, b) = (a[name].as_f64().unwrap_or(0.0), b[name].as_f64().unwrap_or(0.0));
            assert!((a - b).abs() <= 1e-6 * a.abs(), "{name}: {a} without, {b} with kept states");
        }
    }
}

#[test]
fn kept_states_train_as_the_encoder_does() {
    same_with_kept_states(&World::new(), "");
}

#[test]
fn where_padding_is_masked_only_a_captions_own_states_are_kept() {
    let world = World::new();
    same_with_kept_states(&world, "--mask-padding");
    for (split, (_, bytes)) in ["dev", "train"].iter().zip(world.kept("cached")) {
        let text = fs::read_to_string(world.at("data").join(format!("{split}_caps.txt"))).expect("captions");
        let lengths: Vec<usize> = text.lines().map(|line| line.split(' ').count() + 2).collect();
        // 8 words of 8 numbers each.
        let values = &bytes[bytes.len() - 4 * 64 * lengths.len()..];
        let rows: Vec<&[u8]> = values.chunks(4 * 64).collect();
        for (caption, (row, length)) in rows.iter().zip(&lengths).enumerate() {
            let (own, padding) = row.split_at(4 * 8 * length);
            assert!(
                own.chunks(4 * 8).all(|word| word.iter().any(|b| *b != 0)),
                "caption {caption} of {split}"
            );
            assert!(padding.iter().all(|b| *b == 0), "caption {caption} of {split}");
        }
        assert!(lengths.iter().any(|n| *n < 8), "some are padded");
    }
}

#[test]
fn files_are_taken_up_only_where_they_fit() {
    let world = World::new();
    assert_eq!(train(world.options("run", "--cache-text --max-steps 1")), 80);
    let first = world.kept("run");
    assert_eq!(first.len(), 2);
    assert_eq!(train(world.resumed("run", 2)), 0, "the files are there");

    let (torn, whole) = &first[0];
    fs::write(torn, &whole[..whole.len() - 4]).expect("a torn file");
    assert_eq!(train(world.resumed("run", 3)), if whole.len() > first[1].1.len() { 60 } else { 20 });
    assert!(world.kept("run") == first, "made anew as it was");

    world.bert(4);
    let refused = run::train(world.resumed("run", 4), &AtomicBool::new(false), &mut |_| ());
    let refused = refused.expect_err("another frozen encoder").to_string();
    assert!(refused.contains("the text encoder: other weights"), "{refused}");
    // A run of before this was remembered goes on, and its kept states are made anew.
    let config = world.at("run").join("config.json");
    let text = fs::read_to_string(&config).expect("the configuration");
    fs::write(&config, text.replace("\"begun_with\"", "\"before\"")).expect("written");
    assert_eq!(train(world.resumed("run", 4)), 80, "other weights");
    let second = world.kept("run");
    assert_eq!(second.len(), 2, "stale files are gone");
    assert!(second.iter().all(|(path, bytes)| first.iter().all(|(p, b)| p != path && b != bytes)));
}
