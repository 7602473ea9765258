//! GSMN: its fast forms against what the paper writes, and as a user trains it, dense and sparse.

mod models;
mod tiny;

use crossweave::eval::encoded::check_batch;
use crossweave::eval::sims::{Matrix, Scores};
use crossweave::gpu::{Gpu, Options};
use crossweave::host::{Rng, ratios};
use crossweave::systems::{Form, Items, Pass, System, kind};
use crossweave::tensor::Device;
use models::scores_and_gradients;
use serde_json::json;
use tiny::Tiny;

const IMAGES: usize = 3;
const LENGTHS: [f32; 4] = [6.0, 4.0, 2.0, 1.0];
const WORDS: usize = 6;

fn system(embed: usize, blocks: usize, sparse: bool, out_dim: usize) -> Box<dyn System> {
    let config = json!({
        "embed_size": embed, "num_block": blocks, "feat_dim": blocks, "hid_dim": 16, "out_dim": out_dim,
        "word_dim": 6, "bi_gru": true, "is_sparse": sparse, "lambda_softmax": 9.0, "img_dim": 5, "vocab_size": 30,
    });
    (kind("gsmn").expect("a system").open)(&config).expect("a configuration")
}

/// Items of random values; word 1 of the second caption depends on itself.
fn items(regions: usize) -> (Items, Items) {
    let mut rng = Rng::new(3);
    let mut values = |n: usize| (0..n).map(|_| rng.unit() as f32).collect::<Vec<_>>();
    let device = Device::Host;
    let images = Items::default()
        .with("images", device.tensor([IMAGES, regions, 5], &values(IMAGES * regions * 5)))
        .with("bboxes", device.tensor([IMAGES, regions, 4], &values(IMAGES * regions * 4)));
    let captions = LENGTHS.len();
    let ids: Vec<f32> = (0..captions * WORDS)
        .map(|i| if ((i % WORDS) as f32) < LENGTHS[i / WORDS] { (7 * i % 29 + 1) as f32 } else { 0.0 })
        .collect();
    let pairs = [[0.0, 1.0, 1.0, 2.0, 2.0, 0.0], [0.0, 1.0, 1.0, 1.0, 1.0, 3.0]];
    let depends: Vec<f32> = (0..captions).flat_map(|i| pairs[i % 2]).collect();
    let captions = Items::default()
        .with("captions", device.tensor([captions, WORDS], &ids))
        .with("cap_lens", device.tensor([captions], &LENGTHS))
        .with("depends", device.tensor([captions, 3, 2], &depends))
        .with("depends_len", device.tensor([captions], &[3.0; 4]));
    (images, captions)
}

fn of_form(system: &dyn System, items: &(Items, Items), form: Form) -> Vec<Vec<f64>> {
    scores_and_gradients(system, items, |scope| Pass::evaluation(scope).computed(form, 3))
}

/// Blocks wide for the number of regions, of words, of both and of neither: every way to compare them.
#[test]
fn every_form_gives_what_the_paper_writes() {
    for (embed, blocks, regions) in [(24, 3, 7), (24, 4, 5), (24, 4, 9), (24, 3, 9), (24, 8, 7), (60, 4, 5)] {
        for (sparse, out_dim) in [(false, 1), (true, 3)] {
            let (system, items) = (system(embed, blocks, sparse, out_dim), items(regions));
            let plain = of_form(&*system, &items, Form::Composed);
            for form in [Form::Fast, Form::Recomputed] {
                let fast = of_form(&*system, &items, form);
                let whole = |all: &[Vec<f64>]| all[1..].concat();
                let scores = ratios(&fast[0], &plain[0]).worst();
                let gradients = ratios(&whole(&fast), &whole(&plain)).norm;
                assert!(scores < 1e-9 && gradients < 1e-9, "{embed} / {blocks}: {scores} {gradients}");
            }
        }
    }
}

#[test]
fn a_sparse_graph_differs_only_where_a_word_depends_on_itself() {
    let items = items(5);
    let of = |sparse| of_form(&*system(24, 3, sparse, 1), &items, Form::Fast).swap_remove(0);
    let (dense, sparse) = (of(false), of(true));
    let captions = LENGTHS.len();
    for (i, (a, b)) in dense.iter().zip(&sparse).enumerate() {
        // Word 1 is there in the second caption alone: the fourth has one word.
        assert_eq!(a == b, i % captions != 1, "image {}, caption {}", i / captions, i % captions);
    }
}

const MODEL: &str = "--embed_size 16 --num_block 4 --feat_dim 4 --hid_dim 8 --word_dim 8 --bi_gru --max_violation \
    --lambda_softmax 20 --num_epochs 2 --lr_update 1 --learning_rate .001 --batch_size 16 --log_step 1";

fn training(run: &str, more: &str) -> String {
    format!(
        "train --system gsmn --data_path data --vocab_path data/tiny --data_name tiny --logger_name {run} {MODEL} {more}"
    )
}

