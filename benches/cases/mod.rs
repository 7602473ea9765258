//! Whole jobs by name: what `cargo bench --bench jobs` times, and what `tools/bench-table` asks for.
//!
//! A name is words: `matmul 1024 768 768` (rows, inner, columns), `bert 32 32` (captions, words; the whole of
//! BERT-base), `bert_layer 8 32 forward` or `.. both` (one layer of it), and for every system of [`SIZES`], such as
//! `dime`: `dime_tile i2t 16 16` (images, captions), `dime_set i2t 64 64` (the same, scored in tiles as `evaluate`
//! does, from the host and back), `dime_step i2t 32 32` (batch, extra captions or images; where a direction is given
//! the same number again if left out). A system has the paper's sizes and, if its BERT is frozen, gets text states; after
//! `demo` it has the demo's sizes, whose small BERT is trained along. After `composed` it takes the plain composition,
//! after `recomputed` it runs parts again on the way back; after `frozen` its encoders are left as they are, where they may
//! be. `swin 8` is the forward pass of Swin-B over so many pictures, after `demo` that of the demo's.

use std::collections::HashSet;

use crossweave::data::tokenizer::{Tokenizer, WordPiece};
use crossweave::eval::encoded::{Encoded, training_tile};
use crossweave::eval::model::is_trained;
use crossweave::gpu::Precision;
use crossweave::host::{Columns, Rng, ratios};
use crossweave::nn::bert::{self, Tokens};
use crossweave::nn::optim::{Optimizer, take_buffers};
use crossweave::nn::swin;
use crossweave::nn::{ParamSpec, Params, Role};
use crossweave::systems::{
    self, Encoders, Form, Images, Items, Kind as SystemKind, Pass, Rates, Schedule, Step, System, Text,
    TextSide, kinds,
};
use crossweave::tensor::{Device, Tape, Tensor};
use crossweave::train::options::TrainOptions;

/// Of each system: the options that its paper gives besides its defaults, and those of the demo's sizes.
const SIZES: [(&str, &str, &str); 4] = [
    (
        "dime",
        "",
        "--max_words 24 --embed_size 32 --num_head_IMRC 4 --hid_IMRC 64 --hid_router 32 --batch_size 8",
    ),
    ("hrem", "", "--embed_size 64 --nhead 4 --batch_size 32 --warmup 0"),
    (
        "gsmn",
        "--bi_gru --max_violation --lambda_softmax 20",
        "--embed_size 64 --word_dim 64 --hid_dim 16 --batch_size 16",
    ),
    (
        "hat",
        "--swin-init random --drop-path 0",
        "--image_size 64 --swin-embed 16 --swin-depths 2,2,2,2 --swin-heads 2,4,8,16 --hidden_size 64 --batch_size 16",
    ),
];
/// Layers of a picture system's BERT, which is aligned at several depths.
const DEEP: usize = 12;
/// An epoch in which everything is trained.
const LATE: u64 = 1000;
/// Width of a region's features at the paper's sizes and at the demo's.
const DIMS: [usize; 2] = [2048, 64];
/// Regions of an image, at both sizes.
const REGIONS: usize = 36;
/// Words that a system of whole words has embeddings of, at the paper's sizes and at the demo's.
const VOCABULARY: [usize; 2] = [8000, 772];
/// Ids of a caption at most, for such a system.
const MOST_IDS: usize = 20;

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
        Kind::Swin(images) => swin_job(device, images, wish.demo),
        Kind::Tile(images, captions) => tile(Model::new(&wish, device), device, images, captions),
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
        Kind::Swin(_) => {
            let run =
                |d: &Device| swin(d, 2, true).last().expect("stages").to_f64().expect("the device works");
            (ratios(&run(device), &run(&Device::Host)).worst(), 1e-4)
        }
        Kind::Tile(..) | Kind::Set(..) | Kind::Step(..) => {
            let trains = matches!(wish.kind, Kind::Step(..));
            let run = |d: &Device, form| Model::new(&Wish { form, ..wish.clone() }, d).values(d, trains);
            let fast = run(device, wish.form);
            let plain = run(host.as_ref().unwrap_or(device), Form::Composed);
            (ratios(&fast, &plain).worst(), 1e-3)
        }
    };
    // Operands of f16 are off by up to 2^-11, and cancellation in routers carries that far.
    let half = device.gpu().is_some_and(|gpu| gpu.precision() == Precision::F16);
    let bound = if half { 5e-2 } else { bound };
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
    Swin(usize),
    Tile(usize, usize),
    Set(usize, usize),
    Step(usize, usize),
}

