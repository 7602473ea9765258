use super::*;

/// A folder of small files; pictures need only be there.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        files.iter().for_each(|(name, text)| folder.put(name, text.as_bytes()));
        folder
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, bytes).expect("written");
    }

    fn open(&self, split: &str) -> Result<Captioned> {
        open(self.0.path(), split, None)
    }

    /// The names of the pictures and the captions.
    fn read(&self, split: &str) -> (Vec<String>, Vec<String>, usize) {
        let read = self.open(split).expect("a split");
        assert_eq!(read.texts.len(), read.files.len() * read.captions_per_image);
        (self.names(&read), read.texts, read.captions_per_image)
    }

    fn names(&self, read: &Captioned) -> Vec<String> {
        let name = |file: &PathBuf| file.strip_prefix(self.0.path()).expect("within").display().to_string();
        read.files.iter().map(name).collect()
    }

    fn refused(&self, split: &str, parts: &[&str]) {
        let error = self.open(split).expect_err("wrong").to_string();
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
        assert!(error.contains("cure: ") || error.contains("expected: "), "{error}");
    }
}

const KARPATHY: &str = r#"{"images": [
    {"filename": "a.png", "imgid": 0, "split": "train", "sentids": [0, 1], "sentences": [
        {"raw": "a dog ", "tokens": ["a", "dog"], "imgid": 0, "sentid": 0}, {"raw": "one dog", "tokens": []}]},
    {"filename": "b.png", "filepath": "sub", "split": "val", "sentences": [{"raw": "a cat"}, {"raw": "one cat"}]},
    {"filename": "c.png", "split": "train", "sentences": [{"raw": "a cow"}, {"raw": "one cow"}, {"raw": "cows"}]},
    {"filename": "d.png", "split": "restval", "sentences": [{"raw": "a hen"}]},
    {"filename": "e.png", "split": "test", "sentences": [{"raw": "\u00e4 \u00a0"}]}], "dataset": "tiny"}"#;

fn karpathy() -> Folder {
    let pictures = ["images/a.png", "images/sub/b.png", "images/c.png", "images/d.png", "e.png"];
    let folder = Folder::new(&[("dataset_tiny.json", KARPATHY)]);
    pictures.iter().for_each(|name| folder.put(name, b""));
    folder
}

#[test]
fn karpathys_splits_are_read_in_their_order() {
    let folder = karpathy();
    let texts = ["a dog", "one dog", "a cow", "one cow"].map(str::to_owned).to_vec();
    let names = ["images/a.png", "images/c.png"].map(str::to_owned).to_vec();
    assert_eq!(folder.read("train"), (names, texts, 2));
    let train = folder.open("train").expect("a split");
    assert!(
        train.notices[0].contains("1 captions past a picture's first 2 are not read"),
        "{:?}",
        train.notices
    );
    for dev in ["dev", "val"] {
        assert_eq!(folder.read(dev).0, ["images/sub/b.png"]);
    }
    assert_eq!(folder.read("restval").1, ["a hen"]);
    assert_eq!(folder.read("test").0, ["e.png"], "pictures may be in the folder itself");
    assert_eq!(splits(folder.0.path()), ["dev", "restval", "test", "train"]);
    let all = all(folder.0.path(), None).expect("all");
    assert_eq!(all.iter().map(|(_, texts)| texts.len()).collect::<Vec<_>>(), [2, 2, 3, 1, 1]);
    folder.refused("other", &["\"other\" split", "dev, restval, test, train", "dataset_tiny.json"]);
}

#[test]
fn the_demo_folder_is_read_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/emojitiny_precomp");
    assert_eq!(splits(&folder), ["dev", "test", "train"]);
    for (split, pictures) in [("train", 240), ("dev", 60), ("test", 60)] {
        let read = open(&folder, split, None).expect("a split");
        assert_eq!((read.files.len(), read.captions_per_image), (pictures, 5));
        assert_eq!(read.texts.len(), 5 * pictures);
        assert!(read.notices.is_empty(), "{:?}", read.notices);
        // The features' files hold the same captions in the same order.
        let caps = captions::read(&folder.join(format!("{split}_caps.txt")), true).expect("captions");
        assert_eq!(read.texts, caps.texts);
    }
}

