use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

fn fixtures() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folders = [Some(own), std::env::var_os("CROSSWEAVE_FIXTURES").map(PathBuf::from)];
    let mut files = Vec::new();
    for folder in folders.into_iter().flatten() {
        for entry in std::fs::read_dir(&folder).expect("the fixture folder opens") {
            let path = entry.expect("the folder lists").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("recall_") && name.ends_with(".safetensors") {
                files.push(path);
            }
        }
    }
    assert!(files.len() >= 4, "recall fixtures are missing");
    files
}

fn load(path: &Path) -> (Tensors, usize, Option<usize>) {
    let bytes = std::fs::read(path).expect("the fixture reads");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let spec = &header.metadata().as_ref().expect("metadata")["spec"];
    let spec: serde_json::Value = serde_json::from_str(spec).expect("a spec");
    let per_image = spec["config"]["captions_per_image"].as_u64().expect("captions_per_image") as usize;
    let folds = spec["config"]["fold5"].as_bool().expect("fold5").then_some(5);
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
    let number = |dtype, b: &[u8]| {
        let four = [b[0], b[1], b[2], b[3]];
        match dtype {
            safetensors::Dtype::F32 => f64::from(f32::from_le_bytes(four)),
            safetensors::Dtype::I32 => f64::from(i32::from_le_bytes(four)),
            other => panic!("unexpected type {other:?}"),
        }
    };
    let values = |v: &safetensors::tensor::TensorView<'_>| {
        v.data().chunks_exact(4).map(|b| number(v.dtype(), b)).collect::<Vec<_>>()
    };
    (file.tensors().iter().map(|(n, v)| (n.clone(), values(v))).collect(), per_image, folds)
}

#[test]
fn every_recall_fixture_agrees() {
    for path in fixtures() {
        let (tensors, per_image, folds) = load(&path);
        let rows = parity(&tensors, per_image, folds).expect("a well-formed fixture");
        assert!(rows.len() >= 3, "{}: only {rows:?}", path.display());
        for row in rows {
            assert!(row.passes(), "{}: {row:?}", path.display());
        }
    }
}

#[test]
fn a_changed_value_is_noticed() {
    for path in fixtures() {
        let (tensors, per_image, folds) = load(&path);
        for row in parity(&tensors, per_image, folds).expect("a well-formed fixture") {
            // Under ties metrics are not read from the file, and a bound still holds when it gets looser.
            let recomputed = path.to_string_lossy().contains("tie") && !row.name.contains("rank_");
            if recomputed || row.name.contains("rank_lo") || row.name.contains("rank_hi") {
                continue;
            }
            let mut spoilt = tensors.clone();
            let values = spoilt.get_mut(&row.name).expect("the compared tensor");
            let largest = (0..values.len()).max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs()));
            let value = &mut values[largest.expect("a value")];
            *value = if row.bound == 0.0 { *value + 1.0 } else { *value * 1.02 };
            let rows = parity(&spoilt, per_image, folds).expect("still well-formed");
            let again = rows.iter().find(|r| r.name == row.name).expect("the same rows");
            assert!(!again.passes(), "{}: {} spoilt yet passed", path.display(), row.name);
        }
    }
}

#[test]
fn a_missing_tensor_is_an_error() {
    let (mut tensors, per_image, folds) = load(&fixtures()[0]);
    tensors.retain(|name, _| name.starts_with("in."));
    assert!(parity(&tensors, per_image, folds).is_err());
    tensors.clear();
    assert!(parity(&tensors, per_image, folds).is_err());
}

/// The rule as its definition has it: the whole row sorted ascending and stable, then read backwards.
fn ranks_by_sorting(scores: &[f64], images: usize, per_image: usize) -> (Vec<u32>, Vec<u32>) {
    let captions = images * per_image;
    let order = |line: &[f64]| -> Vec<usize> {
        let mut order: Vec<usize> = (0..line.len()).collect();
        order.sort_by(|&a, &b| line[a].total_cmp(&line[b]));
        order.reverse();
        order
    };
    let i2t = (0..images).map(|i| {
        let order = order(&scores[i * captions..][..captions]);
        order.iter().position(|&c| c / per_image == i).expect("its own caption") as u32
    });
    let t2i = (0..captions).map(|c| {
        let column: Vec<f64> = (0..images).map(|i| scores[i * captions + c]).collect();
        order(&column).iter().position(|&i| i == c / per_image).expect("its own image") as u32
    });
    (i2t.collect(), t2i.collect())
}

/// Matrices on a coarse grid, so that ties are common, or fine, so that they are not.
fn matrix() -> impl Strategy<Value = (usize, usize, Vec<f64>)> {
    (1..9usize, 1..6usize, prop_oneof![Just(3i32), Just(1_000_000)]).prop_flat_map(
        |(images, per_image, grid)| {
            let cells = images * images * per_image;
            let scores = prop::collection::vec((-grid..=grid).prop_map(|v| f64::from(v) / 8.0), cells);
            (Just(images), Just(per_image), scores)
        },
    )
}

