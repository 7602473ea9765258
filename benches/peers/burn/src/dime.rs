//! DIME in both directions as a plain composition of burn's operations: scoring tiles and training steps.

use std::collections::BTreeMap;

use burn::tensor::activation::{leaky_relu, relu, softmax, tanh};
use burn::tensor::{Device, Tensor, TensorData};

use crate::{Job, Linear, normal};

/// The cells by their names in the original state dict.
const CELLS: [&str; 4] = ["ric", "glgc", "imrc", "cmrc"];
const REGIONS: usize = 36;
const WORDS: usize = 32;
const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;
const CLIP: f64 = 2.0;
const RATE: f64 = 2e-4;

pub struct Config {
    pub i2t: bool,
    pub heads: usize,
    pub lambda: f64,
    pub margin: f64,
    pub trade_off: f64,
    pub batch: f64,
}

/// The paper's widths.
const IMAGE: usize = 2048;
const TEXT: usize = 768;
const EMBED: usize = 256;
const WIDE: usize = 512;
const ROUTER: usize = 512;

impl Config {
    fn paper(i2t: bool) -> Self {
        let lambda = if i2t { 4.0 } else { 9.0 };
        Self { i2t, heads: 16, lambda, margin: 0.2, trade_off: 0.5, batch: 32.0 }
    }
}

fn normalised<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    // Below the root, so that a row of zeros has a gradient.
    let norm = (x.clone().square().sum_dim(dim) + 1e-24).sqrt();
    x / norm
}

/// Running mean and variance.
pub type Statistics = [Tensor<1>; 2];

pub struct Model {
    pub config: Config,
    /// Linear maps by name; a batch norm's weight is `[1, width]`.
    pub maps: BTreeMap<String, Linear>,
    pub running: BTreeMap<String, Statistics>,
}

/// What a batch gives.
pub struct Outcome {
    pub sims: Tensor<2>,
    /// `[items, 36]`: mean path probabilities.
    paths: Tensor<2>,
    running: Vec<(String, Statistics)>,
}

/// A batch's encoded items.
struct Encoded {
    regions: Tensor<3>,
    global: Tensor<2>,
    words: Tensor<3>,
    sentence: Tensor<2>,
    /// 0, and far below it where a caption has no word: `[1, captions, 1, words]`.
    bias: Tensor<4>,
    running: Vec<(String, Statistics)>,
}

/// What the cells of a pair hear besides its rows.
struct Guides {
    whole: Tensor<4>,
    context: Tensor<4>,
    bias: Option<Tensor<4>>,
}

/// Features, text states and lengths, on the CPU as a loader gives them.
pub struct Batch {
    pub images: TensorData,
    pub states: TensorData,
    pub lengths: Vec<usize>,
}

impl Batch {
    fn random(images: usize, captions: usize, device: &Device) -> Self {
        Self {
            images: normal([images, REGIONS, IMAGE], 1.0, device).into_data(),
            states: normal([captions, WORDS, TEXT], 1.0, device).into_data(),
            lengths: (0..captions).map(|i| (WORDS - i * WORDS / (2 * captions)).max(1)).collect(),
        }
    }
}

