//! Picture files of every kind that is read, and those that are refused.

mod picture_files;

use std::fs;
use std::path::{Path, PathBuf};

use crossweave::data::pictures::{Asked, MAX_FILE, Pictures, Rgb, decode, read_file};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use picture_files::{Jpeg, chunk, exif, png};

fn read(bytes: &[u8]) -> Rgb {
    decode(bytes, false).unwrap_or_else(|e| panic!("{e}"))
}

fn encoded(pixels: &[u8], sides: [u32; 2], kind: ExtendedColorType) -> Vec<u8> {
    let mut out = Vec::new();
    PngEncoder::new(&mut out).write_image(pixels, sides[0], sides[1], kind).expect("it encodes");
    out
}

#[test]
fn every_kind_of_png_is_read() {
    let grey = read(&encoded(&[0, 7, 255], [3, 1], ExtendedColorType::L8));
    assert_eq!(grey, Rgb::new(3, 1, vec![0, 0, 0, 7, 7, 7, 255, 255, 255]));
    let with_alpha = read(&encoded(&[9, 0, 200, 255], [2, 1], ExtendedColorType::La8));
    assert_eq!(with_alpha.pixels, [9, 9, 9, 200, 200, 200]);
    let rgb = read(&encoded(&[1, 2, 3, 4, 5, 6], [1, 2], ExtendedColorType::Rgb8));
    assert_eq!(rgb, Rgb::new(1, 2, vec![1, 2, 3, 4, 5, 6]));
    // The colour below what is transparent stays.
    let rgba = read(&encoded(&[1, 2, 3, 0, 4, 5, 6, 128, 7, 8, 9, 255], [3, 1], ExtendedColorType::Rgba8));
    assert_eq!(rgba.pixels, [1, 2, 3, 4, 5, 6, 7, 8, 9]);

    let sixteen = |kind: u8, row: &[u16]| {
        let row: Vec<u8> = row.iter().flat_map(|v| v.to_be_bytes()).collect();
        read(&png([1, 1], 16, kind, &[], &[&row])).pixels
    };
    assert_eq!(sixteen(0, &[0x12ff]), [0x12; 3]);
    assert_eq!(sixteen(4, &[0xfe01, 0]), [0xfe; 3]);
    assert_eq!(sixteen(2, &[0x01ff, 0x8000, 0xffff]), [1, 0x80, 0xff]);
    assert_eq!(sixteen(6, &[0x01ff, 0x8000, 0xff00, 0x0001]), [1, 0x80, 0xff]);

    let bits = read(&png([4, 1], 1, 0, &[], &[&[0b1010_0000]]));
    assert_eq!(bits.pixels, [[255; 3], [0; 3], [255; 3], [0; 3]].concat());
    let grey_key = read(&png([2, 1], 8, 0, &[(b"tRNS", &[0, 7])], &[&[7, 9]]));
    assert_eq!(grey_key.pixels, [7, 7, 7, 9, 9, 9]);
    let palette: &[u8] = &[10, 20, 30, 40, 50, 60];
    let plain = read(&png([3, 1], 8, 3, &[(b"PLTE", palette)], &[&[1, 0, 1]]));
    assert_eq!(plain.pixels, [40, 50, 60, 10, 20, 30, 40, 50, 60]);
    let clear = read(&png([3, 1], 2, 3, &[(b"PLTE", palette), (b"tRNS", &[0])], &[&[0b0001_0000]]));
    assert_eq!(clear.pixels, [10, 20, 30, 40, 50, 60, 10, 20, 30]);
}

/// A colour as a JPEG stores it.
fn ycc([r, g, b]: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = [r, g, b].map(f64::from);
    let y = 0.299 * r + 0.587 * g + 0.114 * b;
    [y, 128.0 + (b - y) / 1.772, 128.0 + (r - y) / 1.402].map(|v| v.round() as u8)
}

