//! A scoring tile of DIME (image to text, the paper's sizes) as a plain composition of burn's operations.

use burn::tensor::activation::{leaky_relu, relu, softmax, tanh};
use burn::tensor::{Device, Tensor};

use crate::{Job, Linear, joined, normal, split};

const REGIONS: usize = 36;
const WORDS: usize = 32;
const EMBED: usize = 256;
const HEADS: usize = 16;
const HIDDEN: usize = 512;
const LAMBDA: f64 = 4.0;

fn normalised<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    let norm = x.clone().square().sum_dim(dim).sqrt().clamp_min(1e-12);
    x / norm
}

struct Router(Linear, Linear);

impl Router {
    /// `[images, captions, 1, outputs]`.
    fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        relu(tanh(self.1.apply(relu(self.0.apply(x.mean_dim(2))))))
    }
}

struct Layer {
    routers: [Router; 4],
    guide: Linear,
    qkv: [Linear; 3],
    wide: Linear,
    narrow: Linear,
    scale: Linear,
    shift: Linear,
    refine: [Linear; 2],
}

struct Guides {
    sentence: Tensor<4>,
    words: Tensor<4>,
    /// 0, and far below it where a caption has no word: `[1, captions, 1, words]`.
    bias: Tensor<4>,
}

impl Layer {
    fn new(outputs: usize, device: &Device) -> Self {
        let square = || Linear::new(EMBED, EMBED, device);
        Self {
            routers: [(); 4]
                .map(|()| Router(Linear::new(EMBED, HIDDEN, device), Linear::new(HIDDEN, outputs, device))),
            guide: square(),
            qkv: [(); 3].map(|()| square()),
            wide: Linear::new(EMBED, HIDDEN, device),
            narrow: Linear::new(HIDDEN, EMBED, device),
            scale: square(),
            shift: square(),
            refine: [(); 2].map(|()| square()),
        }
    }

    fn guided(&self, x: Tensor<4>, guides: &Guides) -> Tensor<4> {
        let z = normalised(self.guide.apply(x.clone()) * guides.sentence.clone(), 2);
        (z + 1.0) * x
    }

    fn reasoned(&self, x: Tensor<4>) -> Tensor<4> {
        let dims = x.dims();
        let rows: Tensor<3> = x.reshape([dims[0] * dims[1], dims[2], dims[3]]);
        let [q, k, v] = [0, 1, 2].map(|i: usize| split(self.qkv[i].apply(rows.clone()), HEADS));
        let weights = softmax(q.matmul(k.transpose()) / ((EMBED / HEADS) as f64).sqrt(), 3);
        let y = rows + joined(weights.matmul(v));
        let y = y.clone() + self.narrow.apply(relu(self.wide.apply(y)));
        y.reshape(dims)
    }

    fn refined(&self, x: Tensor<4>, guides: &Guides) -> Tensor<4> {
        let scores = x.clone().matmul(guides.words.clone().transpose());
        let scores = normalised(leaky_relu(scores, 0.1), 2) * LAMBDA + guides.bias.clone();
        let heard = softmax(scores, 3).matmul(guides.words.clone());
        let moved = x.clone() * tanh(self.scale.apply(heard.clone())) + self.shift.apply(heard);
        self.refine[1].apply(relu(self.refine[0].apply(moved))) + x
    }

    /// The cells' outputs, and their probabilities `[images, captions, outputs, cells]`.
    fn cells(&self, x: &[Tensor<4>; 4], guides: &Guides) -> ([Tensor<4>; 4], Tensor<4>) {
        let made = [
            relu(x[0].clone()),
            self.guided(x[1].clone(), guides),
            self.reasoned(x[2].clone()),
            self.refined(x[3].clone(), guides),
        ];
        let routes = (0..4).map(|j| self.routers[j].apply(x[j].clone()).swap_dims(2, 3));
        let pairs = [made[3].dims()[0], made[3].dims()[1]];
        let routes = routes.map(|r: Tensor<4>| {
            let outputs = r.dims()[2];
            r.expand([pairs[0], pairs[1], outputs, 1])
        });
        let routes = Tensor::cat(routes.collect(), 3);
        (made, routes)
    }

    fn dense(&self, x: &[Tensor<4>; 4], guides: &Guides) -> [Tensor<4>; 4] {
        let (made, routes) = self.cells(x, guides);
        let total = routes.clone().sum_dim(3);
        let gate = total.clone().lower_scalar(1e-4).float();
        let paths = routes / (total + 1e-8);
        [0, 1, 2, 3].map(|i: usize| {
            let at = |t: &Tensor<4>, j: usize| t.clone().narrow(2, i, 1).narrow(3, j, 1);
            let mut y = made[0].clone() * at(&gate, 0);
            for (j, cell) in made.iter().enumerate() {
                y = y + cell.clone() * at(&paths, j);
            }
            y
        })
    }

    fn last(&self, x: &[Tensor<4>; 4], guides: &Guides) -> Tensor<4> {
        let (made, routes) = self.cells(x, guides);
        let gate = routes.clone().lower_scalar(2.5e-5).float();
        let total = (routes.clone() + gate.clone()).sum_dim(3);
        let at = |t: &Tensor<4>, j: usize| t.clone().narrow(3, j, 1);
        let mut y = made[0].clone() * at(&routes, 0) + x[0].clone() * at(&gate, 0);
        for j in 1..4 {
            y = y + made[j].clone() * at(&routes, j) + x[j].clone() * at(&gate, j);
        }
        y / total
    }
}

pub fn tile(device: &Device, images: usize, captions: usize) -> Job {
    let layers = [4, 4, 1].map(|outputs| Layer::new(outputs, device));
    let regions = normalised(normal([images, 1, REGIONS, EMBED], 1.0, device), 3);
    let words = normalised(normal([1, captions, WORDS, EMBED], 1.0, device), 3);
    let sentence = normalised(normal([1, captions, 1, EMBED], 1.0, device), 3);
    let length = |i: usize| (WORDS - i * WORDS / (2 * captions)).max(1);
    let bias: Vec<f32> = (0..captions)
        .flat_map(|i| (0..WORDS).map(move |w| if w < length(i) { 0.0 } else { -1e30 }))
        .collect();
    let bias = Tensor::<1>::from_floats(bias.as_slice(), device).reshape([1, captions, 1, WORDS]);
    let guides = Guides { sentence, words, bias };
    // Batch norm of scoring, folded into a scale and a shift.
    let norm = [(); 2].map(|()| normal([1, 1, 1, EMBED], 1.0, device));
    Box::new(move || {
        let x = [(); 4].map(|()| regions.clone());
        let x = layers[0].dense(&x, &guides);
        let x = layers[1].dense(&x, &guides);
        let y = layers[2].last(&x, &guides) * norm[0].clone() + norm[1].clone();
        let pooled = normalised(y.clone().mean_dim(2) + y.max_dim(2), 3);
        drop((pooled * guides.sentence.clone()).sum_dim(3));
    })
}
