//! Bad input of every kind: one clear error, exit status 2, nothing half-written.

mod tiny;

use std::collections::HashMap;
use std::path::Path;

use crossweave::data::weights::{self, Entry, Weights};
use crossweave::gpu;
use tiny::{EMOJITINY, PROGRAM, SHAPE, Said, Tiny, npy_header, said, write_features};

/// Asserts one error with these parts.
#[track_caller]
fn refused(said: Said, parts: &[&str]) {
    let said = said.with(2);
    assert_eq!(said.out, "", "{}", said.err);
    // Drivers may speak before the program does; the program's error is the last.
    let at = said.err.rfind("error: ").expect("an error");
    for part in parts {
        assert!(said.err[at..].contains(part), "no {part:?} in {}", said.err);
    }
}

#[test]
fn data_that_cannot_be_trained_on_leaves_no_run() {
    type Spoil = fn(&Tiny);
    let cases: [(&str, Spoil, &[&str]); 9] = [
        (
            "no captions",
            |t| remove(&t.captions("dev")),
            &["\"dev\" split is not complete", "dev_caps.txt", "cure"],
        ),
        (
            "no folder",
            |t| std::fs::remove_dir_all(t.data()).expect("removed"),
            &["train", "not complete", "cure"],
        ),
        (
            "too few captions",
            |t| write(&t.captions("train"), "one\ntwo\n"),
            &["do not match", "12 rows", "2 captions"],
        ),
        ("another width", narrow_dev, &["different widths", "expected: 64", "found: 32"]),
        ("Fortran order", |t| header(t, "<f4", "True", "12, 36, 64"), &["train_ims.npy", "Fortran", "cure"]),
        ("big-endian", |t| header(t, ">f4", "False", "12, 36, 64"), &["train_ims.npy", "expected", "found"]),
        ("objects", |t| header(t, "|O", "False", "12, 36, 64"), &["train_ims.npy", "expected", "found"]),
        ("two axes", |t| header(t, "<f4", "False", "432, 64"), &["train_ims.npy", "expected", "found"]),
        (
            "no text",
            |t| std::fs::write(t.captions("train"), [0u8; 600]).expect("written"),
            &["train_caps.txt", "no text"],
        ),
    ];
    for (name, spoil, parts) in cases {
        let tiny = Tiny::new();
        spoil(&tiny);
        println!("{name}");
        refused(tiny.run(&Tiny::training("run", "--max-steps 2")), parts);
        assert!(!tiny.path("run").exists(), "{name}: a run was begun");
    }
}

fn remove(path: &Path) {
    std::fs::remove_file(path).expect("removed");
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
}

/// Training features under another header.
fn header(tiny: &Tiny, element: &str, fortran: &str, shape: &str) {
    let mut bytes = npy_header(element, fortran, shape);
    bytes.resize(bytes.len() + 4 * 12 * SHAPE[0] * SHAPE[1], 0);
    std::fs::write(tiny.features("train"), bytes).expect("written");
}

fn narrow_dev(tiny: &Tiny) {
    let mut bytes = npy_header("<f4", "False", "4, 36, 32");
    bytes.resize(bytes.len() + 4 * 4 * 36 * 32, 0);
    std::fs::write(tiny.features("dev"), bytes).expect("written");
}

#[test]
fn a_feature_that_is_no_number_is_named_by_its_row() {
    let tiny = Tiny::new();
    let mut values = vec![0.5; 12 * SHAPE[0] * SHAPE[1]];
    values[7 * SHAPE[0] * SHAPE[1] + 70] = f32::NAN;
    write_features(&tiny.features("train"), &values);
    refused(tiny.run(&Tiny::training("run", "--num_epochs 1")), &["train_ims.npy", "row 7", "NaN"]);
    // What was begun can be opened.
    Weights::open(&tiny.path("run/last.safetensors")).expect("a state");
    let checked = tiny.run("check data/tiny");
    assert_eq!(checked.status, 1, "{}", checked.err);
    assert!(checked.out.contains("row 7"), "{}", checked.out);
}

