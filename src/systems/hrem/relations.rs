//! The instance level's graph (section 3.2 of the paper): which samples of a batch are connected, and how relevant they
//! are to each other.

use super::Run;
use super::encode::places;
use crate::nn::{linear, mlp};
use crate::ops::{Act, Expr, add, concat, map, materialize, scaled_sum_of, sum_of};
use crate::systems::Items;
use crate::tensor::Tensor;

/// PyTorch's `normalize` epsilon.
const EPS: f64 = 1e-12;
/// SCAN's slope of the scores below zero.
const SLOPE: f64 = 0.1;
/// Below every score.
const LOWEST: f64 = -1e30;
/// Scores of a region and a word that are held at a time: 64 MiB, half the binding that every adapter allows.
const SCORES: usize = 1 << 24;

/// The graph over a batch's images, then its captions, each `[2 samples, 2 samples]`.
pub(super) struct Graph {
    /// 1 where two are connected, else 0.
    pub(super) connected: Tensor,
    /// How relevant the second is to the first.
    pub(super) relevance: Tensor,
    /// How far the relevance across modalities is from what the embeddings say, a scalar.
    pub(super) regulariser: Tensor,
}

/// What the scores of all regions with all words say of each image and caption; nothing of it is tracked.
struct Fragments {
    /// `[captions, images]`, and the largest word scores `[captions, images, topk]`.
    t2i: [Tensor; 2],
    /// `[images, captions]`, and the largest region scores `[images, captions, topk]`.
    i2t: [Tensor; 2],
}

/// The graph of a batch.
pub(super) fn graph(run: &Run, images: &Items, captions: &Items) -> Graph {
    let tap = |name: &str, value: &Tensor| run.pass.tap(name, value);
    let found =
        fragments(run, &images.at("rows").detach(), &captions.at("rows").detach(), captions.at("lengths"));
    for (name, [mean, top]) in [("t2i", &found.t2i), ("i2t", &found.i2t)] {
        tap(&format!("adj.{name}_mean"), mean);
        tap(&format!("adj.{name}_topk"), top);
    }
    let (img, txt) = (images.at("emb"), captions.at("emb"));
    let own = |x: &Tensor| x.detach().matmul(&x.detach(), false, true);
    let kept = (img.shape()[0] as f64 * run.config.options.threshold) as usize;
    let connected = [&own(img), &found.i2t[0], &found.t2i[0], &own(txt)].map(|s| connected(s, kept));
    let relevance = [
        nearness(img, img),
        learned(run, "mlp_i2t", &found.i2t),
        learned(run, "mlp_t2i", &found.t2i),
        nearness(txt, txt),
    ];
    for (i, name) in ["i2i", "i2t", "t2i", "t2t"].iter().enumerate() {
        tap(&format!("connect.{name}"), &connected[i]);
        tap(&format!("relation.{name}"), &relevance[i]);
    }
    let wanted = nearness(&img.detach(), &txt.detach());
    let across = materialize(wanted.view().permute(&[1, 0]));
    let regulariser = add(&divergence(&wanted, &relevance[1]), &divergence(&across, &relevance[2]));
    Graph { connected: quarters(&connected), relevance: quarters(&relevance), regulariser }
}

/// One matrix of four: `[[a, b], [c, d]]`.
fn quarters([a, b, c, d]: &[Tensor; 4]) -> Tensor {
    let n = a.shape()[0];
    let at = |x: &Tensor, i: usize, j: usize| x.view().pad(0, i * n, (1 - i) * n).pad(1, j * n, (1 - j) * n);
    map(vec![at(a, 0, 0), at(b, 0, 1), at(c, 1, 0), at(d, 1, 1)], |x| &x[0] + &x[1] + &x[2] + &x[3])
}

/// 1 where fewer than `kept` of the row are larger: the `kept` largest of each row, and what equals the last of them.
fn connected(s: &Tensor, kept: usize) -> Tensor {
    let views = vec![s.view().repeat(1, 1), s.view().repeat(2, 1)];
    let larger = sum_of(views, 2, |x| x[0].greater(&x[1]));
    larger.map(|n| Expr::from(kept as f64).greater(n))
}

/// `exp(-|a - b|)` of all rows; where two are equal there is no gradient.
fn nearness(a: &Tensor, b: &Tensor) -> Tensor {
    let squares = sum_of(vec![a.view().repeat(1, 1), b.view().repeat(0, 1)], 2, |x| {
        let off = &x[0] - &x[1];
        &off * &off
    });
    squares.map(|s| s.greater(0.0).select(s.sqrt() * -1.0, 0.0).exp())
}

/// The mean score plus what two maps learn from the largest ones.
fn learned(run: &Run, name: &str, [mean, top]: &[Tensor; 2]) -> Tensor {
    let shape = mean.shape();
    let scope = run.pass.scope.sub("criterion.adj_model.adj_learning").sub(name);
    let (first, second) = (scope.sub("0"), scope.sub("3"));
    let x = top.reshape([shape.len(), top.shape().last()]);
    let rate = run.config.options.dropout;
    match &run.pass.dropouts {
        // The authors' numbering has a layer without parameters between the ReLU and the second map: taken for dropout.
        Some(dropouts) if rate > 0.0 => {
            let hidden = dropouts.apply(&linear(&first, &x, Act::Relu), rate);
            add(&linear(&second, &hidden, Act::None).reshape(shape), mean)
        }
        _ => mlp(&first, Act::Relu, &second, &x, Some(&mean.reshape([shape.len(), 1]))).reshape(shape),
    }
}