#[track_caller]
fn is_flat(bytes: &[u8], colour: [u8; 3], what: &str) {
    let picture = read(bytes);
    assert_eq!(picture.sides(), [8, 8], "{what}");
    let near = |pixel: &[u8]| pixel.iter().zip(colour).all(|(a, b)| a.abs_diff(b) <= 2);
    assert!(picture.pixels.chunks(3).all(near), "{what}: {:?} is not {colour:?}", &picture.pixels[..3]);
}

#[test]
fn every_kind_of_jpeg_is_read() {
    let colour = [200, 90, 30];
    let flat = Jpeg::of(&ycc(colour));
    let named = |ids: &[u8]| Jpeg {
        components: ids.iter().zip(colour).map(|(id, level)| (*id, vec![level])).collect(),
        ..flat.clone()
    };
    is_flat(&Jpeg::of(&[77]).bytes(), [77; 3], "grey");
    is_flat(&Jpeg::of(&[77]).progressive().bytes(), [77; 3], "progressive grey");
    is_flat(&flat.bytes(), colour, "YCbCr");
    is_flat(&flat.clone().progressive().bytes(), colour, "progressive");
    is_flat(&Jpeg { apart: true, ..flat.clone() }.bytes(), colour, "a scan a component");
    is_flat(&flat.clone().adobe(1).bytes(), colour, "Adobe's YCbCr");
    is_flat(&named(b"RGB").bytes(), colour, "RGB by its ids");
    is_flat(&named(&[1, 2, 3]).adobe(0).bytes(), colour, "Adobe's RGB");
    // Inks are stored inverted: 55 of cyan, 165 of magenta, 225 of yellow, and of black nothing or half.
    let cmyk = |black: u8| Jpeg::of(&[200, 90, 30, black]);
    is_flat(&cmyk(255).adobe(0).bytes(), colour, "CMYK");
    is_flat(&cmyk(128).adobe(0).bytes(), [100, 45, 15], "CMYK with black");
    is_flat(&cmyk(255).bytes(), colour, "CMYK without Adobe's marker");
    is_flat(&cmyk(128).adobe(0).progressive().bytes(), [100, 45, 15], "progressive CMYK");
    let [y, cb, cr] = ycc(colour.map(|v| 255 - v));
    let ycck = |black: u8| Jpeg::of(&[y, cb, cr, black]).adobe(2);
    is_flat(&ycck(255).bytes(), colour, "YCCK");
    is_flat(&ycck(128).bytes(), [100, 45, 15], "YCCK with black");

    // What the encoder writes: many blocks, chroma and all.
    let sides = [61_u32, 45];
    let pixels: Vec<u8> = (0..sides[1])
        .flat_map(|y| (0..sides[0]).flat_map(move |x| [4 * x, 5 * y, 2 * (x + y)]))
        .map(|v| v as u8)
        .collect();
    let mut bytes = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, 100);
    encoder.write_image(&pixels, sides[0], sides[1], ExtendedColorType::Rgb8).expect("it encodes");
    let back = read(&bytes);
    assert_eq!(back.sides(), [61, 45]);
    let furthest = back.pixels.iter().zip(&pixels).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(furthest < Some(8), "{furthest:?}");
}

