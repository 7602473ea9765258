//! Word ids, dependency pairs and boxes, from real files.

mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use crossweave::data::batches::{BatchPlan, BoxRead, Sampler, SamplerOptions, assemble};
use crossweave::data::check::scan;
use crossweave::data::dataset::{Dataset, Options};
use crossweave::data::tokenizer::Tokenizer;
use crossweave::data::weights::Weights;
use crossweave::data::words::Vocabulary;
use crossweave::data::{captions, word_ids};
use crossweave::host::Inputs;
use std::sync::Arc;
use tiny::{EMOJITINY, SIZES, npy_header};

const WORDS: Options =
    Options { captions_per_image: None, strict: false, limit: None, words: true, pictures: false };

fn vocabulary() -> Vocabulary {
    Vocabulary::of_data(Path::new(EMOJITINY), None).expect("the bundled vocabulary")
}

fn inputs() -> Inputs {
    Inputs {
        images: &["images", "bboxes"],
        captions: &["captions", "cap_lens", "depends", "depends_len"],
        ..Inputs::default()
    }
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn array(element: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    [&npy_header(element, "False", shape), data].concat()
}

/// A folder with a split "dev" of `rows` images with 2 regions each and five captions an image, all as they should be.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(rows: usize) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let features = floats((0..rows * 2 * 3).map(|i| i as f32));
        folder.write("dev_ims.npy", &array("<f4", &format!("{rows}, 2, 3"), &features));
        let captions = 5 * rows;
        folder.write("dev_caps.txt", "qqq ram\n".repeat(captions).as_bytes());
        folder.write("dev_precaps_stan.txt", "1,3,4,2\n".repeat(captions).as_bytes());
        folder.write("dev_caps.json", format!("[{}]", vec!["[[0,2],[2,1]]"; captions].join(",")).as_bytes());
        let boxes = [0.0, 0.0, 10.0, 20.0, 5.0, 2.0, 40.0, 30.0].repeat(rows);
        folder.write("dev_ims_bbx.npy", &array("<f4", &format!("{rows}, 2, 4"), &floats(boxes)));
        folder.sizes(&[40, 80].repeat(rows));
        folder
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.file(name), bytes).unwrap();
    }

    fn sizes(&self, sides: &[i32]) {
        let data: Vec<u8> = sides.iter().flat_map(|side| side.to_le_bytes()).collect();
        self.write("dev_ims_size.npy", &array(SIZES, &format!("{},", sides.len() / 2), &data));
    }

    fn open(&self) -> crossweave::Result<Dataset> {
        let mut data = Dataset::open(self.0.path(), "dev", &WORDS)?;
        data.prepare(&inputs(), &Tokenizer::Words(vocabulary()))?;
        Ok(data)
    }

    fn boxes(&self) -> Vec<f32> {
        let (data, mut boxes) = (self.open().unwrap(), Vec::new());
        data.boxes(0, &mut boxes);
        boxes
    }
}

#[test]
fn the_bundled_captions_are_split_into_their_ids() {
    let vocabulary = vocabulary();
    let mut compared = 0;
    for split in ["train", "dev", "test"] {
        let path = |name: &str| PathBuf::from(format!("{EMOJITINY}/{split}_{name}"));
        let texts = captions::read(&path("caps.txt"), true).unwrap().texts;
        let ids = word_ids::read(&path("precaps_stan.txt")).unwrap();
        assert_eq!(texts.len(), ids.len());
        for (text, row) in texts.iter().zip(ids.rows()) {
            assert_eq!(vocabulary.encode(text), row, "{text}");
            compared += 1;
        }
    }
    assert_eq!(compared, 1800);
}

#[test]
fn the_bundled_data_hold_all_that_is_read() {
    for split in ["train", "dev", "test"] {
        let mut data = Dataset::open(Path::new(EMOJITINY), split, &WORDS).unwrap();
        data.prepare(&inputs(), &Tokenizer::Words(vocabulary())).unwrap();
        assert!(data.notices().is_empty(), "{:?}", data.notices());
        let tokens = data.tokens(&Tokenizer::Words(vocabulary()), 4).unwrap();
        assert!(tokens.words() > 10, "captions of words are not cut");
        let plan = BatchPlan { captions: vec![0, 1], images: vec![0, 1], ..BatchPlan::default() };
        let batch = assemble(&data, &tokens, &inputs(), &plan, None).unwrap();
        let boxes = batch.images.at("bboxes");
        assert_eq!(boxes.row, [36, 4]);
        assert!(boxes.values.iter().all(|v| (0.0..=1.0).contains(v)));
        let lengths: Vec<f32> = [0, 1].map(|c| tokens.length(c) as f32).to_vec();
        assert_eq!(batch.captions.at("cap_lens").values, lengths);
        assert_eq!(batch.captions.at("depends_len").values, [0, 1].map(|c| data.pairs(c).len() as f32));
    }
    let report = scan(Path::new(EMOJITINY), None, &mut |_| ()).unwrap();
    assert!(report.is_ok() && report.notices.is_empty(), "{report:?}");
}

