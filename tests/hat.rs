//! HAT: its fast forms against what the paper writes, and as a user trains it, from pictures.

mod models;
mod tiny;

use crossweave::data::weights::{self, Entry, Weights};
use crossweave::eval::sims::{Matrix, Scores};
use crossweave::gpu::{Gpu, Options, Style};
use crossweave::host::{Rng, ratios};
use crossweave::nn::{Params, position_table, swin};
use crossweave::systems::{Form, Items, Pass, Step, System, kind};
use crossweave::tensor::Device;
use models::{scores_and_gradients, small_swin};
use serde_json::json;
use std::collections::HashMap;
use tiny::Tiny;

const LENGTHS: [f32; 4] = [6.0, 4.0, 2.0, 1.0];
const WORDS: usize = 6;

fn system(direction: &str, hidden: usize, heads: [usize; 4]) -> Box<dyn System> {
    let config = json!({
        "direction": direction, "hidden_size": hidden, "max_text_len": WORDS, "lambda_softmax": 9.0,
        "swin": {"img_size": 64, "embed_dim": 8, "depths": [1, 2, 2, 1], "num_heads": heads, "mlp_ratio": 2.0},
        "bert": {"vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 10, "num_attention_heads": 2,
            "intermediate_size": 20, "max_position_embeddings": 8},
    });
    (kind("hat").expect("a system").open)(&config).expect("a configuration")
}

fn items() -> (Items, Items) {
    let mut rng = Rng::new(3);
    let device = Device::Host;
    let pixels: Vec<f32> = (0..2 * 3 * 64 * 64).map(|_| rng.normal() as f32).collect();
    let inside = |i: usize| ((i % WORDS) as f32) < LENGTHS[i / WORDS];
    let of = |value: &dyn Fn(usize) -> f32| -> Vec<f32> {
        (0..LENGTHS.len() * WORDS).map(|i| if inside(i) { value(i) } else { 0.0 }).collect()
    };
    let shape = [LENGTHS.len(), WORDS];
    let captions = Items::default()
        .with("input_ids", device.tensor(shape, &of(&|i| (7 * i % 29 + 1) as f32)))
        .with("input_mask", device.tensor(shape, &of(&|_| 1.0)))
        .with("lengths", device.tensor([LENGTHS.len()], &LENGTHS));
    (Items::default().with("image", device.tensor([2, 3, 64, 64], &pixels)), captions)
}

/// In training branches are dropped: the same in every form.
fn of_form(system: &dyn System, items: &(Items, Items), form: Form) -> Vec<Vec<f64>> {
    let step = Step { seed: 7, epoch: 0, step: 0, text_dropout: true };
    scores_and_gradients(system, items, |scope| Pass::training(scope, step).computed(form, 3))
}

/// Levels of 64, 16 and 4 rows beside widths above and below them: every way to compare; heads of any width.
#[test]
fn every_form_gives_what_the_paper_writes() {
    for (direction, hidden, heads) in [
        ("i2t", 20, [1, 2, 2, 4]),
        ("i2t", 4, [2, 4, 8, 16]),
        ("t2i", 20, [2, 4, 8, 16]),
        ("t2i", 70, [1, 2, 2, 4]),
    ] {
        let (system, items) = (system(direction, hidden, heads), items());
        let plain = of_form(&*system, &items, Form::Composed);
        for form in [Form::Fast, Form::Recomputed] {
            let fast = of_form(&*system, &items, form);
            let whole = |all: &[Vec<f64>]| all[1..].concat();
            let scores = ratios(&fast[0], &plain[0]).worst();
            let gradients = ratios(&whole(&fast), &whole(&plain)).norm;
            assert!(scores < 1e-9 && gradients < 1e-8, "{direction} {hidden}: {scores} {gradients}");
        }
    }
}