#[test]
fn wrong_files_of_karpathys_form_are_refused() {
    let folder =
        |json: &str| Folder::new(&[("dataset_x.json", json), ("images/a.png", ""), ("images/b.png", "")]);
    let image = |name: &str, texts: &str| {
        format!("{{\"filename\": \"{name}\", \"split\": \"train\", \"sentences\": [{texts}]}}")
    };
    let of = |images: &[String]| format!("{{\"images\": [{}]}}", images.join(","));
    let dog = "{\"raw\": \"a dog\"}";
    let twice = of(&[image("a.png", dog), image("./a.png", dog)]);
    folder(&twice).refused("train", &["in the file twice", "a.png", "dataset_x.json"]);
    folder(&of(&[image("../a.png", dog)])).refused("train", &["leads out", "../a.png"]);
    folder(&of(&[image("/etc/a.png", dog)])).refused("train", &["leads out", "/etc/a.png"]);
    folder(&of(&[image("", dog)])).refused("train", &["has no name"]);
    folder(&of(&[image("a.png", "")])).refused("train", &["no picture has a caption"]);
    folder(&of(&[])).refused("train", &["no picture in the \"train\" split"]);
    folder("").refused("train", &["is empty"]);
    folder("{\"images\": [{\"filename\": \"a.png\"")
        .refused("train", &["not understood", "EOF", "copy or download"]);
    folder("{\"images\": [{\"filename\": \"a.png\", \"sentences\": []}]}")
        .refused("train", &["missing field `split`"]);
    folder("[1]").refused("train", &["not understood"]);
    folder("<!doctype html>").refused("train", &["web page"]);
    let two = folder("{}");
    two.put("dataset_y.json", b"{}");
    two.refused("train", &["dataset_x.json and dataset_y.json", "move the one"]);
}

#[test]
fn missing_pictures_are_named_at_once() {
    let lines: String = (0..30).map(|i| format!("{i:02}.png\ta dog\n")).collect();
    let folder = Folder::new(&[("train_captions.tsv", &lines), ("images/05.png", ""), ("07.png", "")]);
    let images = folder.0.path().join("images").display().to_string();
    folder.refused(
        "train",
        &["28 of 30 pictures are missing", "no 00.png, 01.png, ", "11.png and 18 more", &images],
    );
    let error = folder.open("train").expect_err("missing").to_string();
    assert!(!error.contains("05.png") && !error.contains("07.png") && !error.contains("12.png"), "{error}");
    assert!(all(folder.0.path(), None).is_err());
}

/// COCO's files of so many images a set, five captions each, with one caption more for the first.
fn coco(images: usize) -> Folder {
    let folder = Folder::new(&[]);
    for (set, first) in [("train2014", 100), ("val2014", 200_000)] {
        let mut file = serde_json::json!({"info": {}, "images": [], "annotations": []});
        let push = |file: &mut serde_json::Value, list: &str, item| {
            file[list].as_array_mut().expect("a list").push(item);
        };
        push(
            &mut file,
            "annotations",
            serde_json::json!({"id": 1, "image_id": first, "caption": "not chosen"}),
        );
        for i in 0..images {
            let (id, name) = (first + i, format!("COCO_{set}_{i:03}.jpg"));
            folder.put(&format!("images/{set}/{name}"), b"");
            push(&mut file, "images", serde_json::json!({"id": id, "file_name": name, "license": 3}));
            for k in (0..5).rev() {
                let caption = format!("caption {k} of {id}\n");
                push(
                    &mut file,
                    "annotations",
                    serde_json::json!({"image_id": id, "id": 10 * id + k, "caption": caption}),
                );
            }
        }
        folder.put(&format!("annotations/captions_{set}.json"), file.to_string().as_bytes());
    }
    let ids = |first: usize, images: &[usize]| -> Vec<i64> {
        images.iter().flat_map(|i| (0..5).map(move |k| (10 * (first + i) + k) as i64)).collect()
    };
    folder.put("annotations/coco_train_ids.npy", &npy(&ids(100, &[2, 0])));
    folder.put("annotations/coco_dev_ids.npy", &npy(&ids(200_000, &[1])));
    folder.put("annotations/coco_test_ids.npy", &npy(&ids(200_000, &[2, 0])));
    folder
}

fn array(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.extend(data);
    bytes
}

fn npy(ids: &[i64]) -> Vec<u8> {
    let data: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    array("<i8", &format!("({},)", ids.len()), &data)
}

