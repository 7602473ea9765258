//! The two encoders: regions through a linear map, captions through BERT and three convolutions over words.

use super::mask::{self, Mask};
use super::{Direction, Run};
use crate::nn::bert::{self, Tokens};
use crate::nn::{BatchNorm, Dropouts, linear};
use crate::ops::{Act, Expr, add, concat, map, materialize};
use crate::tensor::{Tensor, Viewed};

/// PyTorch's `normalize` epsilon.
pub(super) const EPS: f64 = 1e-12;

/// Encoded images.
#[derive(Clone)]
pub struct Images {
    /// Regions, each of norm 1: `[images, regions, embed]`.
    pub regions: Tensor,
    /// The image vector: `[images, embed]`.
    pub global: Tensor,
    /// Running statistics of the image vector's batch norm after this batch (t2i training).
    pub running: Option<[Tensor; 2]>,
}

/// Encoded captions.
#[derive(Clone)]
pub struct Captions {
    /// Words, each of norm 1, padding included: `[captions, words, embed]`.
    pub words: Tensor,
    /// The sentence: `[captions, embed]`.
    pub sentence: Tensor,
    /// True lengths: `[captions]`.
    pub lengths: Tensor,
    /// The label of the path loss: BERT's mean state, of norm 1: `[captions, hidden]`.
    pub label: Tensor,
}

impl Captions {
    /// `n` captions from `start`.
    pub fn part(&self, start: usize, n: usize) -> Self {
        if n == self.words.shape()[0] {
            return self.clone();
        }
        let cut = |t: &Tensor| materialize(t.view().slice(0, start, n));
        Self {
            words: cut(&self.words),
            sentence: cut(&self.sentence),
            lengths: cut(&self.lengths),
            label: cut(&self.label),
        }
    }
}

/// Encodes region features `[images, regions, img_dim]` (section 2 of the authors' image encoder).
pub fn encode_images(run: &Run, features: &Tensor) -> Images {
    let scope = run.scope.sub("img_enc");
    let raw = linear(&scope.sub("fc"), features, Act::None);
    let mut global = raw.mean(1);
    let mut running = None;
    if run.config.direction == Direction::T2i {
        let bn = scope.sub("bn");
        let statistics =
            if run.train { BatchNorm::of_batch(&bn, &[&global], None) } else { BatchNorm::running(&bn) };
        global = statistics.apply(&bn, &global);
        running = statistics.running;
    }
    if !run.config.no_imgnorm {
        global = global.l2norm(-1, EPS);
    }
    if run.config.use_abs {
        global = global.map(Expr::abs);
    }
    let regions = raw.l2norm(-1, EPS);
    run.tap("img_emb", &global);
    run.tap("rgn_emb", &regions);
    Images { regions, global, running }
}

/// Encodes captions; BERT's own parameters get gradients only where they are tracked.
pub fn encode_captions(
    run: &Run,
    tokens: &Tokens,
    lengths: &Tensor,
    dropouts: Option<&Dropouts>,
) -> Captions {
    let encoder = run.scope.sub("txt_enc").sub("bert");
    let states = bert::encode(&encoder, &run.config.bert_config, tokens, dropouts);
    run.tap("bert_last", states.last());
    encode_states(run, states.last(), lengths)
}

/// The part above BERT, from its last states `[captions, words, hidden]`.
pub fn encode_states(run: &Run, x: &Tensor, lengths: &Tensor) -> Captions {
    let scope = run.scope.sub("txt_enc");
    let mask = Mask::of(run, lengths, x.shape()[1]);
    let mask = mask.as_ref();
    // Windows see zeros past a caption's end, as past the array's.
    let x = &mask::zeroed(x, mask);
    let embedded = linear(&scope.sub("fc"), x, Act::None);
    let windows: Vec<Tensor> = (1..=3)
        .map(|k| {
            let conv = scope.sub(&format!("convs1.{}", k - 1));
            let weight = conv.at("weight");
            let (d, hidden) = (weight.shape()[0], weight.shape()[3]);
            window(x, k).linear(&weight.reshape([d, k * hidden]), Some(conv.at("bias")), Act::Relu)
        })
        .collect();
    let mapping = scope.sub("mapping");
    let words = add(&linear(&mapping, &concat(&windows, 2), Act::None), &embedded).l2norm(-1, EPS);
    let tops: Vec<Tensor> = windows.iter().map(|w| mask::max(w, mask)).collect();
    let embedded = mask::mean(&embedded, mask);
    let sentence = add(&linear(&mapping, &concat(&tops, 1), Act::None), &embedded).l2norm(-1, EPS);
    let label = mask::mean(&x.detach(), mask).l2norm(-1, EPS);
    run.tap("wrd_emb", &words);
    run.tap("stc_emb", &sentence);
    if run.train {
        run.tap("bert_emb", &label);
    }
    Captions { words, sentence, lengths: lengths.clone(), label }
}

/// Every window of `k` words side by side, `[captions, words, k * hidden]`: itself; with the next; with both
/// neighbours. Zeros stand past the ends.
fn window(x: &Tensor, k: usize) -> Tensor {
    if k == 1 {
        return x.clone();
    }
    let (words, hidden) = (x.shape()[1], x.shape()[2]);
    let first = if k == 3 { -1 } else { 0 };
    let part = |i: usize| -> Viewed {
        let step = first + i as isize;
        let n = step.unsigned_abs().min(words);
        let shifted = match step {
            0 => x.view(),
            s if s > 0 => x.view().slice(1, n, words - n).pad(1, 0, n),
            _ => x.view().slice(1, 0, words - n).pad(1, n, 0),
        };
        shifted.pad(2, i * hidden, (k - 1 - i) * hidden)
    };
    map((0..k).map(part).collect(), |x| x.iter().skip(1).fold(x[0].clone(), |sum, x| sum + x))
}
