use std::cell::{Cell, RefCell};
use std::rc::Rc;

use serde_json::Value;

use super::*;
use crate::data::tokenizer::{Tokenizer, WordPiece};
use crate::gpu::{Gpu, Options};
use crate::nn::{ParamSpec, Params};
use crate::systems::{Batch, Inputs, Loss, Rates, Schedule, System};
use crate::tensor::Tensor;

/// What a pair of DIME takes at its paper's size: 36 regions of four cells of 256.
const PAPER: usize = 36 * 4 * 256;

/// More captions than a tile has.
const MANY: usize = 25_000;

const IMAGES: usize = 7;
const CAPTIONS: usize = 11;
const WIDTH: usize = 4;

#[test]
fn a_gpus_tile_grows_with_what_it_binds_and_fits_it() {
    let side = |limit: usize| size(budget(Some(Class::Hardware), limit), PAPER, None, MANY).1;
    assert!((60..=72).contains(&side((4 << 30) - 1)), "{}", side(4 << 30));
    assert_eq!(side(4 << 30), side(64 << 30), "more is not useful");
    assert!(side(128 << 20) < side(1 << 30) && side(1 << 30) < side(4 << 30));
    for limit in [1 << 20, 128 << 20, 1 << 30, 4 << 30] {
        assert!(budget(Some(Class::Hardware), limit) <= limit);
    }
    assert!(size(budget(Some(Class::Software), 4 << 30), PAPER, None, MANY).1 < side(128 << 20));
}

#[test]
fn what_is_asked_for_is_kept_and_a_tile_is_never_empty() {
    assert_eq!(size(1 << 20, 64, Some(8), MANY), ((1 << 12) / 8, 8));
    assert_eq!(size(1, 64, Some(8), MANY), (1, 8));
    assert_eq!(size(1, 64, None, MANY), (1, 1));
    let (down, across) = size(usize::MAX, 0, None, MANY);
    assert!(down * across <= PAIRS);
    // Fewer captions leave room for images.
    for asked in [None, Some(1000)] {
        assert_eq!(size(1 << 20, 64, asked, 16), ((1 << 12) / 16, 16));
    }
    assert_eq!(size(1 << 20, 64, None, 0), (1 << 12, 1));
}

/// Scores by the products of two columns' rows; one of its calls meets a fault while it records.
struct Products {
    calls: Rc<Cell<usize>>,
    fault: Option<(usize, Kind)>,
}

impl System for Products {
    fn config(&self) -> Value {
        Value::Null
    }

    fn inputs(&self) -> Inputs {
        Inputs::default()
    }

    fn parameters(&self) -> Vec<ParamSpec> {
        Vec::new()
    }

    fn images(&self, _: &Pass, x: &Items) -> Items {
        x.clone()
    }

    fn captions(&self, _: &Pass, x: &Items) -> Items {
        x.clone()
    }

    fn score(&self, _: &Pass, images: &Items, captions: &Items) -> Tensor {
        let call = self.calls.get();
        self.calls.set(call + 1);
        let sums = images.at("x").matmul(captions.at("y"), false, true);
        if let (Some((at, kind)), Some(gpu)) = (self.fault, sums.device().gpu())
            && at == call
        {
            gpu.refuse(Error::of(kind, "as asked"));
        }
        sums.map(|s| s * 2.0)
    }

    fn pair_values(&self, _: usize, _: usize) -> usize {
        0
    }

    fn loss(&self, pass: &Pass, images: &Items, captions: &Items, _: &Batch) -> Loss {
        Loss { total: self.score(pass, images, captions).sum(0).sum(0), terms: Vec::new() }
    }

    fn schedule(&self, _: &Rates, _: u64, _: u64) -> Schedule {
        Schedule { rates: Vec::new(), clip: 0.0, decay: 0.0 }
    }
}

fn column(name: &str, n: usize) -> Columns {
    let mut columns = Columns::new(n);
    columns.insert(name, &[WIDTH], (0..n * WIDTH).map(|i| (i * i % 17) as f32 - 8.0).collect());
    columns
}

fn device() -> Device {
    Device::Gpu(Gpu::open(&Options::default()).expect("the tests need an adapter"))
}

/// What scoring in tiles gave, and what it told.
struct Outcome {
    scores: Result<Vec<f32>>,
    notices: usize,
    done: Vec<u64>,
    tiles: usize,
}

/// Scores all pairs in tiles of a size with room for so many bytes of captions on the device; `late` is called when a
/// tile has been submitted and the one before is about to be read, with how often that was before.
fn scored(
    device: &Device,
    (down, across): (usize, usize),
    room: usize,
    fault: Option<(usize, Kind)>,
    late: &dyn Fn(usize) -> bool,
) -> Outcome {
    let calls = Rc::new(Cell::new(0));
    let pieces = ["[UNK]", "[CLS]", "[SEP]"].map(String::from).to_vec();
    let model = Model {
        name: "products".into(),
        system: Box::new(Products { calls: calls.clone(), fault }),
        specs: Vec::new(),
        params: Params::begin(&[], device, 0),
        tokenizer: Tokenizer::Pieces(WordPiece::from_vocab(pieces).expect("a vocabulary")),
    };
    let mut captions = Captions::new(&[], 1, CAPTIONS);
    captions.extend(&column("y", CAPTIONS));
    let mut tiles = Tiles::new(&model, device, &captions, IMAGES, 1, None);
    (tiles.down, tiles.across, tiles.room) = (down, across, room);
    let (asked, told) = (Cell::new(0), RefCell::new((0, Vec::new())));
    let stop = || {
        let before = asked.get();
        asked.set(before + 1);
        late(before)
    };
    let mut tell = |progress| match progress {
        Progress::Evaluating { done, .. } => told.borrow_mut().1.push(done),
        _ => told.borrow_mut().0 += 1,
    };
    let mut sims = vec![f32::NAN; IMAGES * CAPTIONS];
    let scores = tiles.score(&column("x", IMAGES), &stop, &mut tell, &mut sims).map(|()| sims);
    let (notices, done) = told.into_inner();
    Outcome { scores, notices, done, tiles: calls.get() }
}