impl Model {
    /// The paper's sizes with random weights.
    fn random(i2t: bool, device: &Device) -> Self {
        let mut maps = BTreeMap::new();
        let mut map = |name: String, from, to| drop(maps.insert(name, Linear::new(from, to, device)));
        map("img_enc.fc".into(), IMAGE, EMBED);
        map("txt_enc.fc".into(), TEXT, EMBED);
        map("txt_enc.mapping".into(), 3 * EMBED, EMBED);
        (0..3).for_each(|k| map(format!("txt_enc.convs1.{k}"), (k + 1) * TEXT, EMBED));
        map("itr_module.path_mapping".into(), 36, 128);
        map("itr_module.bn".into(), 1, EMBED);
        if !i2t {
            map("img_enc.bn".into(), 1, EMBED);
        }
        for layer in 0..3 {
            let at = |name: &str| format!("itr_module.dynamic_itr_l{layer}.{name}");
            for cell in CELLS {
                map(at(&format!("{cell}.router.mlp.0")), EMBED, ROUTER);
                map(at(&format!("{cell}.router.mlp.2")), ROUTER, if layer == 2 { 1 } else { 4 });
            }
            map(at("glgc.fc_1"), EMBED, EMBED);
            (0..3).for_each(|i| map(at(&format!("imrc.sa.att_layer.linears.{i}")), EMBED, EMBED));
            map(at("imrc.sa.feed_forward_layer.fc1"), EMBED, WIDE);
            map(at("imrc.sa.feed_forward_layer.fc2"), WIDE, EMBED);
            for name in ["fc_scale", "fc_shift", "fc_1", "fc_2"] {
                map(at(&format!("cmrc.refine.{name}")), EMBED, EMBED);
            }
        }
        let inner = device.clone().inner();
        let statistics = || [Tensor::zeros([EMBED], &inner), Tensor::ones([EMBED], &inner)];
        let running = ["img_enc.bn", "itr_module.bn"].map(|name| (name.into(), statistics()));
        Self { config: Config::paper(i2t), maps, running: running.into() }
    }

    fn map<const D: usize>(&self, name: &str, x: Tensor<D>) -> Tensor<D> {
        self.maps[name].apply(x)
    }

    /// Over the rows of `[n, width]`; in training with their statistics, whose running ones it notes.
    fn batch_norm(
        &self,
        name: &str,
        x: Tensor<2>,
        train: bool,
        noted: &mut Vec<(String, Statistics)>,
    ) -> Tensor<2> {
        let Linear(weight, bias) = &self.maps[name];
        let [n, width] = x.dims();
        let (mean, var) = if train {
            let mean = x.clone().mean_dim(0);
            let var = (x.clone() - mean.clone()).square().mean_dim(0);
            let [old_mean, old_var] = self.running[name].clone();
            let moved = |old: Tensor<1>, new: &Tensor<2>, factor: f64| {
                old * (1.0 - MOMENTUM) + new.clone().inner().reshape([width]) * (MOMENTUM * factor)
            };
            let unbiased = n as f64 / (n as f64 - 1.0);
            noted.push((name.into(), [moved(old_mean, &mean, 1.0), moved(old_var, &var, unbiased)]));
            (mean, var)
        } else {
            let [mean, var] = self.running[name].clone().map(|t| t.reshape([1, width]));
            (mean, var)
        };
        let scale = weight.clone() / (var + EPS).sqrt();
        let shift = bias.clone().reshape([1, width]) - mean * scale.clone();
        x * scale + shift
    }

    fn encode(&self, batch: &Batch, train: bool, device: &Device) -> (Encoded, Tensor<3>) {
        let mut running = Vec::new();
        let features = Tensor::<3>::from_data(batch.images.clone(), device);
        let raw = self.map("img_enc.fc", features);
        let [images, _, width] = raw.dims();
        let mut global = raw.clone().mean_dim(1).reshape([images, width]);
        if !self.config.i2t {
            global = self.batch_norm("img_enc.bn", global, train, &mut running);
        }

        let x = Tensor::<3>::from_data(batch.states.clone(), device);
        let [captions, n, hidden] = x.dims();
        let end = Tensor::zeros([captions, 1, hidden], device);
        let after = Tensor::cat(vec![x.clone().narrow(1, 1, n - 1), end.clone()], 1);
        let before = Tensor::cat(vec![end, x.clone().narrow(1, 0, n - 1)], 1);
        let windows = [vec![x.clone()], vec![x.clone(), after.clone()], vec![before, x.clone(), after]];
        let convs: Vec<Tensor<3>> = windows
            .into_iter()
            .enumerate()
            .map(|(k, parts)| relu(self.map(&format!("txt_enc.convs1.{k}"), Tensor::cat(parts, 2))))
            .collect();
        let embedded = self.map("txt_enc.fc", x.clone());
        let tops = Tensor::cat(convs.iter().map(|c| c.clone().max_dim(1)).collect(), 2);
        let words = self.map("txt_enc.mapping", Tensor::cat(convs, 2)) + embedded.clone();
        let sentence = self.map("txt_enc.mapping", tops) + embedded.mean_dim(1);
        let bias: Vec<f32> = batch
            .lengths
            .iter()
            .flat_map(|length| (0..n).map(move |w| if w < *length { 0.0 } else { -1e30 }))
            .collect();
        let encoded = Encoded {
            regions: normalised(raw, 2),
            global: normalised(global, 1),
            words: normalised(words, 2),
            sentence: normalised(sentence, 2).reshape([captions, width]),
            bias: Tensor::<1>::from_floats(bias.as_slice(), device).reshape([1, captions, 1, n]),
            running,
        };
        (encoded, x)
    }