/// Each block's level, luma then chroma, where the other is flat, as JPEGs of every sampling have them.
#[test]
fn blocks_of_subsampled_jpegs_are_in_their_places() {
    let sides = [72, 56];
    for luma in [[1, 1], [2, 1], [1, 2], [2, 2], [4, 1], [4, 2]] {
        for (progressive, inks) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut jpeg = Jpeg { sides, progressive, adobe: inks.then_some(2), ..Jpeg::default() };
            jpeg.sampling = vec![luma, [1, 1], [1, 1]];
            jpeg.sampling.extend(inks.then_some(luma));
            let groups = jpeg.groups();
            for varied in [0, 2] {
                let [h, v] = jpeg.sampling[varied];
                let levels = |c: usize| match (c, jpeg.sampling[c]) {
                    (c, _) if c == varied => {
                        (0..groups[0] * groups[1] * h * v).map(|i| (i * 37 % 90 + 80) as u8).collect()
                    }
                    (3, [h, v]) => vec![255; groups[0] * groups[1] * h * v],
                    (_, [h, v]) => vec![128; groups[0] * groups[1] * h * v],
                };
                jpeg.components = (0..jpeg.sampling.len()).map(|c| (c as u8 + 1, levels(c))).collect();
                let picture = read(&jpeg.bytes());
                let block = [8 * luma[0] / h, 8 * luma[1] / v];
                for (x, y) in (0..72 / block[0]).flat_map(|x| (0..56 / block[1]).map(move |y| (x, y))) {
                    let level = f64::from(jpeg.components[varied].1[y * groups[0] * h + x]);
                    let red = if varied == 0 { level } else { 128.0 + 1.402 * (level - 128.0) };
                    let red = if inks { 255.0 - red } else { red };
                    let at = 3 * (72 * (y * block[1] + block[1] / 2) + x * block[0] + block[0] / 2);
                    let found = f64::from(picture.pixels[at]);
                    let what = format!("{luma:?}, {progressive}, {inks}: component {varied}, block {x}, {y}");
                    assert!((found - red).abs() < 3.0, "{what}: {found}, not {red}");
                }
            }
        }
    }
}

/// Where pixel (x, y) of a stored picture belongs.
fn upright_place(orientation: u16, [x, y]: [usize; 2], [w, h]: [usize; 2]) -> [usize; 2] {
    match orientation {
        1 => [x, y],
        2 => [w - 1 - x, y],
        3 => [w - 1 - x, h - 1 - y],
        4 => [x, h - 1 - y],
        5 => [y, x],
        6 => [h - 1 - y, x],
        7 => [h - 1 - y, w - 1 - x],
        _ => [y, w - 1 - x],
    }
}

#[test]
fn pictures_are_turned_upright_unless_read_as_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("turned");
    let sides = [3_usize, 2];
    let levels: Vec<u8> = vec![10, 60, 110, 160, 210, 250];
    let rows: Vec<&[u8]> = levels.chunks(3).collect();
    for orientation in 1..=8 {
        let expected_sides = if orientation > 4 { [2, 3] } else { [3, 2] };
        let mut expected = vec![0; 6];
        for (i, level) in levels.iter().enumerate() {
            let [x, y] = upright_place(orientation, [i % 3, i / 3], sides);
            expected[y * expected_sides[0] + x] = *level;
        }
        let dimensions = |as_stored| {
            let pictures = Pictures::open(vec![path.clone()], 4, as_stored).expect("a picture");
            pictures.dimensions(0)
        };
        for big_endian in [false, true] {
            let tag = exif(orientation, big_endian);
            let turned = png([3, 2], 8, 0, &[(b"eXIf", &tag)], &rows);
            let greys = |picture: &Rgb| picture.pixels.chunks(3).map(|p| p[0]).collect::<Vec<_>>();
            let (stored, picture) = (decode(&turned, true).expect("read"), read(&turned));
            assert_eq!((stored.sides(), greys(&stored)), (sides, levels.clone()), "{orientation}");
            assert_eq!(
                (picture.sides(), greys(&picture)),
                (expected_sides, expected.clone()),
                "{orientation}"
            );
            fs::write(&path, &turned).expect("written");
            assert_eq!((dimensions(true), dimensions(false)), (sides, expected_sides));

            let mut jpeg = Jpeg::of(&[]);
            jpeg.sides = [24, 16];
            jpeg.components = vec![(1, levels.clone())];
            jpeg.exif = Some(tag);
            let picture = read(&jpeg.bytes());
            assert_eq!(picture.sides(), expected_sides.map(|side| 8 * side), "{orientation}");
            for (i, level) in expected.iter().enumerate() {
                let [x, y] = [8 * (i % expected_sides[0]) + 3, 8 * (i / expected_sides[0]) + 4];
                let found = picture.pixels[3 * (y * picture.width + x)];
                assert!(found.abs_diff(*level) <= 1, "{orientation}: {found} at {x}, {y}, not {level}");
            }
            fs::write(&path, jpeg.bytes()).expect("written");
            assert_eq!(dimensions(false), expected_sides.map(|side| 8 * side));
        }
    }
    // An orientation that there is not is none.
    assert_eq!(read(&png([3, 2], 8, 0, &[(b"eXIf", &exif(9, false))], &rows)).sides(), [3, 2]);
}