#[test]
fn cocos_captions_are_chosen_by_their_ids() {
    let folder = coco(3);
    let (names, texts, k) = folder.read("train");
    assert_eq!(names, ["images/train2014/COCO_train2014_002.jpg", "images/train2014/COCO_train2014_000.jpg"]);
    assert_eq!((texts[0].as_str(), texts[5].as_str(), k), ("caption 0 of 102", "caption 0 of 100", 5));
    assert_eq!(folder.read("dev").1[4], "caption 4 of 200001");
    assert_eq!(folder.read("val"), folder.read("dev"));
    assert_eq!(folder.read("test").0[1], "images/val2014/COCO_val2014_000.jpg");
    assert_eq!(splits(folder.0.path()), ["dev", "test", "train"]);
    assert_eq!(all(folder.0.path(), None).expect("all").len(), 5);
    folder.refused("restval", &["\"restval\" split", "dev, test, train"]);
    folder.put("dataset_coco.json", b"{}");
    let notices = folder.open("train").expect("a split").notices.join("\n");
    assert!(notices.contains("not ") && notices.contains("dataset_coco.json"), "{notices}");
    // Ids of four bytes are ids too.
    let four: Vec<u8> = (0..5).flat_map(|k| (1010_i32 + k).to_le_bytes()).collect();
    folder.put("annotations/coco_train_ids.npy", &array("<i4", "(5,)", &four));
    assert_eq!(folder.read("train").1[0], "caption 0 of 101");
}

#[test]
fn cocos_dev_is_its_first_thousand_images() {
    let folder = coco(1_001);
    let ids: Vec<i64> = (0..1_001).flat_map(|i| (0..5).map(move |k| 10 * (200_000 + i) + k)).collect();
    folder.put("annotations/coco_dev_ids.npy", &npy(&ids));
    let dev = folder.open("dev").expect("a split");
    assert_eq!(dev.files.len(), 1_000);
    assert!(dev.notices[0].contains("the first 1000 images of 1001"), "{:?}", dev.notices);
    folder.put("annotations/coco_test_ids.npy", &npy(&ids));
    assert_eq!(folder.open("test").expect("a split").files.len(), 1_001);
}

#[test]
fn wrong_files_of_cocos_form_are_refused() {
    let folder = coco(3);
    let refused = |bytes: &[u8], parts: &[&str]| {
        folder.put("annotations/coco_train_ids.npy", bytes);
        folder.refused("train", parts);
    };
    refused(&npy(&[1000, 1001, 1002]), &["no whole images", "3 ids", "coco_train_ids.npy"]);
    refused(&npy(&[1000, 1001, 1002, 1003, 1010]), &["of several images", "1010", "image 100"]);
    refused(
        &npy(&[1000, 1001, 1002, 1003, 9, 8, 7, 6, 5, 4]),
        &["unknown captions", "9, 8, 7", "captions_train2014.json"],
    );
    let twice: Vec<i64> = (1000..1005).chain(1000..1005).collect();
    refused(&npy(&twice), &["in the ids twice", "COCO_train2014_000.jpg"]);
    refused(&array("<f8", "(5,)", &[0; 40]), &["no integers", "<f8", "int64"]);
    refused(&array("|O", "(5,)", &[0; 40]), &["no integers"]);
    refused(&array(">i8", "(5,)", &[0; 40]), &["unusual type"]);
    refused(&array("<i8", "(1, 5)", &[0; 40]), &["no list", "[1, 5]"]);
    refused(&array("<i8", "(5,)", &[0; 39]), &["another length"]);
    refused(b"ids", &["no .npy file"]);
    refused(&npy(&[]), &["no picture in the \"train\" split"]);
    std::fs::remove_file(folder.0.path().join("annotations/captions_val2014.json")).expect("removed");
    folder.refused("dev", &["captions_val2014.json"]);
    for split in ["train", "dev", "test"] {
        std::fs::remove_file(folder.0.path().join(format!("annotations/coco_{split}_ids.npy")))
            .expect("removed");
    }
    folder.refused("train", &["without the id arrays", "dataset_coco.json"]);
}

/// One caption file that is not divided.
fn given(name: &str, text: &[u8]) -> Folder {
    let folder = Folder::new(&[("images/a.jpg", ""), ("images/sub/b.jpg", ""), ("c.jpg", "")]);
    folder.put(&format!("train_captions.{name}"), text);
    folder
}

