//! The two encoders: regions through a linear map, captions through BERT and three convolutions over words.

use super::mask::{self, Mask};
use super::{Direction, Run};
use crate::nn::bert::{self, Tokens};
use crate::nn::{linear, linear_plus};
use crate::ops::{Act, Expr, concat, map};
use crate::systems::Items;
use crate::tensor::{Tensor, Viewed};

/// PyTorch's `normalize` epsilon.
pub(super) const EPS: f64 = 1e-12;

/// Encodes region features `[images, regions, img_dim]` (section 2 of the authors' image encoder): `regions`, each of
/// norm 1, `[images, regions, embed]`, and the image vector `global`, `[images, embed]`.
pub(super) fn images(run: &Run, features: &Tensor) -> Items {
    let scope = run.pass.scope.sub("img_enc");
    let raw = linear(&scope.sub("fc"), features, Act::None);
    let mut global = raw.mean(1);
    if run.config.options.direction == Direction::T2i {
        global = run.pass.batch_norm("img_enc.bn", &[global], None).remove(0);
    }
    if !run.config.options.no_imgnorm {
        global = global.l2norm(-1, EPS);
    }
    if run.config.options.use_abs {
        global = global.map(Expr::abs);
    }
    let regions = raw.l2norm(-1, EPS);
    run.pass.tap("img_emb", &global);
    run.pass.tap("rgn_emb", &regions);
    Items::default().with("regions", regions).with("global", global)
}

/// BERT's last states of a batch's captions, `[captions, words, hidden]`; its parameters get gradients only where they
/// are tracked.
pub(super) fn states(run: &Run, x: &Items) -> Tensor {
    let encoder = run.pass.scope.sub("txt_enc").sub("bert");
    let tokens = Tokens {
        ids: x.at("input_ids").clone(),
        mask: x.at("attention_mask").clone(),
        types: x.get("token_type_ids").cloned(),
    };
    let states = bert::encode(&encoder, &run.config.bert_config, &tokens, run.pass.text_dropouts());
    run.pass.tap("bert_last", states.last());
    states.last().clone()
}

/// The part above BERT, from its last states: `words`, each of norm 1, padding included, `[captions, words, embed]`, the
/// `sentence` `[captions, embed]`, the `lengths`, and in training the `label` of the path loss, BERT's mean state, of
/// norm 1, `[captions, hidden]`.
pub(super) fn captions(run: &Run, x: &Tensor, lengths: &Tensor) -> Items {
    let scope = run.pass.scope.sub("txt_enc");
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
    let (mapping, windows) = (scope.sub("mapping"), concat(&windows, 2));
    let words = linear_plus(&mapping, &windows, Some(&embedded)).l2norm(-1, EPS);
    let top = mask::max(&windows, mask);
    let sentence = linear_plus(&mapping, &top, Some(&mask::mean(&embedded, mask))).l2norm(-1, EPS);
    run.pass.tap("wrd_emb", &words);
    run.pass.tap("stc_emb", &sentence);
    let captions =
        Items::default().with("words", words).with("sentence", sentence).with("lengths", lengths.clone());
    if !run.pass.is_train() {
        return captions;
    }
    let label = mask::mean(&x.detach(), mask).l2norm(-1, EPS);
    run.pass.tap("bert_emb", &label);
    captions.with("label", label)
}

/// Every window of `k` words side by side, `[captions, words, k * hidden]`: itself; with the next; with both
/// neighbours. Past the ends are zeros.
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