/// Both ways to read the file refuse it, name it and say a cure.
#[track_caller]
fn refused(folder: &Path, name: &str, bytes: &[u8], parts: &[&str]) {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("written");
    refused_file(&path, parts);
}

#[track_caller]
fn refused_file(path: &Path, parts: &[&str]) {
    let name = path.file_name().expect("a name").to_string_lossy();
    let opened = Pictures::open(vec![path.to_path_buf()], 8, false).err();
    for error in [opened, read_file(path, false).err()] {
        let error = error.unwrap_or_else(|| panic!("{name} is read")).to_string();
        let all = parts.iter().chain(&["cure:", &name]).all(|part| error.contains(*part));
        assert!(all, "{parts:?}: {error}");
        assert!(!error.contains("cure: \n"), "{error}");
    }
}

#[test]
fn what_is_no_picture_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    refused(folder, "empty.jpg", b"", &["is empty", "download"]);
    refused(folder, "zeros.jpg", &[0; 4096], &["no picture", "\\x00"]);
    refused(folder, "text.jpg", b"a dog runs\n", &["no picture", "a dog runs"]);
    refused(folder, "lfs.png", b"version https://git-lfs.github.com/spec/v1\noid", &["Git LFS"]);
    refused(folder, "page.png", b"<!DOCTYPE html><html>", &["web page"]);
    refused(folder, "packed.jpg", b"\x1f\x8b\x08\0", &["gzip", "gunzip"]);
    let kinds: [(&[u8], &str); 12] = [
        (b"GIF89a\x01\0\x01\0", "GIF"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "WebP"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "MP4"),
        (b"BM\x46\0\0\0\0\0\0\0\x36\0", "BMP"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"<svg xmlns=", "SVG"),
        (b"%PDF-1.7", "PDF"),
    ];
    for (bytes, name) in kinds {
        refused(folder, "other.jpg", bytes, &[&format!("this is a {name}"), "PNG", "magick"]);
    }
    refused_file(&folder.join("missing.jpg"), &["could not read the picture", "check the path"]);
    fs::create_dir(folder.join("folder.jpg")).expect("made");
    refused_file(&folder.join("folder.jpg"), &["a folder"]);
    #[cfg(unix)]
    {
        let pipe = folder.join("pipe.jpg");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        refused_file(&pipe, &["a pipe"]);
    }
    let long = folder.join("long.jpg");
    fs::write(&long, Jpeg::of(&[5]).bytes()).expect("written");
    fs::File::options().write(true).open(&long).expect("open").set_len(MAX_FILE + 1).expect("sparse");
    refused_file(&long, &["too long", "512 MiB"]);
    // What a file is called does not count.
    let png_named_jpg = folder.join("png.jpg");
    fs::write(&png_named_jpg, encoded(&[3], [1, 1], ExtendedColorType::L8)).expect("written");
    assert_eq!(read_file(&png_named_jpg, false).expect("a PNG").pixels, [3; 3]);
}

