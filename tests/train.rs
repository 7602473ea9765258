//! Training as a user runs it: repeatable, stopped in every way and resumed bit for bit, evaluated.

mod half;
mod tiny;

use std::process::Stdio;
use std::time::{Duration, Instant};

use crossweave::data::weights::{Dtype, Weights};
use crossweave::eval::model::read_system;
use crossweave::eval::sims::{Matrix, Scores};
use crossweave::nn::Role;
use half::half;
use serde_json::Value;
use tiny::{SHAPE, STEPS_PER_EPOCH, Tiny, npy_header, said, write_features};

const I2T: &str = "--direction i2t --extra_img 0 --extra_stc 1";
const T2I: &str = "--direction t2i";
const EPOCHS: &str = "--num_epochs 2 --val_step 6";

fn steps_of(rows: &[Value]) -> Vec<u64> {
    rows.iter().filter_map(|row| row["step"].as_u64()).collect()
}

#[test]
fn a_seed_repeats_bit_for_bit_and_another_does_not() {
    let tiny = Tiny::new();
    tiny.train("one", "--max-steps 8");
    tiny.train("two", "--max-steps 8");
    tiny.train("other", "--max-steps 8 --seed 2");
    assert_eq!(steps_of(&tiny.steps("one")), (1..=8).collect::<Vec<_>>());
    assert_eq!(tiny.rows("one"), tiny.rows("two"));
    assert_ne!(tiny.steps("one"), tiny.steps("other"));
    let rows = tiny.steps("one");
    assert!(rows.iter().all(|row| row["grad_norm"].as_f64() > Some(0.0)), "{rows:?}");
}

#[test]
fn a_run_stopped_in_any_way_goes_on_bit_for_bit() {
    let tiny = Tiny::new();
    tiny.train("whole", EPOCHS);
    let whole = tiny.steps("whole");
    assert_eq!(steps_of(&whole), (1..=2 * STEPS_PER_EPOCH).collect::<Vec<_>>());

    // At a step inside an epoch; the rest of the options stand in the run.
    tiny.train("stopped", &format!("{EPOCHS} --max-steps 10"));
    assert_eq!(tiny.steps("stopped"), whole[..10]);
    tiny.run("train --resume stopped --max-steps 10").with(0);
    assert_eq!(tiny.steps("stopped"), whole[..10], "a step past the limit");
    let resumed = tiny.run("train --resume stopped").with(0);
    assert!(resumed.err.contains("going on from step 10"), "{}", resumed.err);
    assert_eq!(tiny.steps("stopped"), whole);

    // Killed: at once, and later between checkpoints.
    for (name, after) in [("killed at once", 1), ("killed", 15)] {
        let name = name.replace(' ', "-");
        let mut child =
            tiny.command(&Tiny::training(&name, EPOCHS)).stderr(Stdio::null()).spawn().expect("it runs");
        wait_for_rows(&tiny, &name, after);
        child.kill().expect("killed");
        child.wait().expect("ended");
        let before = tiny.steps(&name).len();
        assert!((after..30).contains(&before), "killed after {before} steps: too late to say anything");
        tiny.run(&format!("train --resume {name}")).with(0);
        assert_eq!(tiny.steps(&name), whole, "{name}");
    }
    // What was killed validated where the whole run did, and chose the same weights.
    let weights = |run: &str| std::fs::read(tiny.path(run).join("model.safetensors")).expect("weights");
    assert_eq!(tiny.rows("killed"), tiny.rows("whole"));
    assert!(weights("killed") == weights("whole"), "other best weights");
}

/// The script's loop with few kills; by hand it kills 50 times and fills 20 disks.
#[cfg(target_os = "linux")]
#[test]
fn every_system_killed_at_random_moments_goes_on_bit_for_bit() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/faults.sh");
    let mut command = std::process::Command::new("bash");
    command.args([script, "--kills", "3", "--fulls", "0", "--program", tiny::PROGRAM]);
    let out = said(&mut command).with(0).out;
    assert!(out.contains("killed 3 times: the losses are those of an undisturbed run"), "{out}");
}