#[test]
fn options_and_folders_that_contradict_leave_no_run() {
    let tiny = Tiny::new();
    let cases: [(&str, &[&str]); 5] = [
        (
            "--img_dim 2048",
            &["another width than --img_dim", "data/tiny", "expected: 2048", "found: 64", "cure"],
        ),
        ("--direction i2t", &["--extra_img contradicts --direction i2t", "--extra_stc"]),
        ("--extra_stc 1", &["--extra_stc contradicts --direction t2i", "--extra_img"]),
        ("--cache-text", &["--cache-text contradicts --bert-init random"]),
        ("--captions-per-image 4", &["do not match", "12 rows", "60 captions"]),
    ];
    for (more, parts) in cases {
        refused(tiny.run(&Tiny::training("run", more)), parts);
    }
    std::fs::create_dir(tiny.path("bert")).expect("made");
    write(&tiny.path("bert/pytorch_model.bin"), "weights");
    let pretrained = "train --data_path data --data_name tiny --logger_name run --bert_path";
    refused(
        tiny.run(&format!("{pretrained} bert")),
        &["--bin import -- bert", "pytorch_model.bin", "--bert_path OUT"],
    );
    refused(
        tiny.run(&format!("{pretrained} bert/pytorch_model.bin")),
        &["a file", "import -- bert bert/pytorch_model.bin OUT"],
    );
    refused(tiny.run(&format!("{pretrained} none")), &["none", "model.safetensors", "--bert-init random"]);
    refused(tiny.run("train --resume run"), &["run", "no such run", "cure"]);
    assert!(!tiny.path("run").exists());
    write(&tiny.path("file"), "in the way");
    refused(tiny.run(&Tiny::training("file", "")), &["file"]);
}

/// Writes a run's weights anew, changed.
fn rewrite(run: &Path, change: impl Fn(&mut Vec<Entry>)) {
    let path = run.join("model.safetensors");
    let old = Weights::open(&path).expect("weights");
    let mut entries: Vec<Entry> = old
        .shapes()
        .map(|(name, shape)| Entry {
            name: name.into(),
            dtype: old.dtype(name).expect("a type"),
            shape: shape.to_vec(),
            bytes: old.bytes(name).expect("bytes").to_vec().into(),
        })
        .collect();
    drop(old);
    change(&mut entries);
    weights::write(&path, &entries, &HashMap::new()).expect("written");
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).expect("text");
    assert!(text.contains(from), "{from}");
    write(path, &text.replace(from, to));
}