#[test]
fn pictures_too_large_are_refused_before_they_take_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let huge = Jpeg { sides: [65_500, 65_500], ..Jpeg::of(&[5, 5, 5]) };
    refused(folder, "bomb.jpg", &huge.bytes(), &["too large", "178956970", "65500 x 65500", "-resize"]);
    refused(folder, "bomb.png", &png([100_000, 100_000], 8, 2, &[], &[]), &["too large", "-resize"]);
    refused(folder, "wide.png", &png([0x7fff_ffff, 0x7fff_ffff], 16, 6, &[], &[]), &["too large"]);
    // Bearable in pixels, not in bytes.
    refused(folder, "deep.png", &png([13_000, 13_000], 16, 6, &[], &[]), &["too much memory", "1024 MiB"]);
    let slow = Jpeg { sides: [13_000, 12_000], ..Jpeg::of(&[5, 5, 5]) };
    refused(folder, "slow.jpg", &slow.clone().progressive().bytes(), &["too much memory"]);
    refused(folder, "apart.jpg", &Jpeg { apart: true, ..slow }.bytes(), &["too much memory"]);
    refused(folder, "none.png", &png([0, 5], 8, 0, &[], &[]), &["damaged", "0 x 5"]);
    let none = Jpeg { sides: [0, 5], ..Jpeg::of(&[5]) };
    refused(folder, "none.jpg", &none.bytes(), &["damaged", "0 x 5"]);
}

#[test]
fn kinds_of_jpeg_that_are_not_read_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let frame = |at: usize, byte: u8| {
        let mut bytes = Jpeg::of(&[5]).bytes();
        let start = bytes.windows(2).position(|w| w == b"\xff\xc0").expect("a frame");
        bytes[start + at] = byte;
        bytes
    };
    refused(folder.path(), "twelve.jpg", &frame(4, 12), &["12-bit JPEG", "magick"]);
    refused(folder.path(), "arithmetic.jpg", &frame(1, 0xc9), &["arithmetic-coded JPEG", "magick"]);
    refused(folder.path(), "lossless.jpg", &frame(1, 0xc3), &["lossless", "magick"]);
    let mut apart =
        Jpeg { sides: [16, 16], apart: true, sampling: vec![[2, 2], [1, 1], [1, 1]], ..Jpeg::of(&[]) };
    apart.components = vec![(1, vec![9; 4]), (2, vec![99]), (3, vec![99])];
    refused(folder.path(), "apart.jpg", &apart.bytes(), &["subsampled, many-scan JPEG", "magick"]);
    refused(folder.path(), "two.jpg", &Jpeg::of(&[5, 6]).bytes(), &["2-component JPEG", "magick"]);
}

#[test]
fn a_picture_cut_short_is_refused_wherever_it_ends() {
    let mut real = Vec::new();
    let pixels: Vec<u8> = (0..48 * 32 * 3).map(|i| (i * 7 % 251) as u8).collect();
    JpegEncoder::new(&mut real).write_image(&pixels, 48, 32, ExtendedColorType::Rgb8).expect("it encodes");
    let colour = Jpeg::of(&[100, 90, 80]);
    let whole = [real, colour.bytes(), colour.progressive().bytes()];
    for bytes in &whole {
        let of = bytes.len();
        for end in 0..of {
            let error = decode(&bytes[..end], false).expect_err(&format!("{end} of {of} bytes")).to_string();
            assert!(error.contains("cure:") && (end < 4 || error.contains("cut short")), "{end}: {error}");
        }
        // What comes after the picture does no harm.
        assert_eq!(read(&[bytes, b"\0\0more\xff".as_slice()].concat()), read(bytes));
    }
    let bytes = encoded(&pixels, [48, 32], ExtendedColorType::Rgb8);
    // A chunk for the end, and the checksum of the pixels before it.
    let end_of_pixels = bytes.len() - 12 - 4;
    for end in 0..end_of_pixels {
        let error = decode(&bytes[..end], false).expect_err(&format!("{end} bytes")).to_string();
        assert!(error.contains("cure:"), "{error}");
    }
    let mut damaged = bytes.clone();
    damaged[end_of_pixels - 40] ^= 0x55;
    assert!(decode(&damaged, false).expect_err("damaged").to_string().contains("is damaged"));
}