#[test]
fn branches_are_left_out_picture_by_picture_and_only_in_training() {
    let config = swin::Config { drop_path_rate: 0.9, ..small_swin(64) };
    let params = Params::begin(&config.parameters(""), &Device::Host, 5);
    let mut rng = Rng::new(4);
    let one: Vec<f32> = (0..3 * 64 * 64).map(|_| rng.normal() as f32).collect();
    let pictures = Device::Host.tensor([6, 3, 64, 64], &one.repeat(6));
    let last = |dropouts: Option<&crossweave::nn::Dropouts>| {
        let run = swin::Run { scope: params.root(), config: &config, dropouts, recomputed: false };
        let mut stages = run.stages(&pictures, &mut |_, _| ());
        let last = stages.pop().expect("four stages").to_f64().expect("the host works");
        let rows: Vec<Vec<f64>> = last.chunks(last.len() / 6).map(<[f64]>::to_vec).collect();
        rows
    };
    let plain = last(None);
    assert!(plain.iter().all(|row| *row == plain[0]));
    let dropped = last(Some(&crossweave::nn::Dropouts::new(1)));
    assert!(dropped.iter().any(|row| *row != dropped[0]), "each picture has draws of its own");
    assert_eq!(dropped, last(Some(&crossweave::nn::Dropouts::new(1))));
    assert_ne!(dropped, last(Some(&crossweave::nn::Dropouts::new(2))));
}

const MODEL: &str = "--bert-init random --bert-layers 10 --bert-hidden 8 --bert-heads 2 --bert-intermediate 16 \
    --vocab-size 120 --max_text_len 10 --image_size 64 --hidden_size 12 --batch_size 15 --learning_rate 1e-3 --log_step 1 \
    --num_epochs 2";
const RANDOM: &str = "--swin-init random --swin-embed 8 --swin-depths 1,1,1,1 --swin-heads 1,2,2,4";

fn training(run: &str, more: &str) -> String {
    format!("train --system hat --data_path data --data_name tiny --logger_name {run} {MODEL} {more}")
}

fn sims(tiny: &Tiny, runs: &str) -> Vec<f32> {
    tiny.run(&format!("evaluate {runs} --save-sims sims.npy")).with(0);
    match Matrix::open(&tiny.path("sims.npy"), None).expect("a matrix").scores {
        Scores::F32(v) => v,
        Scores::F64(v) => v.iter().map(|x| *x as f32).collect(),
    }
}

/// The parameters in a run's last state.
fn state(tiny: &Tiny, run: &str) -> HashMap<String, Vec<f32>> {
    let file = Weights::open(&tiny.path(run).join("last.safetensors")).expect("a state");
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    names.into_iter().map(|name| (name.clone(), file.f32s(&name).expect("floats"))).collect()
}

/// Four steps an epoch: the encoders wait for the second, and a run that stops in it goes on with their moments.
#[test]
fn encoders_join_late_and_a_stopped_run_goes_on_bit_for_bit() {
    let tiny = Tiny::new().with_pictures();
    let late = format!("{RANDOM} --frozen-epochs 1");
    tiny.run(&training("whole", &late)).with(0);
    let whole = tiny.steps("whole");
    assert_eq!(whole.len(), 8);
    tiny.run(&training("begun", &format!("{late} --max-steps 1"))).with(0);
    tiny.run(&training("frozen", &format!("{late} --max-steps 4"))).with(0);
    let (begun, frozen) = (state(&tiny, "begun"), state(&tiny, "frozen"));
    let moved = |prefix: &str| begun.iter().any(|(name, v)| name.starts_with(prefix) && frozen[name] != *v);
    assert!(moved("cross_modal_") && !moved("vit_model.") && !moved("text_transformer."));
    assert!(!frozen.contains_key("adam.m.vit_model.patch_embed.proj.weight"));

    tiny.run("train --resume frozen --max-steps 6").with(0);
    let joined = state(&tiny, "frozen");
    let table = "vit_model.layers.1.blocks.0.attn.relative_position_bias_table";
    for name in [table, "text_transformer.encoder.layer.0.output.dense.weight"] {
        assert!(joined[name] != frozen[name], "{name} is trained");
    }
    assert_eq!(joined["vit_model.norm_0.weight"], frozen["vit_model.norm_0.weight"]);
    tiny.run("train --resume frozen").with(0);
    assert_eq!(tiny.steps("frozen"), whole);

    // Features and pictures of the same images.
    tiny.run(&Tiny::training("dime", "--max-steps 2")).with(0);
    let [hat, dime, both] = ["whole", "dime", "whole dime"].map(|runs| sims(&tiny, runs));
    assert!((0..both.len()).all(|i| (both[i] - (hat[i] + dime[i]) / 2.0).abs() < 1e-5));
    let shown = tiny.run("evaluate whole --show 1").with(0).out;
    assert!(shown.contains(".png"), "{shown}");
}

