//! Features, captions and whole data folders, from real files.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossweave::data::batches::{Batch, BatchPlan, Sampler, SamplerOptions, Varied, assemble};
use crossweave::data::check::scan;
use crossweave::data::dataset::{Dataset, Options};
use crossweave::data::features::Features;
use crossweave::data::prefetch::Prefetch;
use crossweave::data::tokenizer::{TokenTable, WordPiece, build_vocab};
use crossweave::host::Inputs;
use half::f16;

const EMOJITINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/emojitiny_precomp");

/// The bytes of a `.npy` file of version 1.
fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    let padded = format!("{text:<width$}\n", width = (10 + text.len() + 1).next_multiple_of(64) - 11);
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((padded.len() as u16).to_le_bytes());
    file.extend(padded.as_bytes());
    file.extend(data);
    file
}

fn floats(rows: usize, regions: usize, dim: usize, value: impl Fn(usize) -> f32) -> Vec<u8> {
    let data: Vec<u8> = (0..rows * regions * dim).flat_map(|i| value(i).to_le_bytes()).collect();
    npy("<f4", "False", &format!("({rows}, {regions}, {dim})"), &data)
}

fn lines(n: usize) -> String {
    (0..n).map(|i| format!("caption {i}\n")).collect()
}

/// A folder with one split, "dev".
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(ims: &[u8], caps: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::write(folder.file("dev_ims.npy"), ims).unwrap();
        fs::write(folder.file("dev_caps.txt"), caps).unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self) -> crossweave::Result<Dataset> {
        Dataset::open(self.path(), "dev", &Options::default())
    }
}

fn features_of(bytes: &[u8]) -> crossweave::Result<Features> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    fs::write(&path, bytes).unwrap();
    Features::open(&path)
}

#[test]
fn the_three_float_types_read_alike() {
    let values: Vec<f32> = (0..2 * 3 * 4).map(|i| i as f32 / 8.0 - 1.0).collect();
    let shape = "(2, 3, 4)";
    let files = [
        npy(
            "<f2",
            "False",
            shape,
            &values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect::<Vec<_>>(),
        ),
        npy("<f4", "False", shape, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()),
        npy(
            "<f8",
            "False",
            shape,
            &values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect::<Vec<_>>(),
        ),
    ];
    for file in files {
        let folder = Folder::new(&file, "");
        let features = Features::open(&folder.file("dev_ims.npy")).unwrap();
        assert_eq!((features.len(), features.regions(), features.dim()), (2, 3, 4));
        let mut out = vec![7.0];
        features.read(1, &mut out).unwrap();
        assert_eq!(out[1..], values[12..]);
        assert!(features.read(2, &mut out).is_err());
    }
}