/// Kullback and Leibler's divergence of each row's softmax from that of `wanted`, which gets no gradient, summed over
/// the columns and averaged over the rows.
///
/// With `q` the softmax wanted and `r` the difference of both logits, `p = q e^r / Σ q e^r`: what both have in common
/// cancels before anything is rounded. The gradient `p (ln p/q - divergence)` is written out: it sums to 0 over a row,
/// and as a difference of larger terms it would drown the small gradient of the maps' biases.
fn divergence(wanted: &Tensor, logits: &Tensor) -> Tensor {
    let n = wanted.shape()[0];
    let (q, value) = (wanted.softmax(-1, 1.0), logits.detach());
    let off = value.map2(wanted, |b, a| b - a);
    let most = off.max(-1);
    let column = |x: &Tensor| x.view().repeat(1, 1);
    let total = sum_of(vec![q.view(), off.view(), column(&most)], 1, |x| &x[0] * (&x[1] - &x[2]).exp());
    let log = map(vec![off.view(), column(&most), column(&total)], |x| &x[0] - &x[1] - x[2].log());
    let p = q.map2(&log, |q, log| q * log.exp());
    let rows = sum_of(vec![p.view(), log.view()], 1, |x| &x[0] * &x[1]);
    let views = vec![p.view(), log.view(), column(&rows), logits.view(), value.view()];
    // The last difference is 0: it carries the gradient.
    let rows = sum_of(views, 1, |x| &x[0] * (&x[1] + (&x[1] - &x[2]) * (&x[3] - &x[4])));
    scaled_sum_of(1.0 / n as f64, vec![rows.view()], 0, |x| x[0].clone())
}

/// SCAN's scores of every region with every word, and for each pair their means and largest ones. Padded regions count
/// throughout; padded words do where a caption is shorter than `topk`, but not in its mean.
fn fragments(run: &Run, regions: &Tensor, words: &Tensor, lengths: &Tensor) -> Fragments {
    let (images, r, d) = (regions.shape()[0], regions.shape()[1], regions.shape()[2]);
    let (captions, n, k) = (words.shape()[0], words.shape()[1], run.config.options.topk);
    let regions = regions.l2norm(-1, EPS).reshape([images * r, d]);
    let words = words.l2norm(-1, EPS);
    let tile = (SCORES / (images * n * r).max(1)).min(run.pass.tile).clamp(1, captions.max(1));
    let mut parts: [Vec<Tensor>; 4] = Default::default();
    for start in (0..captions).step_by(tile) {
        let count = tile.min(captions - start);
        let part = |x: &Tensor| materialize(x.view().slice(0, start, count));
        let cosines = part(&words).reshape([count * n, d]).matmul(&regions, false, true);
        let scores = cosines.map(|c| c.leaky_relu(SLOPE)).reshape([count, n, images, r]);
        let tile = pair_fragments(&scores, &part(lengths), k);
        parts.iter_mut().zip(tile).for_each(|(all, one)| all.push(one));
    }
    let [t2i_mean, t2i_top, i2t_mean, i2t_top] = parts.map(|p| concat(&p, 0));
    let i2t_mean = materialize(i2t_mean.view().permute(&[1, 0]));
    let i2t_top = materialize(i2t_top.view().permute(&[1, 0, 2]));
    Fragments { t2i: [t2i_mean, t2i_top], i2t: [i2t_mean, i2t_top] }
}

/// Of `scores [captions, words, images, regions]`: the mean over words and the `k` largest, then over regions, each
/// `[captions, images]` or `[captions, images, k]`.
fn pair_fragments(scores: &Tensor, lengths: &Tensor, k: usize) -> [Tensor; 4] {
    let (n, r) = (scores.shape()[1], scores.shape()[3]);
    let place = places(n, &scores.device());
    let taken = lengths.map(|n| n.max(k as f64));
    let over = |x: &Expr, squares: &Expr| x / squares.sqrt().max(EPS);
    // A word's best region, of scores normalised over the words.
    let views = vec![
        scores.view(),
        place.view().repeat(1, 1).repeat(2, 1),
        taken.view().repeat(1, 1).repeat(2, 1).repeat(3, 1),
    ];
    let squares = sum_of(views, 1, |x| x[2].greater(&x[1]).select(&x[0] * &x[0], 0.0));
    let best = scores.map2(squares.view().repeat(1, n), over).max(3);
    let views = vec![best.view(), place.view().repeat(1, 1), lengths.view().repeat(1, 1).repeat(2, 1)];
    let word_mean = sum_of(views, 1, |x| x[2].greater(&x[1]).select(&x[0] / x[2].max(1.0), 0.0));
    let word_top = materialize(best.top_to(k, 1, &taken, 1).view().permute(&[0, 2, 1]));
    // A region's best word, of scores normalised over the regions.
    let squares = sum_of(vec![scores.view()], 3, |x| &x[0] * &x[0]);
    let views = vec![
        scores.view(),
        squares.view().repeat(3, r),
        place.view().repeat(1, 1).repeat(2, 1),
        lengths.view().repeat(1, 1).repeat(2, 1).repeat(3, 1),
    ];
    let best = map(views, |x| x[3].greater(&x[2]).select(over(&x[0], &x[1]), LOWEST)).max(1);
    [word_mean, word_top, best.mean(2), best.top(k, 2)]
}