#[test]
fn runs_that_are_not_whole_are_refused() {
    let tiny = Tiny::new();
    tiny.train("good", "--max-steps 2");
    let before = files(&tiny.path("good"));
    refused(
        tiny.run(&Tiny::training("good", "")),
        &["holds a run already", "--resume good", "--logger_name"],
    );
    assert!(files(&tiny.path("good")) == before, "the first run was touched");

    let evaluate = "evaluate RUN";
    let resume = "train --resume RUN --max-steps 4";
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &[&str]); 17] = [
        (
            evaluate,
            |r| edit(&r.join("config.json"), "\"system\": \"dime\"", "\"system\": \"scan\""),
            &["no such system", "dime", "scan"],
        ),
        (
            evaluate,
            |r| edit(&r.join("config.json"), "\"version\": 1", "\"version\": 9"),
            &["newer version", "found: 9", "cure"],
        ),
        (evaluate, |r| edit(&r.join("config.json"), "{", "["), &["config.json", "not understood"]),
        (
            evaluate,
            |r| edit(&r.join("config.json"), "\"embed_size\": 8", "\"embed_size\": 0"),
            &["config.json"],
        ),
        (evaluate, |r| edit(&r.join("vocab.txt"), "[CLS]", "[KLS]"), &["vocab.txt", "[CLS]"]),
        (evaluate, |r| remove(&r.join("model.safetensors")), &["model.safetensors", "first validation"]),
        (
            evaluate,
            |r| cut(&r.join("model.safetensors")),
            &["model.safetensors", "not a sound safetensors file"],
        ),
        (
            evaluate,
            |r| write(&r.join("model.safetensors"), "hello, hello, hello"),
            &["model.safetensors", "header"],
        ),
        (
            evaluate,
            |r| rewrite(r, misfit),
            &["1 missing, 2 of another shape, 1 not expected", "extra.weight", "img_enc.fc.bias", "[3, 3]"],
        ),
        (evaluate, |r| rewrite(r, spoil_a_value), &["NaN", "img_enc.fc.bias"]),
        (resume, |r| remove(&r.join("last.safetensors")), &["last.safetensors"]),
        (resume, |r| cut(&r.join("last.safetensors")), &["last.safetensors", "not a sound safetensors file"]),
        (resume, |r| write(&r.join("last.safetensors"), ""), &["last.safetensors", "shorter"]),
        (
            resume,
            |r| {
                std::fs::copy(r.join("model.safetensors"), r.join("last.safetensors")).expect("copied");
            },
            &["last.safetensors", "no run's state"],
        ),
        (resume, |r| edit(&r.join("config.json"), "\"version\": 1", "\"version\": 9"), &["newer version"]),
        (resume, |r| write(&r.join("metrics.jsonl"), "no rows\n{}\n"), &["metrics.jsonl, line 1"]),
        (
            resume,
            |r| edit(&r.join("config.json"), "\"options\"", "\"optional\""),
            &["no run", "crossweave train"],
        ),
    ];
    for (i, (command, spoil, parts)) in cases.into_iter().enumerate() {
        let run = tiny.path(&format!("bad{i}"));
        std::fs::create_dir(&run).expect("made");
        for (name, bytes) in &before {
            std::fs::write(run.join(name), bytes).expect("written");
        }
        spoil(&run);
        let spoiled = files(&run);
        println!("case {i}: {parts:?}");
        refused(tiny.run(&command.replace("RUN", &format!("bad{i}"))), parts);
        assert!(files(&run) == spoiled, "case {i}: files were changed");
    }
    narrow(&tiny, "test");
    refused(tiny.run("evaluate good"), &["another width than the model", "expected: 64", "found: 32"]);
    refused(tiny.run("evaluate good --split none"), &["\"none\" split", "dev, test, train"]);
    refused(tiny.run("evaluate none"), &["none", "no such run"]);
}

fn narrow(tiny: &Tiny, split: &str) {
    let mut bytes = npy_header("<f4", "False", "6, 36, 32");
    bytes.resize(bytes.len() + 4 * 6 * 36 * 32, 0);
    std::fs::write(tiny.features(split), bytes).expect("written");
}

/// A folder's files and what they hold; hidden leftovers would show.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .expect("the folder")
        .flatten()
        .map(|f| (f.file_name().to_string_lossy().into_owned(), std::fs::read(f.path()).expect("read")))
        .collect();
    all.sort();
    all
}

fn cut(path: &Path) {
    let bytes = std::fs::read(path).expect("read");
    std::fs::write(path, &bytes[..bytes.len() - 100]).expect("written");
}

fn misfit(entries: &mut Vec<Entry>) {
    entries.retain(|e| e.name != "img_enc.fc.bias");
    for entry in entries.iter_mut().filter(|e| e.shape.len() == 2).take(2) {
        entry.shape = vec![3, 3];
        entry.bytes = vec![0; entry.dtype.bitsize() / 8 * 9].into();
    }
    entries.push(Entry::f32s("extra.weight", &[1], &[0.0]));
}

fn spoil_a_value(entries: &mut Vec<Entry>) {
    let entry = entries.iter_mut().find(|e| e.name == "img_enc.fc.bias").expect("a bias");
    entry.bytes.to_mut()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
}

