//! HREM as a user trains it: by its authors' command line, stopped across the warm-up and resumed, and evaluated beside
//! another system.

mod tiny;

use crossweave::eval::sims::{Matrix, Scores};
use serde_json::Value;
use tiny::Tiny;

/// A small model; the instance level begins after the third step.
const MODEL: &str = "--embed_size 8 --nhead 2 --topk 3 --warmup 3 --bert-init random --bert-layers 1 --bert-hidden 16 \
    --bert-heads 2 --bert-intermediate 32 --vocab-size 120 --batch_size 6 --learning_rate 1e-3 --log_step 1 \
    --num_epochs 1";

fn training(run: &str, more: &str) -> String {
    format!("train --system hrem --data_path data --dataset tiny --logger_name {run} {MODEL} {more}")
}

/// A data folder by the name that the authors' option means.
fn world() -> Tiny {
    let tiny = Tiny::new();
    std::fs::rename(tiny.data(), tiny.path("data/tiny_precomp")).expect("renamed");
    tiny
}

fn terms(row: &Value) -> Vec<&str> {
    let keys = row.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    keys.filter_map(|key| key.strip_prefix("loss_")).collect()
}

#[test]
fn a_run_stopped_in_the_warm_up_goes_on_bit_for_bit() {
    let tiny = world();
    tiny.run(&training("whole", "--mask_weight 1.0")).with(0);
    let whole = tiny.steps("whole");
    assert_eq!(whole.len(), 10, "what is left over of 60 captions in sixes is nothing");
    for (i, row) in whole.iter().enumerate() {
        let expected: &[&str] = if i < 3 { &["base"] } else { &["base", "gnn1", "gnn2", "gnn3", "reg"] };
        assert_eq!(terms(row), expected, "step {}", i + 1);
    }
    for stop in [2, 5] {
        let run = format!("stopped{stop}");
        tiny.run(&training(&run, &format!("--mask_weight 1.0 --max-steps {stop}"))).with(0);
        tiny.run(&format!("train --resume {run}")).with(0);
        assert_eq!(tiny.steps(&run), whole, "stopped after step {stop}");
    }
}

#[test]
fn it_is_evaluated_beside_another_system() {
    let tiny = world();
    tiny.run(&training("hrem", "")).with(0);
    let line =
        Tiny::training("dime", "--max-steps 2").replace("--data_name tiny", "--data_name tiny_precomp");
    tiny.run(&line).with(0);
    let sims = |runs: &str, file: &str| {
        tiny.run(&format!("evaluate {runs} --save-sims {file}")).with(0);
        match Matrix::open(&tiny.path(file), None).expect("a matrix").scores {
            Scores::F32(v) => v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(),
            Scores::F64(v) => v,
        }
    };
    let (one, other, both) = (sims("hrem", "a.npy"), sims("dime", "b.npy"), sims("hrem dime", "c.npy"));
    assert_eq!(one.len(), 6 * 30);
    assert!(one.iter().all(|s| s.abs() < 1.001), "cosines");
    let far = one.iter().zip(&other).zip(&both).map(|((a, b), c)| ((a + b) / 2.0 - c).abs());
    assert!(far.fold(0.0, f64::max) < 1e-6, "the ensemble is the mean of similarities");
    // The criterion is no part of the model that is kept.
    let weights =
        crossweave::data::weights::Weights::open(&tiny.path("hrem/model.safetensors")).expect("weights");
    assert!(weights.names().all(|name| !name.starts_with("criterion.")));
}

#[test]
fn options_that_make_no_batch_or_no_graph_are_refused_before_work() {
    let tiny = world();
    for (more, part) in [
        ("--batch_size 61", "--batch_size"),
        ("--batch_size 1 --threshold 0.5", "--threshold"),
        ("--mask_weight 0", "mask_weight"),
        ("--extra_stc 1", "an option of dime"),
        ("--topk 40", "topk"),
    ] {
        let said = tiny.run(&training("none", more)).with(2);
        assert!(said.err.contains(part), "{more}: {}", said.err);
        assert!(!tiny.path("none").join("last.safetensors").exists(), "{more}: no run is begun");
    }
}
