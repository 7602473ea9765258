//! The two encoders (section 3.1 of the paper): features of each region and each word, and of both the pooled,
//! normalised embedding that is all that search needs.

use super::Run;
use crate::nn::bert::{self, Tokens};
use crate::nn::transformer::{Keys, Layer};
use crate::nn::{Scope, linear, linear_plus};
use crate::ops::{Act, Expr, map, sum_of};
use crate::systems::Items;
use crate::tensor::{Device, Tensor};

/// Added to an embedding's norm.
const EPS: f64 = 1e-8;
/// Below every length.
const LOWEST: f64 = -1e9;

/// Whole numbers from 0 as floats.
pub(super) fn places(n: usize, device: &Device) -> Tensor {
    device.tensor([n], &(0..n).map(|i| i as f32).collect::<Vec<_>>())
}

/// Encodes region features `images [n, regions, img_dim]` of `image_lengths`: `emb [n, embed]`, and what the loss reads
/// besides in training.
pub(super) fn images(run: &Run, x: &Items) -> Items {
    let scope = run.pass.scope.sub("img_enc");
    let regions = projected(run, &scope.sub("fc"), x.at("images"));
    run.pass.tap("img.proj", &regions);
    pooled(run, "img", &scope, &regions, x.at("image_lengths"), run.config.options.no_imgnorm)
}

/// `fc(x) + L1(relu(BN(L0(x))))`. Padded regions are rows like any other, of batch norm's statistics too.
fn projected(run: &Run, scope: &Scope, x: &Tensor) -> Tensor {
    let dims = x.shape();
    let rows = x.reshape([dims[0] * dims[1], dims[2]]);
    let mlp = scope.sub("mlp");
    let hidden = linear(&mlp.sub("layers").sub("0"), &rows, Act::None);
    let hidden = run.pass.batch_norm("img_enc.fc.mlp.bns.0", &[hidden], None).remove(0).map(Expr::relu);
    let direct = linear(&scope.sub("fc"), &rows, Act::None);
    let y = linear_plus(&mlp.sub("layers").sub("1"), &hidden, Some(&direct));
    y.reshape([dims[0], dims[1], y.shape()[1]])
}

/// Encodes captions of ids `captions [n, words]` and `lengths`, as [`images`] does. BERT hides the id 0 wherever it
/// occurs; everything after it goes by the lengths.
pub(super) fn captions(run: &Run, x: &Items) -> Items {
    let scope = run.pass.scope.sub("txt_enc");
    let ids = x.at("captions");
    let tokens = Tokens { ids: ids.clone(), mask: ids.map(|id| id.greater(0.0)), types: None };
    let states = bert::encode(&scope.sub("bert"), &run.config.bert, &tokens, run.pass.text_dropouts());
    run.pass.tap("txt.bert_embeddings", &states.embeddings);
    for (i, layer) in states.layers.iter().enumerate() {
        run.pass.tap(&format!("txt.bert_layer{i}"), layer);
    }
    let words = linear(&scope.sub("linear"), states.last(), Act::None);
    run.pass.tap("txt.proj", &words);
    pooled(run, "txt", &scope, &words, x.at("lengths"), run.config.options.no_txtnorm)
}

/// The embedding of rows `x [n, rows, embed]`: `w` times the mean of the largest values of each channel, and `1 - w`
/// times the mean of what a transformer layer makes of the rows.
fn pooled(run: &Run, side: &str, scope: &Scope, x: &Tensor, lengths: &Tensor, plain: bool) -> Items {
    let options = &run.config.options;
    let tap = |name: &str, value: &Tensor| run.pass.tap(&format!("{side}.{name}"), value);
    let largest = mean_of_largest(run, x, lengths);
    let layer = Layer {
        heads: options.nhead,
        dropout: run.pass.dropouts.as_ref().map(|d| (d, options.dropout)),
        fused: run.fused(),
    };
    let mixed = layer.run(&scope.sub("aggr.layers.0"), x, Keys::To(lengths));
    let row = places(x.shape()[1], &x.device());
    let views = vec![mixed.view(), row.view().repeat(1, 1), lengths.view().repeat(1, 1).repeat(2, 1)];
    // Rows past the length are left out.
    let mean = sum_of(views, 1, |v| v[2].greater(&v[1]).select(&v[0] / v[2].max(1.0), 0.0));
    let w = options.residual_weight;
    let unnormalised = largest.map2(&mean, |a, b| a * w + b * (1.0 - w));
    let emb = if plain { unnormalised.clone() } else { unnormalised.l2norm_plus(-1, EPS) };
    tap("aggr", &mixed);
    tap("gpool", &largest);
    tap("graph_pool", &mean);
    tap("emb_notnorm", &unnormalised);
    tap("emb", &emb);
    let items = Items::default().with("emb", emb);
    if !run.pass.is_train() {
        return items;
    }
    items.with("unnormalised", unnormalised).with("rows", x.detach()).with("lengths", lengths.clone())
}

/// The mean of each channel's `k` largest values over the rows within the length: of 2, or of 1 where the item has one
/// row. The authors' loop lowers `k` for every later item of the batch as well.
fn mean_of_largest(run: &Run, x: &Tensor, lengths: &Tensor) -> Tensor {
    let (items, k) = (lengths.len(), run.config.k_max_pool.min(x.shape()[1]));
    let row = places(items, &x.device());
    let counts = if run.config.faithful {
        let earlier =
            map(vec![lengths.view().repeat(0, 1), row.view().repeat(0, 1), row.view().repeat(1, 1)], |v| {
                v[1].greater(&v[2]).select(LOWEST, v[0].clone() * -1.0)
            });
        earlier.max(1).map(|n| (n.clone() * -1.0).min(k as f64))
    } else {
        lengths.map(|n| n.min(k as f64))
    };
    let top = x.top_to(k, 1, lengths, 1);
    let rank = places(k, &x.device());
    let views = vec![top.view(), rank.view().repeat(1, 1), counts.view().repeat(1, 1).repeat(2, 1)];
    sum_of(views, 1, |v| v[2].greater(&v[1]).select(&v[0] / v[2].max(1.0), 0.0))
}