#[test]
fn a_run_in_f16_stays_in_f16() {
    let tiny = Tiny::new();
    if half().is_none() {
        let refused = tiny.run(&Tiny::training("half", "--precision f16")).with(2);
        for part in ["cooperative matrices", "--precision f32"] {
            assert!(refused.err.contains(part), "no {part:?} in {}", refused.err);
        }
        return;
    }
    tiny.train("single", "--max-steps 8");
    tiny.train("half", "--max-steps 8 --precision f16");
    tiny.train("stopped", "--max-steps 5 --precision f16");
    tiny.run("train --resume stopped --max-steps 8").with(0);
    let losses = |run: &str| tiny.steps(run).iter().filter_map(|r| r["loss"].as_f64()).collect::<Vec<_>>();
    assert_eq!(tiny.steps("half"), tiny.steps("stopped"));
    let (single, half) = (losses("single"), losses("half"));
    assert!(single[0] != half[0] && (single[0] - half[0]).abs() < 1e-2 * single[0], "{single:?}, {half:?}");
    let refused = tiny.run("train --resume half --max-steps 9 --precision f32").with(2);
    assert!(refused.err.contains("expected: --precision f16"), "{}", refused.err);
    let table = |precision: &str| {
        let scored = tiny.run(&format!("evaluate half --precision {precision} --save-sims {precision}.npy"));
        scored.with(0);
        std::fs::read(tiny.path(&format!("{precision}.npy"))).expect("similarities")
    };
    assert!(table("f32") != table("f16"), "the precision of scoring changes nothing");
}

#[test]
fn after_a_lost_device_training_goes_on_by_itself() {
    let tiny = Tiny::new();
    tiny.train("whole", EPOCHS);
    // There are checkpoints of steps 0, 6, 12, 15, 18, 24 and 30.
    let lost = tiny.train("lost", &format!("{EPOCHS} --lose-device 3,8,8,13,29"));
    for (step, times) in [(0, 1), (6, 2), (12, 1), (24, 1)] {
        let notice = format!(
            "the device was lost: simulated; it is opened anew and training goes on from step {step}\n"
        );
        assert_eq!(lost.err.matches(&notice).count(), times, "step {step}: {}", lost.err);
    }
    assert_eq!(tiny.rows("lost"), tiny.rows("whole"));
    for file in ["model", "last"] {
        let weights = |run: &str| {
            let file = Weights::open(&tiny.path(run).join(format!("{file}.safetensors"))).expect("weights");
            let names: Vec<String> = file.names().map(str::to_string).collect();
            names.iter().map(|name| file.bytes(name).expect("bytes").to_vec()).collect::<Vec<_>>()
        };
        assert!(weights("lost") == weights("whole"), "other weights in {file}.safetensors");
    }
    // Three times at the same place leads nowhere.
    let given_up = tiny.run(&Tiny::training("given-up", "--lose-device 2,3,2")).with(2);
    for part in ["error: the device was lost", "3 losses since the checkpoint of step 0", "--resume given-up"]
    {
        assert!(given_up.err.contains(part), "no {part:?} in {}", given_up.err);
    }
    tiny.run("train --resume given-up --max-steps 4").with(0);
    assert_eq!(tiny.steps("given-up"), tiny.steps("whole")[..4]);
}

fn wait_for_rows(tiny: &Tiny, run: &str, rows: usize) {
    let (started, path) = (Instant::now(), tiny.path(run).join("metrics.jsonl"));
    while !path.exists() || tiny.steps(run).len() < rows {
        assert!(started.elapsed() < Duration::from_secs(60), "{run} wrote no {rows} rows in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_finishes_the_step_saves_and_exits_with_130() {
    let tiny = Tiny::new();
    tiny.train("whole", "--max-steps 40 --num_epochs 9");
    let mut command = tiny.command(&Tiny::training("stopped", "--max-steps 40 --num_epochs 9"));
    let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    wait_for_rows(&tiny, "stopped", 3);
    said(std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())])).with(0);
    let output = child.wait_with_output().expect("ended");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("stopped; `crossweave train --resume` goes on"), "{err}");
    let rows = tiny.steps("stopped").len() as u64;
    assert!((3..40).contains(&rows), "{rows} steps");
    let resumed = tiny.run("train --resume stopped --max-steps 40").with(0);
    assert!(resumed.err.contains(&format!("going on from step {rows}")), "{rows} rows: {}", resumed.err);
    assert_eq!(tiny.steps("stopped"), tiny.steps("whole"));
}