proptest! {
    #[test]
    fn counting_equals_sorting((images, per_image, scores) in matrix()) {
        let ranks = Sims::new(&scores, images, per_image).expect("finite").ranks();
        prop_assert_eq!((ranks.i2t, ranks.t2i), ranks_by_sorting(&scores, images, per_image));
    }

    #[test]
    fn ranks_and_recalls_stay_in_bounds((images, per_image, scores) in matrix()) {
        let sims = Sims::new(&scores, images, per_image).expect("finite");
        let ranks = sims.ranks();
        prop_assert!(ranks.i2t.iter().all(|&r| (r as usize) <= (images - 1) * per_image));
        prop_assert!(ranks.t2i.iter().all(|&r| (r as usize) < images));
        let m = ranks.metrics();
        for r in [m.i2t, m.t2i] {
            prop_assert!(0.0 <= r.r1 && r.r1 <= r.r5 && r.r5 <= r.r10 && r.r10 <= 100.0);
            prop_assert!(r.medr >= 1.0 && r.meanr >= 1.0);
        }
        prop_assert!((0.0..=600.0).contains(&m.rsum()));
    }

    #[test]
    fn reordering_the_data_keeps_the_metrics(
        (images, per_image, scores) in matrix(),
        keys in prop::collection::vec(any::<u32>(), 9),
    ) {
        let captions = images * per_image;
        let mut order: Vec<usize> = (0..images).collect();
        order.sort_by_key(|&i| keys[i]);
        let caption = |c: usize| order[c / per_image] * per_image + c % per_image;
        let moved: Vec<f64> = (0..images * captions)
            .map(|at| scores[order[at / captions] * captions + caption(at % captions)])
            .collect();
        let ranks = Sims::new(&scores, images, per_image).expect("finite").ranks();
        // Where a tie decides, the order of the data does too.
        prop_assume!(!ranks.tied);
        let again = Sims::new(&moved, images, per_image).expect("finite").ranks();
        prop_assert_eq!(ranks.metrics().columns().map(f64::round), again.metrics().columns().map(f64::round));
        prop_assert_eq!((0..images).map(|i| ranks.i2t[order[i]]).collect::<Vec<_>>(), again.i2t);
    }

    #[test]
    fn f32_and_f64_rank_alike((images, per_image, scores) in matrix()) {
        let short: Vec<f32> = scores.iter().map(|&s| s as f32).collect();
        let long: Vec<f64> = short.iter().map(|&s| f64::from(s)).collect();
        let (a, b) = (Sims::new(&short, images, per_image), Sims::new(&long, images, per_image));
        prop_assert_eq!(a.expect("finite").ranks(), b.expect("finite").ranks());
    }

    #[test]
    fn folds_equal_the_blocks_cut_out((images, per_image, scores) in matrix(), k in 1..5usize) {
        let sims = Sims::new(&scores, images, per_image).expect("finite");
        let Ok(folds) = sims.folds(k) else {
            prop_assert!(images % k != 0);
            return Ok(());
        };
        let (rows, captions) = (images / k, images * per_image);
        for (f, fold) in folds.iter().enumerate() {
            let block: Vec<f64> = (f * rows..(f + 1) * rows)
                .flat_map(|i| &scores[i * captions + f * rows * per_image..][..rows * per_image])
                .copied()
                .collect();
            prop_assert_eq!(fold.ranks(), Sims::new(&block, rows, per_image).expect("finite").ranks());
        }
    }
}

#[test]
fn a_score_that_is_no_number_names_its_pair() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut scores = vec![0.5f32; 3 * 6];
        scores[2 * 6 + 4] = bad;
        let error = Sims::new(&scores, 3, 2).expect_err("refused");
        assert_eq!(error.kind(), Kind::NonFinite);
        assert!(error.to_string().contains("image 2, caption 4"), "{error}");
    }
}

#[test]
fn a_matrix_of_the_wrong_size_is_refused() {
    let scores = [0.0f32; 10];
    for (images, per_image) in [(2, 5), (0, 5), (2, 0), (usize::MAX, usize::MAX)] {
        assert!(Sims::new(&scores, images, per_image).is_err(), "{images} x {per_image}");
    }
    assert!(Sims::<f32>::new(&[], 0, 5).is_err());
}

#[test]
fn folds_and_ensembles_need_equal_parts() {
    let scores = [0.0f64; 4 * 4];
    let sims = Sims::new(&scores, 4, 1).expect("finite");
    assert!(sims.folds(0).is_err() && sims.folds(3).is_err() && sims.folds(8).is_err());
    assert!(ensemble::<f64>(&[]).is_err());
    assert!(ensemble(&[&scores[..], &scores[1..]]).is_err());
    assert_eq!(ensemble(&[&[1.0f32, 2.0][..], &[2.0, 4.0], &[6.0, 0.0]]).expect("equal lengths"), [3.0, 2.0]);
}

#[test]
fn the_median_of_an_even_count_is_floored() {
    assert_eq!(Recall::of(&[0, 1, 2, 9]).medr, 2.0);
    assert_eq!(Recall::of(&[0, 0, 3, 9]).medr, 2.0);
    assert_eq!(Recall::of(&[7]), Recall { r1: 0.0, r5: 0.0, r10: 100.0, medr: 8.0, meanr: 8.0 });
}