#[test]
fn every_form_of_a_caption_file_says_the_same() {
    let tsv = "a.jpg\ta dog\nsub/b.jpg\t cats\t, two \r\n\nimages/a.jpg\tone dog\nc.jpg\tcow\n./sub/b.jpg\t\u{e4}\nc.jpg\ta cow";
    let flickr = "a.jpg#0\ta dog\nsub/b.jpg#0\tcats\t, two\na.jpg#1\tone dog\nc.jpg#0\tcow\nsub/b.jpg#1\t\u{e4}\nc.jpg#1\ta cow\n";
    let csv = "image,caption\na.jpg,a dog\nsub/b.jpg,\"cats\t, two\"\n\"a.jpg\",one dog\nc.jpg,cow\nsub/b.jpg,\u{e4}\nc.jpg,a cow";
    let list = r#"[{"image": "a.jpg", "caption": "a dog"}, {"filename": "sub/b.jpg", "captions": ["cats\t, two", "ä"]},
        {"image": "a.jpg", "caption": "one dog", "more": 1}, {"image": "c.jpg", "caption": ["cow", "a cow"]}]"#;
    let lines = "{\"image\": \"a.jpg\", \"caption\": [\"a dog\", \"one dog\"]}\r\n\n{\"image\": \"sub/b.jpg\", \"caption\": \"cats\\t, two\"}\n\
        {\"image\": \"sub/b.jpg\", \"caption\": \"\u{e4}\"}\n{\"image\": \"c.jpg\", \"caption\": [\"cow\", \"a cow\"]}";
    let object = r#"{"a.jpg": ["a dog", "one dog"], "sub/b.jpg": ["cats\t, two", "ä"], "images/c.jpg": ["cow", "a cow"]}"#;
    let cases = [
        ("tsv", tsv),
        ("txt", flickr),
        ("txt", csv),
        ("csv", csv),
        ("json", list),
        ("jsonl", lines),
        ("json", object),
    ];
    for (ending, text) in cases {
        for bom in ["", "\u{feff}"] {
            let folder = given(ending, format!("{bom}{text}").as_bytes());
            let (names, texts, k) = folder.read("train");
            assert_eq!(names, ["images/a.jpg", "images/sub/b.jpg", "c.jpg"], "{ending}");
            assert_eq!(texts, ["a dog", "one dog", "cats\t, two", "\u{e4}", "cow", "a cow"], "{ending}");
            assert_eq!(k, 2);
        }
    }
    let headed = given("tsv", b"image\tcaption\na.jpg\ta dog\n");
    assert_eq!(headed.read("train").1, ["a dog"]);
}

#[test]
fn quoted_fields_are_unquoted() {
    let cases = [
        ("\"A dog, two cats\"", "A dog, two cats"),
        ("\"She said \"\"sit\"\"\"", "She said \"sit\""),
        ("A dog, \"Rex\"", "A dog, \"Rex\""),
        ("\"Rex\" and \"Max\"", "\"Rex\" and \"Max\""),
    ];
    for (field, text) in cases {
        let folder = given("csv", format!("a.jpg,{field}\n").as_bytes());
        assert_eq!(folder.read("train").1, [text]);
    }
    given("csv", b"image,caption\na.jpg,\"A dog\nand a cat\"\n")
        .refused("train", &["line 2", "does not end on its line"]);
}