#[test]
fn what_decides_the_numbers_cannot_change_on_resuming() {
    let tiny = Tiny::new();
    tiny.train("run", "--max-steps 2 --tile 3 --img_dim 64");
    for (option, parts) in [
        (
            "--seed 2 --batch_size 8",
            &["expected: --batch_size 4, --seed 1", "found: --batch_size 8, --seed 2"][..],
        ),
        ("--tile 4", &["expected: --tile 3", "found: --tile 4"]),
        ("--embed_size 16", &["--embed_size 8", "--embed_size 16"]),
    ] {
        let options: Vec<&str> = option.split(' ').collect();
        let refused = tiny.run(&format!("train --resume run --max-steps 4 {}", options.join(" "))).with(2);
        for part in parts {
            assert!(refused.err.contains(part), "{option}: no {part:?} in {}", refused.err);
        }
    }
    // Captions corrected meanwhile would make another vocabulary, and another run. One of before this was remembered
    // keeps its own.
    let captions = std::fs::read_to_string(tiny.captions("train")).expect("captions");
    std::fs::write(tiny.captions("train"), captions.replace("red", "crimson")).expect("written");
    let vocab = std::fs::read(tiny.path("run/vocab.txt")).expect("a vocabulary");
    let refused = tiny.run("train --resume run --max-steps 4").with(2);
    assert!(refused.err.contains("train: other captions"), "{}", refused.err);
    let config = std::fs::read_to_string(tiny.path("run/config.json")).expect("a configuration");
    std::fs::write(tiny.path("run/config.json"), config.replace("\"begun_with\"", "\"before\""))
        .expect("written");
    tiny.run("train --resume run --max-steps 4").with(0);
    assert!(std::fs::read(tiny.path("run/vocab.txt")).expect("a vocabulary") == vocab);
    // The features decide the width.
    let mut wide = npy_header("<f4", "False", "12, 36, 32");
    wide.resize(wide.len() + 4 * 12 * 36 * 32, 0);
    std::fs::write(tiny.features("train"), &wide).expect("written");
    wide.splice(..128, npy_header("<f4", "False", "4, 36, 32"));
    wide.truncate(128 + 4 * 4 * 36 * 32);
    std::fs::write(tiny.features("dev"), &wide).expect("written");
    let refused = tiny.run("train --resume run --max-steps 5").with(2);
    for part in ["not those that the run was begun with", "train: 32 numbers a region instead of 64"] {
        assert!(refused.err.contains(part), "no {part:?} in {}", refused.err);
    }
}

#[test]
fn files_carry_the_authors_names_and_the_run_its_curves() {
    let tiny = Tiny::new();
    tiny.train("run", "--num_epochs 1");
    let (_, system) = read_system(&tiny.path("run")).expect("a configuration");
    let weights = Weights::open(&tiny.path("run/model.safetensors")).expect("weights");
    let state = Weights::open(&tiny.path("run/last.safetensors")).expect("a state");
    let specs = system.parameters();
    assert_eq!(weights.names().count(), specs.len());
    let mut moved = 0;
    for spec in &specs {
        for file in [&weights, &state] {
            assert_eq!(file.shape(&spec.name), Some(spec.shape.dims()), "{}", spec.name);
            let want = if spec.role == Role::Counter { Dtype::I64 } else { Dtype::F32 };
            assert_eq!(file.dtype(&spec.name), Some(want), "{}", spec.name);
        }
        let moments = ["m", "v"].map(|m| state.shape(&format!("adam.{m}.{}", spec.name)));
        // Weights that no output reads, as the first layer's last router, never have a gradient.
        if moments != [None, None] {
            assert_eq!(moments, [Some(spec.shape.dims()); 2], "{}", spec.name);
            assert!([Role::Weight, Role::Encoder].contains(&spec.role), "{}", spec.name);
            moved += 1;
        }
    }
    assert!(moved > specs.len() / 2, "{moved} of {} have moments", specs.len());
    for name in ["img_enc.fc.weight", "txt_enc.bert.embeddings.word_embeddings.weight"] {
        assert!(weights.shape(name).is_some(), "{name}");
    }
    let counters: Vec<_> = specs.iter().filter(|s| s.role == Role::Counter).collect();
    assert!(!counters.is_empty());
    for counter in counters {
        let ints = weights.ints(&counter.name).expect("whole numbers");
        assert_eq!(ints, [STEPS_PER_EPOCH as i64], "{}", counter.name);
    }
    let curves = std::fs::read_to_string(tiny.path("run/curves.svg")).expect("curves");
    for part in ["<svg", "Training loss", "Validation recall", "t2i R@1", "polyline"] {
        assert!(curves.contains(part), "no {part} in the curves");
    }
    let left: Vec<_> =
        std::fs::read_dir(tiny.path("run")).expect("the run").flatten().map(|f| f.file_name()).collect();
    // Weights, state, settings, vocabulary and its settings, metrics, events, curves, the lock.
    assert_eq!(left.len(), 9, "{left:?}");
}