    /// `[.., 1, outputs]`.
    fn router(&self, name: &str, x: Tensor<4>) -> Tensor<4> {
        let hidden = relu(self.map(&format!("{name}.mlp.0"), x.mean_dim(2)));
        relu(tanh(self.map(&format!("{name}.mlp.2"), hidden)))
    }

    fn guided(&self, at: &str, x: Tensor<4>, guides: &Guides) -> Tensor<4> {
        let z = normalised(self.map(&format!("{at}fc_1"), x.clone()) * guides.whole.clone(), 2);
        (z + 1.0) * x
    }

    fn reasoned(&self, at: &str, x: Tensor<4>) -> Tensor<4> {
        let dims = x.dims();
        let (n, rows, width, heads) = (dims[0] * dims[1], dims[2], dims[3], self.config.heads);
        let x: Tensor<3> = x.reshape([n, rows, width]);
        let [q, k, v] = [0, 1, 2].map(|i| {
            let mapped = self.map(&format!("{at}att_layer.linears.{i}"), x.clone());
            crate::split(mapped, heads)
        });
        let weights = softmax(q.matmul(k.transpose()) / ((width / heads) as f64).sqrt(), 3);
        let y = x + crate::joined(weights.matmul(v));
        let wide = relu(self.map(&format!("{at}feed_forward_layer.fc1"), y.clone()));
        let y = y + self.map(&format!("{at}feed_forward_layer.fc2"), wide);
        y.reshape(dims)
    }

    fn refined(&self, at: &str, x: Tensor<4>, guides: &Guides) -> Tensor<4> {
        let map = |name: &str, x| self.map(&format!("{at}{name}"), x);
        let scores = x.clone().matmul(guides.context.clone().transpose());
        let mut scores = normalised(leaky_relu(scores, 0.1), 2) * self.config.lambda;
        if let Some(bias) = &guides.bias {
            scores = scores + bias.clone();
        }
        let heard = softmax(scores, 3).matmul(guides.context.clone());
        let moved = x.clone() * tanh(map("fc_scale", heard.clone())) + map("fc_shift", heard);
        map("fc_2", relu(map("fc_1", moved))) + x
    }

    /// The cells' outputs, and their routes `[.., outputs, cells]`.
    fn cells(&self, layer: usize, x: &[Tensor<4>; 4], guides: &Guides) -> ([Tensor<4>; 4], Tensor<4>) {
        let at = format!("itr_module.dynamic_itr_l{layer}.");
        let made = [
            relu(x[0].clone()),
            self.guided(&format!("{at}glgc."), x[1].clone(), guides),
            self.reasoned(&format!("{at}imrc.sa."), x[2].clone()),
            self.refined(&format!("{at}cmrc.refine."), x[3].clone(), guides),
        ];
        let routes = CELLS.iter().zip(x).map(|(cell, x)| {
            let route = self.router(&format!("{at}{cell}.router"), x.clone());
            route.swap_dims(2, 3)
        });
        (made, Tensor::cat(routes.collect(), 3))
    }

    /// Four mixtures of the cells' outputs, and the paths to them.
    fn dense(&self, layer: usize, x: &[Tensor<4>; 4], guides: &Guides) -> ([Tensor<4>; 4], Tensor<4>) {
        let (made, routes) = self.cells(layer, x, guides);
        let total = routes.clone().sum_dim(3);
        let gate = total.clone().lower_scalar(1e-4).float();
        let paths = routes / (total + 1e-8);
        let mixed = [0, 1, 2, 3].map(|i: usize| {
            let at = |t: &Tensor<4>, j: usize| t.clone().narrow(2, i, 1).narrow(3, j, 1);
            let mut y = made[0].clone() * at(&gate, 0);
            for (j, cell) in made.iter().enumerate() {
                y = y + cell.clone() * at(&paths, j);
            }
            y
        });
        (mixed, paths)
    }

