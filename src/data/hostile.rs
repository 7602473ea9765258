//! Properties of the readers of foreign files on any input: no panic, nothing larger than the input deserves, and
//! what is accepted is sound. Each runs 2,000 cases, or as many as `CROSSWEAVE_FUZZ_CASES` says.

use std::io::Write;

use proptest::prelude::*;
use proptest::sample::select;

use super::boxes::{pixels, sizes_of};
use super::captioned;
use super::captions;
use super::depends;
use super::features::{Features, parse_header};
use super::tokenizer::{Settings, WordPiece, build_vocab, parse_vocab, words};
use super::word_ids;
use super::words::{Vocabulary, split};

fn config() -> ProptestConfig {
    let cases =
        std::env::var("CROSSWEAVE_FUZZ_CASES").map_or(2_000, |n| n.parse().expect("a number of cases"));
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Header texts that come near the real form: its words in any order, numbers of all sizes, odd characters.
fn header_text() -> impl Strategy<Value = String> {
    const PARTS: &[&str] = &[
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ",",
        ", ",
        ":",
        ": ",
        "'",
        "\"",
        "'descr'",
        "'<f4'",
        "'<f8'",
        "'<f2'",
        "'>f4'",
        "'|O'",
        "'<i8'",
        "'<U99999999999'",
        "'fortran_order'",
        "False",
        "True",
        "'shape'",
        "None",
        "1",
        "36",
        "2048",
        "-1",
        "0x10",
        "1e9",
        "1.5",
        "1j",
        "1_0",
        "+",
        "-",
        "18446744073709551616",
        "99999999999",
        "\\",
        "\\ud800",
        "b'x'",
        "\n",
        " ",
        "é",
        "'''",
    ];
    let random = prop::collection::vec(select(PARTS), 0..40).prop_map(|parts| parts.concat());
    let number = || prop_oneof![0..9_u64, 0..1_000_000_u64, any::<u64>()];
    let types = select(&["<f2", "<f4", "<f8", ">f8", "|u1", "<f16", "|S9", "<M8[ns]", "O", ""][..]);
    let near =
        (types, any::<bool>(), prop::collection::vec(number(), 0..5)).prop_map(|(kind, fortran, shape)| {
            let shape: Vec<String> = shape.iter().map(u64::to_string).collect();
            let order = if fortran { "True" } else { "False" };
            format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': ({}), }}", shape.join(", "))
        });
    prop_oneof![1 => random, 2 => near]
}

/// A `.npy` file with up to three bytes changed anywhere, cut anywhere.
fn npy() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let edits = prop::collection::vec(change, 0..3);
    (
        header_text(),
        0..5_u8,
        prop::collection::vec(any::<u8>(), 0..100),
        edits,
        any::<prop::sample::Index>(),
        0..4,
    )
        .prop_map(|(text, version, data, edits, cut, whole)| {
            let mut file = b"\x93NUMPY".to_vec();
            file.extend([version, 0]);
            let length = (text.len() as u32).to_le_bytes();
            file.extend(if version == 1 { &length[..2] } else { &length[..] });
            file.extend(text.as_bytes());
            file.extend(data);
            for (place, byte) in edits {
                let place = place.index(file.len());
                file[place] = byte;
            }
            if whole == 0 {
                file.truncate(cut.index(file.len() + 1));
            }
            file
        })
}