#[test]
fn pickled_sizes_are_those_of_the_structured_array() {
    for split in ["train", "dev", "test"] {
        let folder = Folder::new(1);
        let sizes = |pickled: &str| {
            for name in ["ims.npy", "ims_bbx.npy", "caps.txt", "precaps_stan.txt", "caps.json"] {
                fs::copy(format!("{EMOJITINY}/{split}_{name}"), folder.file(&format!("dev_{name}"))).unwrap();
            }
            fs::copy(format!("{EMOJITINY}/{pickled}{split}_ims_size.npy"), folder.file("dev_ims_size.npy"))
                .unwrap();
            folder.boxes()
        };
        assert_eq!(sizes(""), sizes("pickled/"));
    }
}

#[test]
fn boxes_of_every_type_are_shares_of_their_image() {
    let folder = Folder::new(2);
    let expected = [0.0, 0.0, 0.25, 0.25, 0.125, 0.025, 1.0, 0.375];
    assert_eq!(folder.boxes(), expected);
    let pixels = [0u8, 0, 10, 20, 5, 2, 40, 30].repeat(2);
    let types: [(&str, Vec<u8>); 5] = [
        ("|u1", pixels.clone()),
        ("<i2", pixels.iter().flat_map(|v| i16::from(*v).to_le_bytes()).collect()),
        ("<i8", pixels.iter().flat_map(|v| i64::from(*v).to_le_bytes()).collect()),
        ("<f2", pixels.iter().flat_map(|v| half::f16::from(*v).to_le_bytes()).collect()),
        ("<f8", pixels.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
    ];
    for (element, data) in types {
        folder.write("dev_ims_bbx.npy", &array(element, "2, 2, 4", &data));
        assert_eq!(folder.boxes(), expected, "{element}");
    }
    // Fields of any type, in any order, among others.
    let row = [&7i64.to_le_bytes()[..], &80f64.to_le_bytes(), &40u16.to_le_bytes()].concat();
    let fields = "[('id', '<i8'), ('image_h', '<f8'), ('image_w', '<u2')]";
    folder.write("dev_ims_size.npy", &array(fields, "2,", &row.repeat(2)));
    assert_eq!(folder.boxes(), expected);
}

#[test]
fn files_that_disagree_or_hold_nonsense_say_so_and_check_says_it_too() {
    let box_file = |boxes: [f32; 8]| array("<f4", "1, 2, 4", &floats(boxes));
    let good = [0.0, 0.0, 10.0, 20.0, 5.0, 2.0, 40.0, 30.0];
    let with = |i: usize, value: f32| {
        let mut boxes = good;
        boxes[i] = value;
        box_file(boxes)
    };
    let line = |line: &str| format!("1,4,2\n{line}\n1,2\n1,2\n1,2\n").into_bytes();
    let pickled = |body: &[u8]| array("|O", "1,", body);
    let cases: [(&str, Vec<u8>, &[&str]); 30] = [
        ("precaps_stan.txt", line(""), &["no words", "line 2", "1,2"]),
        ("precaps_stan.txt", line("1,x,2"), &["no number", "line 2", "\"x\""]),
        ("precaps_stan.txt", line("1,4,2,"), &["no number", "line 2"]),
        ("precaps_stan.txt", line("1,-4,2"), &["no number", "\"-4\""]),
        ("precaps_stan.txt", line(&["4"; 1001].join(",")), &["too many words", "line 2"]),
        ("precaps_stan.txt", line("1,5000,2"), &["past the vocabulary", "line 2", "772", "5000"]),
        ("precaps_stan.txt", b"1,2\n".to_vec(), &["another number of captions", "expected: 5", "found: 1"]),
        ("caps.json", b"[[[0,1]]]".to_vec(), &["another number of captions", "expected: 5", "found: 1"]),
        ("caps.json", b"[[[0,1]], [[0]]]".to_vec(), &["not understood", "caption 2"]),
        ("ims_bbx.npy", box_file(good.map(|v| v / 80.0)), &["no pixels", "multiply"]),
        ("ims_bbx.npy", with(2, f32::NAN), &["NaN", "row 0, region 0"]),
        ("ims_bbx.npy", with(6, 40.6), &["outside its image", "row 0, region 1", "40 x 80", "40.6"]),
        ("ims_bbx.npy", with(0, -0.6), &["outside its image", "region 0"]),
        ("ims_bbx.npy", with(7, 2.0), &["no area", "region 1"]),
        ("ims_bbx.npy", with(4, 50.0), &["no area", "region 1"]),
        ("ims_bbx.npy", array("<f4", "2, 2, 4", &floats(good.repeat(2))), &["another shape", "[1, 2, 4]"]),
        (
            "ims_bbx.npy",
            array("<f4", "1, 1, 4", &floats(good[..4].to_vec())),
            &["another shape", "[1, 1, 4]"],
        ),
        ("ims_bbx.npy", array(">f4", "1, 2, 4", &floats(good)), &["no numbers", ">f4", "astype"]),
        ("ims_bbx.npy", array("<f4", "1, 2, 4", &floats(good)[1..]), &["length does not fit"]),
        ("ims_bbx.npy", b"boxes".to_vec(), &["no .npy file"]),
        ("ims_size.npy", array(SIZES, "1,", &[0, 0, 0, 0, 8, 0, 0, 0]), &["no size", "row 0", "0 x 8"]),
        ("ims_size.npy", array(SIZES, "1,", &[255; 8]), &["no size"]),
        (
            "ims_size.npy",
            array(SIZES, "2,", &[9; 16]),
            &["another number of images", "expected: 1", "found: 2"],
        ),
        ("ims_size.npy", array(SIZES, "2,", &[9; 8]), &["length does not fit"]),
        ("ims_size.npy", array(SIZES, "1, 1", &[9; 8]), &["wrong shape"]),
        ("ims_size.npy", array("[('w', '<i4'), ('h', '<i4')]", "1,", &[9; 8]), &["no such fields", "'w'"]),
        ("ims_size.npy", array("<i4", "2,", &[9; 8]), &["no fields"]),
        ("ims_size.npy", pickled(b"\x80\x04]."), &["no array", "a list"]),
        ("ims_size.npy", pickled(b"cos\nsystem\n(S'true'\ntR."), &["no array", "an object of os.system"]),
        ("ims_size.npy", pickled(b"garbage"), &["the pickle inside is not sound"]),
    ];
    for (name, bytes, parts) in cases {
        let folder = Folder::new(1);
        fs::copy(format!("{EMOJITINY}/emojitiny_precomp_vocab.json"), folder.file("x_vocab.json")).unwrap();
        folder.open().expect("all is well before");
        folder.write(&format!("dev_{name}"), &bytes);
        let error = folder.open().expect_err(name).to_string();
        let problems = scan(folder.0.path(), None, &mut |_| ()).unwrap().problems.join("\n");
        for part in parts.iter().chain(&["dev_", "cure"]) {
            assert!(error.contains(part), "{part}: {error}");
            assert!(problems.contains(part), "{part}: {problems}");
        }
    }
    for name in ["ims_bbx.npy", "ims_size.npy"] {
        let folder = Folder::new(1);
        fs::remove_file(folder.file(&format!("dev_{name}"))).unwrap();
        assert!(folder.open().unwrap_err().to_string().contains(name));
        assert!(scan(folder.0.path(), None, &mut |_| ()).unwrap().problems[0].contains(name));
        // Only who reads boxes needs them.
        let mut data = Dataset::open(folder.0.path(), "dev", &WORDS).unwrap();
        let without = Inputs { images: &["images"], ..inputs() };
        data.prepare(&without, &Tokenizer::Words(vocabulary())).unwrap();
    }
    // A scan names every line.
    let folder = Folder::new(1);
    fs::copy(format!("{EMOJITINY}/emojitiny_precomp_vocab.json"), folder.file("x_vocab.json")).unwrap();
    folder.write("dev_precaps_stan.txt", b"1,x\n1,5000\n\n1,2\n1,2\n");
    let problems = scan(folder.0.path(), None, &mut |_| ()).unwrap().problems.join("\n");
    for line in 1..=3 {
        assert!(problems.contains(&format!("line {line}")), "{problems}");
    }
    // Half a pixel outside is rounding.
    let folder = Folder::new(1);
    folder.write("dev_ims_bbx.npy", &with(6, 40.5));
    folder.open().unwrap();
}

#[test]
fn what_is_missing_is_made_up_for_and_said() {
    let folder = Folder::new(1);
    fs::remove_file(folder.file("dev_caps.txt")).unwrap();
    let data = folder.open().unwrap();
    assert_eq!((data.text(4), data.captions()), ("<unk> ram", 5));
    let report = scan(folder.0.path(), None, &mut |_| ()).unwrap();
    assert!(report.is_ok() && report.notices.join(" ").contains("word ids only"), "{report:?}");
    fs::remove_file(folder.file("dev_precaps_stan.txt")).unwrap();
    let error = folder.open().unwrap_err().to_string();
    assert!(error.contains("dev_caps.txt"), "{error}");

    let folder = Folder::new(1);
    for name in ["dev_precaps_stan.txt", "dev_caps.json"] {
        fs::remove_file(folder.file(name)).unwrap();
    }
    let data = folder.open().unwrap();
    let notices = data.notices().join("\n");
    assert!(notices.contains("no dependency pairs") && notices.contains("vocabulary's words"), "{notices}");
    let tokens = data.tokens(&Tokenizer::Words(vocabulary()), 0).unwrap();
    let plan = BatchPlan { captions: vec![0, 1], ..BatchPlan::default() };
    let columns = assemble(&data, &tokens, &inputs(), &plan, None).unwrap().captions;
    assert_eq!(columns.at("captions").values, [1.0, 3.0, 4.0, 2.0].repeat(2));
    assert_eq!(
        (columns.at("depends").row.as_slice(), columns.at("depends_len").values.as_slice()),
        (&[1, 2][..], &[1.0, 1.0][..])
    );
    assert_eq!(columns.at("depends").values, [0.0; 4]);
}

#[test]
fn pairs_are_padded_and_a_limit_cuts_all_files_alike() {
    let folder = Folder::new(2);
    let mut pairs = ["[[0,2],[2,1]]"; 10];
    (pairs[1], pairs[2]) = ("[]", "[[0,1],[1,2],[1,3],[3,4],[3,5],[5,6]]");
    folder.write("dev_caps.json", format!("[{}]", pairs.join(",")).as_bytes());
    let mut data = Dataset::open(folder.0.path(), "dev", &Options { limit: Some(5), ..WORDS }).unwrap();
    let tokenizer = Tokenizer::Words(vocabulary());
    data.prepare(&inputs(), &tokenizer).unwrap();
    let tokens = data.tokens(&tokenizer, 0).unwrap();
    assert_eq!((data.captions(), tokens.len()), (5, 5));
    let of = |captions: Vec<usize>, pad_to_max| {
        let plan = BatchPlan { captions, ..BatchPlan::default() };
        assemble(&data, &tokens, &Inputs { pad_to_max, ..inputs() }, &plan, None).unwrap().captions
    };
    let columns = of(vec![0, 1], false);
    assert_eq!(columns.at("depends").row, [4, 2]);
    let first = [0.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(columns.at("depends").values, [first, [0.0; 8]].concat());
    assert_eq!(columns.at("depends_len").values, [2.0, 1.0]);
    assert_eq!(of(vec![0], true).at("depends").row, [6, 2]);
    assert_eq!(of(vec![2], false).at("depends").row, [6, 2]);
}

/// The published loader's boxes, each read of them and what its evaluation sees.
#[test]
fn boxes_are_divided_again_as_the_published_loader_does() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gsmn_eval_pipeline.safetensors");
    let fixture = Weights::open(Path::new(fixture)).unwrap();
    let folder = Folder::new(4);
    folder.write("dev_ims.npy", &array("<f4", "4, 36, 6", &floats(fixture.f32s("in.images").unwrap())));
    let pixels = floats(fixture.f32s("in.bboxes_pixels").unwrap());
    folder.write("dev_ims_bbx.npy", &array("<f4", "4, 36, 4", &pixels));
    let sides: Vec<i32> = fixture.ints("in.image_wh").unwrap().iter().map(|side| *side as i32).collect();
    folder.sizes(&sides);
    let mut data = Dataset::open(folder.0.path(), "dev", &WORDS).unwrap();
    let again = Inputs { boxes_again: Some(6), ..inputs() };
    data.prepare(&again, &Tokenizer::Words(vocabulary())).unwrap();
    assert!(data.notices().join(" ").contains("again"), "it is said");
    let read = |read: BoxRead| {
        let mut boxes = Vec::new();
        data.boxes_again(read.caption, read.times, &mut boxes);
        boxes
    };
    for times in [1, 2, 6, 7] {
        let expected = fixture.f32s(&format!("out.bbox_read_{times}")).unwrap();
        assert_eq!(read(BoxRead { caption: 0, times }), expected);
    }
    let mut once = Vec::new();
    data.boxes(0, &mut once);
    assert_eq!(once, fixture.f32s("out.bbox_read_1").unwrap(), "ours divides once");
    let seen = fixture.f32s("out.bbox_seen_by_encode_data").unwrap();
    let seen: Vec<&[f32]> = seen.chunks(36 * 4).collect();
    let [whole, folds] = [false, true].map(|folds| BoxRead::of_split(&data, 6, folds, 0));
    for image in 0..4 {
        assert_eq!(read(whole[image]), seen[image], "without folds: those of caption {image}");
        assert_eq!(read(folds[image]), seen[5 * image], "with folds: its own");
    }
    let later = BoxRead::of_split(&data, 6, false, 4);
    assert!(whole.iter().zip(later).all(|(first, later)| later.times == first.times + 20));
    // In f32 repeated division ends at nothing.
    assert!(read(BoxRead { caption: 0, times: 40 }).iter().all(|v| *v == 0.0));
}

/// The count of reads in training against a walk through the epochs, one row for five captions and one for each.
#[test]
fn training_counts_the_reads_of_a_row() {
    let folder = Folder::new(4);
    let data = folder.open().unwrap();
    let tokens = Arc::new(data.tokens(&Tokenizer::Words(vocabulary()), 0).unwrap());
    for row in [5, 1] {
        let options = SamplerOptions {
            boxes_again: Some(row),
            ..SamplerOptions::new(&Inputs { extra_images: 1, ..inputs() }, 6, 9)
        };
        let sampler = || Sampler::new(5, tokens.clone(), options).unwrap();
        let (mut walked, mut reads) = (sampler(), vec![0; 20 / row]);
        for epoch in 0..3 {
            for step in 0..walked.steps_per_epoch() {
                let plan = walked.plan(epoch, step);
                plan.captions.iter().for_each(|caption| reads[caption / row] += 1);
                assert_eq!(
                    (plan.boxes.len(), plan.images.len()),
                    (2 * plan.captions.len(), 2 * plan.captions.len())
                );
                for (i, read) in plan.boxes.iter().enumerate() {
                    assert_eq!(read.caption / 5, plan.images[i]);
                    assert_eq!(read.times, reads[read.caption / row], "epoch {epoch}, step {step}");
                }
                assert_eq!(sampler().plan(epoch, step), plan, "whatever came before");
            }
        }
    }
}

/// Rows that are there five times, as in SCAN's dev and test files: one row a caption.
#[test]
fn repeated_rows_have_boxes_of_their_own() {
    let folder = Folder::new(1);
    let features = floats([1.0f32; 6].repeat(5).into_iter().chain([2.0; 30]));
    folder.write("dev_ims.npy", &array("<f4", "10, 2, 3", &features));
    let boxes = (0..10).flat_map(|row| [0.0, 0.0, 10.0 + row as f32, 20.0, 5.0, 2.0, 40.0, 30.0]);
    folder.write("dev_ims_bbx.npy", &array("<f4", "10, 2, 4", &floats(boxes)));
    folder.sizes(&[40, 80].repeat(10));
    for (name, line) in [("dev_caps.txt", "qqq ram\n"), ("dev_precaps_stan.txt", "1,3,4,2\n")] {
        folder.write(name, line.repeat(10).as_bytes());
    }
    folder.write("dev_caps.json", format!("[{}]", ["[[0,2]]"; 10].join(",")).as_bytes());
    let data = folder.open().unwrap();
    assert_eq!((data.images(), data.captions_per_row()), (2, 1));
    let mut boxes = Vec::new();
    data.boxes(1, &mut boxes);
    assert_eq!(boxes[2], 15.0 / 40.0, "the image's first row");
    let reads = BoxRead::of_split(&data, 4, false, 0);
    assert_eq!(reads, [0, 1].map(|caption| BoxRead { caption, times: 2 }));
    let reads = BoxRead::of_split(&data, 4, true, 2);
    assert_eq!(reads, [0, 5].map(|caption| BoxRead { caption, times: 4 }));
}
