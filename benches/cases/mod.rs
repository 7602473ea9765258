//! Whole jobs by name: what `cargo bench --bench jobs` times, and what `tools/bench-table` asks for.
//!
//! A name is words: `matmul 1024 768 768` (rows, inner, columns), `bert 32 32` (captions, words; the whole of
//! BERT-base), `bert_layer 8 32 forward` or `.. both` (one layer of it), `dime_tile i2t 16 16` (images,
//! captions), `dime_set i2t 64 64` (the same, scored in tiles as `evaluate` does, from the host and back),
//! `dime_step i2t 32 32` (batch, extra captions or images; the same number again if left out). DIME
//! has the paper's sizes and gets text states, since a frozen BERT runs once a caption; after `demo` it has those
//! of `tools/demo.toml`, whose small BERT is trained along. After `composed` it takes the plain composition, after
//! `recomputed` it runs the cells again on the way back.

use crossweave::data::tokenizer::WordPiece;
use crossweave::host::{Rng, ratios};
use crossweave::nn::bert::{self, Tokens};
use crossweave::nn::{Dropouts, ParamSpec, Params, Role};
use crossweave::ops::AdamStep;
use crossweave::systems::dime::{self, Captions, Config, Direction, Images, Path, Run};
use crossweave::tensor::{Device, Tape, Tensor};
use crossweave::train::encoded::{Encoded, training_tile};
use crossweave::train::optim::{Optimizer, take_buffers};

/// Regions of an image, at both sizes.
const REGIONS: usize = 36;

/// A job, prepared on a device: each call does it once and leaves it recorded or running there.
pub type Job = Box<dyn FnMut()>;

/// Prepares the job of this name.
///
/// # Errors
/// Why there is none.
pub fn prepare(name: &str, device: &Device) -> Result<Job, String> {
    let wish = Wish::of(name)?;
    Ok(match wish.kind {
        Kind::Matmul(m, k, n) => matmul(device, m, k, n),
        Kind::Bert { captions, words, layers, backward } => {
            bert_job(device, captions, words, layers, backward)
        }
        Kind::Tile(images, captions) => tile(&Model::new(&wish, device), device, images, captions),
        Kind::Set(images, captions) => set(Model::new(&wish, device), device, images, captions),
        Kind::Step(batch, extra) => step(Model::new(&wish, device), device, batch, extra),
    })
}

/// Checks the job's model on a few items before it is timed: the fast path on the device against the
/// composition, and at the demo's sizes against f64 on the host.
///
/// # Errors
/// Where they differ.
pub fn check(name: &str, device: &Device) -> Result<(), String> {
    let wish = Wish::of(name)?;
    let host = wish.demo.then_some(Device::Host);
    let (far, bound) = match wish.kind {
        Kind::Matmul(..) => {
            let run = |d: &Device| product(d, 37, 64, 36).to_f64().expect("the device works");
            (ratios(&run(device), &run(&Device::Host)).worst(), 1e-5)
        }
        Kind::Bert { backward, .. } => {
            let run = |d: &Device| bert_values(d, backward);
            (ratios(&run(device), &run(&Device::Host)).worst(), 1e-4)
        }
        Kind::Tile(..) | Kind::Set(..) | Kind::Step(..) => {
            let trains = matches!(wish.kind, Kind::Step(..));
            let run = |d: &Device, path| Model::new(&Wish { path, ..wish.clone() }, d).values(d, trains);
            let fast = run(device, wish.path);
            let plain = run(host.as_ref().unwrap_or(device), Path::Composed);
            (ratios(&fast, &plain).worst(), 1e-3)
        }
    };
    if far <= bound { Ok(()) } else { Err(format!("{name}: {far:.1e} from what it should be")) }
}

