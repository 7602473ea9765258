//! Every reader of a file on real files that were changed anywhere: each is read or refused, and none panics.
//! 1,500 inputs, or as many as `CROSSWEAVE_FUZZ_CASES` says.

mod mutation;
mod picture_files;

use std::fs;
use std::path::{Path, PathBuf};

use crossweave::data::boxes::Boxes;
use crossweave::data::dataset::{self, Dataset};
use crossweave::data::features::Features;
use crossweave::data::import::Source;
use crossweave::data::pictures::{Asked, Pictures, read_file};
use crossweave::data::tokenizer::WordPiece;
use crossweave::data::weights::Weights;
use crossweave::data::words::Vocabulary;
use crossweave::data::{captions, depends, ids, word_ids};
use crossweave::eval::model::read_system;
use crossweave::eval::sims::Matrix;
use crossweave::systems::{self, kinds};
use crossweave::train::metrics;
use picture_files::{Jpeg, exif, png};
use serde_json::{Value as Json, json};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A reader with the bytes of a file that it reads, and the name it reads them by.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    read: fn(&Path),
}

fn real(path: &str) -> Vec<u8> {
    fs::read(format!("{ROOT}/tests/{path}")).expect("a file of the tests")
}

/// The first two images of the demo's features: a file whose header is often what changes.
fn features() -> Vec<u8> {
    let (all, two) = ("(60, 36, 64), }", "(2, 36, 64), } ");
    let mut bytes = real("data/emojitiny_precomp/dev_ims.npy");
    let at = bytes.windows(all.len()).position(|part| part == all.as_bytes()).expect("its shape");
    bytes[at..at + all.len()].copy_from_slice(two.as_bytes());
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes.truncate(data + 2 * 2 * 36 * 64);
    bytes
}

/// The configurations of every system, as a fixture has them.
fn configuration(system: &str) -> Vec<u8> {
    let files = fs::read_dir(format!("{ROOT}/tests/fixtures")).expect("the fixtures").flatten();
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with(&format!("{system}_")) && name.ends_with(".safetensors")
    };
    let mut files: Vec<PathBuf> = files.map(|file| file.path()).filter(named).collect();
    files.sort();
    // Some are of a part of the system, which no model is made of.
    let whole = |file: &PathBuf| {
        let weights = Weights::open(file).expect("a fixture");
        let spec: Json = serde_json::from_str(&weights.metadata()["spec"]).expect("JSON");
        let mut config = spec["config"].clone();
        config["system"] = system.into();
        systems::of_config(&config).is_ok().then_some(config)
    };
    let config = files.iter().find_map(whole).unwrap_or_else(|| panic!("no fixture of a whole {system}"));
    config.to_string().into_bytes()
}

fn cases() -> Vec<Case> {
    const DATA: &str = "data/emojitiny_precomp";
    let data = |name: &str| format!("{DATA}/{name}");
    let vocab = String::from_utf8(real("fixtures/ckpt_bert_vocab.txt")).expect("text");
    let pieces: serde_json::Map<String, Json> =
        vocab.lines().enumerate().map(|(id, piece)| (piece.to_owned(), id.into())).collect();
    let normalizer = json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]});
    let whole = json!({"normalizer": normalizer, "model": {"type": "WordPiece", "vocab": pieces}, "added_tokens": []});
    let settings = json!({"do_lower_case": false, "strip_accents": null, "tokenizer_class": "BertTokenizer"});
    let index = json!({"weight_map": {"in.sims": "recall_basic.safetensors"}});
    let rows = "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"val\":{\"rsum\":3.5}}\n".repeat(3);
    let case = |name, bytes, read| Case { name, bytes, read };
    let mut all = vec![
        case("x_ims.npy", features(), |path| {
            if let Ok(features) = Features::open(path) {
                let _ = features.verify_all(|_| ());
                let folder = path.parent().expect("a folder");
                let _ = Dataset::open(folder, "x", &dataset::Options::default());
            }
        }),
        case("x_caps.txt", real(&data("dev_caps.txt")), |path| drop(captions::read(path, false))),
        case("x_ids.txt", real(&data("dev_ids.txt")), |path| {
            drop(ids::names(path.parent().expect("a folder"), "x", 60, 300));
        }),
        case("word_ids", real(&data("dev_precaps_stan.txt")), |path| drop(word_ids::read(path))),
        case("pairs.json", real(&data("dev_caps.json")), |path| drop(depends::read(path))),
        case("words.json", real(&data("emojitiny_precomp_vocab.json")), |path| drop(Vocabulary::open(path))),
        case("boxes.npy", real(&data("dev_ims_bbx.npy")), boxes),
        case("sizes.npy", real(&data("dev_ims_size.npy")), boxes),
        case("vocab.txt", vocab.into_bytes(), pieces_of),
        case("tokenizer.json", whole.to_string().into_bytes(), pieces_of),
        case("tokenizer_config.json", settings.to_string().into_bytes(), |path| {
            pieces_of(&path.with_file_name("good/vocab.txt"));
        }),
        case("w.safetensors", real("fixtures/loss_2nxn_sum.safetensors"), |path| {
            if let Ok(weights) = Weights::open(path) {
                let _ = weights.check_finite();
                weights.names().for_each(|name| drop(weights.f32s(name)));
            }
        }),
        case("w.bin", real("fixtures/ckpt_odd_tensors_zip.bin"), tensors),
        case("legacy.bin", real("fixtures/ckpt_bert_plain_py2_legacy.bin"), tensors),
        case("w.index.json", index.to_string().into_bytes(), tensors),
        case("metrics.jsonl", rows.into_bytes(), |path| drop(metrics::read(path))),
        case("sims.npy", matrix(), |path| drop(Matrix::open(path, None))),
    ];
    all.extend(pictures().into_iter().map(|(name, bytes)| case(name, bytes, picture)));
    for kind in kinds() {
        all.push(case("config.json", configuration(kind.name), |path| {
            drop(read_system(path.parent().expect("a folder")));
        }));
    }
    all
}

