//! What is seen of pictures: resized, cut out, drawn, normalised, and kept in a file.

mod picture_files;

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use crossweave::data::pictures::{
    Area, Asked, LEAST_SHARE, Normal, Pictures, Rgb, crop_resize, evaluation_sides, evaluation_view, middle,
    resize, resized_to, training_area,
};
use crossweave::host::Rng;
use picture_files::{exif, png};
use tempfile::TempDir;

fn noise(width: usize, height: usize, seed: u64) -> Rgb {
    let mut rng = Rng::new(seed);
    Rgb::new(width, height, (0..3 * width * height).map(|_| rng.next_u64() as u8).collect())
}

fn cut(picture: &Rgb, part: Area) -> Rgb {
    let rows = picture.pixels.chunks(3 * picture.width).skip(part.top).take(part.height);
    let rows = rows.flat_map(|row| &row[3 * part.left..3 * (part.left + part.width)]);
    Rgb::new(part.width, part.height, rows.copied().collect())
}

#[test]
fn a_part_is_the_same_alone_as_in_its_whole() {
    for (sides, to, crop) in [([97, 61], 40, 33), ([31, 83], 64, 64), ([50, 50], 50, 7), ([3, 200], 20, 20)] {
        let picture = noise(sides[0], sides[1], 1);
        let whole = resize(&picture, evaluation_sides(sides, to));
        assert_eq!(
            evaluation_view(&picture, to, crop),
            cut(&whole, middle(whole.sides(), crop)),
            "{sides:?}"
        );
        // Nothing outside a part has an influence.
        let part = Area { left: 1, top: 5, width: 2, height: 21 };
        assert_eq!(crop_resize(&picture, part, [9, 8]), resize(&cut(&picture, part), [9, 8]), "{sides:?}");
    }
    let picture = noise(19, 23, 2);
    assert_eq!(resize(&picture, [19, 23]), picture);
}

#[test]
fn resizing_averages_when_it_shrinks_and_blends_when_it_grows() {
    let grey = |levels: &[u8], width: usize| {
        Rgb::new(width, levels.len() / width, levels.iter().flat_map(|v| [*v; 3]).collect())
    };
    // Halved, the weights are 3, 3 and 1 of 7: what would lie past an edge goes to the others.
    let halved = resize(&grey(&[0, 80, 160, 240], 4), [2, 1]);
    assert_eq!(halved, grey(&[57, 183], 2));
    let doubled = resize(&grey(&[0, 100], 1), [1, 4]);
    assert_eq!(doubled, grey(&[0, 25, 75, 100], 1));
    let flat = grey(&[201; 77], 11);
    assert_eq!(resize(&flat, [5, 300]), grey(&[201; 1500], 5));
}

#[test]
fn sizes_are_those_of_the_published_transforms() {
    assert_eq!([224, 64, 1, 384].map(resized_to), [256, 73, 1, 438]);
    assert_eq!(evaluation_sides([500, 375], 256), [341, 256]);
    assert_eq!(evaluation_sides([375, 500], 256), [256, 341]);
    assert_eq!(evaluation_sides([7, 7], 256), [256, 256]);
    // Half a pixel goes to the even side.
    let corner = |sides, crop| {
        let part = middle(sides, crop);
        [part.left, part.top]
    };
    assert_eq!(corner([341, 256], 224), [58, 16]);
    assert_eq!(corner([5, 7], 4), [0, 2]);
}

#[test]
fn numbers_are_normalised_by_channel_and_mirrored_by_row() {
    let normal = Normal::new([0.5, 0.25, 0.0], [0.5, 1.0, 2.0]);
    let mut out = [0.0; 12];
    let pixels = [0, 255, 51, 255, 0, 255, 51, 51, 0, 102, 204, 51];
    normal.write(&pixels, 2, false, &mut out);
    let planes = [[-1.0, 1.0, -0.6, -0.2], [0.75, -0.25, -0.05, 0.55], [0.1, 0.5, 0.0, 0.1]];
    assert!(
        out.iter().zip(planes.as_flattened()).all(|(a, b): (&f32, &f32)| (a - b).abs() < 1e-6),
        "{out:?}"
    );
    let mut mirrored = [0.0; 12];
    normal.write(&pixels, 2, true, &mut mirrored);
    let swapped: Vec<f32> = out.chunks(2).flat_map(|row| [row[1], row[0]]).collect();
    assert_eq!(mirrored.as_slice(), swapped);
}