/// A limit on the size of files stands in for a full disk: a write past it fails in the middle.
#[cfg(unix)]
#[test]
fn a_save_that_fails_leaves_the_last_state_readable() {
    let tiny = Tiny::new();
    tiny.train("run", "--max-steps 4");
    let before = files(&tiny.path("run"));
    let limited = |args: &str| {
        // 16 blocks of 512 bytes: room for rows and settings, none for weights.
        let script = format!("trap '' XFSZ; ulimit -f 16; exec {PROGRAM} {args}");
        said(std::process::Command::new("sh").args(["-c", &script]).current_dir(tiny.path("")))
    };
    refused(limited("train --resume run --max-steps 8"), &["safetensors", "could not write"]);
    for name in ["last.safetensors", "model.safetensors"] {
        let kept = before.iter().find(|(n, _)| n == name).expect("the run has it");
        assert!(std::fs::read(tiny.path("run").join(name)).expect("read") == kept.1, "{name} was touched");
    }
    let leftovers: Vec<_> =
        files(&tiny.path("run")).into_iter().filter(|(n, _)| n.ends_with(".tmp")).collect();
    assert!(leftovers.is_empty(), "{:?}", leftovers.first().map(|f| &f.0));
    tiny.run("train --resume run --max-steps 8").with(0);
    tiny.train("whole", "--max-steps 8");
    assert_eq!(tiny.steps("run"), tiny.steps("whole"));
    refused(limited("evaluate run --save-sims /dev/full/sims.npy"), &["/dev/full/sims.npy"]);
    assert!(limited(&Tiny::training("never", "--max-steps 2")).status == 2);
}

#[test]
fn a_batch_past_the_adapters_limit_says_what_would_fit() {
    let limit = gpu::Gpu::open(&gpu::Options::default()).expect("an adapter").facts().max_binding;
    // Images, captions, words and four widths of f32: what the gates of one tile bind.
    let largest: u64 = 120 * 60 * 12 * 4 * 128 * 4;
    if limit >= largest {
        println!("not checked: this adapter binds {limit} bytes, the batch needs {largest}");
        return;
    }
    let tiny = Tiny::new();
    let said = tiny.run(&Tiny::training("run", "--batch_size 60 --embed_size 128 --tile 60"));
    refused(
        said,
        &[
            "larger than this adapter can bind",
            "--batch_size 30",
            "120 images and 60 captions",
            "--tile below 60",
        ],
    );
}

#[test]
fn without_an_adapter_the_cure_is_named() {
    let none = "/none";
    let mut command = Tiny::new().command("devices");
    for name in
        ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "__EGL_VENDOR_LIBRARY_FILENAMES", "LIBGL_DRIVERS_PATH"]
    {
        command.env(name, none);
    }
    let said = said(command.current_dir(EMOJITINY));
    if said.status == 0 {
        println!("not checked: an adapter is found even so: {}", said.out);
        return;
    }
    refused(said, &["no GPU adapter", "cure: install a Vulkan driver", "mesa-vulkan-drivers"]);
}