/// A backbone of 96 pixels begins one of 64: its tables are resampled, the rest is as it was.
#[test]
fn a_backbone_begins_one_for_pictures_of_another_size() {
    let tiny = Tiny::new().with_pictures();
    let config = small_swin(96);
    let specs = config.parameters("");
    let params = Params::begin(&specs, &Device::Host, 9);
    let values: Vec<(&crossweave::nn::ParamSpec, Vec<f32>)> = specs
        .iter()
        .filter(|s| !s.name.starts_with("norm_"))
        .map(|s| (s, params.named(&s.name).to_vec().expect("the host works")))
        .collect();
    let entries: Vec<Entry> =
        values.iter().map(|(s, v)| Entry::f32s(s.name.clone(), s.shape.dims(), v)).collect();
    std::fs::create_dir(tiny.path("swin")).expect("made");
    weights::write(&tiny.path("swin/model.safetensors"), &entries, &HashMap::new()).expect("written");
    let text = serde_json::to_string(&config).expect("plain data");
    std::fs::write(tiny.path("swin/config.json"), text).expect("written");

    tiny.run(&training("run", "--swin_path swin --max-steps 1")).with(0);
    let begun = state(&tiny, "run");
    let (mut tables, mut kept) = (0, 0);
    for (spec, values) in &values {
        let own = &begun[&format!("vit_model.{}", spec.name)];
        if spec.name.ends_with(swin::TABLE) {
            let heads = spec.shape[1];
            assert_eq!(*own, position_table::resampled(values, 5, 3, heads), "{}", spec.name);
            tables += 1;
        } else {
            assert_eq!(own, values, "{}", spec.name);
            kept += 1;
        }
    }
    assert!(tables == 5 && kept > 50 && begun["vit_model.norm_1.weight"].iter().all(|v| *v == 1.0));
    // Its folder is not needed for scores, but by a run that goes on.
    tiny.run("evaluate run").with(0);
    let options = std::fs::read_to_string(tiny.path("run/config.json")).expect("a configuration");
    let options: serde_json::Value = serde_json::from_str(&options).expect("JSON");
    let kept = std::path::PathBuf::from(options["options"]["swin_path"].as_str().expect("a path"));
    assert!(kept.is_absolute(), "a run goes on from any folder: {}", kept.display());
    tiny.run("train --resume run --max-steps 2").with(0);
}

/// The largest tensor of Swin-B is one of the way back, or on GPUs of the way there: some tens of pictures of it are more
/// than the least binding of WebGPU.
#[test]
fn pictures_at_a_time_are_those_that_the_way_back_can_bind() {
    let base = swin::Config {
        embed_dim: 128,
        depths: vec![2, 2, 18, 2],
        num_heads: vec![4, 8, 16, 32],
        mlp_ratio: 4.0,
        ..small_swin(224)
    };
    let open = |style| Gpu::open(&Options { style: Some(style), ..Options::default() });
    let values = |style| base.values(&Device::Gpu(open(style).expect("an adapter")));
    assert_eq!(values(Style::Direct), 3136 * (3 * 128 + 4 * 49));
    // Hidden values and what their GELU is of are one tensor.
    assert_eq!(values(Style::Workgroup), 3136 * 2 * 4 * 128);
    base.check_on(&Device::Host).expect("the host binds anything");
    let large = swin::Config { img_size: 4096, ..base };
    assert!(large.check().expect_err("too large").to_string().contains("2048"));
}

#[test]
fn options_that_make_no_model_are_named() {
    let tiny = Tiny::new().with_pictures();
    let refused = |more: &str| tiny.run(&training("run", more)).with(2).err;
    let cases = [
        ("", "--swin_path"),
        ("--swin_path nowhere", "nowhere"),
        ("--swin-embed 8", "--swin-init random"),
        (&format!("{RANDOM} --swin_path swin"), "contradicts"),
        (&format!("{RANDOM} --image_size 50"), "multiple of 32"),
        (&format!("{RANDOM} --swin-heads 3,2,2,4"), "num_heads"),
        (&format!("{RANDOM} --swin-depths 1,1,1"), "depths"),
        (&format!("{RANDOM} --bert-layers 9"), "--bert-layers 10"),
        (&format!("{RANDOM} --drop-path 1"), "drop_path_rate"),
        (&format!("{RANDOM} --lr-step 0"), "--lr-step"),
        (&format!("{RANDOM} --crop 2"), "--crop"),
        (&format!("{RANDOM} --max_text_len 2"), "--max_text_len"),
        (&format!("{RANDOM} --img_dim 64"), "pictures"),
    ];
    for (more, named) in cases {
        let said = refused(more);
        assert!(said.contains(named), "{more}: {said}");
        assert!(!tiny.path("run").exists(), "{more}");
    }
}
