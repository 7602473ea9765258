//! Imports against the values PyTorch itself read, and hostile files against the promise that each is refused.

mod mutation;

use assert_cmd::Command;
use crossweave::data::import::{self, Imported, Report, Source, StateDicts};
use crossweave::data::pickle;
use crossweave::data::pytorch::Checkpoint;
use crossweave::data::weights::{self, Dtype, Entry, Weights};
use crossweave::eval::import::system;
use crossweave::nn::{bert, shapes};
use crossweave::parity;
use crossweave::systems::kind;
use crossweave::tensor::Device;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The folder of fixtures: the repository's own, or all of them where the variable names a folder.
fn fixtures() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::env::var_os("CROSSWEAVE_FIXTURES").map_or_else(own, PathBuf::from)
}

fn fixture(name: &str) -> PathBuf {
    fixtures().join(name)
}

/// The fixtures whose names begin so, json and text files aside.
fn checkpoints(prefix: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(fixtures()).expect("the fixtures").map(|file| file.expect("a file").path());
    let binary = ["bin", "tar", "ckpt", "pth"];
    let mut files: Vec<PathBuf> = files
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .filter(|path| path.extension().is_some_and(|e| binary.contains(&e.to_string_lossy().as_ref())))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no fixture begins with {prefix}");
    files
}

fn bert_config() -> Json {
    let text = fs::read_to_string(fixture("ckpt_bert_config.json")).expect("the fixture");
    serde_json::from_str(&text).expect("its JSON")
}

fn bert_layout(config: &Json) -> crossweave::Result<import::Layout> {
    Ok(shapes(&bert::Config::read(config)?.parameters("")))
}

fn import_bert<'a>(source: &'a Source, config: &Json) -> crossweave::Result<Imported<'a>> {
    import::model(source, &import::BERT, |_, _| Ok(config.clone()), bert_layout)
}

fn import_dime<'a>(
    source: &'a Source,
    given: Option<&Json>,
    settings: &[(String, Json)],
) -> crossweave::Result<Imported<'a>> {
    system(kind("dime").expect("a system"), source, given, settings)
}

/// Asserts that the imported tensors are exactly those of `expected` whose names begin with `prefix`.
fn assert_same(path: &Path, imported: &Imported, expected: &Weights, prefix: &str) {
    let names: Vec<&str> = expected.names().filter_map(|name| name.strip_prefix(prefix)).collect();
    let mut own: Vec<&str> = imported.entries.iter().map(|entry| entry.name.as_str()).collect();
    own.sort_unstable();
    assert_eq!(own, names, "{}", path.display());
    for entry in &imported.entries {
        let full = format!("{prefix}{}", entry.name);
        assert_eq!(Some(&entry.shape[..]), expected.shape(&full), "{}: {full}", path.display());
        assert_same_values(path, entry, expected, &full);
    }
}

fn assert_same_values(path: &Path, entry: &Entry, expected: &Weights, full: &str) {
    if expected.dtype(full) == Some(Dtype::F32) {
        assert_eq!(entry.dtype, Dtype::F32, "{}: {full}", path.display());
        assert_eq!(entry.bytes, expected.bytes(full).expect("held"), "{}: {full}", path.display());
        return;
    }
    // Integers are i32 in the expected file; ours keep their types, so they are compared once written.
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("one.safetensors");
    weights::write(&file, std::slice::from_ref(entry), &Default::default()).expect("a file");
    let own = Weights::open(&file).expect("the file").ints(&entry.name).expect("integers");
    assert_eq!(own, expected.ints(full).expect("integers"), "{}: {full}", path.display());
}