fn sims(tiny: &Tiny, runs: &str, more: &str) -> Vec<f32> {
    tiny.run(&format!("evaluate {runs} --save-sims sims.npy {more}")).with(0);
    match Matrix::open(&tiny.path("sims.npy"), None).expect("a matrix").scores {
        Scores::F32(v) => v,
        Scores::F64(v) => v.iter().map(|x| *x as f32).collect(),
    }
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit_and_is_evaluated_beside_others() {
    let tiny = Tiny::new().with_words();
    tiny.run(&training("whole", "")).with(0);
    let whole = tiny.steps("whole");
    assert_eq!(whole.len(), 8);
    let rates: Vec<f64> = whole.iter().filter_map(|row| row["lr"].as_f64()).collect();
    assert!(rates[..4].iter().all(|r| *r == 1e-3) && rates[4..].iter().all(|r| (*r - 1e-4).abs() < 1e-12));
    tiny.run(&training("stopped", "--max-steps 3")).with(0);
    tiny.run("train --resume stopped").with(0);
    assert_eq!(tiny.steps("stopped"), whole);

    // The authors' two folders: one for logs, one for checkpoints, which is the run's.
    tiny.run(&training("log", "--model_name parted --max-steps 3")).with(0);
    assert!(tiny.path("parted/model.safetensors").exists() && !tiny.path("parted/metrics.jsonl").exists());
    let said = tiny.run(&training("log", "--model_name other")).with(2);
    assert!(said.err.contains("another run's logs"), "{}", said.err);
    tiny.run("train --resume parted").with(0);
    assert_eq!(tiny.steps("log"), whole);
    assert!(tiny.path("log/curves.svg").exists() && !tiny.path("log/model.safetensors").exists());
    assert_eq!(sims(&tiny, "parted", "").len(), 6 * 30);

    tiny.run(&training("sparse", "--is_sparse --max-steps 3")).with(0);
    tiny.run(&Tiny::training("dime", "--max-steps 2")).with(0);
    let [dense, sparse, dime] = ["whole", "sparse", "dime"].map(|run| sims(&tiny, run, ""));
    let all = sims(&tiny, "whole sparse dime", "");
    let mean = |i: usize| (dense[i] + sparse[i] + dime[i]) / 3.0;
    assert!((0..all.len()).all(|i| (all[i] - mean(i)).abs() < 1e-5), "the mean of three systems' scores");
    let shown = tiny.run("evaluate whole --show 1").with(0).out;
    assert!(shown.contains("regions ") && shown.contains("(word "), "{shown}");
}

/// No word of these captions depends on itself, so that their pairs count for nothing.
#[test]
fn a_sparse_model_is_evaluated_without_its_pairs() {
    let tiny = Tiny::new().with_words();
    tiny.run(&training("sparse", "--is_sparse --max-steps 3")).with(0);
    let with = sims(&tiny, "sparse", "");
    std::fs::remove_file(tiny.file("test", "caps.json")).expect("removed");
    let said = tiny.run("evaluate sparse").with(0);
    assert!(format!("{}{}", said.out, said.err).contains("depend"), "{}{}", said.out, said.err);
    assert_eq!(sims(&tiny, "sparse", ""), with);
}

/// The published loader divides boxes again at every read, and an evaluation without folds takes another image's.
#[test]
fn faithful_scores_are_of_the_boxes_that_the_published_code_reads() {
    let tiny = Tiny::new().with_words();
    tiny.run(&training("ours", "--max-steps 1")).with(0);
    let said = tiny.run(&training("theirs", "--max-steps 1 --faithful")).with(0);
    assert!(said.err.contains("divided"), "{}", said.err);
    let config = std::fs::read_to_string(tiny.path("theirs/config.json")).expect("a configuration");
    assert!(config.contains("\"faithful\": true"));
    std::fs::copy(tiny.path("ours/model.safetensors"), tiny.path("theirs/model.safetensors"))
        .expect("copied");
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    let (ours, theirs) = (sims(&tiny, "ours", ""), sims(&tiny, "theirs", ""));
    let (own, strided) = (sims(&tiny, "ours", "--folds 2"), sims(&tiny, "theirs", "--folds 2"));
    assert_eq!(ours, own, "an image has its own boxes, folds or not");
    assert!(far(&ours, &theirs) > 1e-3, "other boxes, other scores");
    assert!(
        far(&own, &strided) > 1e-3,
        "in folds an image keeps its own boxes, divided again and again all the same"
    );
}

#[test]
fn a_batch_that_no_adapter_binds_is_named_before_work() {
    let smallest = Options { default_limits: true, ..Options::default() };
    let device = Device::Gpu(Gpu::open(&smallest).expect("the tests need an adapter"));
    let config = json!({"embed_size": 1024, "bi_gru": true, "img_dim": 64, "vocab_size": 30});
    let system = (kind("gsmn").expect("a system").open)(&config).expect("a configuration");
    check_batch(&*system, 128, 30, &device).expect("captions of 30 words fit");
    let error = check_batch(&*system, 128, 60, &device).expect_err("128 captions of 60 words").to_string();
    assert!(error.contains("--batch_size 68"), "{error}");
    let error = check_batch(&*system, 1, 6000, &device).expect_err("one of 6000 words").to_string();
    assert!(error.contains("shorten"), "{error}");
}

#[test]
fn options_that_make_no_model_are_refused_before_work() {
    let tiny = Tiny::new().with_words();
    for (more, part) in [
        ("--num_block 5 --feat_dim 5", "blocks do not divide"),
        ("--num_block 8", "--feat_dim 8"),
        ("--hid_dim 12", "multiple of 8"),
        ("--lr_update 0", "--lr_update"),
        ("--extra_stc 1", "an option of dime"),
        ("--bert_path bert", "gsmn has none"),
        ("--vocab_path nowhere", "vocab.json"),
    ] {
        let said = tiny.run(&training("none", more)).with(2);
        assert!(said.err.contains(part), "{more}: {}", said.err);
        assert!(!tiny.path("none").join("last.safetensors").exists(), "{more}: no run is begun");
    }
}