fn matrix() -> Vec<u8> {
    use crossweave::eval::sims::Scores;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sims.npy");
    let sims = Matrix { images: 3, captions_per_image: 2, scores: Scores::F64(vec![0.5; 18]) };
    sims.save(&path).expect("it saves");
    fs::read(path).expect("read")
}

/// Pictures of several kinds.
fn pictures() -> Vec<(&'static str, Vec<u8>)> {
    let palette: Vec<u8> = (0..48).collect();
    let chunks: [(&[u8; 4], &[u8]); 3] = [(b"eXIf", &exif(5, true)), (b"PLTE", &palette), (b"tRNS", &[0, 9])];
    let gradient: Vec<u8> = (0..33 * 21 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let mut photo = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new(&mut photo);
    encoder.encode(&gradient, 33, 21, image::ExtendedColorType::Rgb8).expect("it encodes");
    let blocks = |ids: u8| (1..=ids).map(|id| (id, vec![40 * id, 200, 90, 7, 128, 255])).collect();
    let jpeg = Jpeg { sides: [20, 15], components: blocks(3), exif: Some(exif(6, false)), ..Jpeg::of(&[]) };
    let inks = Jpeg { components: blocks(4), exif: None, ..jpeg.clone() };
    vec![
        ("emoji.png", real("data/emojitiny_precomp/images/1f42f.png")),
        ("palette.png", png([5, 2], 4, 3, &chunks, &[&[1, 35, 64], &[18, 52, 80]])),
        ("photo.jpg", photo),
        ("apart.jpg", Jpeg { apart: true, ..jpeg.clone() }.bytes()),
        ("progressive.jpg", jpeg.progressive().bytes()),
        ("inks.jpg", inks.adobe(2).bytes()),
    ]
}

fn picture(path: &Path) {
    let read = read_file(path, false);
    if let Ok(pictures) = Pictures::open(vec![path.to_path_buf()], 8, false) {
        let asked = [None, Some(crossweave::host::Rng::new(1))].map(|draws| Asked { picture: 0, draws });
        let seen = pictures.read(&asked, 1);
        assert_eq!(seen.is_ok(), read.is_ok());
        assert!(read.is_err() || read.is_ok_and(|picture| picture.sides() == pictures.dimensions(0)));
    } else {
        assert!(read.is_err());
    }
}

fn pieces_of(path: &Path) {
    if let Ok(pieces) = WordPiece::open(path) {
        pieces.encode("A small caf\u{e9}, \u{72ac}", 8);
    }
}

fn boxes(path: &Path) {
    let beside = |name: &str| path.with_file_name(name);
    if let Ok(features) = Features::open(&beside("good/dev_ims.npy")) {
        drop(Boxes::open(&beside("boxes.npy"), &beside("sizes.npy"), &features));
    }
}

fn tensors(path: &Path) {
    if let Ok(source) = Source::open(path) {
        let names: Vec<String> = source.shapes().map(|(name, _)| name.to_owned()).collect();
        names.iter().for_each(|name| drop(source.entry(name)));
    }
}

#[test]
fn changed_files_are_read_or_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let cases = cases();
    // What a reader looks for beside its file is whole.
    fs::create_dir(at("good")).expect("made");
    for case in &cases {
        fs::write(at(case.name), &case.bytes).expect("written");
    }
    fs::write(at("good/vocab.txt"), real("fixtures/ckpt_bert_vocab.txt")).expect("written");
    fs::write(at("good/dev_ims.npy"), real("data/emojitiny_precomp/dev_ims.npy")).expect("written");
    fs::write(at("recall_basic.safetensors"), real("fixtures/recall_basic.safetensors")).expect("written");
    let inputs = (0..cases.len(), mutation::edits());
    mutation::fuzz(1500, inputs, |(i, edits)| {
        let case = &cases[i];
        let to =
            if case.name == "tokenizer_config.json" { at("good").join(case.name) } else { at(case.name) };
        fs::write(&to, mutation::edited(&case.bytes, &edits)).expect("written");
        (case.read)(&at(case.name));
        fs::write(&to, &case.bytes).expect("written");
        Ok(())
    });
}

#[test]
fn a_changed_cache_never_changes_what_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let file = at("p.png");
    fs::write(&file, real("data/emojitiny_precomp/images/1f42f.png")).expect("written");
    let open = || Pictures::open(vec![file.clone(); 3], 8, false).expect("pictures");
    let asked: Vec<Asked> = (0..3).map(|picture| Asked { picture, draws: None }).collect();
    let plain = open().read(&asked, 1).expect("read");
    let cached = || open().cached(&at("views"), 1, &|| false, &mut |_, _| ()).expect("a cache");
    drop(cached());
    let good = fs::read(at("views")).expect("made");
    mutation::fuzz(300, mutation::edits(), |edits| {
        fs::write(at("views"), mutation::edited(&good, &edits)).expect("written");
        assert!(cached().read(&asked, 1).expect("read") == plain);
        assert!(fs::read(at("views")).expect("made") == good);
        Ok(())
    });
}