#[test]
fn every_dime_checkpoint_is_exact() {
    let expected = Weights::open(&fixture("ckpt_expected.safetensors")).expect("the fixture");
    let spec: Json = serde_json::from_str(&expected.metadata()["spec"]).expect("its spec");
    for path in checkpoints("ckpt_dime_") {
        let source = Source::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let imported = import_dime(&source, Some(&bert_config()), &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_same(&path, &imported, &expected, "param.");
        let mut config = spec["config"]["opt"].clone();
        config["system"] = "dime".into();
        config["bert_config"] = bert_config();
        assert_eq!(imported.config, config, "{}", path.display());
        assert_eq!(imported.metadata["epoch"], "17");
        assert_eq!(imported.metadata["best_rsum"], "412.25");
        assert_eq!(imported.report.renamed.len(), imported.report.taken);
    }
}

/// The authors' HREM checkpoints hold the parameters of a fixture, without the criterion's.
#[test]
fn every_hrem_checkpoint_is_exact() {
    let expected = Weights::open(&fixture("hrem_eval.safetensors")).expect("the fixture");
    let spec: Json = serde_json::from_str(&expected.metadata()["spec"]).expect("its spec");
    let bert = spec["config"]["bert"].clone();
    for path in checkpoints("ckpt_hrem_") {
        let source = Source::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let hrem = kind("hrem").expect("a system");
        let imported = system(hrem, &source, Some(&bert), &[]).unwrap_or_else(|e| panic!("{e}"));
        assert!(imported.entries.iter().all(|entry| !entry.name.starts_with("criterion.")));
        for entry in &imported.entries {
            let full = format!("param.{}", entry.name);
            // What the fixture left out are counters of batches.
            match expected.shape(&full) {
                Some(shape) => {
                    assert_eq!(entry.shape, shape, "{full}");
                    assert_same_values(&path, entry, &expected, &full);
                }
                None => assert!(entry.name.ends_with("num_batches_tracked"), "{full}"),
            }
        }
        let held = expected.names().filter(|name| name.starts_with("param.") && !name.contains("criterion"));
        assert!(imported.entries.len() >= held.count(), "{}", path.display());
        assert_eq!((&imported.config["system"], &imported.metadata["epoch"]), (&json!("hrem"), &"3".into()));
        assert_eq!((&imported.config["embed_size"], &imported.config["img_dim"]), (&json!(24), &json!(20)));
        (hrem.open)(&imported.config).expect("a system");
    }
}

/// The authors' GSMN checkpoints, written by Python 2 and 3 in both containers, hold the parameters of a fixture.
#[test]
fn every_gsmn_checkpoint_is_exact() {
    let expected = Weights::open(&fixture("gsmn_dense_eval.safetensors")).expect("the fixture");
    for path in checkpoints("ckpt_gsmn") {
        let source = Source::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let gsmn = kind("gsmn").expect("a system");
        let imported = system(gsmn, &source, None, &[]).unwrap_or_else(|e| panic!("{e}"));
        for entry in &imported.entries {
            let full = format!("param.{}", entry.name);
            assert_eq!(Some(entry.shape.as_slice()), expected.shape(&full), "{full}");
            assert_same_values(&path, entry, &expected, &full);
        }
        let held = expected.names().filter(|name| name.starts_with("param."));
        assert_eq!(imported.entries.len(), held.count(), "{}", path.display());
        let config = &imported.config;
        assert_eq!((&config["system"], &config["num_block"]), (&json!("gsmn"), &json!(4)));
        assert_eq!((&config["lambda_softmax"], &config["bi_gru"]), (&json!(20.0), &json!(true)));
        for (setting, part) in [("nonsense", "no such option"), ("hid_dim", "the weights say otherwise")] {
            let error =
                system(gsmn, &source, None, &[(setting.into(), json!(64))]).err().expect(setting).to_string();
            assert!(error.contains(part) && error.contains(&format!("--set {setting}")), "{error}");
        }
        // Released weights were trained and evaluated with boxes that are divided again and again.
        assert!((gsmn.open)(config).expect("a system").inputs().boxes_again.is_some());
    }
}

#[test]
fn every_bert_checkpoint_is_exact() {
    let expected = Weights::open(&fixture("ckpt_expected.safetensors")).expect("the fixture");
    for path in checkpoints("ckpt_bert_") {
        let source = Source::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let imported = import_bert(&source, &bert_config()).unwrap_or_else(|e| panic!("{e}"));
        assert_same(&path, &imported, &expected, "param.txt_enc.bert.");
        let known = |name: &str| name.starts_with("cls.") || name.ends_with("position_ids");
        let heads = imported.report.ignored.iter().all(|(name, _)| known(name));
        let held = path.to_string_lossy().contains("prefix");
        assert!(heads && imported.report.ignored.is_empty() != held, "{}", path.display());
    }
}

#[test]
fn every_odd_tensor_is_exact() {
    let expected = Weights::open(&fixture("ckpt_odd_tensors_expected.safetensors")).expect("the fixture");
    for path in checkpoints("ckpt_odd_") {
        let source = Source::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let imported = import::tensors(&source).unwrap_or_else(|e| panic!("{e}"));
        assert_same(&path, &imported, &expected, "out.");
        let dtype = |name: &str| imported.entries.iter().find(|e| e.name == name).map(|e| e.dtype);
        assert_eq!(dtype("b"), Some(Dtype::BOOL));
        assert_eq!(dtype("i64"), Some(Dtype::I64));
        assert_eq!(dtype("u8"), Some(Dtype::U8));
    }
}

/// The checkpoints that a `ckpt_*.json` among the fixtures tells of.
fn described_checkpoints() -> Vec<Json> {
    let files = fs::read_dir(fixtures()).expect("the fixtures").map(|file| file.expect("a file").path());
    let told = files.filter(|path| path.extension().is_some_and(|e| e == "json"));
    let told = told.map(|path| fs::read_to_string(path).expect("a fixture"));
    let told = told.filter_map(|text| serde_json::from_str::<Json>(&text).ok());
    told.filter(|about| about["equals_fixture"].is_string()).collect()
}

#[test]
fn every_list_of_state_dicts_is_exact() {
    let told = described_checkpoints();
    assert!(!told.is_empty());
    let texts = |list: &Json| -> Vec<String> {
        let texts = list.as_array().expect("a list").iter().map(|text| text.as_str().expect("text").into());
        texts.collect()
    };
    for about in told {
        let equal = about["equals_fixture"].as_str().expect("a name");
        let expected = Weights::open(&fixture(&format!("{equal}.safetensors"))).expect("the fixture");
        let modules = texts(&about["model_list_order"]);
        for file in texts(&about["files"]) {
            let path = fixture(&file);
            let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(checkpoint.facts()["opt"], about["opt"], "{file}");
            for fact in ["epoch", "best_rsum", "Eiters"] {
                assert_eq!(checkpoint.facts()[fact], about[fact], "{file}: {fact}");
            }
            assert!(checkpoint.unread().is_empty(), "{file}: {:?}", checkpoint.unread());
            let tensors = about["tensors"].as_array().expect("a list");
            assert_eq!(checkpoint.shapes().count(), tensors.len(), "{file}");
            for tensor in tensors {
                let name = tensor[0].as_str().expect("a name");
                let (module, rest) = name.split_once('.').expect("a module");
                let index = modules.iter().position(|m| m == module).expect("a known module");
                let entry = checkpoint.entry(&format!("model.{index}.{rest}")).expect(name);
                assert_eq!(json!(entry.shape), tensor[1], "{file}: {name}");
                // The fixture is of the model's weights; this counter is none.
                if rest != "bert.embeddings.position_ids" {
                    assert_same_values(&path, &entry, &expected, &format!("param.{name}"));
                }
            }
        }
    }
}

#[test]
fn every_lightning_checkpoint_is_exact() {
    let path = fixture("ckpt_hat_expect.safetensors");
    let expected = Weights::open(&path).expect("the fixture");
    for path in checkpoints("ckpt_hat_") {
        let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let held = |name: &&str| name.starts_with("state_dict.");
        let named = checkpoint.shapes().map(|(name, _)| name).filter(held).count();
        let params: Vec<_> = expected.shapes().filter(|(name, _)| name.starts_with("param.")).collect();
        assert_eq!(named, params.len(), "{}", path.display());
        for (full, shape) in params {
            let name = full.replacen("param.", "state_dict.", 1);
            let entry = checkpoint.entry(&name).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(entry.shape, shape, "{}: {name}", path.display());
            assert_same_values(&path, &entry, &expected, full);
        }
        assert_eq!(checkpoint.facts()["epoch"], 68);
        assert_eq!(checkpoint.facts()["hyper_parameters"]["config"]["direction"], "i2t");
        let skipped = ["callbacks: the name pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"];
        assert_eq!(checkpoint.unread(), skipped, "{}", path.display());
    }
}

/// The authors' HAT checkpoints hold what their own code read back, and encode a batch as it did.
#[test]
fn every_hat_checkpoint_is_exact() {
    let expected = Weights::open(&fixture("ckpt_hat_expect.safetensors")).expect("the fixture");
    let mut spec: Json = serde_json::from_str(&expected.metadata()["spec"]).expect("its spec");
    let bert = spec["config"]["bert"].clone();
    let hat = kind("hat").expect("a system");
    let folder = tempfile::tempdir().expect("a folder");
    for path in checkpoints("ckpt_hat_") {
        let source = Source::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let imported = system(hat, &source, Some(&bert), &[]).unwrap_or_else(|e| panic!("{e}"));
        let config = &imported.config;
        assert_eq!((&config["system"], &imported.metadata["epoch"]), (&json!("hat"), &"68".into()));
        for option in ["direction", "lambda_softmax", "hidden_size", "max_text_len", "margin", "image_size"] {
            assert_eq!(config[option], spec["config"][option], "{option}");
        }
        for size in ["img_size", "patch_size", "embed_dim", "depths", "num_heads", "mlp_ratio"] {
            assert_eq!(config["swin"][size], spec["config"]["swin"][size], "{size}");
        }
        assert_eq!(config["bert_config"], bert);
        for entry in &imported.entries {
            let full = format!("param.{}", entry.name);
            assert_eq!(Some(entry.shape.as_slice()), expected.shape(&full), "{full}");
            assert_same_values(&path, entry, &expected, &full);
        }
        let buffer = |name: &str| name.ends_with("attn_mask") || name.ends_with("relative_position_index");
        let held = expected.names().filter(|name| name.starts_with("param.") && !buffer(name));
        assert_eq!(imported.entries.len(), held.count(), "{}", path.display());

        spec["config"] = config.clone();
        let params = imported
            .entries
            .into_iter()
            .map(|entry| Entry { name: format!("param.{}", entry.name), ..entry });
        let batch = expected.names().filter(|name| name.starts_with("in.") || name.contains("_feats"));
        let batch = batch.map(|name| Entry {
            name: name.to_string(),
            dtype: expected.dtype(name).expect("held"),
            shape: expected.shape(name).expect("held").to_vec(),
            bytes: expected.bytes(name).expect("held").into(),
        });
        let file = folder.path().join("batch.safetensors");
        let metadata = [("spec".to_string(), spec.to_string())].into();
        weights::write(&file, &params.chain(batch).collect::<Vec<_>>(), &metadata).expect("a file");
        let rows = parity::check(&file, &Device::Host).unwrap_or_else(|e| panic!("{e}"));
        assert!(rows.len() >= 6 && rows.iter().all(parity::Row::passes), "{rows:?}");
    }
}

/// What the message about each hostile file must say.
const REFUSALS: [(&str, &str); 35] = [
    ("empty", "empty"),
    ("garbage", "neither like a zip archive nor like a pickle"),
    ("legacy_missing_key", "does not hold it"),
    ("legacy_reduce_os_system", "posix.system"),
    ("legacy_size_exceeds_storage", "needs 4096 elements"),
    ("legacy_storage_count_mismatch", "another size"),
    ("legacy_truncated_pickle", "ends too early"),
    ("legacy_truncated_storage", "cut off"),
    ("legacy_wrong_magic", "magic number"),
    ("legacy_wrong_protocol", "protocol version"),
    ("missing_param", "1 missing"),
    ("nan_param", "NaN"),
    ("plain_pickle_os_system", "posix.system"),
    ("two_state_dicts", "no `itr_module`"),
    ("wrong_shape", "wrong shape"),
    ("zip_bigendian", "ig-endian"),
    ("zip_crc", "checksum"),
    ("zip_declared_numel_too_big", "another size"),
    ("zip_deep_nesting", "more than 250000 steps"),
    ("zip_deflated_bomb", "compressed"),
    ("zip_huge_numel_overflow", "overflow"),
    ("zip_long_declared_string", "ends past the file"),
    ("zip_memo_bomb", "no dict of tensors"),
    ("zip_missing_storage", "does not hold it"),
    ("zip_negative_size", "non-negative"),
    ("zip_negative_stride", "non-negative"),
    ("zip_no_data_pkl", "data.pkl"),
    ("zip_offset_exceeds_storage", "needs 20 elements"),
    ("zip_path_traversal_key", "does not hold it"),
    ("zip_rank_mismatch", "rank"),
    ("zip_reduce_os_system", "posix.system"),
    ("zip_size_exceeds_storage", "needs 4096 elements"),
    ("zip_stride_exceeds_storage", "needs 304 elements"),
    ("zip_truncated", "cut off"),
    ("zip_unknown_global", "no.such.module.Thing"),
];

#[test]
fn every_hostile_file_is_refused() {
    let files = checkpoints("ckpt_bad_");
    assert_eq!(files.len(), REFUSALS.len());
    for path in files {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let case = name.trim_start_matches("ckpt_bad_").split('.').next().unwrap_or_default();
        let (_, says) = REFUSALS.iter().find(|(known, _)| *known == case).expect("a known file");
        let started = Instant::now();
        let source = Source::open(&path);
        let refused = match &source {
            Ok(source) => import_dime(source, Some(&bert_config()), &[]).err(),
            Err(error) => Some(error.clone()),
        };
        let error = refused.unwrap_or_else(|| panic!("{name} was accepted")).to_string();
        assert!(error.contains(says), "{error}");
        assert!(error.contains(&name), "{error}");
        assert!(error.contains("cure:"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(1), "{name} took {:?}", started.elapsed());
    }
}

fn run(arguments: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("import").expect("the binary").args(arguments).assert()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

#[test]
fn the_binary_makes_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let (config, vocab) = (fixture("ckpt_bert_config.json"), fixture("ckpt_bert_vocab.txt"));
    let file = fixture("ckpt_dime_py2_legacy_cuda.pth.tar");
    let options = ["--config", text(&config), "--vocab", text(&vocab)];
    let made = run(&[&["dime", text(&file), text(&out)][..], &options].concat()).success();
    let report = String::from_utf8_lossy(&made.get_output().stdout).into_owned();
    assert!(report.contains("taken    177 tensors, 13408 values"), "{report}");
    assert!(report.contains("model.2.* -> itr_module.* (121)"), "{report}");
    let mut names: Vec<_> =
        fs::read_dir(&out).expect("the folder").flatten().map(|f| f.file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]);
    assert_eq!(fs::read(out.join("vocab.txt")).expect("it"), fs::read(vocab).expect("it"));
    // What was made imports again: names are ours already, and the configuration beside it is whole.
    let again = folder.path().join("again");
    run(&["dime", text(&out), text(&again)]).success();
    for name in names {
        assert_eq!(
            fs::read(out.join(&name)).expect("it"),
            fs::read(again.join(&name)).expect("it"),
            "{name:?}"
        );
    }
}

#[test]
fn the_binary_refuses_with_status_2_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let (config, vocab) = (fixture("ckpt_bert_config.json"), fixture("ckpt_bert_vocab.txt"));
    let bare = folder.path().join("bare.bin");
    fs::copy(fixture("ckpt_bert_prefix_zip.bin"), &bare).expect("a copy");
    let small = folder.path().join("small.txt");
    fs::write(&small, "[PAD]\n[UNK]\n[SEP]\n").expect("a vocabulary");
    let missing = fixture("ckpt_bad_missing_param.pth.tar");
    let crc = fixture("ckpt_bad_zip_crc.pth.tar");
    let cases: [(&[&str], &str); 6] = [
        (
            &["dime", text(&missing), "--config", text(&config), "--vocab", text(&vocab)],
            "itr_module.bn.running_var",
        ),
        (&["tensors", text(&crc)], "checksum"),
        (&["tensors", "no/such/file"], "no/such/file"),
        (&["bert", text(&bare)], "--config"),
        (&["bert", text(&bare), "--config", text(&config)], "--vocab"),
        (&["bert", text(&bare), "--config", text(&config), "--vocab", text(&small)], "[CLS]"),
    ];
    for (arguments, says) in cases {
        let made = run(&[&arguments[..2], &[text(&out)], &arguments[2..]].concat()).code(2);
        let error = String::from_utf8_lossy(&made.get_output().stderr).into_owned();
        assert!(error.contains(says), "{error}");
        assert!(made.get_output().stdout.is_empty());
    }
    let left: Vec<_> =
        fs::read_dir(folder.path()).expect("the folder").flatten().map(|f| f.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    fs::create_dir(&out).expect("a folder");
    fs::write(out.join("precious"), "kept").expect("a file");
    let odd = fixture("ckpt_odd_tensors_zip.bin");
    run(&["tensors", text(&odd), text(&out)]).code(2);
    assert_eq!(fs::read_to_string(out.join("precious")).expect("kept"), "kept");
}

/// A zip archive of stored entries without checksums, so that damage reaches what reads them.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let offset = (archive.len() as u32).to_le_bytes();
        let size = (bytes.len() as u32).to_le_bytes();
        let sizes = [&[0; 4], &size, &size, &(name.len() as u16).to_le_bytes()[..], &[0; 2]].concat();
        let part = [b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0".as_slice(), &sizes, name.as_bytes(), bytes].concat();
        let head = b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0".as_slice();
        directory.extend([head, &sizes, &[0; 10], &offset, name.as_bytes()].concat());
        archive.extend(part);
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (size, start) = ((directory.len() as u32).to_le_bytes(), (archive.len() as u32).to_le_bytes());
    let end = [b"PK\x05\x06\0\0\0\0".as_slice(), &count, &count, &size, &start, &[0; 2]].concat();
    [archive, directory, end].concat()
}

/// A checkpoint of this pickle and one storage of 64 bytes.
fn checkpoint(pickle: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl", pickle), ("a/data/0", &[0x3f; 64]), ("a/version", b"3\n")])
}

/// A pickle `{'w': tensor}`: a float tensor of this shape and stride on the storage.
fn tensor_pickle(shape: &str, stride: &str) -> Vec<u8> {
    let text = format!(
        "(dVw\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI16\ntQI0\n({shape}t({stride}t\
         I00\nNtRs."
    );
    text.into_bytes()
}

/// All tensors of a file of these bytes: names, shapes, types and values.
fn open(bytes: &[u8]) -> crossweave::Result<Vec<Entry<'static>>> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), bytes).expect("written");
    let checkpoint = Checkpoint::open(file.path())?;
    let names: Vec<String> = checkpoint.shapes().map(|(name, _)| name.to_string()).collect();
    let owned = |entry: Entry| {
        let bytes = entry.bytes.into_owned().into();
        Entry { name: entry.name, dtype: entry.dtype, shape: entry.shape, bytes }
    };
    names.iter().map(|name| checkpoint.entry(name).map(owned)).collect()
}

