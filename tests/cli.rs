//! The program as a user meets it: real files in, text and exit status out.

mod half;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use crossweave::data::weights::Weights;
use crossweave::eval::sims::{Matrix, Scores};
use crossweave::systems::Text;
use half::half;

const EMOJITINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/emojitiny_precomp");

/// Runs the program: exit status, stdout, stderr.
fn run(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("crossweave").expect("the program is built").args(args).output();
    let output = output.expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// The program's error on bad input: status 2, nothing on stdout, these parts on stderr.
fn refused(args: &[&str], parts: &[&str]) {
    let (status, out, err) = run(args);
    assert_eq!((status, out.as_str()), (2, ""), "{args:?}: {err}");
    assert!(err.starts_with("error: ") && !err.contains("panicked"), "{args:?}: {err}");
    for part in parts {
        assert!(err.contains(part), "{args:?}: no {part:?} in {err}");
    }
}

#[test]
fn help_tells_commands_options_examples_and_exit_statuses() {
    let (status, out, _) = run(&["--help"]);
    assert_eq!(status, 0);
    let parts =
        ["devices", "selftest", "check", "parity", "train", "evaluate", "Examples:", "Exit status:", "130"];
    for part in parts {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
    let (status, out, _) = run(&["train", "--help"]);
    assert_eq!(status, 0);
    let theirs = "logger_name data_path data_name bert_path max_words extra_stc extra_img num_epochs batch_size \
                  learning_rate lr_update grad_clip margin max_violation trade_off img_dim embed_size direction \
                  log_step val_step resume use_abs no_imgnorm num_head_IMRC hid_IMRC hid_router \
                  raw_feature_norm_CMRC lambda_softmax_CMRC workers drop finetune use_restval measure reset_train";
    for option in theirs.split(' ') {
        assert!(out.contains(&format!("--{option}")), "no --{option} in {out}");
    }
    for part in ["--faithful", "--mask-padding", "--cache-text", "--bert-init", "[default: 0.0002]", "Ctrl-C"]
    {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
    assert_eq!(run(&["--version"]).1, format!("crossweave {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_refused() {
    refused(&["train", "--batchsize", "8"], &["--batchsize", "--batch_size"]);
    refused(&["train", "--direction", "both"], &["i2t, t2i"]);
    refused(&["train", "--precision", "f64"], &["f64", "f32, f16"]);
    refused(&["train", "--batch_size", "many"], &["many", "--batch_size"]);
    refused(&["train", "--workers", "-1"], &["-1", "--workers"]);
    refused(&["train", "--time-limit", "-1"], &["--time-limit", "found: -1"]);
    refused(&["evaluate", "x", "--folds", "-5"], &["-5", "--folds"]);
    refused(&["train", "--cache-text", "--finetune_bert"], &["--cache-text", "--finetune-bert", "cure"]);
    refused(&["train", "--embed-size", "30"], &["divide", "embed_size 30", "found: 16"]);
    refused(&["train", "--raw_feature_norm_CMRC", "clipped_l1norm"], &["authors' code", "clipped_l2norm"]);
    refused(&["evaluate"], &["nothing to evaluate", "--sims"]);
    refused(&["evaluate", "run", "--sims", "x.npy"], &["contradict"]);
    refused(&["evaluate", "--sims", "x.npy", "--show", "3"], &["--show contradicts --sims"]);
    refused(&["evaluate", "--sims", "x.npy", "--stats"], &["--stats contradicts --sims"]);
    refused(&["evaluate", "--sims", "no such.npy"], &["no such.npy", "cure"]);
    refused(&["parity"], &["<FILE>"]);
    refused(&["parity", "--host", "no such.safetensors"], &["no such.safetensors"]);
    refused(&["selftest", "--op", "no such"], &["no such op", "matmul"]);
    refused(&["devices", "--device", "no such card"], &["no such adapter", "no such card"]);
}

#[test]
fn options_that_do_nothing_are_warned_of() {
    let missing =
        ["train", "--data_path", "/no/such", "--drop", "0.5", "--extra_stc", "1", "--extra_img", "1"];
    let (status, _, err) = run(&missing);
    assert_eq!(status, 2, "{err}");
    assert!(err.contains("warning: --drop does nothing"), "{err}");
    assert!(err.contains("warning: --extra_img does nothing beside --extra_stc"), "{err}");
}

#[test]
fn a_configuration_file_goes_before_the_command_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.toml");
    let path = file.to_str().expect("UTF-8");
    // 30 is no multiple of 16 heads: the message shows which value won.
    std::fs::write(&file, "embed_size = 30\n").expect("it writes");
    refused(&["train", "--config", path], &["embed_size 30"]);
    refused(&["train", "--config", path, "--embed-size", "31"], &["embed_size 31"]);
    refused(&["train", "--embed-size", "31", "--config", path], &["embed_size 31"]);
    std::fs::write(&file, "# sizes\nembed_size = 30\nemben_size = 31\n").expect("it writes");
    refused(&["train", "--config", path], &["run.toml, line 3", "emben_size", "--help"]);
    std::fs::write(&file, "direction = \"up\"\n").expect("it writes");
    refused(&["train", "--config", path], &["run.toml, line 1", "direction", "i2t, t2i"]);
    refused(&["train", "--config", "no such.toml"], &["no such.toml"]);
}

#[test]
fn the_demo_configurations_are_sound() {
    for kind in crossweave::systems::kinds() {
        let file = format!("{}/tools/demo-{}.toml", env!("CARGO_MANIFEST_DIR"), kind.name);
        // A contradiction with an option of the file shows that the file was read whole.
        let part = match kind.text {
            Text::Bert { .. } => "--bert-config contradicts --bert-layers",
            Text::Words => "gsmn has none",
        };
        refused(&["train", "--config", &file, "--vocab-size", "9", "--bert-config", "x"], &[part]);
    }
}

#[test]
fn devices_lists_this_machine_and_says_why() {
    let (status, out, err) = run(&["devices"]);
    assert_eq!(status, 0, "the tests need an adapter: {err}");
    for part in ["index", "driver", "binding", "MiB", "* taken: ", "("] {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
    assert!(run(&["devices", "--device", "0"]).1.contains("it fits \"0\""));
}

#[test]
fn selftest_runs_one_op() {
    let (status, out, err) = run(&["selftest", "--op", "softmax"]);
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("softmax") && out.contains("ok") && out.contains("repeat bit for bit"), "{out}");
    assert!(!out.contains("matmul"), "{out}");
}

#[test]
fn check_tells_a_sound_folder_from_a_broken_one() {
    let (status, out, err) = run(&["check", EMOJITINY]);
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("train: 240 images") && out.contains("nothing is wrong"), "{out}");
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["dev_ims.npy", "dev_caps.txt", "test_caps.txt", "test_ims.npy"] {
        std::fs::copy(Path::new(EMOJITINY).join(name), folder.path().join(name)).expect("it copies");
    }
    let captions = folder.path().join("dev_caps.txt");
    let text = std::fs::read_to_string(&captions).expect("captions");
    std::fs::write(&captions, text.lines().skip(1).map(|l| format!("{l}\n")).collect::<String>())
        .expect("it writes");
    let features = folder.path().join("test_ims.npy");
    let mut bytes = std::fs::read(&features).expect("features");
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0, 0x7e]); // NaN in f16
    std::fs::write(&features, bytes).expect("it writes");
    let (status, out, _) = run(&["check", folder.path().to_str().expect("UTF-8")]);
    assert_eq!(status, 1, "{out}");
    assert!(out.contains("299 captions") && out.contains("row 59, region 35, column 63"), "{out}");
    assert_eq!(run(&["check", "/no/such/folder"]).0, 2);
    refused(
        &["check", &format!("{EMOJITINY}/dev_caps.txt")],
        &["give the folder that holds this file", EMOJITINY],
    );
}

fn fixture(name: &str) -> Weights {
    let file = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    Weights::open(Path::new(&file)).expect("the fixture opens")
}

/// Writes a fixture's matrix as `.npy`.
fn saved(folder: &Path, from: &Weights, tensor: &str) -> PathBuf {
    let path = folder.join(format!("{tensor}.npy"));
    let [images, captions] = from.shape(tensor).expect("the matrix").to_vec()[..] else {
        panic!("no matrix")
    };
    let scores = Scores::F32(from.f32s(tensor).expect("numbers"));
    Matrix { images, captions_per_image: captions / images, scores }.save(&path).expect("it saves");
    path
}

fn numbers(of: &serde_json::Value) -> Vec<f64> {
    ["r1", "r5", "r10", "medr", "meanr"].map(|key| of[key].as_f64().expect("a number")).to_vec()
}

fn close(got: &[f64], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - f64::from(*w)).abs() < 1e-4, "{got:?} {want:?}");
    }
}

