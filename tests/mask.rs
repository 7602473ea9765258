//! `--mask-padding`: what stands in the padding, and how much of it there is, changes nothing.

use std::collections::BTreeMap;

use crossweave::gpu::{Gpu, Options};
use crossweave::host::Rng;
use crossweave::nn::{Params, Role};
use crossweave::ops::concat;
use crossweave::systems::{Batch, Form, Items, Pass, Step, kind};
use crossweave::tensor::{Device, Tape};
use serde_json::{Value, json};

const IMAGES: usize = 4;
const REGIONS: usize = 5;
const LENGTHS: [usize; 4] = [12, 3, 7, 2];

const DIM: usize = 6;

/// DIME's configuration, as a run's folder keeps it.
fn config(direction: &str, norm: &str, mask_padding: bool) -> Value {
    json!({
        "direction": direction, "max_words": 20, "img_dim": DIM, "embed_size": 8, "num_head_IMRC": 2,
        "hid_IMRC": 10, "hid_router": 6, "raw_feature_norm_CMRC": norm, "lambda_softmax_CMRC": 4.0,
        "use_abs": false, "no_imgnorm": false, "margin": 0.2, "max_violation": false, "trade_off": 0.5,
        "batch_size": 4, "path_hid": 7, "mask_padding": mask_padding,
        "bert_config": {
            "vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 20, "initializer_range": 0.3
        },
    })
}

/// How the same captions are given and processed.
#[derive(Clone, Copy)]
struct Way {
    words: usize,
    /// The id that stands in the padding.
    filler: usize,
    tile: usize,
    form: Form,
}

/// Similarities of an evaluation, and all that a training step gives, by name.
fn results(device: &Device, config: &Value, way: Way) -> BTreeMap<String, Vec<f64>> {
    let system = (kind("dime").expect("a system").open)(config).expect("a configuration");
    let specs = system.parameters();
    let params = Params::begin(&specs, device, 3);
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for (caption, n) in LENGTHS.into_iter().enumerate() {
        let mut rng = Rng::of(5, &[caption as u64]);
        for place in 0..way.words {
            let id = 1 + rng.below(29);
            ids.push(if place < n { id } else { way.filler } as f32);
            mask.push(f32::from(u8::from(place < n)));
        }
    }
    let shape = [LENGTHS.len(), way.words];
    let texts = Items::default()
        .with("input_ids", device.tensor(shape, &ids))
        .with("attention_mask", device.tensor(shape, &mask))
        .with("lengths", device.tensor([LENGTHS.len()], &LENGTHS.map(|n| n as f32)));
    let mut rng = Rng::of(5, &[99]);
    let features: Vec<f32> = (0..IMAGES * REGIONS * DIM).map(|_| rng.normal().abs() as f32).collect();
    let pictures = Items::default().with("images", device.tensor([IMAGES, REGIONS, DIM], &features));

    let tape = Tape::new();
    let trained =
        |name: &str| specs.iter().any(|s| s.name == name && [Role::Weight, Role::Encoder].contains(&s.role));
    let tracked = params.tracked(&tape, trained);
    let pass = Pass::evaluation(tracked.root()).computed(way.form, way.tile);
    let captions = system.captions(&pass, &texts);
    let images = system.images(&pass, &pictures);
    let sims: Vec<_> = (0..LENGTHS.len())
        .step_by(way.tile)
        .map(|start| captions.part(start, way.tile.min(LENGTHS.len() - start)))
        .map(|part| system.score(&pass, &images, &part))
        .collect();
    let mut all = BTreeMap::from([("eval".to_string(), concat(&sims, 1).to_f64().expect("read"))]);

    let step = Step { seed: 1, epoch: 0, step: 0, text_dropout: false };
    let pass = Pass::training(tracked.root(), step).computed(way.form, way.tile);
    let (images, captions) = (system.images(&pass, &pictures), system.captions(&pass, &texts));
    let loss = system.loss(&pass, &images, &captions, &Batch { image_ids: &[0, 1, 2, 3], given: None });
    let grads = tape.backward(&loss.total);
    all.insert("loss".into(), loss.total.to_f64().expect("read"));
    for (name, value) in pass.into_buffers() {
        all.insert(name, value.to_f64().expect("read"));
    }
    for spec in &specs {
        if let Some(g) = grads.of(tracked.named(&spec.name)) {
            all.insert(format!("grad.{}", spec.name), g.to_f64().expect("read"));
        }
    }
    all
}

/// The largest difference between two ways' results, relative to the tensor's largest value; of a gradient that is
/// little beside the others, as where terms cancel, relative to a thousandth of theirs.
fn furthest(a: &BTreeMap<String, Vec<f64>>, b: &BTreeMap<String, Vec<f64>>) -> (f64, String) {
    assert!(a.keys().eq(b.keys()));
    let size = |v: &[f64]| v.iter().fold(0.0f64, |m, x| if x.is_nan() { *x } else { m.max(x.abs()) });
    let grads = b.iter().filter(|(name, _)| name.starts_with("grad."));
    let floor = 1e-3 * grads.map(|(_, g)| size(g)).fold(0.0, f64::max);
    a.iter()
        .map(|(name, values)| {
            let off: Vec<f64> = values.iter().zip(&b[name]).map(|(a, b)| a - b).collect();
            let floor = if name.starts_with("grad.") { floor } else { 0.0 };
            (size(&off) / size(&b[name]).max(floor), name.clone())
        })
        .fold((0.0, String::new()), |m, r| if r.0.is_nan() || r.0 > m.0 { r } else { m })
}

#[test]
fn padding_changes_no_score_and_no_gradient() {
    let gpu = Gpu::open(&Options::default()).expect("the tests need an adapter");
    let cases = [("i2t", "clipped_l2norm"), ("t2i", "clipped_l2norm"), ("t2i", "l2norm"), ("t2i", "softmax")];
    for (direction, norm) in cases {
        let config = config(direction, norm, true);
        // Sums in another order differ by rounding; what cancels in batch norm magnifies it some thousand times.
        for (device, bound) in [(Device::Host, 1e-9), (Device::Gpu(gpu.clone()), 1e-3)] {
            let short = Way { words: 12, filler: 0, tile: 4, form: Form::Composed };
            let truth = results(&device, &config, short);
            assert!(truth.keys().filter(|name| name.starts_with("grad.")).count() > 100);
            for form in [Form::Composed, Form::Fast] {
                for (words, filler, tile) in [(12, 17, 4), (20, 0, 3), (20, 9, 4)] {
                    let way = Way { words, filler, tile, form };
                    let (worst, name) = furthest(&results(&device, &config, way), &truth);
                    let what = format!("{direction} {norm} {form:?} {words} words, {filler}, tile {tile}");
                    assert!(worst < bound, "{what}, bound {bound:e}: {name} {worst:e}");
                }
            }
        }
    }
}

#[test]
fn without_the_mask_padding_counts() {
    for direction in ["i2t", "t2i"] {
        let config = config(direction, "clipped_l2norm", false);
        let way = Way { words: 12, filler: 0, tile: 4, form: Form::Fast };
        let short = results(&Device::Host, &config, way);
        for other in [Way { words: 20, ..way }, Way { filler: 9, ..way }] {
            let (worst, _) = furthest(&results(&Device::Host, &config, other), &short);
            assert!(worst > 1e-3, "{direction}: {worst:e}");
        }
    }
}