fn refused(bytes: &[u8]) -> String {
    open(bytes).expect_err("it must be refused").to_string()
}

#[test]
fn the_archive_built_here_is_a_good_one() {
    let read = open(&checkpoint(&tensor_pickle("I4\nI4\n", "I4\nI1\n"))).expect("a good checkpoint");
    assert_eq!((read[0].name.as_str(), &read[0].shape[..]), ("w", &[4, 4][..]));
    assert_eq!(&read[0].bytes[..], [0x3f; 64]);
}

/// The one tensor of a checkpoint, as f32.
fn values(pickle: &[u8], storage: &[u8]) -> Vec<f32> {
    let file = zip(&[("a/data.pkl", pickle), ("a/data/0", storage)]);
    let read = open(&file).expect("a good checkpoint");
    assert_eq!((read.len(), read[0].dtype), (1, Dtype::F32));
    read[0].bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn views_are_read_row_by_row() {
    let storage: Vec<u8> = (0..16).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let view = |shape, stride| values(&tensor_pickle(shape, stride), &storage);
    assert_eq!(view("I2\nI3\n", "I1\nI2\n"), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    assert_eq!(view("I2\nI1\nI2\n", "I8\nI9223372036854775807\nI3\n"), [0.0, 3.0, 8.0, 11.0]);
    assert_eq!(view("I3\n", "I0\n"), [0.0; 3]);
    assert_eq!(view("", ""), [0.0]);
    assert!(view("I3\nI0\n", "I1\nI1\n").is_empty());
}

#[test]
fn parameters_and_untyped_storages_are_read() {
    let storage: Vec<u8> = (0..16).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let text = String::from_utf8(tensor_pickle("I2\n", "I1\n")).expect("text");
    let tensor = text.trim_start_matches("(dVw\n").trim_end_matches("s.");
    let parameter = format!("(dVw\nctorch._utils\n_rebuild_parameter\n({tensor}I01\nNtRs.");
    assert_eq!(values(parameter.as_bytes(), &storage), [0.0, 1.0]);
    let oldest = text.replace("_v2", "").replace("I00\nNtR", "tR");
    assert_eq!(values(oldest.as_bytes(), &storage), [0.0, 1.0]);
    let untyped = text.replace("_v2", "_v3").replace("FloatStorage", "UntypedStorage").replace("I16", "I64");
    let untyped = untyped.replace("NtRs.", "Nctorch\nfloat32\ntRs.");
    assert_eq!(values(untyped.as_bytes(), &storage), [0.0, 1.0]);
    let float8 = untyped.replace("float32", "float8_e5m2");
    assert!(refused(&checkpoint(float8.as_bytes())).contains("`w`: its element type is not supported"));
}

#[test]
fn what_is_no_tensor_is_skipped_and_reported() {
    let text = String::from_utf8(tensor_pickle("I4\n", "I1\n")).expect("text");
    let tensor = text.trim_start_matches("(dVw\n").trim_end_matches("s.");
    // As Lightning writes them: callbacks keyed by their class, options in a subclass of dict.
    let text = format!(
        "(dVcallbacks\n(dclightning.callbacks\nModelCheckpoint\n(dVbest\n{tensor}sssVhyper_parameters\n\
         clightning.parsing\nAttributeDict\n(tRVheads\nI4\nssVlogger\nclightning.loggers\nCSV\n(tRsVstate_dict\n\
         (dVw\n{tensor}ss."
    );
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), checkpoint(text.as_bytes())).expect("written");
    let read = Checkpoint::open(file.path()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read.shapes().collect::<Vec<_>>(), [("state_dict.w", &[4][..])]);
    assert_eq!(read.facts()["hyper_parameters"], json!({"heads": 4}));
    let skipped = [
        "callbacks: the name lightning.callbacks.ModelCheckpoint",
        "logger: an object of lightning.loggers.CSV",
    ];
    assert_eq!(read.unread(), skipped);
}

