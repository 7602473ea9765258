//! A Swin as its authors and timm release it, and what is none.

use assert_cmd::Command;
use crossweave::data::import::{Imported, Source};
use crossweave::data::weights::{self, Dtype, Entry, Weights};
use crossweave::eval::import::swin;
use serde_json::{Value as Json, json};
use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn expected() -> Weights {
    Weights::open(&fixture("ckpt_swin_expect.safetensors")).expect("the fixture")
}

fn config() -> Json {
    json!({
        "model_type": "swin", "img_size": 64, "window_size": 2, "patch_size": 4, "in_chans": 3, "embed_dim": 4,
        "depths": [1, 2, 3, 1], "num_heads": [1, 2, 4, 2], "mlp_ratio": 2.0, "drop_path_rate": 0.0,
    })
}

fn assert_expected(imported: &Imported) {
    let expected = expected();
    let mut own: Vec<&str> = imported.entries.iter().map(|entry| entry.name.as_str()).collect();
    own.sort_unstable();
    assert_eq!(own, expected.names().collect::<Vec<_>>());
    for entry in &imported.entries {
        assert_eq!(entry.dtype, Dtype::F32);
        assert_eq!(Some(&entry.shape[..]), expected.shape(&entry.name), "{}", entry.name);
        assert_eq!(entry.bytes, expected.bytes(&entry.name).expect("held"), "{}", entry.name);
    }
    assert_eq!(imported.config, config());
}

/// The expected weights, to be changed and written under a name.
struct File(Vec<Entry<'static>>);

impl File {
    fn new() -> Self {
        let all = expected();
        let entry = |name: &str| {
            let (dtype, shape) = (Dtype::F32, all.shape(name).expect("held").to_vec());
            let bytes = Cow::Owned(all.bytes(name).expect("held").to_vec());
            Entry { name: name.to_string(), dtype, shape, bytes }
        };
        Self(all.names().map(entry).collect())
    }

    fn renamed(mut self, new: impl Fn(&str) -> String) -> Self {
        self.0.iter_mut().for_each(|entry| entry.name = new(&entry.name));
        self
    }

    fn without(mut self, part: &str) -> Self {
        self.0.retain(|entry| !entry.name.contains(part));
        self
    }

    fn with(self, name: &str, shape: &[usize], value: f32) -> Self {
        let mut file = self;
        file.0.retain(|entry| entry.name != name);
        let bytes = value.to_le_bytes().repeat(shape.iter().product());
        let (name, shape) = (name.to_string(), shape.to_vec());
        file.0.push(Entry { name, dtype: Dtype::F32, shape, bytes: Cow::Owned(bytes) });
        file
    }

    fn write(&self, path: &Path) {
        weights::write(path, &self.0, &Default::default()).expect("a file");
    }
}

/// The number of the stage that newer versions of timm give to a merging.
fn later(name: &str) -> String {
    match name.split_once(".downsample.") {
        Some((stage, rest)) => {
            let number: usize = stage.trim_start_matches("layers.").parse().expect("a stage");
            format!("layers.{}.downsample.{rest}", number + 1)
        }
        None => name.to_string(),
    }
}

#[test]
fn a_release_is_exact() {
    let source = Source::open(&fixture("ckpt_swin_release.pth")).expect("the fixture");
    let imported = swin(&source).unwrap_or_else(|e| panic!("{e}"));
    assert_expected(&imported);
    let report = imported.report.to_string();
    for says in [
        "model.head.weight",
        "attn.relative_position_index: it follows",
        "attn_mask: it follows",
        "norm_2.bias (not needed)",
    ] {
        assert!(report.contains(says), "{says}: {report}");
    }
}

#[test]
fn both_numberings_of_mergings_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    let heads = |file: File| file.with("head.fc.weight", &[7, 32], 0.5);
    for made in [
        heads(File::new()),
        heads(File::new().renamed(later)),
        heads(File::new().renamed(later)).renamed(|name| format!("backbone.module.{name}")),
    ] {
        made.write(&file);
        let source = Source::open(&file).expect("the file");
        assert_expected(&swin(&source).unwrap_or_else(|e| panic!("{e}")));
    }
}

#[test]
fn norms_between_stages_are_kept_where_a_file_has_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    let mut made = File::new();
    for (stage, width) in [(0, 4), (1, 8), (2, 16)] {
        for part in ["weight", "bias"] {
            made = made.with(&format!("norm_{stage}.{part}"), &[width], 0.25);
        }
    }
    made.write(&file);
    let source = Source::open(&file).expect("the file");
    let imported = swin(&source).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(imported.entries.len(), made.0.len());
    assert!(imported.report.missing.is_empty());
}