fn sims(tiny: &Tiny, file: &str) -> Vec<f64> {
    match Matrix::open(&tiny.path(file), None).expect("a matrix").scores {
        Scores::F32(v) => v.into_iter().map(f64::from).collect(),
        Scores::F64(v) => v,
    }
}

#[track_caller]
fn close(a: &[f64], b: &[f64], bound: f64) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs() / a.abs().max(1.0)).fold(0.0, f64::max);
    assert!(worst <= bound, "{worst:e} > {bound:e}");
}

#[test]
fn evaluation_agrees_with_its_saved_matrices_tiles_and_ensembles() {
    let tiny = Tiny::new();
    tiny.train("a", "--max-steps 6");
    tiny.train("b", &format!("--max-steps 6 --seed 2 {I2T}"));
    // Scored by length, each tile cut to its longest caption.
    tiny.train("masked", "--max-steps 6 --mask-padding");
    let table = tiny.run("evaluate a").with(0).out;
    for part in ["6 images, 30 captions", "R@10", "rsum", "image to text", "chance: text to image"] {
        assert!(table.contains(part), "no {part:?} in {table}");
    }
    let json = |args: &str| -> Value {
        let said = tiny.run(&format!("evaluate {args} --json")).with(0);
        let mut value: Value = serde_json::from_str(&said.out).expect("JSON");
        let about = value.as_object_mut().expect("an object");
        let source = ["from", "split", "data"].map(|key| about.remove(key).expect(key));
        let runs = !args.starts_with("--sims");
        assert_eq!(
            (source[1] == "test", source[2].as_array().map(Vec::len)),
            (runs, Some(usize::from(runs)))
        );
        value
    };
    let own = json("a --save-sims a.npy");
    assert_eq!(own["images"], 6);
    assert_eq!(own, json("--sims a.npy"));
    let folds = json("a --folds 2");
    assert_eq!(folds["folds"].as_array().map(Vec::len), Some(2));
    assert_eq!(folds, json("--sims a.npy --folds 2"));
    json("b --save-sims b.npy");
    let both = json("a b --save-sims both.npy");
    assert_eq!(both, json("--sims a.npy b.npy"));
    let mean: Vec<f64> =
        sims(&tiny, "a.npy").iter().zip(sims(&tiny, "b.npy")).map(|(a, b)| (a + b) / 2.0).collect();
    close(&sims(&tiny, "both.npy"), &mean, 1e-6);
    json("masked --save-sims masked.npy");
    for run in ["a", "b", "masked"] {
        json(&format!("{run} --tile 1 --save-sims tiled.npy"));
        close(&sims(&tiny, "tiled.npy"), &sims(&tiny, &format!("{run}.npy")), 1e-5);
    }
}