/// Text with what tokenizers stumble over, and bytes that are none.
fn caption_bytes() -> impl Strategy<Value = Vec<u8>> {
    const ODD: &[&str] = &[
        "\n",
        "\n\n",
        "\r\n",
        " ",
        "\t",
        "\u{b}",
        "\u{0}",
        "\u{fffd}",
        "\u{85}",
        "\u{2028}",
        "\u{a0}",
        "\u{ad}",
        "dog",
        "[CLS]",
        "##s",
        "e\u{301}",
        "\u{130}",
        "ß",
        "日本",
        "\u{1f600}",
        "\u{200d}",
        "ำ",
        ".",
        "'",
        "Ａ",
    ];
    let part = prop_oneof![
        4 => select(ODD).prop_map(|s| s.as_bytes().to_vec()),
        2 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 1..6),
        1 => "[a-z]{1,12}".prop_map(String::into_bytes),
        1 => (0..120_usize).prop_map(|n| vec![b'a'; n]),
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn an_accepted_header_is_consistent(file in npy()) {
        if let Ok(header) = parse_header(&file) {
            prop_assert!(header.data <= file.len());
            prop_assert!(header.rows > 0 && header.regions > 0 && header.dim > 0);
            prop_assert!(header.row.is_multiple_of(header.regions * header.dim));
            prop_assert_eq!(header.end, header.data + header.rows * header.row);
        }
    }

    #[test]
    fn any_bytes_are_a_header_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend(&bytes);
        prop_assert!(parse_header(&bytes).is_err());
        if let Err(e) = parse_header(&file) {
            prop_assert!(e.to_string().len() < 2_000);
        }
    }

    #[test]
    fn captions_are_one_a_line_and_never_longer_than_it(bytes in caption_bytes()) {
        if let Ok(read) = captions::parse(&bytes, false) {
            let ends = bytes.iter().filter(|&&b| b == b'\n').count();
            let open = usize::from(!bytes.ends_with(b"\n"));
            prop_assert_eq!(read.texts.len(), ends + open);
            for (text, line) in read.texts.iter().zip(bytes.split(|&b| b == b'\n')) {
                prop_assert!(text.len() <= line.len());
                let lossy = String::from_utf8_lossy(line).replace('\u{fffd}', "");
                let text = text.replace('\u{fffd}', "");
                prop_assert_eq!(text.trim(), lossy.trim());
            }
            prop_assert_eq!(captions::parse(&bytes, true).is_err(), !read.notices.is_empty());
        }
    }

    #[test]
    fn a_vocabulary_built_from_captions_spells_them(bytes in caption_bytes(), size in 0..60_usize) {
        let Ok(read) = captions::parse(&bytes, false) else { return Ok(()) };
        let vocab = build_vocab(&read.texts, usize::MAX);
        prop_assert!(build_vocab(&read.texts, size).len() <= size.max(4));
        let file: String = vocab.iter().flat_map(|piece| [piece, "\n"]).collect();
        let pieces = WordPiece::from_vocab(parse_vocab(file.as_bytes()).unwrap()).unwrap();
        prop_assert_eq!(pieces.vocab(), &vocab[..], "a file gives back every piece");
        for text in &read.texts {
            let short = pieces.encode(text, 9);
            prop_assert!(short.ids.len() == 9 && (2..=9).contains(&short.length));
            prop_assert!(short.ids[0] == 2 && short.ids[short.length - 1] == 3);
            prop_assert!(short.ids[short.length..].iter().all(|&id| id == 0));
            let whole = words(text, Settings::default());
            if whole.iter().all(|word| word.chars().count() <= 100) {
                let all = pieces.encode(text, 100_000);
                prop_assert_eq!(all.length, whole.len() + 2, "every word is one piece");
                prop_assert!(!all.ids.contains(&1));
            }
        }
    }

    #[test]
    fn any_vocabulary_is_refused_or_works(bytes in caption_bytes(), special in 0..4_u8, text in ".{0,40}") {
        let mut file = bytes;
        if special > 0 {
            file.extend(b"\n[UNK]\n[SEP]\n[CLS]\n");
        }
        let pieces = match parse_vocab(&file).and_then(WordPiece::from_vocab) {
            Ok(pieces) => pieces,
            Err(e) => {
                prop_assert!(e.to_string().len() < 2_000);
                return Ok(());
            }
        };
        let tokens = pieces.encode(&text, 12);
        prop_assert!(tokens.length <= 12 && tokens.ids.iter().all(|&id| (id as usize) < pieces.size()));
    }

    #[test]
    fn splitting_into_words_loses_nothing(bytes in caption_bytes()) {
        let Ok(read) = captions::parse(&bytes, false) else { return Ok(()) };
        for text in &read.texts {
            let whole: String = text.to_lowercase().chars().filter(|c| !c.is_whitespace()).collect();
            prop_assert_eq!(split(text).concat(), whole);
        }
    }

    #[test]
    fn any_boxes_and_sizes_are_refused_or_read(file in npy()) {
        if let Ok(sizes) = sizes_of(&file) {
            prop_assert!(sizes.len() <= file.len());
        }
        prop_assert!(pixels(&file, [1, 2, 4]).map_or(true, |pixels| pixels.len() == 8));
    }

    #[test]
    fn any_words_and_pairs_are_refused_or_read(
        text in "(\\{\"word2idx\": )?[\\[\\]{}\", :0-9a<>-]{0,60}\\}?",
        line in "[0-9, a-]{0,40}",
    ) {
        if let Ok(vocabulary) = Vocabulary::parse(text.as_bytes()) {
            prop_assert!(vocabulary.size() <= text.len());
        }
        prop_assert!(depends::parse(text.as_bytes()).map_or(true, |pairs| pairs.len() <= text.len()));
        if let Ok(ids) = word_ids::parse(line.as_bytes()) {
            let again: Vec<String> = ids.iter().map(u32::to_string).collect();
            prop_assert_eq!(word_ids::parse(again.join(",").as_bytes()).unwrap(), ids);
        }
    }
}