#[test]
fn saved_similarities_give_the_published_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, tensors) in
        [("recall_basic", &["in.sims"][..]), ("recall_ensemble", &["in.sims1", "in.sims2"])]
    {
        let from = fixture(name);
        let paths: Vec<_> = tensors.iter().map(|tensor| saved(folder.path(), &from, tensor)).collect();
        let mut args = vec!["evaluate", "--json", "--sims"];
        args.extend(paths.iter().map(|p| p.to_str().expect("UTF-8")));
        let (status, out, err) = run(&args);
        assert_eq!(status, 0, "{err}");
        let result: serde_json::Value = serde_json::from_str(&out).expect("one JSON object");
        close(&numbers(&result["i2t"]), &from.f32s("out.i2t").expect("i2t"));
        close(&numbers(&result["t2i"]), &from.f32s("out.t2i").expect("t2i"));
        let rsum = result["rsum"].as_f64().expect("a number");
        close(&[rsum], &from.f32s("out.rsum_test").expect("rsum"));
        args.retain(|arg| *arg != "--json");
        let (_, out, _) = run(&args);
        assert!(out.contains(&format!("{rsum:.1}\n")) && out.contains("chance"), "{out}");
    }
}

#[test]
fn folds_are_averaged_and_refused_where_they_do_not_divide() {
    let folder = tempfile::tempdir().expect("a folder");
    let from = fixture("recall_fold5");
    let path = saved(folder.path(), &from, "in.sims");
    let path = path.to_str().expect("UTF-8");
    let (status, out, err) = run(&["evaluate", "--sims", path, "--folds", "5", "--json"]);
    assert_eq!(status, 0, "{err}");
    let result: serde_json::Value = serde_json::from_str(&out).expect("one JSON object");
    let mean = from.f32s("out.mean").expect("mean");
    close(&[numbers(&result["i2t"]), numbers(&result["t2i"])].concat(), &mean[..10]);
    assert_eq!(result["folds"].as_array().map(Vec::len), Some(5));
    refused(&["evaluate", "--sims", path, "--folds", "3"], &["--folds", "divisor of 20"]);
    refused(&["evaluate", "--sims", path, "--captions-per-image", "4"], &["in.sims.npy", "4 captions"]);
}