#[test]
fn wrong_caption_files_are_refused() {
    let cases: [(&str, &[u8], &[&str]); 18] = [
        ("tsv", b"", &["is empty"]),
        ("tsv", b"\n\n", &["no caption"]),
        ("tsv", b"a.jpg\ta dog\nno tab here\n", &["line 2", "no TAB", "no tab here"]),
        ("tsv", b"\ta dog\n", &["no picture", "line 1"]),
        ("tsv", b"../a.jpg\ta dog\n", &["leads out", "../a.jpg, line 1"]),
        ("tsv", b"/a.jpg\ta dog\n", &["leads out"]),
        (
            "tsv",
            b"a.jpg\ta dog\nc.jpg\ta\nimages/a.jpg\ta dog\n",
            &["same caption twice", "line 3, of a.jpg", "delete these lines"],
        ),
        ("tsv", b"z.jpg\ta dog\n", &["a picture is missing", "no z.jpg", "train_captions.tsv"]),
        ("tsv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x40\0\0", &["no text"]),
        ("csv", b"a.jpg,a dog\nnothing\n", &["line 2", "no comma"]),
        ("json", b"", &["is empty"]),
        ("json", b"[]", &["no caption"]),
        ("json", b"{\"a.jpg\": [\"a dog\"", &["not understood", "EOF"]),
        ("json", b"[{\"image\": \"a.jpg\"}]", &["missing field `caption`"]),
        ("json", b"{\"a.jpg\": [\"a\", \"a\"]}", &["same caption twice", "entry 1, of a.jpg"]),
        ("json", b"{\"a.jpg\": [3]}", &["not understood", "invalid type"]),
        (
            "jsonl",
            b"{\"image\": \"a.jpg\", \"caption\": \"a\"}\n{\"image\": 3}\n",
            &["line 2", "not understood"],
        ),
        ("jsonl", b"a.jpg\ta dog\n", &["line 1", "not understood"]),
    ];
    for (ending, text, parts) in cases {
        given(ending, text).refused("train", parts);
    }
    let long = [b"a.jpg\t".as_slice(), &[b'a'; MAX_LINE]].concat();
    given("tsv", &long).refused("train", &["too long"]);
    let long = format!("{{\"a.jpg\": \"{}\"}}", "a".repeat(MAX_LINE + 1));
    given("json", long.as_bytes()).refused("train", &["too long"]);
}

#[test]
fn odd_captions_stay_and_are_told_last() {
    let folder = given("tsv", b"a.jpg\ta\nsub/b.jpg\t\nc.jpg\tcaf\xc3\nc.jpg\t \xc2\xa0 \n");
    let read = folder.open("train").expect("a split");
    assert_eq!(read.texts, ["a", "", "caf"]);
    assert_eq!((read.notices.len(), read.odd), (3, 2), "{:?}", read.notices);
    assert!(
        read.notices[1].contains("1 line with invalid UTF-8 (bytes dropped): line 3"),
        "{:?}",
        read.notices
    );
    assert!(read.notices[2].contains("1 empty caption: of sub/b.jpg"), "{:?}", read.notices);
    let json = given("json", b"{\"a.jpg\": [\"caf\xc3\"], \"c.jpg\": \"\"}").open("train").expect("a split");
    assert_eq!((json.texts, json.odd), (vec!["caf".to_owned(), String::new()], 2));
}