#[test]
fn unusable_arrays_are_refused_with_the_reason() {
    let data = [0; 96];
    let cases = [
        (npy("<f4", "True", "(2, 3, 4)", &data), "Fortran"),
        (npy(">f4", "False", "(2, 3, 4)", &data), "big-endian"),
        (npy("|O", "False", "(2, 3, 4)", &data), "pickled Python objects"),
        (npy("<i4", "False", "(2, 3, 4)", &data), "integers"),
        (npy("|u1", "False", "(2, 3, 16)", &data), "integers"),
        (npy("<c8", "False", "(2, 3, 2)", &data), "another type"),
        (npy("<f4", "False", "(6, 4)", &data), "three dimensions"),
        (npy("<f4", "False", "(1, 2, 3, 4)", &data), "three dimensions"),
        (npy("<f4", "False", "()", &data[..4]), "three dimensions"),
        (npy("<f4", "False", "(0, 3, 4)", &[]), "none of them zero"),
        (npy("<f4", "False", "(2, 3, 4)", &data[..95]), "cut short"),
        (npy("<f4", "False", "(2, 3, 3)", &data), "longer than its header says"),
        (npy("<f4", "False", "(99999999, 99999999, 99)", &data), "cut short"),
        (npy("<f4", "False", "(99999999999, 99999999999, 4)", &data), "no plain float array"),
        (npy("<f4", "False", "(-2, 3, 4)", &data), "negative"),
        (npy("<f4", "False", &format!("({}2, 3, 4)", "-".repeat(9001)), &data), "negative"),
        (npy("<f4", "False", &format!("({}2, 3, 4)", "'a',".repeat(2400)), &data), "must be an integer"),
        (npy("[('x', '<f4')]", "False", "(2, 3, 4)", &data), "no plain float array"),
        (npy("<f4", "False", &"(".repeat(5000), &data), "no plain float array"),
        (npy("<f4", "False", &format!("(2, 3, 4{})", " ".repeat(20_000)), &data), "too long"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(), "too long"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr'".to_vec(), "ends within its header"),
        (b"\x93NUMPY\x01".to_vec(), "no .npy file"),
        (b"\x93NUMPY\x09\x00\x76\x00".to_vec(), "format version 9"),
        (b"PK\x03\x04 an npz archive".to_vec(), "no .npy file"),
        (Vec::new(), "no .npy file"),
    ];
    for (bytes, reason) in cases {
        let e = features_of(&bytes).unwrap_err().to_string();
        assert!(e.contains(reason) && e.contains("x.npy"), "wanted \"{reason}\": {e}");
    }
    assert!(Features::open(Path::new(EMOJITINY)).is_err(), "a folder is no file");
}

#[test]
fn numbers_that_are_none_name_their_place() {
    let folder =
        Folder::new(&floats(5, 3, 4, |i| if i == 12 * 3 + 4 + 2 { f32::NAN } else { 1.0 }), &lines(25));
    let data = folder.open().unwrap();
    let mut out = vec![7.0];
    data.image(2, &mut out).unwrap();
    assert_eq!(out.len(), 13);
    let e = data.image(3, &mut out).unwrap_err();
    assert_eq!(e.kind(), crossweave::Kind::NonFinite);
    let text = e.to_string();
    assert!(text.contains("dev_ims.npy: ") && text.contains("NaN in row 3, region 1, column 2"), "{text}");
    assert_eq!(out.len(), 13, "nothing of the bad row is left");
    let large = npy("<f8", "False", "(1, 1, 2)", &[1.0_f64, 1e39].map(f64::to_le_bytes).concat());
    let folder = Folder::new(&large, &lines(1));
    assert!(
        folder
            .open()
            .unwrap()
            .image(0, &mut out)
            .unwrap_err()
            .to_string()
            .contains("1e39, which is beyond f32, in row 0")
    );
}

#[test]
fn a_file_cut_after_opening_is_an_error_and_no_crash() {
    let folder = Folder::new(&floats(500, 4, 4, |i| i as f32), &lines(500));
    let data = folder.open().unwrap();
    fs::OpenOptions::new().write(true).open(folder.file("dev_ims.npy")).unwrap().set_len(200).unwrap();
    let e = data.image(499, &mut Vec::new()).unwrap_err().to_string();
    assert!(e.contains("cut short"), "{e}");
}

#[test]
fn layouts_are_told_apart_by_counts_and_rows() {
    let layout = |ims: &[u8], captions: usize| {
        let data = Folder::new(ims, &lines(captions)).open().unwrap();
        let mut last = Vec::new();
        data.image(data.images() - 1, &mut last).unwrap();
        assert_eq!(data.image_of(data.captions() - 1), data.images() - 1);
        (data.images(), data.captions_per_image(), last[0])
    };
    // One row an image, five captions each.
    assert_eq!(layout(&floats(3, 2, 2, |i| i as f32), 15), (3, 5, 8.0));
    // Every row five times.
    assert_eq!(layout(&floats(15, 2, 2, |i| (i / 20) as f32), 15), (3, 5, 2.0));
    // One caption an image.
    assert_eq!(layout(&floats(15, 2, 2, |i| i as f32), 15), (15, 1, 56.0));
}

#[test]
fn a_large_file_is_told_by_parts_of_its_rows() {
    // 74 MB of zeros, most of it a hole: past the size up to which rows are compared whole.
    let header = npy("<f4", "False", "(500, 36, 1024)", &[]);
    let folder = Folder::new(&header, &lines(500));
    let end = header.len() as u64 + 500 * 36 * 1024 * 4;
    let mut file = fs::OpenOptions::new().write(true).open(folder.file("dev_ims.npy")).unwrap();
    file.set_len(end).unwrap();
    assert_eq!(folder.open().unwrap().images(), 100);
    file.seek(SeekFrom::Start(end - 4)).unwrap();
    file.write_all(&1.0_f32.to_le_bytes()).unwrap();
    let e = folder.open().unwrap_err().to_string();
    assert!(e.contains("row 499 is unlike row 498"), "{e}");
}

#[test]
fn counts_that_do_not_match_are_refused_unless_told() {
    let folder = Folder::new(&floats(4, 2, 2, |i| i as f32), &lines(12));
    let e = folder.open().unwrap_err().to_string();
    assert!(e.contains("4 rows of features, 12 captions") && e.contains("--captions-per-image 3"), "{e}");
    let told = |k| {
        Dataset::open(folder.path(), "dev", &Options { captions_per_image: Some(k), ..Options::default() })
    };
    assert_eq!(told(3).unwrap().images(), 4);
    assert!(told(2).is_err() && told(0).is_err() && told(usize::MAX).is_err());
    let e = Folder::new(&floats(4, 2, 2, |i| i as f32), &lines(19)).open().unwrap_err().to_string();
    assert!(e.contains("4 rows of features, 19 captions") && e.contains("incomplete"), "{e}");
}

#[test]
fn a_limit_keeps_whole_images() {
    let folder = Folder::new(&floats(10, 2, 2, |i| i as f32), &lines(50));
    let limited = |n| {
        let data =
            Dataset::open(folder.path(), "dev", &Options { limit: Some(n), ..Options::default() }).unwrap();
        (data.images(), data.captions())
    };
    assert_eq!([limited(20), limited(24), limited(2), limited(5000)], [(4, 20), (4, 20), (1, 5), (10, 50)]);
}

#[test]
fn missing_files_and_splits_are_named() {
    let folder = Folder::new(&floats(1, 1, 1, |_| 0.0), "a\n");
    let e = Dataset::open(folder.path(), "train", &Options::default()).unwrap_err().to_string();
    assert!(e.contains("train_ims.npy, no ") && e.contains("in this folder: dev"), "{e}");
    fs::remove_file(folder.file("dev_caps.txt")).unwrap();
    assert!(folder.open().unwrap_err().to_string().contains("dev_caps.txt"));
    assert!(Dataset::open(Path::new("no/such/folder"), "dev", &Options::default()).is_err());
}

#[test]
fn the_demo_data_opens_and_is_clean() {
    let train = Dataset::open(Path::new(EMOJITINY), "train", &Options { strict: true, ..Options::default() })
        .unwrap();
    assert_eq!((train.images(), train.captions(), train.regions(), train.dim()), (240, 1200, 36, 64));
    assert_eq!(train.text(0), "ram");
    let mut last = 0;
    let report = scan(Path::new(EMOJITINY), None, &mut |progress| last = progress.done).unwrap();
    assert!(report.is_ok() && report.notices.is_empty(), "{report:?}");
    // Of features, and of pictures.
    assert_eq!((report.splits.len(), last), (6, 240));
}

#[test]
fn a_check_reports_everything_at_once() {
    let folder = Folder::new(&floats(10, 2, 2, |i| if i % 8 == 5 { f32::INFINITY } else { 0.0 }), "a\n\nb\n");
    fs::write(folder.file("train_ims.npy"), floats(2, 2, 3, |i| i as f32)).unwrap();
    fs::write(folder.file("train_caps.txt"), lines(10)).unwrap();
    fs::write(folder.file("test_ims.npy"), &floats(2, 2, 2, |i| i as f32)[..100]).unwrap();
    let report = scan(folder.path(), None, &mut |_| ()).unwrap();
    let problems = report.problems.join("\n");
    for wanted in [
        "dev_ims.npy: inf in row 1, region 0, column 1",
        "inf in row 9",
        "10 rows of features, 3 captions",
        "the train split's features are not as wide as those of dev",
        "test_caps.txt",
        "test_ims.npy: the .npy file ends within its header",
    ] {
        assert!(problems.contains(wanted), "wanted \"{wanted}\":\n{problems}");
    }
    assert_eq!(report.problems.len(), 5 + 1 + 1 + 2, "{problems}");
    assert!(report.notices.join("\n").contains("1 empty caption: line 2"));
    assert_eq!(report.splits.len(), 1);
    assert!(!scan(tempfile::tempdir().unwrap().path(), None, &mut |_| ()).unwrap().is_ok());
}

/// Rows that repeat in groups of these sizes, a value a group.
fn groups(sizes: &[usize]) -> Vec<u8> {
    let values: Vec<usize> = sizes.iter().enumerate().flat_map(|(i, n)| vec![i; *n]).collect();
    floats(values.len(), 2, 2, |i| values[i / 4] as f32)
}

#[test]
fn rows_that_repeat_in_part_are_refused_with_the_first_that_breaks_the_groups() {
    let cases: [(&[usize], &str, &str); 5] = [
        (&[5, 6, 4], "row 11 is unlike row 10, though rows 10 to 14", "--captions-per-image 1"),
        (&[5, 4, 1], "row 9 is unlike row 8", "--captions-per-image 1"),
        (&[5, 5, 4], "from row 10 on are no whole group", "--captions-per-image 1"),
        (&[4, 4, 4], "row 4 is unlike row 3", "--captions-per-image 4"),
        (&[1, 1, 1, 2, 1], "row 1 is unlike row 0", "--captions-per-image 1"),
    ];
    for (sizes, found, cure) in cases {
        let rows = sizes.iter().sum();
        let folder = Folder::new(&groups(sizes), &lines(rows));
        let e = folder.open().unwrap_err().to_string();
        assert!(e.contains(found) && e.contains(cure), "{sizes:?}: {e}");
        let problems = scan(folder.path(), None, &mut |_| ()).unwrap().problems.join("\n");
        assert!(problems.contains(found), "{sizes:?}: {problems}");
        let k = cure.rsplit(' ').next().unwrap().parse().unwrap();
        let told = Options { captions_per_image: Some(k), ..Options::default() };
        assert_eq!(Dataset::open(folder.path(), "dev", &told).unwrap().images(), rows / k);
        let told = Options { captions_per_image: Some(3), ..Options::default() };
        assert!(Dataset::open(folder.path(), "dev", &told).is_err(), "{sizes:?} in threes");
    }
}

fn inputs() -> Inputs {
    let captions = &["input_ids", "attention_mask", "lengths"];
    Inputs { images: &["images"], captions, pad_to_max: true, ..Inputs::default() }
}

/// Regions are left out and words changed as often as asked, anew in every epoch, and the same for the same seed.
#[test]
fn training_varies_regions_and_words() {
    let text = "red green blue white black grey pink gold\n".repeat(40);
    let folder = Folder::new(&floats(8, 30, 2, |i| 1.0 + i as f32), &text);
    let (data, sampler) = made(&folder, 40);
    let inputs = Inputs {
        images: &["images", "image_lengths"],
        captions: &["captions", "lengths"],
        drop_regions: 0.2,
        mask_words: 0.2,
        pad_to_max: false,
        ..inputs()
    };
    let plan = BatchPlan {
        captions: (0..40).collect(),
        images: (0..40).map(|c| c / 5).collect(),
        ..BatchPlan::default()
    };
    let batch =
        |epoch| assemble(&data, sampler.tokens(), &inputs, &plan, Some(Varied { seed: 3, epoch })).unwrap();
    let first = batch(0);
    assert_eq!(first, batch(0));
    assert_ne!(first, batch(1));
    let lengths = &first.images.at("image_lengths").values;
    let mean = lengths.iter().sum::<f32>() / 40.0;
    // 30 regions, each kept with probability 0.8: deviation of the mean of 40 is 0.35.
    assert!((22.5..25.5).contains(&mean), "{mean}");
    let column = first.images.at("images");
    assert_eq!(column.row[0], lengths.iter().fold(0.0f32, |a, b| a.max(*b)) as usize);
    for (image, n) in column.values.chunks(column.width()).zip(lengths) {
        let (kept, padding) = image.split_at(2 * *n as usize);
        assert!(kept.iter().all(|v| *v > 0.0) && kept.is_sorted() && padding.iter().all(|v| *v == 0.0));
    }
    let plain = assemble(&data, sampler.tokens(), &inputs, &plan, None).unwrap();
    assert!(plain.images.at("image_lengths").values.iter().all(|n| *n == 30.0));
    let words = |b: &Batch| b.captions.at("lengths").values.iter().sum::<f32>();
    // Of 320 words 8 % are deleted: 26, deviation 5.
    assert!((8.0..44.0).contains(&(words(&plain) - words(&first))), "{}", words(&plain) - words(&first));
    assert!(first.captions.at("captions").values.iter().all(|id| *id >= 0.0));
}

/// A batch is as wide as its own longest caption, in fours; as the longest there may be only where padding counts.
#[test]
fn a_batch_of_short_captions_is_no_wider_than_they_are() {
    let text =
        "red\nred green\nred green blue white black grey\nred\n".to_owned() + &"pink gold ".repeat(8) + "\n";
    let folder = Folder::new(&floats(1, 2, 2, |i| i as f32), &text);
    let data = folder.open().unwrap();
    let pieces = WordPiece::from_vocab(build_vocab(data.texts(), 100)).unwrap();
    let tokens = TokenTable::new(&pieces, data.texts(), 32);
    let captions = &["input_ids", "attention_mask", "lengths"];
    let of = |captions_of: &[usize], pad_to_max| {
        let plan = BatchPlan { captions: captions_of.to_vec(), ..BatchPlan::default() };
        let batch =
            assemble(&data, &tokens, &Inputs { captions, pad_to_max, ..inputs() }, &plan, None).unwrap();
        assert_eq!(batch.captions.at("input_ids").row, [batch.words]);
        assert_eq!(batch.captions.at("attention_mask").row, [batch.words]);
        batch.words
    };
    let longest = tokens.length(4);
    assert!(longest > tokens.length(2) + 4 && tokens.length(2) > tokens.length(0) + 4);
    for (batch, of_longest) in [(&[0, 3][..], 0), (&[0, 1, 2], 2), (&[4, 0], 4)] {
        let want = tokens.length(of_longest).next_multiple_of(4).min(tokens.words());
        assert_eq!(of(batch, false), want, "{batch:?}");
        assert_eq!(of(batch, true), tokens.words());
    }
}

fn made(folder: &Folder, batch_size: usize) -> (Arc<Dataset>, Sampler) {
    let data = Arc::new(folder.open().unwrap());
    let pieces = WordPiece::from_vocab(build_vocab(data.texts(), 100)).unwrap();
    let tokens = Arc::new(TokenTable::new(&pieces, data.texts(), 6));
    let options =
        SamplerOptions::new(&Inputs { extra_captions: 1, exclude_own: true, ..inputs() }, batch_size, 3);
    let sampler = Sampler::new(data.captions_per_image(), tokens, options).unwrap();
    (data, sampler)
}

#[test]
fn a_batch_holds_the_features_and_tokens_of_its_plan() {
    let folder =
        Folder::new(&floats(3, 2, 2, |i| i as f32), "a dog\na\n\na b c d e f\na\n".repeat(3).as_str());
    let (data, sampler) = made(&folder, 4);
    let plan = BatchPlan { captions: vec![3, 0, 2], images: vec![2, 0, 2], ..BatchPlan::default() };
    let batch = assemble(&data, sampler.tokens(), &inputs(), &plan, None).unwrap();
    let (images, captions) = (&batch.images, &batch.captions);
    assert_eq!((images.len(), images.at("images").row.as_slice()), (3, &[2, 2][..]));
    assert_eq!((captions.len(), batch.words), (3, 6));
    assert_eq!(images.at("images").values, [8., 9., 10., 11., 0., 1., 2., 3., 8., 9., 10., 11.]);
    assert_eq!(captions.at("lengths").values, [6., 4., 2.]);
    let mask = [[1.; 6], [1., 1., 1., 1., 0., 0.], [1., 1., 0., 0., 0., 0.]].concat();
    assert_eq!(captions.at("attention_mask").values, mask);
    let ids = &captions.at("input_ids").values;
    assert_eq!(ids[12..], [2., 3., 0., 0., 0., 0.]);
    assert_eq!((ids[6], ids[9], ids[10]), (2., 3., 0.));
    assert_eq!((batch.caption_ids, batch.image_ids), (plan.captions, plan.images));
    let missing = BatchPlan { captions: vec![15], ..BatchPlan::default() };
    assert!(assemble(&data, sampler.tokens(), &inputs(), &missing, None).is_err());
}

#[test]
fn prefetched_batches_are_those_of_the_plan_from_any_step() {
    let folder = Folder::new(&floats(4, 2, 2, |i| i as f32), &lines(20));
    let (data, mut sampler) = made(&folder, 6);
    let mut running = Prefetch::start(data.clone(), inputs(), sampler.clone(), 0, 0, 2).unwrap();
    let mut resumed = Prefetch::start(data.clone(), inputs(), sampler.clone(), 0, 3, 1).unwrap();
    for i in 0..11 {
        let placed = running.next_batch().unwrap();
        assert_eq!((placed.epoch, placed.step), (i / 4, i % 4));
        let plan = sampler.plan(placed.epoch, placed.step);
        assert_eq!(placed.batch, assemble(&data, sampler.tokens(), &inputs(), &plan, None).unwrap());
        if i >= 3 {
            assert_eq!(resumed.next_batch().unwrap(), placed);
        }
    }
    let mut next = Prefetch::start(data, inputs(), sampler, 5, 4, 1).unwrap();
    let placed = next.next_batch().unwrap();
    assert_eq!((placed.epoch, placed.step), (6, 0), "past an epoch's end is the next one");
}

#[test]
fn prefetch_forwards_errors_and_ends_when_dropped() {
    let folder = Folder::new(&floats(2, 2, 2, |i| if i == 5 { f32::NAN } else { 0.0 }), &lines(10));
    let (data, sampler) = made(&folder, 10);
    let mut prefetch = Prefetch::start(data.clone(), inputs(), sampler.clone(), 0, 0, 2).unwrap();
    assert!(prefetch.next_batch().unwrap_err().to_string().contains("NaN in row 1"));
    assert!(prefetch.next_batch().is_err(), "and does not hang");
    let clean = Folder::new(&floats(2, 2, 2, |i| i as f32), &lines(10));
    let (data, sampler) = made(&clean, 1);
    let prefetch = Prefetch::start(data.clone(), inputs(), sampler, 0, 0, 1).unwrap();
    drop(prefetch);
    assert_eq!(Arc::strong_count(&data), 1, "its thread is gone");
}