    fn last(&self, x: &[Tensor<4>; 4], guides: &Guides) -> (Tensor<4>, Tensor<4>) {
        let (made, routes) = self.cells(2, x, guides);
        let gate = routes.clone().lower_scalar(2.5e-5).float();
        let total = (routes.clone() + gate.clone()).sum_dim(3);
        let at = |t: &Tensor<4>, j: usize| t.clone().narrow(3, j, 1);
        let mut y = made[0].clone() * at(&routes, 0) + x[0].clone() * at(&gate, 0);
        for j in 1..4 {
            y = y + made[j].clone() * at(&routes, j) + x[j].clone() * at(&gate, j);
        }
        (y / total, routes)
    }

    fn interact(&self, items: &Encoded, train: bool) -> Outcome {
        let i2t = self.config.i2t;
        let [images, rows, width] = items.regions.dims();
        let [captions, n, _] = items.words.dims();
        let regions = items.regions.clone().reshape([images, 1, rows, width]);
        let words = items.words.clone().reshape([1, captions, n, width]);
        let sentence = items.sentence.clone().reshape([1, captions, 1, width]);
        let global = items.global.clone().reshape([images, 1, 1, width]);
        let (x, guides) = if i2t {
            (regions, Guides { whole: sentence, context: words, bias: Some(items.bias.clone()) })
        } else {
            (words, Guides { whole: global, context: regions, bias: None })
        };
        let (x, first) = self.dense(0, &[(); 4].map(|()| x.clone()), &guides);
        let (x, second) = self.dense(1, &x, &guides);
        let (y, third) = self.last(&x, &guides);

        let mut running = items.running.clone();
        let dims = y.dims();
        let flat = y.reshape([dims[0] * dims[1] * dims[2], dims[3]]);
        let y = self.batch_norm("itr_module.bn", flat, train, &mut running).reshape(dims);
        let pooled = normalised(y.clone().mean_dim(2) + y.max_dim(2), 3);
        let sims = (pooled * guides.whole).sum_dim(3).reshape([images, captions]);
        let (kept, across) = if i2t { (images, 1) } else { (captions, 0) };
        let mean = |p: Tensor<4>| -> Tensor<2> {
            let [.., outputs, cells] = p.dims();
            p.mean_dim(across).reshape([kept, outputs * cells])
        };
        let paths = Tensor::cat(vec![mean(first), mean(second), mean(third)], 1);
        Outcome { sims, paths, running }
    }

    /// The similarities of a batch, its loss, and the running statistics after it.
    pub fn forward(&self, batch: &Batch, device: &Device) -> (Outcome, Tensor<1>) {
        let (items, states) = self.encode(batch, true, device);
        let outcome = self.interact(&items, true);
        let loss = self.loss(&outcome, states, device);
        (outcome, loss)
    }

    fn loss(&self, outcome: &Outcome, states: Tensor<3>, device: &Device) -> Tensor<1> {
        let items = outcome.paths.dims()[0];
        let [captions, _, hidden] = states.dims();
        let path = normalised(self.map("itr_module.path_mapping", outcome.paths.clone()), 1);
        let label = normalised(states.mean_dim(1).reshape([captions, hidden]), 1).narrow(0, 0, items);
        let off = path.clone().matmul(path.transpose()) - label.clone().matmul(label.transpose());
        let rank = hinge(outcome.sims.clone(), self.config.margin, device);
        rank + off.square().sum() * (self.config.trade_off / self.config.batch)
    }

    /// The same with every parameter tracked.
    pub fn tracked(self) -> Self {
        let maps = self.maps.into_iter().map(|(name, map)| (name, map.tracked()));
        Self { maps: maps.collect(), ..self }
    }
}