#[test]
fn drawn_parts_have_the_stated_shares_and_shapes() {
    let sides = [500, 500];
    let mut draws = Rng::new(7);
    let n = 4000;
    let areas: Vec<Area> = (0..n).map(|_| training_area(sides, LEAST_SHARE, &mut draws)).collect();
    assert!(areas.iter().all(|area| area.lies_in(sides)));
    let ratios: Vec<f64> = areas.iter().map(|a| a.width as f64 / a.height as f64).collect();
    assert!(ratios.iter().all(|r| (0.73..1.37).contains(r)));
    let wide = ratios.iter().filter(|r| **r > 1.0).count() as f64 / f64::from(n);
    assert!((0.47..0.53).contains(&wide), "{wide}: shapes are drawn by their logarithm");
    let share = |a: &Area| (a.width * a.height) as f64 / (sides[0] * sides[1]) as f64;
    assert!(areas.iter().all(|a| (0.075..=1.0).contains(&share(a))));
    // Parts of up to three quarters fit in any shape, so that these are uniform.
    let fitting: Vec<f64> = areas.iter().map(share).filter(|share| *share < 0.75).collect();
    let mean = fitting.iter().sum::<f64>() / fitting.len() as f64;
    assert!((0.40..0.43).contains(&mean), "{mean}");
    let corner = areas.iter().map(|a| a.left as f64 / (sides[0] - a.width).max(1) as f64).sum::<f64>();
    assert!((0.47..0.53).contains(&(corner / f64::from(n))), "places are uniform");
    // Where nothing fits: the middle, as wide as shapes go.
    let thin = Area { left: 0, top: 2493, width: 10, height: 13 };
    assert_eq!(training_area([10, 5000], LEAST_SHARE, &mut draws), thin);
    let flat = Area { left: 2493, top: 0, width: 13, height: 10 };
    assert_eq!(training_area([5000, 10], LEAST_SHARE, &mut draws), flat);
    assert_eq!(training_area([1, 1], LEAST_SHARE, &mut draws), Area::whole([1, 1]));
}

/// A folder of pictures of noise.
fn folder(n: usize) -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().expect("a folder");
    let files: Vec<PathBuf> = (0..n).map(|i| folder.path().join(format!("{i}.png"))).collect();
    files.iter().enumerate().for_each(|(i, path)| write(path, i as u64));
    (folder, files)
}

fn write(path: &Path, seed: u64) {
    let picture = noise(40, 30, seed);
    let rows: Vec<&[u8]> = picture.pixels.chunks(120).collect();
    fs::write(path, png([40, 30], 8, 2, &[(b"eXIf", &exif(6, false))], &rows)).expect("written");
}