#[test]
fn values_that_share_a_text_cost_no_more_than_is_allowed() {
    // A text of 60,000 bytes, listed 10,000 times as an attribute, under 100 keys.
    let text = format!("c__main__\nOptions\n(tRp1\n0(lp2\nV{}\np3\n0", "x".repeat(60_000));
    let list = format!("g2\n({}e0", "g3\n".repeat(10_000));
    let state = "g1\ng2\nb0";
    let keys: String = (0..100).map(|key| format!("Vk{key}\ng1\ns")).collect();
    let mut tensor = tensor_pickle("I4\n", "I1\n");
    tensor.truncate(tensor.len() - 1);
    let pickle =
        [text.as_bytes(), list.as_bytes(), state.as_bytes(), &tensor, keys.as_bytes(), b"."].concat();
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), checkpoint(&pickle)).expect("written");
    let read = Checkpoint::open(file.path()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((read.facts().len(), read.unread().len()), (0, 100));
}

#[test]
fn what_grows_without_bound_is_refused() {
    // 64 bytes that a stride of 0 repeats to 8 GB, below the reader's own limit.
    assert!(refused(&checkpoint(&tensor_pickle("I2000000000\n", "I0\n"))).contains("far beyond the size"));
    let many = |one: &str| one.repeat(40);
    let wide = tensor_pickle(&many("I1\n"), &many("I1\n"));
    assert!(refused(&checkpoint(&wide)).contains("32 dimensions"));
    let long_key = [b"(dV", "k".repeat(3000).as_bytes(), b"\nI1\ns."].concat();
    assert!(refused(&checkpoint(&long_key)).contains("longer than"));
    // Dicts that share each other: 2^40 paths.
    let mut shared = b"(dp0\n".to_vec();
    for slot in 1..40 {
        shared.extend(format!("0(dp{slot}\nVa\ng{}\nsVb\ng{}\ns", slot - 1, slot - 1).bytes());
    }
    shared.push(b'.');
    assert!(refused(&checkpoint(&shared)).contains("without end"));
}