/// The hardest negatives of each row and column, whose first ones are the positives.
fn hinge(sims: Tensor<2>, margin: f64, device: &Device) -> Tensor<1> {
    let [images, captions] = sims.dims();
    let n = images.min(captions);
    let others = |rows: usize, columns: usize| {
        let off = (0..rows * columns).map(|i| if i / columns == i % columns { 0.0 } else { 1.0f32 });
        Tensor::<1>::from_floats(off.collect::<Vec<_>>().as_slice(), device).reshape([rows, columns])
    };
    let square = sims.clone().narrow(0, 0, n).narrow(1, 0, n);
    let own: Tensor<2> = (square * (-others(n, n) + 1.0)).sum_dim(1);
    let rows = relu(sims.clone().narrow(0, 0, n) - own.clone() + margin) * others(n, captions);
    let columns = relu(sims.narrow(1, 0, n) - own.transpose() + margin) * others(images, n);
    rows.max_dim(1).sum() + columns.max_dim(0).sum()
}

/// The two moments of a parameter, and how many steps it has taken.
struct Moments<const D: usize>(Tensor<D>, Tensor<D>);

/// Adam as burn-optim spells it out, without weight decay.
fn adam<const D: usize>(w: &mut Tensor<D>, moments: &mut Option<Moments<D>>, g: Tensor<D>, step: i32) {
    let zeros = || g.zeros_like();
    let Moments(m, v) = moments.take().unwrap_or_else(|| Moments(zeros(), zeros()));
    let m = m * 0.9 + g.clone() * 0.1;
    let v = v * 0.999 + g.square() * 0.001;
    let (first, second) = (1.0 - 0.9f64.powi(step), (1.0 - 0.999f64.powi(step)).sqrt());
    let moved = w.clone().inner() - m.clone() * (RATE / first) / (v.clone().sqrt() / second + 1e-8);
    *w = Tensor::from_inner(moved).require_grad();
    *moments = Some(Moments(m, v));
}

/// Scores encoded items.
pub fn tile(device: &Device, i2t: bool, images: usize, captions: usize) -> Job {
    let model = Model::random(i2t, device);
    let (items, _) = model.encode(&Batch::random(images, captions, device), false, device);
    Box::new(move || drop(model.interact(&items, false)))
}

/// From a batch on the CPU to new parameters.
pub fn step(device: &Device, i2t: bool, batch: usize, extra: usize) -> Job {
    let (images, captions) = if i2t { (batch, batch + extra) } else { (batch + extra, batch) };
    let batch = Batch::random(images, captions, device);
    let device = device.clone().autodiff();
    let mut model = Model::random(i2t, &device).tracked();
    let mut states: BTreeMap<String, (Option<Moments<2>>, Option<Moments<1>>)> = BTreeMap::new();
    let mut done = 0;
    Box::new(move || {
        let (outcome, loss) = model.forward(&batch, &device);
        let grads = loss.backward();
        let grads: BTreeMap<&String, (Tensor<2>, Tensor<1>)> = model
            .maps
            .iter()
            .map(|(name, Linear(w, b))| (name, (w.grad(&grads), b.grad(&grads))))
            .map(|(name, (w, b))| (name, (w.expect("every map is used"), b.expect("every map is used"))))
            .collect();
        let squares = grads.values().map(|(w, b)| w.clone().square().sum() + b.clone().square().sum());
        let norm = squares.reduce(|a, b| a + b).expect("there are maps").sqrt();
        let scale = ((norm + 1e-6).recip() * CLIP).clamp_max(1.0);
        let clipped: Vec<(String, Tensor<2>, Tensor<1>)> = grads
            .into_iter()
            .map(|(name, (w, b))| (name.clone(), w * scale.clone().reshape([1, 1]), b * scale.clone()))
            .collect();
        done += 1;
        for (name, w, b) in clipped {
            let (of_w, of_b) = states.entry(name.clone()).or_default();
            let Linear(weight, bias) = model.maps.get_mut(&name).expect("just read");
            adam(weight, of_w, w, done);
            adam(bias, of_b, b, done);
        }
        model.running.extend(outcome.running);
    })
}