fn run(arguments: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("import").expect("the binary").args(arguments).assert()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

#[test]
fn the_binary_makes_a_folder_without_a_vocabulary() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, again) = (folder.path().join("out"), folder.path().join("again"));
    let file = fixture("ckpt_swin_release.pth");
    run(&["swin", text(&file), text(&out)]).success();
    let read = |folder: &Path, name: &str| fs::read(folder.join(name)).expect("it");
    let mut names: Vec<_> =
        fs::read_dir(&out).expect("the folder").flatten().map(|file| file.file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    assert_eq!(serde_json::from_slice::<Json>(&read(&out, "config.json")).expect("JSON"), config());
    run(&["swin", text(&out), text(&again)]).success();
    for name in ["config.json", "model.safetensors"] {
        assert_eq!(read(&out, name), read(&again, name), "{name}");
    }
    for option in ["--config", "--vocab", "--set"] {
        let refused = run(&["swin", text(&file), text(&folder.path().join("more")), option, "img_size=2"]);
        let error = String::from_utf8_lossy(&refused.code(2).get_output().stderr).into_owned();
        assert!(error.contains(option) && error.contains("cure: leave it out"), "{error}");
    }
}

#[test]
fn what_is_no_such_swin_is_refused() {
    let table = "layers.2.blocks.1.attn.relative_position_bias_table";
    let mixed = |name: &str| if name.starts_with("layers.2") { later(name) } else { name.to_string() };
    let cases: Vec<(&str, File)> = vec![
        ("no `patch_embed`", File::new().without("patch_embed")),
        ("no `layers`", File::new().without("layers")),
        ("a tensor layers.0.blocks.0.attn.relative_position_bias_table", File::new().without("_bias_table")),
        ("position embeddings", File::new().with("absolute_pos_embed", &[1, 256, 4], 0.0)),
        (
            "not expected: layers.0.blocks.0.attn.logit",
            File::new().with("layers.0.blocks.0.attn.logit", &[1], 0.0),
        ),
        ("wrong shape: layers.2.blocks.1.attn.relative", File::new().with(table, &[25, 4], 0.0)),
        ("missing: norm.bias", File::new().without("norm.bias").with("norm.weight", &[32], 1.0)),
        (
            "the stages are out of range",
            File::new().without("layers.3.blocks").with(
                "layers.3.blocks.0.attn.relative_position_bias_table",
                &[9, 2],
                0.0,
            ),
        ),
        (
            "stage 1 to divide 8",
            File::new().with("layers.1.blocks.0.attn.relative_position_bias_table", &[9, 3], 0.0),
        ),
        ("missing: layers.2.downsample", File::new().renamed(mixed)),
        ("no weights of a Swin", File::new().with("patch_embed.proj.weight", &[4], 0.0)),
        ("size is out of range", File::new().with("patch_embed.proj.weight", &[0, 3, 4, 4], 0.0)),
        ("patches do not divide", File::new().with("patch_embed.proj.weight", &[4, 3, 5, 5], 0.0)),
        ("NaN", File::new().with("norm.bias", &[32], f32::NAN)),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("swin.safetensors");
    for (says, made) in cases {
        made.write(&file);
        let source = Source::open(&file).expect("the file");
        let error = swin(&source).err().unwrap_or_else(|| panic!("{says}: accepted")).to_string();
        assert!(error.contains(says) && error.contains("swin.safetensors"), "{says}: {error}");
        assert!(error.contains("cure:"), "{error}");
    }
}

#[test]
fn other_models_and_hostile_files_are_refused() {
    let files = fs::read_dir(fixture("")).expect("the fixtures").flatten().map(|file| file.path());
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let others = files.filter(|path| {
        let name = name(path);
        name.starts_with("ckpt_bad_") || name.starts_with("ckpt_dime_") || name.starts_with("ckpt_bert_plain")
    });
    let mut seen = 0;
    for path in others {
        let error = match Source::open(&path) {
            Ok(source) => swin(&source).err().unwrap_or_else(|| panic!("{} was accepted", path.display())),
            Err(error) => error,
        };
        let error = error.to_string();
        assert!(error.contains(&name(&path)) && error.contains("cure:"), "{error}");
        seen += 1;
    }
    assert!(seen > 35, "{seen}");
}