#[test]
fn two_tensors_of_one_name_are_refused() {
    let one = tensor_pickle("I4\n", "I1\n");
    let tensor = String::from_utf8_lossy(&one[5..one.len() - 2]).into_owned();
    let both = format!("(dVa.b\n{tensor}sVa\n(dVb\n{tensor}ss.");
    assert!(refused(&checkpoint(both.as_bytes())).contains("two tensors are named `a.b`"));
}

#[test]
fn dime_names_the_option_it_cannot_know() {
    let source = Source::open(&fixture("ckpt_bert_plain_zip.bin")).expect("the fixture");
    let error = import_dime(&source, Some(&bert_config()), &[]).err().expect("no sub-modules").to_string();
    assert!(error.contains("img_enc"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    let dime = Source::open(&fixture("ckpt_dime_zip.pth.tar")).expect("the fixture");
    let made = import_dime(&dime, Some(&bert_config()), &[]).expect("a DIME");
    weights::write(&file, &made.entries, &made.metadata).expect("a file");
    let bare = Source::open(&file).expect("the file");
    let error = import_dime(&bare, None, &[]).err().expect("no BERT").to_string();
    assert!(error.contains("--config"), "{error}");
    let error = import_dime(&bare, Some(&bert_config()), &[]).err().expect("no options").to_string();
    let all = "--set direction=VALUE --set max_words=VALUE --set num_head_IMRC=VALUE";
    assert!(error.contains(all), "{error}");
    let given = json!({"direction": "t2i", "max_words": 10, "num_head_IMRC": 2, "raw_feature_norm_CMRC": "softmax",
        "lambda_softmax_CMRC": 9.0, "use_abs": false, "no_imgnorm": false});
    let settings: Vec<(String, Json)> = given.as_object().expect("a map").clone().into_iter().collect();
    let made = import_dime(&bare, Some(&bert_config()), &settings).expect("a DIME");
    let told = ["embed_size", "img_dim", "hid_IMRC", "hid_router"].map(|option| made.config[option].as_u64());
    assert_eq!(told, [Some(8), Some(14), Some(10), Some(6)]);
}

/// The names and shapes of a layout, and an import of these tensors (f32 zeros, in a safetensors file) into it.
fn import_names(
    names: &[&str],
    dicts: &StateDicts,
    layout: &[&str],
) -> crossweave::Result<(Vec<String>, Report)> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    let entries: Vec<Entry> = names.iter().map(|name| Entry::f32s(*name, &[2], &[0.5; 2])).collect();
    weights::write(&file, &entries, &Default::default()).expect("a file");
    let source = Source::open(&file).expect("the file");
    let shape = |name: &str| if name.ends_with("num_batches_tracked") { vec![] } else { vec![2] };
    let layout = layout.iter().map(|name| (name.to_string(), shape(name))).collect();
    let made = import::model(&source, dicts, |_, _| Ok(json!({})), |_| Ok(layout))?;
    let mut taken: Vec<String> = made.entries.iter().map(|entry| entry.name.clone()).collect();
    taken.sort_unstable();
    Ok((taken, made.report))
}

const TWO: StateDicts = StateDicts {
    modules: &["img_enc", "txt_enc"],
    ignored: &[("txt_enc.unused", "only for training")],
    optional: &["criterion"],
};

#[test]
fn state_dicts_are_found_wherever_they_are() {
    let layout = ["img_enc.fc.weight", "txt_enc.bert.a", "txt_enc.bert.b", "criterion.gnn.weight"];
    let expected = ["img_enc.fc.weight", "txt_enc.bert.a", "txt_enc.bert.b"];
    let forms = [
        ["img_enc.fc.weight", "txt_enc.bert.a", "txt_enc.bert.b"],
        ["module.img_enc.fc.weight", "module.txt_enc.bert.a", "module.txt_enc.bert.b"],
        ["img_enc.module.fc.weight", "txt_enc.bert.a", "txt_enc.bert.b"],
        ["model.0.fc.weight", "model.1.bert.a", "model.1.bert.b"],
        ["model.0.module.fc.weight", "model.1.module.bert.a", "model.1.module.bert.b"],
        ["_orig_mod.img_enc.fc.weight", "_orig_mod.txt_enc.bert.a", "_orig_mod.txt_enc.bert.b"],
        [
            "img_enc._orig_mod.module.fc.weight",
            "txt_enc._orig_mod.module.bert.a",
            "txt_enc._orig_mod.module.bert.b",
        ],
        [
            "state_dict.net.img_enc.fc.weight",
            "state_dict.net.txt_enc.bert.a",
            "state_dict.net.txt_enc.bert.b",
        ],
        ["model_state_dict.0.fc.weight", "model_state_dict.1.bert.a", "model_state_dict.1.bert.b"],
    ];
    for mut form in forms.map(|form| form.to_vec()) {
        let about = form.clone();
        let more = [
            form[1].replace("bert.a", "bert.embeddings.position_ids"),
            form[1].replace("bert.a", "bert.embeddings.token_type_ids"),
            form[1].replace("bert.a", "unused.w"),
        ];
        form.extend(more.iter().map(String::as_str));
        form.push("optimizer.state.0.exp_avg");
        let (taken, report) = import_names(&form, &TWO, &layout).unwrap_or_else(|e| panic!("{about:?}: {e}"));
        assert_eq!(taken, expected, "{about:?}");
        assert_eq!(report.missing, ["criterion.gnn.weight (not needed)"]);
        let mut reasons: Vec<&str> = report.ignored.iter().map(|(_, why)| why.as_str()).collect();
        reasons.sort_unstable();
        let expected = [
            "it is all zeros, and is not needed",
            "it only counts, and is not needed",
            "not of the model",
            "only for training",
        ];
        assert_eq!(reasons, expected);
    }
}

#[test]
fn what_a_model_lacks_is_named() {
    let error =
        |names: &[&str], layout: &[&str]| import_names(names, &TWO, layout).expect_err("refused").to_string();
    assert!(error(&["model.0.fc", "optimizer.x"], &[]).contains("no `txt_enc`"));
    let twice = ["a.img_enc.w", "a.txt_enc.w", "b.img_enc.w", "b.txt_enc.w"];
    assert!(error(&twice, &[]).contains("several such models"));
    let missing = error(&["img_enc.w", "txt_enc.w"], &["img_enc.w", "txt_enc.w", "txt_enc.v"]);
    assert!(missing.contains("1 missing") && missing.contains("txt_enc.v"), "{missing}");
}

#[test]
fn counters_that_old_files_lack_are_zero_and_others_are_dropped() {
    let names = ["img_enc.bn.weight", "img_enc.bn.num_batches_tracked", "txt_enc.bn.weight"];
    let layout = ["img_enc.bn.weight", "txt_enc.bn.weight", "txt_enc.bn.num_batches_tracked"];
    let (taken, report) = import_names(&names, &TWO, &layout).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(taken, ["img_enc.bn.weight", "txt_enc.bn.num_batches_tracked", "txt_enc.bn.weight"]);
    assert!(report.missing[0].contains("older than this counter"), "{:?}", report.missing);
    assert_eq!(report.ignored[0].0, "img_enc.bn.num_batches_tracked");
}

/// A pickle of a state dict of BERT's fixture and, before its end, more keys and values.
fn bert_beside(more: &[u8]) -> Vec<u8> {
    let file = fs::read(fixture("ckpt_bert_plain_zip.bin")).expect("the fixture");
    let entries = crossweave::data::archive::entries(&file).expect("a sound archive");
    let read = |entry: &crossweave::data::archive::Entry| {
        let bytes = &file[entry.bytes.clone()];
        match entry.name.ends_with("data.pkl") {
            // A dict with the state dict under a name, and what is beside it.
            true => [b"\x80\x02}X\x0a\x00\x00\x00state_dict", &bytes[2..bytes.len() - 1], b"s", more, b"."]
                .concat(),
            false => bytes.to_vec(),
        }
    };
    let all: Vec<(String, Vec<u8>)> = entries.iter().map(|entry| (entry.name.clone(), read(entry))).collect();
    zip(&all.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect::<Vec<_>>())
}

/// What trainers put beside the weights, as Python pickles it: keys of every type, classes, members of enums.
#[test]
fn what_is_beside_the_weights_is_skipped_and_listed() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases: [(&str, &[u8]); 6] = [
        ("a class as key", b"X\x01\x00\x00\x00c}clightning.callbacks\nModelCheckpoint\n}ss"),
        ("a tuple as key", b"K\x01K\x02\x86}s"),
        ("None as key", b"N}s"),
        ("a float as key", b"G\x3f\xf8\x00\x00\x00\x00\x00\x00}s"),
        (
            "an enum's member",
            b"X\x01\x00\x00\x00ec__builtin__\ngetattr\nclib\nColor\nX\x03\x00\x00\x00RED\x86Rs",
        ),
        ("the type of None", b"X\x01\x00\x00\x00tc__builtin__\ntype\nN\x85Rs"),
    ];
    for (what, more) in cases {
        let file = folder.path().join("beside.bin");
        fs::write(&file, bert_beside(more)).expect("written");
        let source = Source::open(&file).unwrap_or_else(|e| panic!("{what}: {e}"));
        let made = import_bert(&source, &bert_config()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(made.report.to_string().contains("state_dict.* -> * (39)"), "{}", made.report);
    }
}

/// BERT's fixture in two files with an index, as Hugging Face cuts large models.
fn sharded(folder: &Path) -> PathBuf {
    let source = Source::open(&fixture("ckpt_bert_plain_zip.bin")).expect("the fixture");
    let made = import_bert(&source, &bert_config()).unwrap_or_else(|e| panic!("{e}"));
    let half = made.entries.len() / 2;
    let mut map = serde_json::Map::new();
    for (i, part) in [&made.entries[..half], &made.entries[half..]].into_iter().enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", i + 1);
        weights::write(&folder.join(&name), part, &Default::default()).expect("written");
        map.extend(part.iter().map(|entry| (entry.name.clone(), Json::from(name.clone()))));
    }
    let index = folder.join("model.safetensors.index.json");
    fs::write(&index, json!({"weight_map": map}).to_string()).expect("written");
    index
}