fn seen(pictures: &Pictures) -> Vec<f32> {
    let asked: Vec<Asked> = (0..pictures.len()).map(|picture| Asked { picture, draws: None }).collect();
    pictures.read(&asked, 2).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn what_is_read_does_not_depend_on_threads() {
    let (_folder, files) = folder(9);
    let pictures = Pictures::open(files.clone(), 16, false).expect("pictures");
    assert_eq!((pictures.len(), pictures.size(), pictures.file(3)), (9, 16, files[3].as_path()));
    assert_eq!(pictures.dimensions(0), [30, 40]);
    let asked: Vec<Asked> = (0..40)
        .map(|i| Asked { picture: i * 5 % 9, draws: (i % 3 > 0).then(|| Rng::of(3, &[i as u64])) })
        .collect();
    let one = pictures.read(&asked, 1).expect("read");
    assert_eq!(one.len(), 40 * 3 * 16 * 16);
    for threads in [0, 2, 7, 100] {
        assert_eq!(pictures.read(&asked, threads).expect("read"), one, "{threads} threads");
    }
    // In order; and each draw is its own.
    let each = 3 * 16 * 16;
    assert_eq!(pictures.read(&asked[7..8], 1).expect("read"), one[7 * each..8 * each]);
    let draws = |seed| Asked { picture: 0, draws: Some(Rng::new(seed)) };
    let drawn: Vec<Vec<f32>> = (0..20).map(|s| pictures.read(&[draws(s)], 1).expect("read")).collect();
    assert!((1..20).all(|i| drawn[i] != drawn[0]));
    // The first wrong one is named, on any number of threads.
    fs::write(&files[4], b"text").expect("written");
    fs::write(&files[7], b"text").expect("written");
    for threads in [1, 3, 8] {
        let asked: Vec<Asked> = (0..9).map(|picture| Asked { picture, draws: None }).collect();
        let error = pictures.read(&asked, threads).expect_err("it changed").to_string();
        assert!(error.contains("4.png"), "{error}");
    }
    assert!(pictures.read(&[Asked { picture: 9, draws: None }], 1).is_err());
}

#[test]
fn about_half_of_what_training_sees_is_mirrored() {
    let (_folder, files) = folder(1);
    // Left dark, right bright.
    let row: Vec<u8> = (0..64).flat_map(|x| [4 * x; 3]).collect();
    let rows: Vec<&[u8]> = vec![&row; 64];
    fs::write(&files[0], png([64, 64], 8, 2, &[], &rows)).expect("written");
    let pictures = Pictures::open(files, 8, false).expect("a picture");
    let asked: Vec<Asked> = (0..400).map(|i| Asked { picture: 0, draws: Some(Rng::new(i)) }).collect();
    let all = pictures.read(&asked, 2).expect("read");
    let mirrored = all.chunks(3 * 64).filter(|picture| picture[0] > picture[7]).count();
    assert!((160..240).contains(&mirrored), "{mirrored} of 400");
}

/// Opens with a cache; how many pictures were made.
fn cached(files: &[PathBuf], cache: &Path, size: usize, as_stored: bool) -> (Pictures, usize) {
    let told = RefCell::new(0);
    let pictures = Pictures::open(files.to_vec(), size, as_stored).expect("pictures");
    let plain = seen(&pictures);
    let mut tell = |done: usize, of: usize| {
        assert_eq!(of, files.len());
        assert!(done >= *told.borrow());
        *told.borrow_mut() = done;
    };
    let pictures = pictures.cached(cache, 2, &|| false, &mut tell).unwrap_or_else(|e| panic!("{e}"));
    assert!(seen(&pictures) == plain, "the same with a cache");
    (pictures, told.into_inner())
}

#[test]
fn a_cache_is_made_once_and_again_when_it_no_longer_fits() {
    let (folder, mut files) = folder(40);
    let cache = folder.path().join("views");
    let open = |size, as_stored| cached(&files, &cache, size, as_stored).1;
    assert_eq!(open(16, false), 40);
    let bytes = fs::read(&cache).expect("made");
    assert_eq!(open(16, false), 0);
    assert_eq!((open(12, false), open(12, true), open(16, true)), (40, 40, 40));
    // The same pixels at another time are made anew: only a file's length and time are looked at.
    assert_eq!(open(16, false), 40);
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    fs::File::options()
        .write(true)
        .open(&files[20])
        .expect("open")
        .set_modified(later)
        .expect("a later time");
    let open = |files: &[PathBuf]| cached(files, &cache, 16, false).1;
    assert_eq!((open(&files), open(&files)), (40, 0));
    assert_ne!(fs::read(&cache).expect("made"), bytes);
    files.swap(1, 2);
    assert_eq!((open(&files), open(&files)), (40, 0));
    assert_eq!((open(&files[..30]), open(&files[..30])), (30, 0));

    let good = fs::read(&cache).expect("made");
    let damaged: [(&str, Vec<u8>); 7] = [
        ("empty", Vec::new()),
        ("foreign", b"a dog runs".to_vec()),
        ("another mark", [b"X", &good[1..]].concat()),
        ("cut short", good[..good.len() - 1].to_vec()),
        ("longer", [&good[..], b"0"].concat()),
        ("zeros", [&good[..32], &vec![0; good.len() - 32]].concat()),
        (
            "another byte",
            [&good[..good.len() - 9], &[!good[good.len() - 9]], &good[good.len() - 8..]].concat(),
        ),
    ];
    for (what, bytes) in damaged {
        fs::write(&cache, bytes).expect("written");
        assert_eq!(open(&files[..30]), 30, "{what}");
        assert!(fs::read(&cache).expect("made") == good, "{what}");
    }
}

#[test]
fn evaluation_reads_the_cache_and_training_the_pictures() {
    let (folder, files) = folder(70);
    let cache = folder.path().join("views");
    let (pictures, made) = cached(&files, &cache, 16, false);
    assert_eq!(made, 70);
    let before = seen(&pictures);
    // A byte that changes later is not shown: the picture itself is read instead.
    let record = 8 + 3 * 16 * 16;
    let mut bytes = fs::read(&cache).expect("made");
    bytes[32 + 50 * record + 100] ^= 0xff;
    fs::write(&cache, &bytes).expect("written");
    assert!(seen(&pictures) == before);
    drop(pictures);

    let (pictures, _) = cached(&files, &cache, 16, false);
    files.iter().for_each(|file| fs::remove_file(file).expect("removed"));
    assert!(seen(&pictures) == before);
    let one = |picture, draws| pictures.read(&[Asked { picture, draws }], 1);
    let error = one(7, Some(Rng::new(1))).expect_err("no picture").to_string();
    assert!(error.contains("7.png"), "{error}");
    bytes = fs::read(&cache).expect("made");
    bytes[32 + 50 * record + 100] ^= 0xff;
    fs::write(&cache, &bytes).expect("written");
    assert!(one(50, None).is_err() && one(49, None).is_ok());
    // A file cut short is not read past its end.
    fs::File::options().write(true).open(&cache).expect("open").set_len(100).expect("cut");
    assert!(one(49, None).is_err());
}

#[test]
fn a_cache_that_cannot_be_finished_leaves_nothing() {
    let (folder, files) = folder(40);
    let cache = folder.path().join("views");
    let open = || Pictures::open(files.clone(), 16, false).expect("pictures");
    let told = RefCell::new(0);
    let stop = || *told.borrow() > 0;
    let error =
        open().cached(&cache, 1, &stop, &mut |done, _| *told.borrow_mut() = done).expect_err("stopped");
    assert_eq!(error.kind(), crossweave::Kind::Interrupted);
    assert!((1..40).contains(&*told.borrow()));
    let others = || fs::read_dir(folder.path()).expect("the folder").count() - 40;
    assert_eq!(others(), 0);

    let pictures = open();
    let whole = fs::read(&files[33]).expect("read");
    fs::write(&files[33], &whole[..whole.len() / 2]).expect("written");
    let error = pictures.cached(&cache, 2, &|| false, &mut |_, _| ()).expect_err("damaged").to_string();
    assert!(error.contains("33.png") && error.contains("cure:"), "{error}");
    assert_eq!(others(), 0);
    let nowhere = folder.path().join("no/views");
    let error = open().cached(&nowhere, 2, &|| false, &mut |_, _| ()).expect_err("no folder").to_string();
    assert!(error.contains("make the folder"), "{error}");
    let none = Pictures::open(Vec::new(), 16, false).expect("nothing");
    let none = none.cached(&cache, 2, &|| false, &mut |_, _| ()).expect("an empty cache");
    assert!(none.is_empty());
}