#[test]
fn a_mean_can_be_saved_and_evaluated_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let from = fixture("recall_ensemble");
    let paths = ["in.sims1", "in.sims2"].map(|tensor| saved(folder.path(), &from, tensor));
    let [a, b] = paths.each_ref().map(|p| p.to_str().expect("UTF-8"));
    let mean = folder.path().join("mean.npy");
    let mean = mean.to_str().expect("UTF-8");
    let first = run(&["evaluate", "--sims", a, b, "--save-sims", mean, "--json"]);
    assert_eq!(first.0, 0, "{}", first.2);
    let again = run(&["evaluate", "--sims", mean, "--json"]);
    let of = |out: &str| serde_json::from_str::<serde_json::Value>(out).expect("JSON")["rsum"].clone();
    assert_eq!(of(&first.1), of(&again.1));
}

#[test]
fn parity_passes_on_a_fixture_and_notices_one_changed_value() {
    let file = format!("{}/tests/fixtures/bert_small.safetensors", env!("CARGO_MANIFEST_DIR"));
    let (status, out, err) = run(&["parity", "--host", &file]);
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("out.pooled") && out.contains("1 of 1 comparisons pass"), "{out}");
    let mut bytes = std::fs::read(&file).expect("the fixture");
    let weights = fixture("bert_small");
    let largest =
        weights.f32s("out.pooled").expect("numbers").into_iter().max_by(|a, b| a.abs().total_cmp(&b.abs()));
    let largest = largest.expect("a number");
    let tensor = weights.bytes("out.pooled").expect("bytes");
    let start = bytes.windows(tensor.len()).position(|part| part == tensor).expect("its place");
    let at = tensor.chunks_exact(4).position(|b| b == largest.to_le_bytes()).expect("the value");
    bytes[start + 4 * at..][..4].copy_from_slice(&(largest * 1.02).to_le_bytes());
    let folder = tempfile::tempdir().expect("a folder");
    let changed = folder.path().join("changed.safetensors");
    std::fs::write(&changed, bytes).expect("it writes");
    let (status, out, _) = run(&["parity", "--host", "--brief", changed.to_str().expect("UTF-8")]);
    assert_eq!(status, 1, "{out}");
    assert!(out.contains("out.pooled") && out.contains("EXCESS") && !out.contains("out.layer"), "{out}");
}

