//! burn on the shapes of Crossweave's benches: a case's name a line in, a line of JSON out (see ../README.md).
//! Its wgpu backend with fusion and autotuning, as burn has them by default. `peer-burn check` holds its DIME against
//! Crossweave's fixtures.

mod dime;
mod fixture;

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::tensor::activation::{gelu, softmax};
use burn::tensor::module::{layer_norm, linear};
use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
use serde_json::{Value, json};

/// Does a case once; the device may still be at work.
type Job = Box<dyn FnMut()>;

const KERNELS: &str = if cfg!(feature = "spirv") { "wgpu, SPIR-V" } else { "wgpu, WGSL" };

const WIDTH: usize = 768;
const HEADS: usize = 12;
const INNER: usize = 3072;

pub fn normal<const D: usize>(shape: [usize; D], deviation: f64, device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, deviation), device)
}

/// A linear map's weight `[from, to]` and bias.
#[derive(Clone)]
pub struct Linear(pub Tensor<2>, pub Tensor<1>);

impl Linear {
    pub fn new(from: usize, to: usize, device: &Device) -> Self {
        let bound = 1.0 / (from as f64).sqrt();
        Self(normal([from, to], bound, device), normal([to], 0.1, device))
    }

    pub fn apply<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.0.clone(), Some(self.1.clone()))
    }

    pub fn tracked(self) -> Self {
        Self(self.0.require_grad(), self.1.require_grad())
    }
}

/// Self-attention's heads side by side, as `[.., heads, rows, width]`.
pub fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [n, rows, width] = x.dims();
    x.reshape([n, rows, heads, width / heads]).swap_dims(1, 2)
}

pub fn joined(x: Tensor<4>) -> Tensor<3> {
    let [n, heads, rows, width] = x.dims();
    x.swap_dims(1, 2).reshape([n, rows, heads * width])
}

/// One layer of BERT-base.
struct BertLayer {
    qkv: [Linear; 3],
    out: Linear,
    wide: Linear,
    narrow: Linear,
    norms: [(Tensor<1>, Tensor<1>); 2],
}

impl BertLayer {
    fn new(device: &Device, tracked: bool) -> Self {
        let map = |from, to| {
            let map = Linear::new(from, to, device);
            if tracked { map.tracked() } else { map }
        };
        let norm = || {
            let (w, b) = (Tensor::ones([WIDTH], device), Tensor::zeros([WIDTH], device));
            if tracked { (w.require_grad(), b.require_grad()) } else { (w, b) }
        };
        Self {
            qkv: [(); 3].map(|()| map(WIDTH, WIDTH)),
            out: map(WIDTH, WIDTH),
            wide: map(WIDTH, INNER),
            narrow: map(INNER, WIDTH),
            norms: [norm(), norm()],
        }
    }

    fn forward(&self, x: Tensor<3>, bias: Tensor<4>) -> Tensor<3> {
        let norm = |i: usize, x| layer_norm(x, self.norms[i].0.clone(), Some(self.norms[i].1.clone()), 1e-12);
        let [q, k, v] = [0, 1, 2].map(|i: usize| split(self.qkv[i].apply(x.clone()), HEADS));
        let scores = q.matmul(k.transpose()) / ((WIDTH / HEADS) as f64).sqrt() + bias;
        let mixed = joined(softmax(scores, 3).matmul(v));
        let x = norm(0, x + self.out.apply(mixed));
        norm(1, x.clone() + self.narrow.apply(gelu(self.wide.apply(x))))
    }
}

fn bert_layer(device: &Device, captions: usize, words: usize, both: bool) -> Job {
    let device = if both { device.clone().autodiff() } else { device.clone() };
    let layer = BertLayer::new(&device, both);
    let x = normal([captions, words, WIDTH], 1.0, &device);
    let bias = Tensor::zeros([captions, 1, 1, words], &device);
    if !both {
        return Box::new(move || drop(layer.forward(x.clone(), bias.clone())));
    }
    let x = x.require_grad();
    Box::new(move || {
        let gradients = layer.forward(x.clone(), bias.clone()).backward();
        drop(x.grad(&gradients));
    })
}

fn matmul(device: &Device, m: usize, k: usize, n: usize) -> Job {
    let (a, b) = (normal([m, k], 1.0, device), normal([k, n], 1.0, device));
    Box::new(move || drop(a.clone().matmul(b.clone())))
}

fn prepare(name: &str, device: &Device) -> Result<Job, String> {
    let words: Vec<&str> = name.split_whitespace().collect();
    let has = |word| words.contains(&word);
    let numbers: Vec<usize> = words.iter().filter_map(|w| w.parse().ok()).collect();
    if has("demo") || has("composed") {
        return Err("a form of ours".into());
    }
    match (words.first().copied(), numbers.as_slice()) {
        (Some("matmul"), [m, k, n]) => Ok(matmul(device, *m, *k, *n)),
        (Some("bert_layer"), [captions, words]) => Ok(bert_layer(device, *captions, *words, has("both"))),
        (Some("dime_tile"), [images, captions]) => Ok(dime::tile(device, !has("t2i"), *images, *captions)),
        (Some("dime_step"), [batch, extra]) => Ok(dime::step(device, !has("t2i"), *batch, *extra)),
        _ => Err("not written for burn".into()),
    }
}

/// Fusion and deferred launches end with the device's own wait.
fn once(job: &mut Job, device: &Device) -> f64 {
    let started = Instant::now();
    job();
    device.sync().expect("the device works");
    1e3 * started.elapsed().as_secs_f64()
}

fn answer(name: &str, device: &Device, jobs: &mut HashMap<String, (Job, f64)>) -> Value {
    if name == "hello" {
        let adapter = device.identity().map_or_else(|| "unknown".into(), |i| i.name.to_string());
        return json!({"name": "burn", "version": "0.22.1", "adapter": adapter, "driver": KERNELS});
    }
    if let Some((job, first)) = jobs.get_mut(name) {
        return json!({"ms": once(job, device), "first_ms": *first});
    }
    match prepare(name, device) {
        Err(why) => json!({"unsupported": why}),
        Ok(mut job) => {
            device.sync().expect("the device works");
            let first = once(&mut job, device);
            jobs.insert(name.into(), (job, first));
            json!({"ms": first, "first_ms": first})
        }
    }
}

fn main() {
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    if std::env::args().nth(1).as_deref() == Some("check") {
        return print!("{}", fixture::check(&device).unwrap_or_else(|e| panic!("{e}")));
    }
    let mut jobs = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let answer = catch_unwind(AssertUnwindSafe(|| answer(line.trim(), &device, &mut jobs)))
            .unwrap_or_else(|_| json!({"unsupported": "it panicked"}));
        println!("{answer}");
        std::io::stdout().flush().expect("whoever asks reads the answer");
    }
}