/// Texts that come near those of captions of pictures.
fn named_captions() -> impl Strategy<Value = Vec<u8>> {
    const PARTS: &[&[u8]] = &[
        b"a.jpg",
        b"images/b.png",
        b"../",
        b"/",
        b"./",
        b"#0",
        b"#",
        b"\t",
        b"\t",
        b"\t",
        b",",
        b"\"",
        b"\"\"",
        b"\n",
        b"\n",
        b"\r\n",
        b" ",
        b"a dog",
        b"\xff",
        b"\xef\xbb\xbf",
        b"image,caption\n",
        b"\0",
        b"{\"image\": \"a.jpg\", \"caption\": \"a dog\"}",
        b"{\"a.jpg\": [\"a\", \"b\"]}",
        b"[",
        b"]",
        b"{",
        b"}",
        b":",
        b"\"image\": ",
        b"\"caption\": ",
        b"\"a.jpg\"",
        b"\"b.png\"",
    ];
    // Pieces alone seldom make a whole file.
    const LINES: &[&[u8]] =
        &[b"image\tcaption\n", b"a.jpg\ta dog\n", b"images/b.png\ta dog\r\n", b"a.jpg\t\n"];
    let (pieces, lines) =
        (prop::collection::vec(select(PARTS), 0..24), prop::collection::vec(select(LINES), 1..4));
    prop_oneof![3 => pieces, 1 => lines].prop_map(|parts| parts.concat())
}

/// As many captions for every picture, and pictures within the folder, or an error.
#[test]
fn any_captions_of_pictures_are_refused_or_read() {
    let config = ProptestConfig { cases: config().cases.div_ceil(4), ..config() };
    let folder = tempfile::tempdir().unwrap();
    let pictures = [folder.path().join("a.jpg"), folder.path().join("images/b.png")];
    std::fs::create_dir(folder.path().join("images")).unwrap();
    pictures.iter().for_each(|path| std::fs::write(path, b"").unwrap());
    let opened = std::cell::Cell::new(0);
    let forms = (named_captions(), select(&["tsv", "csv", "json", "jsonl"][..]), any::<bool>());
    let result = proptest::test_runner::TestRunner::new(config).run(&forms, |(bytes, ending, whole)| {
        let name = if whole { "captions" } else { "train_captions" };
        let path = folder.path().join(format!("{name}.{ending}"));
        std::fs::write(&path, &bytes).unwrap();
        let read = captioned::open(folder.path(), "train", None);
        std::fs::remove_file(&path).unwrap();
        match read {
            Err(e) => prop_assert!(e.to_string().len() < 8_000),
            Ok(read) => {
                opened.set(opened.get() + 1);
                prop_assert!(!read.files.is_empty() && read.captions_per_image > 0);
                prop_assert_eq!(read.texts.len(), read.files.len() * read.captions_per_image);
                prop_assert!(read.files.iter().all(|file| pictures.contains(file)), "{:?}", read.files);
                prop_assert!(read.texts.iter().map(String::len).sum::<usize>() <= bytes.len());
            }
        }
        Ok(())
    });
    result.unwrap();
    assert!(opened.get() > 0, "some must be good");
}

/// Whole files go through the disk, so fewer of them: one for every twenty cases.
#[test]
fn any_features_file_is_refused_or_reads_whole() {
    let config = ProptestConfig { cases: config().cases.div_ceil(20), ..config() };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    let opened = std::cell::Cell::new(0);
    // Small arrays of the right length are likely enough to be read too.
    let small = (1..3_usize, 1..3_usize, 1..4_usize, prop::collection::vec(any::<u8>(), 48), 0..30_usize);
    let fitting = small.prop_map(|(rows, regions, dim, data, off)| {
        let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {regions}, {dim})}}");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((text.len() as u16).to_le_bytes());
        file.extend(text.as_bytes());
        let length = rows * regions * dim * 4;
        file.extend(&data[..if off == 0 { length - 1 } else { length }]);
        file
    });
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&prop_oneof![npy(), fitting], |file| {
        std::fs::File::create(&path).and_then(|mut f| f.write_all(&file)).unwrap();
        if let Ok(features) = Features::open(&path) {
            opened.set(opened.get() + 1);
            let mut out = Vec::new();
            let bad = features.verify_all(|_| ()).unwrap();
            for row in 0..features.len() {
                let refused = features.read(row, &mut out).is_err();
                prop_assert_eq!(refused, bad.iter().any(|value| value.row == row));
            }
            prop_assert_eq!(out.len(), (features.len() - bad.len()) * features.regions() * features.dim());
        }
        Ok(())
    });
    result.unwrap();
    assert!(opened.get() > 0, "some files must be good");
}