#[test]
fn checks_in_f16_pass_by_bounds_of_their_own() {
    let file = format!("{}/tests/fixtures/bert_small.safetensors", env!("CARGO_MANIFEST_DIR"));
    let calls: [&[&str]; 2] =
        [&["parity", "--precision", "f16", &file], &["selftest", "--op", "matmul", "--precision", "f16"]];
    for args in calls {
        if half().is_none() {
            refused(args, &["cooperative matrices", "--precision f32"]);
            continue;
        }
        let (status, out, err) = run(args);
        assert_eq!(status, 0, "{out}{err}");
        assert!(out.contains("2.0e-3") || out.contains("1.0e-3"), "no bound of f16 in {out}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_written_is_an_error_and_a_closed_pipe_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let matrix = saved(folder.path(), &fixture("recall_basic"), "in.sims");
    let sims = matrix.to_str().expect("UTF-8");
    let commands: [(&str, &[&str]); 8] = [
        ("crossweave", &["--help"]),
        ("crossweave", &["--version"]),
        ("crossweave", &["train", "--help"]),
        ("crossweave", &["devices"]),
        ("crossweave", &["check", EMOJITINY]),
        ("crossweave", &["evaluate", "--sims", sims]),
        ("crossweave", &["evaluate", "--sims", sims, "--json"]),
        ("import", &["--help"]),
    ];
    for (program, args) in commands {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin(program));
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a full device");
        let output = command.args(args).stdout(full).output().expect("it runs");
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert!(err.contains("standard output"), "{args:?}: {err}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command.stdout(writer).output().expect("it runs");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn a_matrix_that_cannot_be_evaluated_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let scores = |value: f32| Matrix {
        images: 2,
        captions_per_image: 1,
        scores: Scores::F32(vec![0.5, 0.25, value, 1.0]),
    };
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    scores(0.0).save(Path::new(&at("good.npy"))).expect("it saves");
    scores(f32::NAN).save(Path::new(&at("nan.npy"))).expect("it saves");
    refused(
        &["evaluate", "--sims", &at("good.npy"), &at("nan.npy")],
        &["nan.npy", "image 1, caption 0", "similarity"],
    );
    let mut whole = std::fs::read(at("good.npy")).expect("bytes");
    let kind = whole.windows(3).position(|part| part == b"<f4").expect("a header");
    whole[kind + 1] = b'i';
    std::fs::write(at("whole.npy"), whole).expect("it writes");
    std::fs::write(at("packed.npy"), b"PK\x03\x04 and so on").expect("it writes");
    for (name, part) in [("whole.npy", "integers"), ("packed.npy", "unzip -p")] {
        let (status, _, err) = run(&["evaluate", "--sims", &at("good.npy"), &at(name)]);
        assert_eq!(status, 2, "{err}");
        assert!(err.contains(name) && err.contains(part) && !err.contains("features"), "{err}");
    }
}
