//! Weights files: what is written is read again, what is damaged is refused, and nothing is lost on failure.

mod mutation;

use crossweave::Kind;
use crossweave::data::weights::{self, Dtype, Entry, Weights};
use proptest::prelude::*;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

fn write(path: &Path, entries: &[Entry]) {
    let notes = HashMap::from([("step".to_string(), "7".to_string())]);
    weights::write(path, entries, &notes).unwrap_or_else(|e| panic!("{e}"));
}

fn entry(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Entry<'static> {
    Entry { name: name.into(), dtype, shape: shape.into(), bytes: Cow::Owned(bytes.to_vec()) }
}

#[test]
fn every_type_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.safetensors");
    let values = [1.5, -0.0, f32::MIN_POSITIVE, 3e38];
    write(
        &path,
        &[
            entry("flag", Dtype::BOOL, &[3], &[1, 0, 1]),
            Entry::f32s("a.weight", &[2, 2], &values),
            entry("half", Dtype::F16, &[1], &0x3e00_u16.to_le_bytes()),
            entry("brain", Dtype::BF16, &[1], &0xc020_u16.to_le_bytes()),
            entry("double", Dtype::F64, &[], &0.1_f64.to_le_bytes()),
            entry("count", Dtype::I64, &[], &(-5_i64).to_le_bytes()),
            entry("wide", Dtype::U64, &[1], &u64::MAX.to_le_bytes()),
            entry("bytes", Dtype::U8, &[2], &[0, 255]),
            entry("small", Dtype::I32, &[1], &(-2_i32).to_le_bytes()),
            entry("none", Dtype::F32, &[0, 4], &[]),
        ],
    );
    let held = Weights::open(&path).expect("the file");
    assert_eq!(held.metadata()["step"], "7");
    assert_eq!(held.names().count(), 10);
    let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(held.f32s("a.weight").expect("floats")), bits(values.to_vec()));
    assert_eq!(held.f32s("half").expect("floats"), [1.5]);
    assert_eq!(held.f32s("brain").expect("floats"), [-2.5]);
    assert_eq!(held.f32s("double").expect("floats"), [0.1]);
    assert!(held.f32s("none").expect("floats").is_empty());
    assert_eq!(held.ints("flag").expect("integers"), [1, 0, 1]);
    assert_eq!(held.ints("count").expect("integers"), [-5]);
    assert_eq!(held.ints("bytes").expect("integers"), [0, 255]);
    assert_eq!(held.ints("small").expect("integers"), [-2]);
    assert_eq!(held.shape("none"), Some(&[0, 4][..]));
    assert_eq!(held.shape("double"), Some(&[][..]));
    for (name, floats) in [("count", true), ("a.weight", false), ("wide", false), ("absent", true)] {
        let error = if floats { held.f32s(name).err() } else { held.ints(name).err() };
        assert!(error.expect("the wrong type").to_string().contains(name));
    }
}

#[test]
fn the_other_reader_agrees() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.safetensors");
    write(&path, &[entry("b", Dtype::I64, &[1], &[9; 8]), Entry::f32s("é \"x\"", &[3], &[1.0, 2.0, 3.0])]);
    let bytes = fs::read(&path).expect("the file");
    let read = safetensors::SafeTensors::deserialize(&bytes).expect("a sound file");
    assert_eq!(
        read.tensor("é \"x\"").expect("held").data(),
        bytemuck::cast_slice::<f32, u8>(&[1.0, 2.0, 3.0])
    );
    assert_eq!(read.tensor("b").expect("held").shape(), [1]);
}

#[test]
fn a_refused_write_keeps_the_former_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.safetensors");
    write(&path, &[Entry::f32s("a", &[1], &[1.0])]);
    let before = fs::read(&path).expect("the file");
    let none = HashMap::new();
    let twice = [Entry::f32s("a", &[1], &[2.0]), Entry::f32s("a", &[1], &[3.0])];
    assert!(weights::write(&path, &twice, &none).expect_err("one name").to_string().contains("two tensors"));
    let short = [Entry::f32s("a", &[2], &[2.0])];
    assert!(weights::write(&path, &short, &none).expect_err("too short").to_string().contains("do not fit"));
    assert_eq!(fs::read(&path).expect("the file"), before);
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
    let nowhere = folder.path().join("no/such/w.safetensors");
    let error = weights::write(&nowhere, &[], &none).expect_err("no folder");
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("no/such") && error.to_string().contains("cure"), "{error}");
}