#[test]
fn what_an_evaluation_needs_is_checked_before_it_scores() {
    let tiny = Tiny::new();
    tiny.train("good", "--max-steps 2");
    copy(&tiny.path("good"), &tiny.path("elsewhere"));
    copy(&tiny.data(), &tiny.path("data/other"));
    let captions = std::fs::read_to_string(tiny.captions("test")).expect("captions");
    let reversed: String = captions.lines().rev().map(|line| format!("{line}\n")).collect();
    write(&tiny.path("data/other/test_caps.txt"), &reversed);
    edit(&tiny.path("elsewhere/config.json"), "\"data_name\": \"tiny\"", "\"data_name\": \"other\"");
    std::fs::create_dir(tiny.path("folder")).expect("made");
    let cases: [(&str, &[&str]); 8] = [
        ("good --folds 4", &["--folds", "divisor of 6", "--folds 3"]),
        ("good --save-sims no/such/sims.npy", &["no/such/sims.npy", "make the folder no/such"]),
        ("good --save-sims folder", &["folder", "this is a folder"]),
        ("good goood", &["goood", "no such run", "--logger_name"]),
        ("good elsewhere", &["different data", "data/other", "as caption 0"]),
        ("good --data_name none", &["no such folder", "--data_path DIR --data_name NAME"]),
        ("good --vocab good/metrics.jsonl", &["metrics.jsonl", "[CLS]"]),
        (
            "data/tiny/test_caps.txt",
            &["this is a file", "--bin import -- SYSTEM data/tiny/test_caps.txt OUT"],
        ),
    ];
    for (arguments, parts) in cases {
        let said = tiny.run(&format!("evaluate {arguments}"));
        assert!(!said.err.contains("scoring"), "{arguments}: {}", said.err);
        refused(said, parts);
    }
    // A file inside a run means the run.
    std::fs::copy(tiny.features("test"), tiny.features("testall")).expect("copied");
    std::fs::copy(tiny.captions("test"), tiny.captions("testall")).expect("copied");
    let said = tiny.run("evaluate good/model.safetensors").with(0);
    assert!(said.out.contains("test of") && said.out.contains("data/tiny: 6 images"), "{}", said.out);
    assert!(said.err.contains("--split testall scores that one"), "{}", said.err);
    std::fs::rename(tiny.path("data"), tiny.path("moved")).expect("renamed");
    let memory = "it is where good had its data";
    refused(tiny.run("evaluate good"), &["data/tiny", memory, "--data_path DIR --data_name NAME"]);
    refused(tiny.run("train --resume good/last.safetensors --max-steps 4"), &[memory, "--data_path DIR"]);
    tiny.run("evaluate good --data_path moved").with(0);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("made");
    for (name, bytes) in files(from) {
        std::fs::write(to.join(name), bytes).expect("written");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn scores_survive_what_goes_wrong_after_them() {
    let tiny = Tiny::new();
    tiny.train("good", "--max-steps 2");
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("a full device");
    let evaluated = |more: &str| {
        let mut command = tiny.command(&format!("evaluate good --json {more}"));
        let output = command.stdout(full()).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2));
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(err.contains("standard output: could not write the result"), "{err}");
        err
    };
    evaluated("--save-sims asked.npy");
    let err = evaluated("");
    let kept =
        err.lines().find_map(|line| line.strip_prefix("saved: ")?.strip_suffix(": evaluate it with --sims"));
    let kept = kept.unwrap_or_else(|| panic!("{err}"));
    let read = |name: &str| std::fs::read(tiny.path(name)).expect("scores");
    assert!(read(kept) == read("asked.npy"));
    // Features that hold no numbers in the second member's data: the first one's scores are kept.
    copy(&tiny.path("good"), &tiny.path("second"));
    copy(&tiny.data(), &tiny.path("data/other"));
    edit(&tiny.path("second/config.json"), "\"data_name\": \"tiny\"", "\"data_name\": \"other\"");
    write_features(&tiny.path("data/other/test_ims.npy"), &[f32::NAN; 6 * SHAPE[0] * SHAPE[1]]);
    let said = tiny.run("evaluate good second").with(2);
    let kept = said.err.lines().find_map(|line| line.strip_prefix("saved: ")?.split(':').next());
    assert!(read(kept.unwrap_or_else(|| panic!("{}", said.err))) == read("asked.npy"));
}