fn whole(device: &Device) -> Vec<f32> {
    scored(device, (IMAGES, CAPTIONS), 0, None, &|_| false).scores.expect("it scores")
}

#[test]
fn tiles_of_any_size_give_the_same_bits_and_count_every_pair() {
    let device = device();
    let whole = whole(&device);
    let product = |i: usize, c: usize| -> f32 {
        let value = |row: usize, k: usize| ((row * WIDTH + k) * (row * WIDTH + k) % 17) as f32 - 8.0;
        2.0 * (0..WIDTH).map(|k| value(i, k) * value(c, k)).sum::<f32>()
    };
    for (at, score) in whole.iter().enumerate() {
        assert_eq!(*score, product(at / CAPTIONS, at % CAPTIONS));
    }
    for (down, across) in [(1, 1), (2, 3), (3, 11), (7, 4), (5, 5), (20, 20)] {
        for room in [0, 3 * 4 * WIDTH, usize::MAX] {
            let outcome = scored(&device, (down, across), room, None, &|_| false);
            assert_eq!(outcome.scores.expect("it scores"), whole, "{down} x {across}, {room} bytes");
            assert_eq!(outcome.tiles, IMAGES.div_ceil(down) * CAPTIONS.div_ceil(across));
            assert_eq!((outcome.notices, outcome.done.len()), (0, outcome.tiles));
            assert!(outcome.done.is_sorted() && outcome.done.ends_with(&[(IMAGES * CAPTIONS) as u64]));
        }
    }
}

#[test]
fn captions_that_fit_are_uploaded_once() {
    let device = device();
    let gpu = device.gpu().expect("a GPU");
    let uploaded = |room: usize| {
        let before = gpu.stats().uploaded;
        scored(&device, (2, 3), room, None, &|_| false).scores.expect("it scores");
        gpu.stats().uploaded - before
    };
    let [images, captions] = [IMAGES, CAPTIONS].map(|n| (4 * WIDTH * n) as u64);
    let rows = IMAGES.div_ceil(2) as u64;
    assert_eq!(uploaded(0), images + rows * captions);
    assert_eq!(uploaded(captions as usize), images + captions);
    let half = uploaded(captions as usize / 2);
    assert!((images + captions + 1..images + rows * captions).contains(&half), "{half}");
}

#[test]
fn a_tile_without_memory_is_halved_whenever_that_shows() {
    let device = device();
    let gpu = device.gpu().expect("a GPU");
    let whole = whole(&device);
    let out_of_memory = || Error::of(Kind::OutOfMemory, "as asked");
    for size in [(3, 4), (4, 3)] {
        let tiles = scored(&device, size, usize::MAX, None, &|_| false).tiles;
        for at in 0..tiles {
            let fault = Some((at, Kind::OutOfMemory));
            let outcome = scored(&device, size, usize::MAX, fault, &|_| false);
            assert_eq!(outcome.scores.expect("it scores"), whole, "{size:?}, recording tile {at}");
            assert_eq!(outcome.notices, 1);
            assert!(outcome.tiles > tiles);
        }
        // From the second call on a tile is about to be read.
        for at in 1..=tiles {
            let late = |asked: usize| {
                if asked == at {
                    gpu.refuse(out_of_memory());
                }
                false
            };
            let outcome = scored(&device, size, usize::MAX, None, &late);
            assert_eq!(outcome.scores.expect("it scores"), whole, "{size:?}, reading tile {}", at - 1);
            assert_eq!(outcome.notices, 1);
            assert!(outcome.tiles > tiles);
        }
    }
    let fault = Some((0, Kind::OutOfMemory));
    let error = scored(&device, (1, 1), 0, fault, &|_| false).scores.expect_err("nothing is smaller");
    assert_eq!(error.kind(), Kind::OutOfMemory);
}

#[test]
fn other_errors_and_interruption_end_it() {
    let device = device();
    let gpu = device.gpu().expect("a GPU");
    for at in [0, 3] {
        let error = scored(&device, (3, 4), 0, Some((at, Kind::Adapter)), &|_| false).scores;
        assert_eq!(error.expect_err("a fault").kind(), Kind::Adapter);
        let interrupted = scored(&device, (3, 4), 0, None, &|asked| asked == at);
        assert_eq!(interrupted.scores.expect_err("stopped").kind(), Kind::Interrupted);
        assert!(interrupted.tiles <= at + 1 && interrupted.done.len() == at.saturating_sub(1));
    }
    let late = |asked: usize| {
        if asked == 2 {
            gpu.refuse(Error::of(Kind::Adapter, "late"));
        }
        false
    };
    let error = scored(&device, (3, 4), 0, None, &late).scores.expect_err("a fault");
    assert!(error.kind() == Kind::Adapter && error.to_string().contains("late"));
    assert_eq!(scored(&device, (3, 4), 0, None, &|_| false).scores.expect("it goes on"), whole(&device));
}