#[test]
fn weights_in_several_files_are_read_by_their_index() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = sharded(folder.path());
    let whole = Source::open(&fixture("ckpt_bert_plain_zip.bin")).expect("the fixture");
    let whole = import_bert(&whole, &bert_config()).unwrap_or_else(|e| panic!("{e}"));
    for path in [index.clone(), folder.path().join("model-00002-of-00002.safetensors")] {
        let source = Source::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let made = import_bert(&source, &bert_config()).unwrap_or_else(|e| panic!("{e}"));
        let sorted = |made: &Imported| {
            let mut all: Vec<(String, Vec<u8>)> =
                made.entries.iter().map(|e| (e.name.clone(), e.bytes.to_vec())).collect();
            all.sort();
            all
        };
        assert!(sorted(&made) == sorted(&whole));
    }
    let refused = |index: &Path| Source::open(index).err().expect("refused").to_string();
    let text = fs::read_to_string(&index).expect("the index");
    fs::write(&index, text.replace("model-00002-of-00002", "../model-00002-of-00002")).expect("written");
    assert!(refused(&index).contains("not beside it"));
    fs::write(&index, text.replace("pooler.dense.bias", "pooler.dense.bios")).expect("written");
    assert!(refused(&index).contains("no file holds `pooler.dense.bios`"));
    fs::write(&index, &text).expect("written");
    fs::remove_file(folder.path().join("model-00001-of-00002.safetensors")).expect("removed");
    assert!(refused(&index).contains("missing: model-00001-of-00002.safetensors"));
    fs::remove_file(&index).expect("removed");
    assert!(
        refused(&folder.path().join("model-00002-of-00002.safetensors")).contains("index is not beside it")
    );
}