#[test]
fn check_lists_everything_once() {
    let layout = |names: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        names.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    };
    let expected = layout(&[("a", &[2, 3]), ("b", &[4]), ("c", &[])]);
    let found: [(&str, &[usize]); 3] = [("a", &[3, 2]), ("c", &[]), ("d", &[9])];
    let error = weights::check("f.safetensors", &expected, found).expect_err("differences").to_string();
    for says in ["missing: b [4]", "wrong shape: a is [3, 2], expected [2, 3]", "not expected: d [9]"] {
        assert!(error.contains(says), "{error}");
    }
    assert!(error.starts_with("f.safetensors: ") && error.contains("1 missing"), "{error}");
    weights::check("f", &expected, [("c", &[][..]), ("b", &[4]), ("a", &[2, 3])]).expect("the same");
    let many: Vec<_> = (0..100).map(|i| (format!("w{i}"), vec![1])).collect();
    let error = weights::check("f", &many, []).expect_err("all missing").to_string();
    assert_eq!(error.matches("missing: w").count(), 40);
    assert!(error.contains("100 missing") && error.contains("and 60 more"), "{error}");
}

#[test]
fn values_that_are_not_finite_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.safetensors");
    let values = [1.0, f32::NAN, f32::INFINITY];
    let half = entry("h", Dtype::F16, &[1], &0x7c00_u16.to_le_bytes());
    write(&path, &[Entry::f32s("bad", &[3], &values), Entry::f32s("good", &[1], &[0.0]), half]);
    let error = Weights::open(&path).expect("the file").check_finite().expect_err("not finite");
    assert_eq!(error.kind(), Kind::NonFinite);
    let error = error.to_string();
    assert!(error.contains("bad: 2 of 3 values, the first at 1 (NaN)"), "{error}");
    assert!(error.contains("h: 1 of 1") && !error.contains("good"), "{error}");
}

fn open(header: &str, data: usize) -> crossweave::Result<Weights> {
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat();
    open_bytes(&bytes)
}

fn open_bytes(bytes: &[u8]) -> crossweave::Result<Weights> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), bytes).expect("written");
    Weights::open(file.path())
}

#[test]
fn damaged_headers_are_refused() {
    let sound = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert_eq!(open(sound, 8).expect("sound").f32s("a").expect("floats"), [0.0, 0.0]);
    let cases = [
        (sound.to_string(), 4),
        (sound.to_string(), 12),
        (sound.replace("[2]", "[3]"), 8),
        (sound.replace("[2]", "[4294967296,4294967296,4294967296]"), 8),
        (sound.replace("[0,8]", "[8,0]"), 8),
        (sound.replace("[0,8]", "[0,18446744073709551615]"), 8),
        (sound.replace("[2]", "[-2]"), 8),
        (sound.replace("F32", "F99"), 8),
        ("[".repeat(100_000), 0),
        ("{".to_string(), 0),
    ];
    for (header, data) in cases {
        let error =
            open(&header, data).err().unwrap_or_else(|| panic!("{header:.80} was accepted")).to_string();
        assert!(error.contains("not a sound safetensors file") && error.contains("cure"), "{error}");
    }
    for bytes in [&[][..], &[1, 2, 3], &[0xff; 64]] {
        assert!(open_bytes(bytes).is_err());
    }
    let many: Vec<String> = (0..weights::MAX_TENSORS + 1)
        .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    let error = open(&format!("{{{}}}", many.join(",")), 0).err().expect("too many").to_string();
    assert!(error.contains("too many tensors"), "{error}");
}

#[test]
fn fuzz_headers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.safetensors");
    write(&path, &[Entry::f32s("a.weight", &[2, 2], &[1.0; 4]), entry("n", Dtype::I64, &[], &[1; 8])]);
    let good = fs::read(&path).expect("the file");
    let bytes = prop_oneof![
        4 => mutation::edits().prop_map(move |edits| mutation::edited(&good, &edits)),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ];
    mutation::fuzz(3000, bytes, |bytes| {
        let Ok(held) = open_bytes(&bytes) else { return Ok(()) };
        for (name, shape) in held.shapes() {
            let elements: usize = shape.iter().product();
            let values = held.f32s(name).map(|v| v.len()).or_else(|_| held.ints(name).map(|v| v.len()));
            prop_assert!(values.map_or(true, |count| count == elements));
        }
        Ok(())
    });
}