#[test]
fn training_in_tiles_gives_the_same_losses_and_stays_in_the_run() {
    let tiny = Tiny::new();
    for (name, direction) in [("t2i", T2I), ("i2t", I2T)] {
        let run = |tile: &str| format!("{name}{tile}");
        tiny.train(&run("whole"), &format!("--max-steps 6 {direction}"));
        tiny.train(&run("tiled"), &format!("--max-steps 3 {direction} --tile 3"));
        tiny.run(&format!("train --resume {} --max-steps 6", run("tiled"))).with(0);
        for key in ["loss", "loss_rank", "loss_path", "grad_norm"] {
            let values = |name: &str| -> Vec<f64> {
                tiny.steps(name).iter().map(|row| row[key].as_f64().expect("a number")).collect()
            };
            close(&values(&run("whole")), &values(&run("tiled")), 1e-4);
        }
        let state = Weights::open(&tiny.path(&run("tiled")).join("last.safetensors")).expect("a state");
        let text: Value = serde_json::from_str(&state.metadata()["state"]).expect("JSON");
        assert_eq!((&text["tile"], &text["step"]), (&3.into(), &6.into()));
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_or_is_left_out() {
    let tiny = Tiny::new();
    let item = SHAPE[0] * SHAPE[1];
    let mut values: Vec<f32> = (0..12 * item).map(|i| (i % 17) as f32 / 17.0).collect();
    // Finite as features, no more so after the first layer.
    values[..item].fill(3e38);
    write_features(&tiny.features("train"), &values);
    let stopped = tiny.run(&Tiny::training("stops", "--num_epochs 1 --val_step 2")).with(2);
    for part in ["error: step ", "NaN or infinite", "captions ", "last.safetensors", "--skip-nonfinite"] {
        assert!(stopped.err.contains(part), "no {part:?} in {}", stopped.err);
    }
    let state = Weights::open(&tiny.path("stops/last.safetensors")).expect("the last good state");
    state.check_finite().expect("it is good");

    tiny.train("skips", "--num_epochs 1 --skip-nonfinite");
    let rows = tiny.steps("skips");
    let skipped = rows.iter().filter(|row| row["skipped"] == true).count();
    assert!(skipped > 0 && skipped < rows.len(), "{skipped} of {} left out", rows.len());
    assert_eq!(rows.len() as u64, STEPS_PER_EPOCH);
    for file in ["model", "last"] {
        let weights = Weights::open(&tiny.path(&format!("skips/{file}.safetensors"))).expect("weights");
        weights.check_finite().expect("nothing of the left out steps is in them");
    }
}

#[test]
fn a_time_limit_ends_training_early_and_says_so() {
    let tiny = Tiny::new();
    let ended = tiny.train("run", "--num_epochs 1000 --time-limit 0.5");
    assert!(ended.err.contains("ended early, at --time-limit"), "{}", ended.err);
    let rows = tiny.rows("run");
    assert!(rows.last().is_some_and(|row| row.get("val").is_some()), "no validation at the end: {rows:?}");
    assert!(steps_of(&rows).len() < 1000);
    tiny.run("evaluate run").with(0);
}

#[test]
fn no_step_makes_a_buffer_or_bind_group_from_a_shapes_third_occurrence_on() {
    let tiny = Tiny::new();
    for split in ["train", "dev"] {
        let lines = std::fs::read_to_string(tiny.captions(split)).expect("captions").lines().count();
        std::fs::write(tiny.captions(split), "red red round fruit\n".repeat(lines)).expect("written");
    }
    for (name, direction) in [("t2i", T2I), ("i2t", I2T)] {
        let made = |steps: u64| -> [u64; 2] {
            let more = format!("--max-steps {steps} --stats {direction}");
            let said = tiny.train(&format!("{name}{steps}"), &more);
            let before = |what: &str| -> u64 {
                let (counters, _) = said.err.split_once(what).unwrap_or_else(|| panic!("{}", said.err));
                let number = counters.rsplit([' ', '(']).next().expect("a word");
                number.parse().unwrap_or_else(|_| panic!("{}", said.err))
            };
            [before(" buffers"), before(" made)")]
        };
        assert_eq!(made(3), made(13), "{name}");
    }
}

#[test]
fn stats_tell_the_rates_of_steps_and_pairs() {
    let tiny = Tiny::new();
    let rate = |said: &str, unit: &str| -> f64 {
        let (number, _) = said.split_once(unit).unwrap_or_else(|| panic!("no {unit}: {said}"));
        number.rsplit([' ', '\n']).next().expect("a word").parse().unwrap_or_else(|_| panic!("{said}"))
    };
    let few = tiny.train("few", &format!("--max-steps 3 --stats {T2I}")).err;
    assert!(few.contains("too few steps") && !few.contains("steps/s"), "{few}");
    let said = tiny.train("run", &format!("--max-steps 6 --stats {T2I}")).err;
    assert!(rate(&said, " steps/s after the first") > 0.0);
    assert!(!tiny.run("evaluate run").with(0).err.contains("pairs/s after"));
    let said = tiny.run("evaluate run --stats --tile 4").with(0).err;
    assert!(rate(&said, " pairs/s after the first tile") > 0.0 && said.contains(" dispatches in "), "{said}");
    let said = tiny.run("evaluate run --stats --tile 1000").with(0).err;
    assert!(said.contains("one tile: too few"), "{said}");
}