/// Folders as Hugging Face has them: what the binary says of their tokenizer, and what it refuses.
#[test]
fn the_binary_reads_what_hugging_face_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    sharded(folder.path());
    fs::write(at("config.json"), bert_config().to_string()).expect("written");
    let vocab = fs::read_to_string(fixture("ckpt_bert_vocab.txt")).expect("the vocabulary");
    let pieces: serde_json::Map<String, Json> =
        vocab.lines().enumerate().map(|(id, piece)| (piece.to_owned(), id.into())).collect();
    let normalizer = json!({"type": "BertNormalizer", "lowercase": false, "handle_chinese_chars": false});
    let tokenizer = json!({"normalizer": normalizer, "model": {"type": "WordPiece", "vocab": pieces}});
    fs::write(at("tokenizer.json"), tokenizer.to_string()).expect("written");
    let made = run(&["bert", text(folder.path()), text(&at("out"))]).success();
    let report = String::from_utf8_lossy(&made.get_output().stdout).into_owned();
    assert!(report.contains("(shards)"), "{report}");
    assert!(report.contains("case kept, accents kept (tokenizer.json)"), "{report}");
    assert_eq!(fs::read_to_string(at("out/vocab.txt")).expect("it"), vocab);
    let mut other = bert_config();
    other["model_type"] = "roberta".into();
    other["vocab_size"] = 200.into();
    fs::write(at("config.json"), other.to_string()).expect("written");
    let refused = run(&["bert", text(folder.path()), text(&at("other"))]).code(2);
    let error = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(error.contains("another family") && error.contains("model_type roberta"), "{error}");
    let page = at("model.safetensors");
    for (bytes, part) in [
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
    ] {
        fs::write(&page, bytes).expect("written");
        let refused = run(&["bert", text(&page), text(&at("other"))]).code(2);
        let error = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(error.contains(part) && error.contains("model.safetensors"), "{error}");
    }
    assert!(!at("other").exists());
}