/// A name, understood.
#[derive(Clone)]
struct Wish {
    kind: Kind,
    system: &'static str,
    /// More options of the system.
    options: String,
    form: Form,
    demo: bool,
    frozen: bool,
}

impl Wish {
    fn of(name: &str) -> Result<Self, String> {
        let options = String::new();
        let mut wish = Self {
            kind: Kind::Tile(0, 0),
            system: "",
            options,
            form: Form::Fast,
            demo: false,
            frozen: false,
        };
        let (mut numbers, mut backward) = (Vec::new(), false);
        let mut words = name.split_whitespace();
        let first = words.next().unwrap_or_default();
        for word in words {
            match word {
                "i2t" => wish.options += " --direction i2t --lambda_softmax 4",
                "t2i" => wish.options += " --direction t2i --lambda_softmax 9",
                "demo" => wish.demo = true,
                "frozen" => wish.frozen = true,
                "composed" => wish.form = Form::Composed,
                "recomputed" => wish.form = Form::Recomputed,
                "forward" => backward = false,
                "both" => backward = true,
                number => numbers.push(number.parse().map_err(|_| format!("{number} is not understood"))?),
            }
        }
        let (system, job) = match SIZES.iter().find(|(system, ..)| first.starts_with(&format!("{system}_"))) {
            Some((system, ..)) => (*system, &first[system.len() + 1..]),
            None => ("", first),
        };
        wish.system = system;
        wish.kind = match (job, numbers.as_slice()) {
            ("matmul", [m, k, n]) => Kind::Matmul(*m, *k, *n),
            ("bert", [captions, words]) => {
                Kind::Bert { captions: *captions, words: *words, layers: 12, backward }
            }
            ("bert_layer", [captions, words]) => {
                Kind::Bert { captions: *captions, words: *words, layers: 1, backward }
            }
            ("swin", [images]) => Kind::Swin(*images),
            ("tile", [images, captions]) if !system.is_empty() => Kind::Tile(*images, *captions),
            ("set", [images, captions]) if !system.is_empty() => Kind::Set(*images, *captions),
            ("step", [batch]) if !system.is_empty() => {
                Kind::Step(*batch, if wish.options.is_empty() { 0 } else { *batch })
            }
            ("step", [batch, extra]) if !system.is_empty() => Kind::Step(*batch, *extra),
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
fn token_rows(captions: usize, words: usize, vocab: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut rng = Rng::of(3, &[captions as u64]);
    let lengths: Vec<usize> = (0..captions).map(|i| (words - i * words / (2 * captions)).max(1)).collect();
    let row = |i: usize| (0..words).map(move |w| (i, w));
    let mask: Vec<f32> =
        (0..captions).flat_map(row).map(|(i, w)| f32::from(u8::from(w < lengths[i]))).collect();
    let ids: Vec<f32> = mask.iter().map(|m| if *m > 0.0 { rng.below(vocab) as f32 } else { 0.0 }).collect();
    let lengths = lengths.iter().map(|n| *n as f32).collect();
    (ids, mask, lengths)
}

fn tokens(device: &Device, captions: usize, words: usize, vocab: usize) -> Tokens {
    let (ids, mask, _) = token_rows(captions, words, vocab);
    let shape = [captions, words];
    Tokens { ids: device.tensor(shape, &ids), mask: device.tensor(shape, &mask), types: None }
}

/// What a layer's backward gives: its own gradients, and through the norm below it that of its input.
fn in_layer(name: &str) -> bool {
    name.starts_with("encoder.") || name.contains("embeddings.LayerNorm")
}

fn bert_job(device: &Device, captions: usize, words: usize, layers: usize, backward: bool) -> Job {
    let config = bert_base(layers);
    let params = Params::begin(&config.parameters(""), device, 1);
    let tokens = tokens(device, captions, words, config.vocab_size);
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

/// The backbone that a system of [`SIZES`] has, over random pictures.
fn swin_of(demo: bool) -> swin::Config {
    let (embed_dim, depths, num_heads) = match demo {
        true => (16, vec![2; 4], vec![2, 4, 8, 16]),
        false => (128, vec![2, 2, 18, 2], vec![4, 8, 16, 32]),
    };
    swin::Config {
        img_size: if demo { 64 } else { 224 },
        patch_size: 4,
        in_chans: 3,
        embed_dim,
        depths,
        num_heads,
        mlp_ratio: 4.0,
        drop_path_rate: 0.0,
    }
}

/// What each stage gives.
fn swin(device: &Device, images: usize, demo: bool) -> Vec<Tensor> {
    let config = swin_of(demo);
    let params = Params::begin(&config.parameters(""), device, 1);
    stages(&params, &config, &normal(device, &[images, 3, config.img_size, config.img_size], 5))
}

fn stages(params: &Params, config: &swin::Config, pixels: &Tensor) -> Vec<Tensor> {
    let run = swin::Run { scope: params.root(), config, dropouts: None, recomputed: false };
    let stages = run.stages(pixels, &mut |_, _| ());
    (0..stages.len()).map(|stage| run.normed(&stages, stage)).collect()
}

fn swin_job(device: &Device, images: usize, demo: bool) -> Job {
    let config = swin_of(demo);
    let params = Params::begin(&config.parameters(""), device, 1);
    let pixels = normal(device, &[images, 3, config.img_size, config.img_size], 5);
    Box::new(move || drop(stages(&params, &config, &pixels)))
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
    let tokens = tokens(device, 3, 11, config.vocab_size);
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

/// A system with random weights, at one of the two sizes.
struct Model {
    name: &'static str,
    system: Box<dyn System>,
    form: Form,
    specs: Vec<ParamSpec>,
    params: Params,
    /// Whether BERT is part of a step.
    with_text: bool,
    /// Whether the captions, not the images, get extras.
    extra_captions: bool,
    /// The epoch of a step.
    epoch: u64,
}

impl Model {
    fn new(wish: &Wish, device: &Device) -> Self {
        let is_own = |kind: &SystemKind| kind.name == wish.system;
        let kind = kinds().into_iter().find(is_own).expect("SIZES names systems");
        let (_, always, demo_sizes) =
            SIZES.iter().find(|(name, ..)| *name == wish.system).expect("a job's system");
        let i2t = !wish.options.contains("t2i");
        let sizes = if wish.demo { demo_sizes } else { "" };
        let line = format!("--system {} {always} {sizes} {}", wish.system, wish.options);
        let options = TrainOptions::of(&line.split_whitespace().collect::<Vec<_>>()).expect("sound options");
        let pictures = kind.images == Images::Pictures;
        let text = match kind.text {
            Text::Bert { .. } if pictures && wish.demo => TextSide::Bert(bert::Config {
                hidden_size: 64,
                num_attention_heads: 4,
                intermediate_size: 256,
                max_position_embeddings: 64,
                ..bert_base(DEEP)
            }),
            Text::Bert { .. } => TextSide::Bert(if wish.demo { bert_demo() } else { bert_base(12) }),
            Text::Words => TextSide::Words(VOCABULARY[usize::from(wish.demo)]),
        };
        let (dim, batch_size) = (DIMS[usize::from(wish.demo)], options.fixed.batch_size);
        let encoders = Encoders { regions: REGIONS, dim, image: None, text, batch_size, faithful: false };
        let system = options.own.system(&encoders).expect("sound sizes");
        let with_text = wish.demo || kind.text.trained();
        let of_step = |s: &ParamSpec| with_text || s.role != Role::Encoder;
        let specs: Vec<ParamSpec> = system.parameters().into_iter().filter(of_step).collect();
        let params = Params::begin(&specs, device, 1);
        let epoch = if pictures && !wish.frozen { LATE } else { 0 };
        let (name, form) = (wish.system, wish.form);
        Self { name, system, form, specs, params, with_text, extra_captions: i2t, epoch }
    }

    /// Images and captions of a batch with its extra ones.
    fn counts(&self, batch: usize, extra: usize) -> (usize, usize) {
        if self.extra_captions { (batch, batch + extra) } else { (batch + extra, batch) }
    }

    fn pass<'a>(&self, params: &'a Params, step: Option<u64>, tile: usize) -> Pass<'a> {
        let at = |step| Step { seed: 1, epoch: self.epoch, step, text_dropout: self.with_text };
        let pass = match step {
            Some(step) => Pass::training(params.root(), at(step)),
            None => Pass::evaluation(params.root()),
        };
        pass.computed(self.form, tile)
    }

    /// Ids of a caption at most.
    fn words(&self) -> usize {
        match self.system.inputs() {
            inputs if inputs.vocabulary > 0 || inputs.image_size > 0 => MOST_IDS,
            inputs => inputs.max_words.min(32),
        }
    }

    fn is_trained(&self, name: &str) -> bool {
        let moves = |s: &ParamSpec| self.schedule(0).rate(s.group).is_some();
        self.specs.iter().any(|s| s.name == name && is_trained(s, self.with_text) && moves(s))
    }

    fn schedule(&self, step: u64) -> Schedule {
        self.system.schedule(&Rates { learning_rate: 2e-4, grad_clip: 2.0 }, self.epoch, step)
    }

    /// The items of a batch, encoded.
    fn encode(
        &self,
        pass: &Pass,
        (images, captions): &(Columns, Columns),
        device: &Device,
    ) -> (Items, Items) {
        let [images, captions] = [images, captions].map(|columns| Items::upload(columns, device));
        (self.system.images(pass, &images), self.system.captions(pass, &captions))
    }

    /// Encoded items to score; of pictures one is encoded for all.
    fn encoded(&self, images: usize, captions: usize, device: &Device) -> (Items, Items) {
        let one = self.system.inputs().image_size > 0;
        let batch = self.batch(if one { 1 } else { images }, captions);
        let (rows, texts) = self.encode(&self.pass(&self.params, None, usize::MAX), &batch, device);
        (if one { repeated(&rows, images, device) } else { rows }, texts)
    }

    /// A batch as the loader gives it, on the CPU; text states where BERT does not run.
    fn batch(&self, images: usize, captions: usize) -> (Columns, Columns) {
        let inputs = self.system.inputs();
        let values = |n: usize, seed| {
            let mut rng = Rng::new(seed);
            (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>()
        };
        let mut rows = Columns::new(images);
        for name in inputs.images {
            match *name {
                "images" => {
                    rows.insert(name, &[REGIONS, inputs.dim], values(images * REGIONS * inputs.dim, 5))
                }
                "image" => {
                    let size = inputs.image_size;
                    rows.insert(name, &[3, size, size], values(images * 3 * size * size, 5))
                }
                "bboxes" => rows.insert(name, &[REGIONS, 4], boxes(images)),
                _ => rows.insert(name, &[], vec![REGIONS as f32; images]),
            }
        }
        let words = self.words();
        let encoder = self.system.text_encoder();
        let vocabulary = encoder.as_ref().map_or(inputs.vocabulary, |e| e.config.vocab_size);
        let (ids, mask, lengths) = token_rows(captions, words, vocabulary);
        let mut texts = Columns::new(captions);
        for name in inputs.captions {
            match *name {
                "lengths" | "cap_lens" => texts.insert(name, &[], lengths.clone()),
                "attention_mask" | "input_mask" => texts.insert(name, &[words], mask.clone()),
                _ => texts.insert(name, &[words], ids.clone()),
            }
        }
        if let Some(encoder) = encoder.filter(|_| !self.with_text) {
            let hidden = encoder.config.hidden_size;
            texts.insert("states", &[words, hidden], values(captions * words * hidden, 6));
        }
        (rows, texts)
    }

    /// Similarities of a few items, or the loss and the gradients of some weights, for comparison.
    fn values(&self, device: &Device, trains: bool) -> Vec<f64> {
        let (images, captions) = self.counts(2, 1);
        let batch = self.batch(images, captions);
        if !trains {
            let pass = self.pass(&self.params, None, 2);
            let (images, captions) = self.encode(&pass, &batch, device);
            return self.system.score(&pass, &images, &captions).to_f64().expect("the device works");
        }
        let tape = Tape::new();
        let params = self.params.tracked(&tape, |name| self.is_trained(name));
        let mut pass = self.pass(&params, Some(0), 2);
        pass.dropouts = None;
        let (images, captions) = self.encode(&pass, &batch, device);
        let total = self.system.loss(&pass, &images, &captions, &about(&IDS[..2])).total;
        let grads = tape.backward(&total);
        let mut values = total.to_f64().expect("the device works");
        // The first and the middle one of the larger weights.
        let with_grad: Vec<&Tensor> = self
            .specs
            .iter()
            .filter(|s| s.shape.rank() == 2)
            .filter_map(|s| grads.of(params.named(&s.name)))
            .collect();
        for grad in [with_grad[0], with_grad[with_grad.len() / 2]] {
            let grad = grad.to_f64().expect("the device works");
            let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
            values.extend(grad.iter().map(|g| g / norm));
        }
        values
    }
}

/// One item so many times.
fn repeated(one: &Items, n: usize, device: &Device) -> Items {
    let columns = one.to_host().expect("the device works");
    Items::upload(&columns.select(&vec![0; n]), device)
}

/// Boxes as shares of an image's sides.
fn boxes(images: usize) -> Vec<f32> {
    let mut rng = Rng::new(7);
    let mut one = || {
        let (x, y) = (rng.range(0.0, 0.8), rng.range(0.0, 0.8));
        [x, y, x + rng.range(0.05, 0.2), y + rng.range(0.05, 0.2)].map(|v| v as f32)
    };
    (0..images * REGIONS).flat_map(|_| one()).collect()
}

/// Each sample has an image of its own.
const IDS: [usize; 256] = {
    let mut ids = [0; 256];
    let mut i = 0;
    while i < 256 {
        ids[i] = i;
        i += 1;
    }
    ids
};

fn about(image_ids: &[usize]) -> systems::Batch<'_> {
    systems::Batch { image_ids, given: None }
}

/// The demo's small BERT.
fn bert_demo() -> bert::Config {
    bert::Config {
        vocab_size: 560,
        hidden_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 128,
        hidden_dropout_prob: 0.1,
        attention_probs_dropout_prob: 0.1,
        max_position_embeddings: 64,
        ..bert_base(2)
    }
}

/// Scores encoded items, as a tile of the similarity matrix is.
fn tile(model: Model, device: &Device, images: usize, captions: usize) -> Job {
    let (images, captions) = model.encoded(images, captions, device);
    Box::new(move || {
        let pass = model.pass(&model.params, None, usize::MAX);
        drop(model.system.score(&pass, &images, &captions));
    })
}

/// Scores a set of encoded items that wait on the host, all pairs, and brings the scores back.
fn set(model: Model, device: &Device, images: usize, captions: usize) -> Job {
    let words = model.words();
    let (images, captions) = model.encoded(images, captions, device);
    let [images, captions] = [images, captions].map(|items| items.to_host().expect("the device works"));
    let encoded = Encoded::of(images, &captions, model.system.padded_columns(), REGIONS, words);
    let pieces = ["[UNK]", "[CLS]", "[SEP]"].map(String::from).to_vec();
    let model = crossweave::eval::model::Model {
        name: model.name.into(),
        system: model.system,
        specs: model.specs,
        params: model.params,
        tokenizer: Tokenizer::Pieces(WordPiece::from_vocab(pieces).expect("a vocabulary")),
    };
    let device = device.clone();
    Box::new(move || {
        let scored = encoded.score(&model, &device, None, &|| false, &mut |_| {});
        drop(scored.expect("the device works"));
    })
}

/// One training step, as the training loop takes it, from a batch on the CPU to new parameters.
fn step(mut model: Model, device: &Device, batch: usize, extra: usize) -> Job {
    let (images, captions) = model.counts(batch, extra);
    let items = model.batch(images, captions);
    let words = model.words();
    let tile = training_tile(&*model.system, images, captions, REGIONS, words, device);
    let (device, mut optimizer, mut done) = (device.clone(), Optimizer::default(), 0);
    let moving: HashSet<String> =
        model.specs.iter().map(|s| s.name.clone()).filter(|name| model.is_trained(name)).collect();
    Box::new(move || {
        let tape = Tape::new();
        let params = model.params.tracked(&tape, |name| moving.contains(name));
        let pass = model.pass(&params, Some(done), tile);
        let (images, captions) = model.encode(&pass, &items, &device);
        let loss = model.system.loss(&pass, &images, &captions, &about(&IDS[..batch]));
        let buffers = pass.into_buffers();
        let grads = tape.backward(&loss.total);
        let named: Vec<(String, Tensor)> = model
            .specs
            .iter()
            .filter_map(|s| Some((s.name.clone(), grads.of(params.named(&s.name))?.clone())))
            .collect();
        let schedule = model.schedule(done);
        let squares = optimizer.step(&mut model.params, &named, &schedule.adam(), &|g| schedule.rate(g));
        take_buffers(&mut model.params, &buffers, &squares);
        done += 1;
    })
}