#[test]
fn the_number_of_captions_that_keeps_most_is_taken() {
    let of = |counts: &[usize]| {
        let item = |n: &usize| Item {
            name: String::new(),
            file: PathBuf::new(),
            found: true,
            texts: vec![String::new(); *n],
        };
        most_kept(&counts.iter().map(item).collect::<Vec<_>>())
    };
    let cases: [(&[usize], usize); 7] = [
        (&[5, 5, 5], 5),
        (&[5, 6, 7, 5], 5),
        (&[1, 5, 5], 5),
        (&[2, 1], 1),
        (&[1; 9], 1),
        (&[0, 3, 0], 3),
        (&[0], 0),
    ];
    for (counts, k) in cases {
        assert_eq!(of(counts), k, "{counts:?}");
    }
    let folder = given("json", br#"{"a.jpg": ["a", "b", "c"], "sub/b.jpg": ["d"], "c.jpg": ["e", "f"]}"#);
    let read = folder.open("train").expect("a split");
    assert_eq!((read.captions_per_image, read.texts), (2, ["a", "b", "e", "f"].map(str::to_owned).to_vec()));
    let notice =
        "1 of 3 pictures have fewer than 2 captions and are left out; 1 captions past a picture's first 2";
    assert!(read.notices[0].contains(notice), "{:?}", read.notices);
    let asked = |k| open(folder.0.path(), "train", Some(k));
    assert_eq!(asked(1).expect("one each").texts, ["a", "d", "e"]);
    assert_eq!(asked(3).expect("three").files.len(), 1);
    for k in [0, 4] {
        let error = asked(k).expect_err("none has").to_string();
        assert!(error.contains("--captions-per-image") && error.contains("at most 3"), "{error}");
    }
}

/// A folder of one caption file over so many pictures.
fn whole(n: usize) -> Folder {
    let lines: String = (0..n).map(|i| format!("{i}.jpg\ta dog\n")).collect();
    let folder = Folder::new(&[("captions.tsv", &lines)]);
    (0..n).for_each(|i| folder.put(&format!("{i}.jpg"), b""));
    folder
}

#[test]
fn one_caption_file_is_divided_by_name() {
    let folder = whole(1_000);
    let split = |folder: &Folder, name: &str| folder.read(name).0;
    let [train, dev, test] = ["train", "dev", "test"].map(|name| split(&folder, name));
    assert_eq!(train.len() + dev.len() + test.len(), 1_000);
    assert!(
        (70..130).contains(&dev.len()) && (70..130).contains(&test.len()),
        "{} {}",
        dev.len(),
        test.len()
    );
    // The same on every machine and in every version.
    assert_eq!(test[..4], FIRST_TEST);
    let notice = format!("{} train, {} dev, {} test", train.len(), dev.len(), test.len());
    assert!(folder.open("dev").expect("a split").notices[0].contains(&notice));
    let more = whole(1_200);
    for (name, before) in [("train", train), ("dev", dev), ("test", test)] {
        let now = split(&more, name);
        assert!(before.iter().all(|picture| now.contains(picture)), "pictures added move no other");
    }
    assert_eq!(splits(folder.0.path()), ["dev", "test", "train"]);
    folder.refused("other", &["\"other\" split"]);
}

const FIRST_TEST: [&str; 4] = ["1.jpg", "19.jpg", "33.jpg", "52.jpg"];

#[test]
fn small_sets_have_all_splits_from_three_pictures_on() {
    for n in 3..30 {
        let folder = whole(n);
        let sizes = ["train", "dev", "test"].map(|name| folder.read(name).0.len());
        assert!(sizes.iter().all(|size| *size > 0) && sizes.iter().sum::<usize>() == n, "{n}: {sizes:?}");
    }
    let folder = whole(2);
    assert_eq!(folder.read("train").0.len(), 2);
    folder.refused("dev", &["\"dev\" split", "the train split alone", "add pictures"]);
    assert_eq!(splits(folder.0.path()), ["train"]);
}

#[test]
fn a_file_for_each_split_divides_the_pictures() {
    let folder = given("tsv", b"a.jpg\ta dog\n");
    folder.put("val_captions.json", br#"{"sub/b.jpg": "a cat"}"#);
    assert_eq!(folder.read("dev").0, ["images/sub/b.jpg"]);
    assert_eq!(splits(folder.0.path()), ["dev", "train"]);
    assert_eq!(all(folder.0.path(), None).expect("all").len(), 2);
    folder.refused("test", &["\"test\" split", "dev, train"]);
    folder.put("dev_captions.txt", b"c.jpg\ta cow\n");
    folder.refused("train", &["dev_captions.txt and val_captions.json"]);
    std::fs::rename(folder.0.path().join("dev_captions.txt"), folder.0.path().join("captions.txt"))
        .expect("moved");
    folder.refused("train", &["captions.txt and val_captions.json"]);
    std::fs::remove_file(folder.0.path().join("captions.txt")).expect("removed");
    folder.put("val_captions.json", br#"{"a.jpg": "a cat"}"#);
    let error = all(folder.0.path(), None).expect_err("twice").to_string();
    assert!(error.contains("in two splits") && error.contains("a.jpg"), "{error}");
}

#[test]
fn a_folder_of_another_kind_is_refused_with_a_way_out() {
    let features = Folder::new(&[("train_ims.npy", ""), ("train_caps.txt", "")]);
    features.refused("train", &["no captions of pictures", "features only: train_ims.npy", "captions.tsv"]);
    Folder::new(&[("a.jpg", "")]).refused("train", &["no captions of pictures", "write captions.tsv"]);
    let error = open(Path::new("/nowhere/at/all"), "train", None).expect_err("none").to_string();
    assert!(error.contains("--data_path"), "{error}");
    assert!(splits(Path::new("/nowhere/at/all")).is_empty());
}

#[test]
fn a_caption_file_may_be_anywhere_and_have_any_name() {
    let folder = Folder::new(&[("a.jpg", ""), ("texts/flickr.token", "a.jpg#0\ta dog\na.jpg#1\tone dog\n")]);
    let read = all(folder.0.path(), Some(&folder.0.path().join("texts/flickr.token"))).expect("captions");
    assert_eq!(read, [(folder.0.path().join("a.jpg"), vec!["a dog".to_owned(), "one dog".to_owned()])]);
    assert!(all(folder.0.path(), Some(&folder.0.path().join("none.tsv"))).is_err());
}