#[test]
fn a_run_goes_on_only_with_the_data_and_encoder_it_was_begun_with() {
    type Spoil = fn(&Tiny);
    let cases: [(Spoil, &str); 4] = [
        (
            |t| {
                let text = std::fs::read_to_string(t.captions("train")).expect("captions");
                let mut lines: Vec<&str> = text.lines().collect();
                lines.swap(3, 58);
                write(&t.captions("train"), &(lines.join("\n") + "\n"));
            },
            "train: other captions, or in another order",
        ),
        (|t| write_features(&t.features("dev"), &[0.25; 4 * SHAPE[0] * SHAPE[1]]), "dev: other features"),
        (
            |t| {
                std::fs::copy(t.features("dev"), t.features("train")).expect("copied");
                std::fs::copy(t.captions("dev"), t.captions("train")).expect("copied");
            },
            "train: 4 images instead of 12",
        ),
        (|t| narrow_regions(t, "dev"), "dev: 20 regions an image instead of 36"),
    ];
    for (spoil, part) in cases {
        let tiny = Tiny::new();
        tiny.train("run", "--max-steps 2");
        spoil(&tiny);
        let before = files(&tiny.path("run"));
        refused(
            tiny.run("train --resume run --max-steps 4"),
            &["not those that the run was begun with", part],
        );
        assert!(files(&tiny.path("run")) == before, "{part}: the run was touched");
        let said = tiny.run("evaluate run --split dev").with(0);
        assert!(
            said.err.contains("not as it was when run was trained") || part.starts_with("train"),
            "{}",
            said.err
        );
    }
}

/// Features of fewer regions.
fn narrow_regions(tiny: &Tiny, split: &str) {
    let mut bytes = npy_header("<f4", "False", "4, 20, 64");
    bytes.extend((0..4 * 20 * 64).flat_map(|i| (i as f32 / 5120.0).to_le_bytes()));
    std::fs::write(tiny.features(split), bytes).expect("written");
}

#[test]
fn splits_of_other_regions_are_told_of_and_read() {
    let tiny = Tiny::new();
    narrow_regions(&tiny, "dev");
    let checked = tiny.run("check data/tiny").with(0);
    assert!(checked.out.contains("36 regions an image and dev 20"), "{}", checked.out);
    let trained = tiny.train("run", "--max-steps 2");
    assert!(trained.err.contains("train has 36 regions an image and dev 20"), "{}", trained.err);
    let said = tiny.run("evaluate run --split dev").with(0);
    assert!(said.err.contains("20 regions an image, where training had 36"), "{}", said.err);
}

#[cfg(target_os = "linux")]
#[test]
fn a_path_that_is_no_text_works_everywhere() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let tiny = Tiny::new();
    let odd = |name: &[u8]| OsStr::from_bytes(name).to_owned();
    std::fs::rename(tiny.path("data"), tiny.path("x").with_file_name(odd(b"d\xff"))).expect("renamed");
    let run = |args: &str, more: &[&[u8]]| said(tiny.command(args).args(more.iter().map(|arg| odd(arg))));
    let train =
        Tiny::training("x", "--max-steps 2").replace("--data_path data --data_name tiny --logger_name x", "");
    run(&train, &[b"--data_path=d\xff", b"--data_name", b"tiny", b"--logger_name", b"r\xfe"]).with(0);
    run("train --max-steps 3", &[b"--resume=r\xfe"]).with(0);
    run("evaluate", &[b"r\xfe", b"--save-sims", b"s\xfd.npy"]).with(0);
    run("evaluate --sims", &[b"s\xfd.npy"]).with(0);
    run("check", &[b"d\xff/tiny"]).with(0);
}

#[test]
fn one_process_writes_a_run() {
    let tiny = Tiny::new();
    let mut first = tiny
        .command(&Tiny::training("run", "--num_epochs 500"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it runs");
    while !tiny.path("run/metrics.jsonl").exists() || tiny.rows("run").len() < 2 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let second = tiny.run("train --resume run");
    let number = format!("process {}", first.id());
    first.kill().expect("killed");
    first.wait().expect("ended");
    refused(second, &["being trained already", &number, "--resume"]);
    tiny.run("train --resume run --max-steps 20").with(0);
}
