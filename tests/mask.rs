//! `--mask-padding`: what stands in the padding, and how much of it there is, changes nothing.

use std::collections::BTreeMap;

use crossweave::gpu::{Gpu, Options};
use crossweave::host::Rng;
use crossweave::nn::bert::{self, Tokens};
use crossweave::nn::{Params, Role};
use crossweave::systems::dime::{self, AttentionNorm, Config, Direction, Path, Run};
use crossweave::tensor::{Device, Tape};

const IMAGES: usize = 4;
const REGIONS: usize = 5;
const LENGTHS: [usize; 4] = [12, 3, 7, 2];

fn config(direction: Direction, norm: AttentionNorm, mask_padding: bool) -> Config {
    Config {
        direction,
        max_words: 20,
        img_dim: 6,
        embed_size: 8,
        num_head_IMRC: 2,
        hid_IMRC: 10,
        hid_router: 6,
        raw_feature_norm_CMRC: norm,
        lambda_softmax_CMRC: 4.0,
        use_abs: false,
        no_imgnorm: false,
        margin: 0.2,
        max_violation: false,
        trade_off: 0.5,
        batch_size: 4,
        path_hid: 7,
        mask_padding,
        bert_config: bert::Config {
            vocab_size: 30,
            hidden_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 16,
            hidden_act: "gelu".into(),
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            max_position_embeddings: 20,
            type_vocab_size: 2,
            initializer_range: 0.3,
            layer_norm_eps: 1e-12,
        },
    }
}

/// How the same captions are given and processed.
#[derive(Clone, Copy)]
struct Way {
    words: usize,
    /// The id that stands in the padding.
    filler: usize,
    tile: usize,
    path: Path,
}

/// Similarities of an evaluation, and all that a training step gives, by name.
fn results(device: &Device, config: &Config, way: Way) -> BTreeMap<String, Vec<f64>> {
    let specs = config.parameters();
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
    let tokens = Tokens { ids: device.tensor(shape, &ids), mask: device.tensor(shape, &mask), types: None };
    let lengths = device.tensor([LENGTHS.len()], &LENGTHS.map(|n| n as f32));
    let mut rng = Rng::of(5, &[99]);
    let features: Vec<f32> =
        (0..IMAGES * REGIONS * config.img_dim).map(|_| rng.normal().abs() as f32).collect();
    let features = device.tensor([IMAGES, REGIONS, config.img_dim], &features);

    let tape = Tape::new();
    let trained =
        |name: &str| specs.iter().any(|s| s.name == name && [Role::Weight, Role::Encoder].contains(&s.role));
    let tracked = params.tracked(&tape, trained);
    let run = |train| Run { scope: tracked.root(), config, path: way.path, train, taps: None };
    let encoded = |run: &Run| {
        let captions = dime::encode_captions(run, &tokens, &lengths, None);
        (dime::encode_images(run, &features), captions)
    };
    let (images, captions) = encoded(&run(false));
    let sims = dime::score_tiles(&run(false), &images, &captions, way.tile).sims;
    let mut all = BTreeMap::from([("eval".to_string(), sims.to_f64().expect("read"))]);

    let (images, captions) = encoded(&run(true));
    let outcome = dime::forward(&run(true), &images, &captions, way.tile);
    let grads = tape.backward(&outcome.losses.total);
    all.insert("train".into(), outcome.scored.sims.to_f64().expect("read"));
    all.insert("loss".into(), outcome.losses.total.to_f64().expect("read"));
    for (name, value) in outcome.buffers {
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
    use AttentionNorm::{ClippedL2norm, L2norm, Softmax};
    let gpu = Gpu::open(&Options::default()).expect("the tests need an adapter");
    let cases = [
        (Direction::I2t, ClippedL2norm),
        (Direction::T2i, ClippedL2norm),
        (Direction::T2i, L2norm),
        (Direction::T2i, Softmax),
    ];
    for (direction, norm) in cases {
        let config = config(direction, norm, true);
        // Sums in another order differ by rounding; what cancels in batch norm magnifies it some thousand times.
        for (device, bound) in [(Device::Host, 1e-9), (Device::Gpu(gpu.clone()), 1e-3)] {
            let short = Way { words: 12, filler: 0, tile: 4, path: Path::Composed };
            let truth = results(&device, &config, short);
            assert!(truth.keys().filter(|name| name.starts_with("grad.")).count() > 100);
            for path in [Path::Composed, Path::Fast] {
                for (words, filler, tile) in [(12, 17, 4), (20, 0, 3), (20, 9, 4)] {
                    let way = Way { words, filler, tile, path };
                    let (worst, name) = furthest(&results(&device, &config, way), &truth);
                    let what =
                        format!("{direction:?} {norm:?} {path:?} {words} words, {filler}, tile {tile}");
                    assert!(worst < bound, "{what}, bound {bound:e}: {name} {worst:e}");
                }
            }
        }
    }
}

#[test]
fn without_the_mask_padding_counts() {
    for direction in [Direction::I2t, Direction::T2i] {
        let config = config(direction, AttentionNorm::ClippedL2norm, false);
        let way = Way { words: 12, filler: 0, tile: 4, path: Path::Fast };
        let short = results(&Device::Host, &config, way);
        for other in [Way { words: 20, ..way }, Way { filler: 9, ..way }] {
            let (worst, _) = furthest(&results(&Device::Host, &config, other), &short);
            assert!(worst > 1e-3, "{direction:?}: {worst:e}");
        }
    }
}