#[test]
fn chunks_and_segments_that_lie_are_refused() {
    let head = &png([1, 1], 8, 0, &[], &[&[0]])[..33];
    let endless = [head, &0xffff_fff0_u32.to_be_bytes(), b"tEXt"].concat();
    assert!(decode(&endless, false).is_err());
    let twice = [head, &chunk(b"IHDR", &head[16..29]), &chunk(b"IDAT", b"")].concat();
    assert!(decode(&twice, false).is_err());
    assert!(decode(&[&head[..8], &chunk(b"IDAT", b"x")[..]].concat(), false).is_err());
    assert!(decode(b"\xff\xd8\xff\xe1\0\x01Exif\0\0\xff\xd9", false).is_err());
    assert!(decode(b"\xff\xd8\xff\xd9", false).is_err());
}

fn evaluated(path: &Path, size: usize) -> Vec<f32> {
    let pictures = Pictures::open(vec![path.to_path_buf()], size, false).expect("a picture");
    pictures.read(&[Asked { picture: 0, draws: None }], 1).expect("read")
}

#[test]
fn pictures_of_one_pixel_and_of_one_line_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p");
    let line = 1_000_000;
    let rows: Vec<&[u8]> = vec![&[40]; line as usize];
    let across = vec![40; line as usize];
    let files = [
        png([1, 1], 8, 0, &[], &[&[40]]),
        png([1, line], 8, 0, &[], &rows),
        png([line, 1], 8, 0, &[], &[&across]),
        Jpeg { sides: [1, 1], ..Jpeg::of(&[40]) }.bytes(),
        Jpeg { sides: [1, 1], ..Jpeg::of(&[40, 128, 128]) }.bytes(),
    ];
    let expected = [0.485, 0.456, 0.406].iter().zip([0.229, 0.224, 0.225]);
    let expected: Vec<f32> = expected.map(|(mean, std)| (40.0 / 255.0 - mean) / std).collect();
    for (i, file) in files.iter().enumerate() {
        fs::write(&path, file).expect("written");
        let flat = |values: &[f32], n: usize| {
            let mut planes = values.chunks(n * n).zip(&expected);
            planes.all(|(plane, level)| plane.iter().all(|v| (v - level).abs() < 1e-5))
        };
        assert!(flat(&evaluated(&path, 32), 32), "file {i}");
        assert!(flat(&evaluated(&path, 1), 1), "file {i}");
        let pictures = Pictures::open(vec![path.clone()], 16, false).expect("a picture");
        for seed in 0..4 {
            let draws = Some(crossweave::host::Rng::new(seed));
            let seen = pictures.read(&[Asked { picture: 0, draws }], 1).expect("read");
            assert!(flat(&seen, 16), "file {i}");
        }
    }
}

#[test]
fn all_wrong_files_are_in_one_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |i: usize| folder.path().join(format!("{i:02}.png"));
    let files: Vec<PathBuf> = (0..30).map(file).collect();
    for (i, path) in files.iter().enumerate() {
        let bytes = match i {
            3 => b"GIF89a".to_vec(),
            10..=20 => b"text".to_vec(),
            _ => encoded(&[1], [1, 1], ExtendedColorType::L8),
        };
        fs::write(path, bytes).expect("written");
    }
    let error = Pictures::open(files, 8, true).expect_err("wrong files").to_string();
    assert!(error.starts_with("12 of 30 pictures cannot be read"), "{error}");
    assert!(error.contains("and 2 more") && error.contains("cure:"), "{error}");
    for (i, named) in [(3, true), (10, true), (18, true), (19, false), (4, false)] {
        assert_eq!(error.contains(&format!("{i:02}.png")), named, "{i}: {error}");
    }
    let none = Pictures::open(Vec::new(), 8, true).expect("nothing is wrong");
    assert!(none.is_empty() && none.read(&[], 4).expect("nothing").is_empty());
    assert!(Pictures::open(Vec::new(), 0, true).is_err());
}