/// Longer than any sound or refused small file takes, even on a busy machine.
const SLOW: Duration = Duration::from_secs(5);

#[test]
fn fuzz_pickles() {
    let good: Vec<Vec<u8>> = ["ckpt_bad_legacy_missing_key.bin", "ckpt_odd_tensors_legacy.bin"]
        .map(|name| fs::read(fixture(name)).expect("the fixture"))
        .to_vec();
    // After the three short pickles of a legacy file comes the one with the tensors.
    let tails = good.iter().map(|bytes| {
        (0..3)
            .fold(&bytes[..], |rest, _| &rest[pickle::read(rest).expect("a sound pickle").length()..])
            .to_vec()
    });
    let tails: Vec<Vec<u8>> = tails.collect();
    let bytes = prop_oneof![
        3 => (prop::sample::select(tails), mutation::edits()).prop_map(|(good, edits)| mutation::edited(&good, &edits)),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ];
    mutation::fuzz(4000, bytes, |bytes| {
        let started = Instant::now();
        if let Ok(pickle) = pickle::read(&bytes) {
            prop_assert!(pickle.nodes().len() <= bytes.len());
            let _ =
                (pickle.json(pickle.root(), 8), pickle.items(pickle.root()), pickle.type_name(pickle.root()));
        }
        prop_assert!(started.elapsed() < SLOW);
        Ok(())
    });
}

#[test]
fn fuzz_checkpoints() {
    let names =
        ["ckpt_odd_tensors_zip.bin", "ckpt_odd_tensors_legacy.bin", "ckpt_bad_legacy_missing_key.bin"];
    let whole: Vec<Vec<u8>> = names.map(|name| fs::read(fixture(name)).expect("the fixture")).to_vec();
    let pickles = vec![tensor_pickle("I4\nI4\n", "I4\nI1\n"), tensor_pickle("I2\nI3\n", "I1\nI2\n")];
    let bytes = prop_oneof![
        (prop::sample::select(whole), mutation::edits())
            .prop_map(|(good, edits)| mutation::edited(&good, &edits)),
        (prop::sample::select(pickles), mutation::edits())
            .prop_map(|(good, edits)| checkpoint(&mutation::edited(&good, &edits))),
        prop::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| checkpoint(&bytes)),
    ];
    mutation::fuzz(3000, bytes, |bytes| {
        let started = Instant::now();
        for entry in open(&bytes).into_iter().flatten() {
            let elements: usize = entry.shape.iter().product();
            prop_assert_eq!(entry.bytes.len() * 8, elements * entry.dtype.bitsize());
        }
        prop_assert!(started.elapsed() < SLOW);
        Ok(())
    });
}

#[test]
fn configurations_that_make_no_encoder_are_refused() {
    let source = Source::open(&checkpoints("ckpt_bert_plain_zip")[0]).expect("the fixture");
    let refusals = [
        ("num_hidden_layers", json!(1_000_000_000_000_u64), "too large"),
        ("vocab_size", json!(1_u64 << 40), "too large"),
        ("num_attention_heads", json!(0), "zero"),
        ("intermediate_size", Json::Null, "not understood"),
        ("hidden_size", json!("wide"), "not understood"),
    ];
    for (option, value, said) in refusals {
        let mut config = bert_config();
        config[option] = value;
        let error = import_bert(&source, &config).err().expect(option).to_string();
        assert!(error.contains(said) && error.contains("--config"), "{option}: {error}");
    }
    let mut config = bert_config();
    config["intermediate_size"] = 2.into();
    let error = import_bert(&source, &config).err().expect("another width").to_string();
    assert!(error.contains("wrong shape: encoder.layer.0.intermediate.dense.weight"), "{error}");
}