/// The pairs that a job scores; `None` for jobs that score none.
pub fn pairs(name: &str) -> Option<usize> {
    match Wish::of(name).ok()?.kind {
        Kind::Tile(images, captions) | Kind::Set(images, captions) => Some(images * captions),
        _ => None,
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Matmul(usize, usize, usize),
    Bert { captions: usize, words: usize, layers: usize, backward: bool },
    Tile(usize, usize),
    Set(usize, usize),
    Step(usize, usize),
}

/// A name, understood.
#[derive(Clone)]
struct Wish {
    kind: Kind,
    direction: Direction,
    path: Path,
    demo: bool,
}

impl Wish {
    fn of(name: &str) -> Result<Self, String> {
        let mut wish =
            Self { kind: Kind::Tile(0, 0), direction: Direction::I2t, path: Path::Fast, demo: false };
        let (mut numbers, mut backward) = (Vec::new(), false);
        let mut words = name.split_whitespace();
        let first = words.next().unwrap_or_default();
        for word in words {
            match word {
                "i2t" => wish.direction = Direction::I2t,
                "t2i" => wish.direction = Direction::T2i,
                "demo" => wish.demo = true,
                "composed" => wish.path = Path::Composed,
                "recomputed" => wish.path = Path::Recomputed,
                "forward" => backward = false,
                "both" => backward = true,
                number => numbers.push(number.parse().map_err(|_| format!("{number} is not understood"))?),
            }
        }
        wish.kind = match (first, numbers.as_slice()) {
            ("matmul", [m, k, n]) => Kind::Matmul(*m, *k, *n),
            ("bert", [captions, words]) => {
                Kind::Bert { captions: *captions, words: *words, layers: 12, backward }
            }
            ("bert_layer", [captions, words]) => {
                Kind::Bert { captions: *captions, words: *words, layers: 1, backward }
            }
            ("dime_tile", [images, captions]) => Kind::Tile(*images, *captions),
            ("dime_set", [images, captions]) => Kind::Set(*images, *captions),
            ("dime_step", [batch]) => Kind::Step(*batch, *batch),
            ("dime_step", [batch, extra]) => Kind::Step(*batch, *extra),
            _ => return Err(format!("no job `{name}`")),
        };
        Ok(wish)
    }
}

fn normal(device: &Device, shape: &[usize], seed: u64) -> Tensor {
    let mut rng = Rng::of(seed, &[shape.len() as u64]);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    device.tensor(shape, &values)
}

fn product(device: &Device, m: usize, k: usize, n: usize) -> Tensor {
    normal(device, &[m, k], 1).matmul(&normal(device, &[k, n], 2), false, false)
}

fn matmul(device: &Device, m: usize, k: usize, n: usize) -> Job {
    let (a, b) = (normal(device, &[m, k], 1), normal(device, &[k, n], 2));
    Box::new(move || drop(a.matmul(&b, false, false)))
}

/// BERT-base's sizes with a vocabulary of a few rows: a lookup's time does not depend on the others.
fn bert_base(layers: usize) -> bert::Config {
    bert::Config {
        vocab_size: 512,
        hidden_size: 768,
        num_hidden_layers: layers,
        num_attention_heads: 12,
        intermediate_size: 3072,
        hidden_act: "gelu".into(),
        hidden_dropout_prob: 0.0,
        attention_probs_dropout_prob: 0.0,
        max_position_embeddings: 512,
        type_vocab_size: 2,
        initializer_range: 0.02,
        layer_norm_eps: 1e-12,
    }
}

/// Token rows of all lengths from two words on, the longest first.
fn tokens(device: &Device, captions: usize, words: usize, vocab: usize) -> (Tokens, Tensor) {
    let mut rng = Rng::of(3, &[captions as u64]);
    let lengths: Vec<usize> = (0..captions).map(|i| (words - i * words / (2 * captions)).max(1)).collect();
    let row = |i: usize| (0..words).map(move |w| (i, w));
    let mask: Vec<f32> =
        (0..captions).flat_map(row).map(|(i, w)| f32::from(u8::from(w < lengths[i]))).collect();
    let ids: Vec<f32> = mask.iter().map(|m| if *m > 0.0 { rng.below(vocab) as f32 } else { 0.0 }).collect();
    let shape = [captions, words];
    let tokens = Tokens { ids: device.tensor(shape, &ids), mask: device.tensor(shape, &mask), types: None };
    let lengths: Vec<f32> = lengths.iter().map(|n| *n as f32).collect();
    (tokens, device.tensor([captions], &lengths))
}

/// What a layer's backward gives: its own gradients, and through the norm below it that of its input.
fn in_layer(name: &str) -> bool {
    name.starts_with("encoder.") || name.contains("embeddings.LayerNorm")
}

fn bert_job(device: &Device, captions: usize, words: usize, layers: usize, backward: bool) -> Job {
    let config = bert_base(layers);
    let params = Params::begin(&config.parameters(""), device, 1);
    let (tokens, _) = tokens(device, captions, words, config.vocab_size);
    if !backward {
        return Box::new(move || drop(bert::encode(&params.root(), &config, &tokens, None)));
    }
    let g = normal(device, &[captions, words, config.hidden_size], 4);
    Box::new(move || {
        let tape = Tape::new();
        let tracked = params.tracked(&tape, in_layer);
        let states = bert::encode(&tracked.root(), &config, &tokens, None);
        drop(tape.backward_from(states.last(), g.clone()));
    })
}

/// A small BERT's output, or the gradients of two of its weights, for comparison.
fn bert_values(device: &Device, backward: bool) -> Vec<f64> {
    let config = bert::Config {
        hidden_size: 36,
        num_attention_heads: 3,
        intermediate_size: 80,
        vocab_size: 50,
        ..bert_base(1)
    };
    let params = Params::begin(&config.parameters(""), device, 1);
    let (tokens, _) = tokens(device, 3, 11, config.vocab_size);
    let tape = Tape::new();
    let tracked = params.tracked(&tape, in_layer);
    let states = bert::encode(&tracked.root(), &config, &tokens, None);
    if !backward {
        return states.last().to_f64().expect("the device works");
    }
    let grads = tape.backward_from(states.last(), normal(device, &[3, 11, 36], 4));
    ["attention.self.query", "output.dense"]
        .iter()
        .flat_map(|at| {
            let leaf = tracked.named(&format!("encoder.layer.0.{at}.weight"));
            grads.of(leaf).expect("it has a gradient").to_f64().expect("the device works")
        })
        .collect()
}

/// DIME with random weights, at one of the two sizes.
struct Model {
    config: Config,
    path: Path,
    specs: Vec<ParamSpec>,
    params: Params,
    /// Whether BERT is part of a step.
    with_bert: bool,
}

impl Model {
    fn new(wish: &Wish, device: &Device) -> Self {
        let config = if wish.demo { demo(wish.direction) } else { paper(wish.direction) };
        let specs: Vec<ParamSpec> =
            config.parameters().into_iter().filter(|s| wish.demo || s.role != Role::Encoder).collect();
        let params = Params::begin(&specs, device, 1);
        Self { config, path: wish.path, specs, params, with_bert: wish.demo }
    }

    fn run<'a>(&'a self, params: &'a Params, train: bool) -> Run<'a> {
        Run { scope: params.root(), config: &self.config, path: self.path, train, taps: None }
    }

    /// Similarities of a few items, or the loss and the gradients of some weights, for comparison.
    fn values(&self, device: &Device, trains: bool) -> Vec<f64> {
        let (images, captions) = counts(self.config.direction, 2, 1);
        let batch = Batch::new(self, images, captions);
        if !trains {
            let run = self.run(&self.params, false);
            let (images, captions) = batch.encode(&run, device, None);
            let sims = dime::score_tiles(&run, &images, &captions, 2).sims;
            return sims.to_f64().expect("the device works");
        }
        let tape = Tape::new();
        let params = self.params.tracked(&tape, |name| self.is_trained(name));
        let run = self.run(&params, true);
        let (images, captions) = batch.encode(&run, device, None);
        let total = dime::forward(&run, &images, &captions, 2).losses.total;
        let grads = tape.backward(&total);
        let mut values = total.to_f64().expect("the device works");
        for at in ["img_enc.fc.weight", "itr_module.dynamic_itr_l0.cmrc.refine.fc_1.weight"] {
            let grad = grads.of(params.named(at)).expect("it has a gradient");
            let grad = grad.to_f64().expect("the device works");
            let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
            values.extend(grad.iter().map(|g| g / norm));
        }
        values
    }

    fn is_trained(&self, name: &str) -> bool {
        self.specs.iter().any(|s| s.name == name && matches!(s.role, Role::Weight | Role::Encoder))
    }
}

/// Images and captions of a batch with its extra ones.
fn counts(direction: Direction, batch: usize, extra: usize) -> (usize, usize) {
    match direction {
        Direction::I2t => (batch, batch + extra),
        Direction::T2i => (batch + extra, batch),
    }
}

fn lambda(direction: Direction) -> f64 {
    if direction == Direction::I2t { 4.0 } else { 9.0 }
}

fn paper(direction: Direction) -> Config {
    Config {
        direction,
        max_words: 32,
        img_dim: 2048,
        embed_size: 256,
        num_head_IMRC: 16,
        hid_IMRC: 512,
        hid_router: 512,
        raw_feature_norm_CMRC: dime::AttentionNorm::ClippedL2norm,
        lambda_softmax_CMRC: lambda(direction),
        use_abs: false,
        no_imgnorm: false,
        margin: 0.2,
        max_violation: true,
        trade_off: 0.5,
        batch_size: 32,
        path_hid: 128,
        mask_padding: false,
        bert_config: bert_base(12),
    }
}

fn demo(direction: Direction) -> Config {
    Config {
        max_words: 24,
        img_dim: 64,
        embed_size: 32,
        num_head_IMRC: 4,
        hid_IMRC: 64,
        hid_router: 32,
        batch_size: 8,
        bert_config: bert::Config {
            vocab_size: 560,
            hidden_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            intermediate_size: 128,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 24,
            ..bert_base(2)
        },
        ..paper(direction)
    }
}

/// A batch as the loader gives it: on the CPU.
struct Batch {
    images: usize,
    captions: usize,
    features: Vec<f32>,
    /// Text states; none where BERT runs.
    states: Vec<f32>,
    dim: usize,
    words: usize,
    hidden: usize,
    vocab: usize,
}

impl Batch {
    fn new(model: &Model, images: usize, captions: usize) -> Self {
        let config = &model.config;
        let (dim, words, hidden) = (config.img_dim, config.max_words, config.bert_config.hidden_size);
        let states = if model.with_bert { 0 } else { captions * words * hidden };
        let values = |n: usize, seed| {
            let mut rng = Rng::new(seed);
            (0..n).map(|_| rng.normal() as f32).collect()
        };
        Self {
            images,
            captions,
            features: values(images * REGIONS * dim, 5),
            states: values(states, 6),
            dim,
            words,
            hidden,
            vocab: config.bert_config.vocab_size,
        }
    }

    fn encode(&self, run: &Run, device: &Device, dropouts: Option<&Dropouts>) -> (Images, Captions) {
        let features = device.tensor([self.images, REGIONS, self.dim], &self.features);
        let (tokens, lengths) = tokens(device, self.captions, self.words, self.vocab);
        let captions = if self.states.is_empty() {
            dime::encode_captions(run, &tokens, &lengths, dropouts)
        } else {
            let states = device.tensor([self.captions, self.words, self.hidden], &self.states);
            dime::encode_states(run, &states, &lengths)
        };
        (dime::encode_images(run, &features), captions)
    }
}

/// Scores encoded items, as a tile of the similarity matrix is.
fn tile(model: &Model, device: &Device, images: usize, captions: usize) -> Job {
    let (config, path, params) = (model.config.clone(), model.path, model.params.clone());
    let (images, captions) = {
        let run = model.run(&params, false);
        Batch::new(model, images, captions).encode(&run, device, None)
    };
    Box::new(move || {
        let run = Run { scope: params.root(), config: &config, path, train: false, taps: None };
        let pairs = dime::interact(&run, &images, &captions);
        drop(dime::score(&run, &[pairs]));
    })
}

/// Scores a set of encoded items that wait on the host, all pairs, and brings the scores back.
fn set(model: Model, device: &Device, images: usize, captions: usize) -> Job {
    let mut encoded = Encoded::none(&model.config, REGIONS, model.config.max_words);
    let (images, captions) =
        Batch::new(&model, images, captions).encode(&model.run(&model.params, false), device, None);
    encoded.add_images(&images).and_then(|()| encoded.add_captions(&captions)).expect("the device works");
    let pieces = ["[UNK]", "[CLS]", "[SEP]"].map(String::from).to_vec();
    let model = crossweave::train::model::Model {
        config: model.config,
        specs: model.specs,
        params: model.params,
        pieces: WordPiece::from_vocab(pieces).expect("a vocabulary"),
    };
    let device = device.clone();
    Box::new(move || {
        let scored = encoded.score(&model, &device, None, &|| false, &mut |_| {});
        drop(scored.expect("the device works"));
    })
}

/// One training step, as the training loop takes it, from a batch on the CPU to new parameters.
fn step(mut model: Model, device: &Device, batch: usize, extra: usize) -> Job {
    let (images, captions) = counts(model.config.direction, batch, extra);
    let batch = Batch::new(&model, images, captions);
    let tile = training_tile(&model.config, images, captions, REGIONS, device);
    let (device, mut optimizer, mut done) = (device.clone(), Optimizer::default(), 0);
    let adam = AdamStep { lr: 2e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0, clip: 2.0 };
    Box::new(move || {
        let tape = Tape::new();
        let params = model.params.tracked(&tape, |name| model.is_trained(name));
        let run = model.run(&params, true);
        let dropouts = model.with_bert.then(|| Dropouts::new(done));
        let (images, captions) = batch.encode(&run, &device, dropouts.as_ref());
        let outcome = dime::forward(&run, &images, &captions, tile);
        let grads = tape.backward(&outcome.losses.total);
        let named: Vec<(String, Tensor)> = model
            .specs
            .iter()
            .filter_map(|s| Some((s.name.clone(), grads.of(params.named(&s.name))?.clone())))
            .collect();
        let squares = optimizer.step(&mut model.params, &named, &adam, &|_| Some(adam.lr));
        take_buffers(&mut model.params, &outcome.buffers, &squares);
        done += 1;
    })
}
