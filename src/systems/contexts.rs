//! Cross-attention's contexts, and how the rows of one side compare with them (SCAN, Lee et al. 2018, section 3.1; GSMN,
//! section 3.2; HAT, section 3.3).
//!
//! A row attends to the other side's vectors, and is compared with the mean that it attends to, block by block: `m_b = q_b
//! c_b / max(|q_b| |c_b|, 1e-8)` with `c = Σ_k a_k x_k`. Where the vectors are wide for their number the mean is never made:
//! with the dots of blocks `D_kb = q_b x_kb`, whose sum over the blocks is the affinity, and the Gram matrices `G_b = x_b
//! x_bᵀ`, `q_b c_b = Σ_k a_k D_kb` and `|c_b|² = Σ_kl a_k a_l G_klb`.

use super::Form;
use crate::ops::{
    CrossAttention, Expr, QueryNorm, WordAxis, cosines, map, materialize, mean_cosines, recompute, sum_of,
};
use crate::tensor::{Device, Tensor, Viewed};

/// The attention's slope of scores below zero.
const SLOPE: f64 = 0.1;
/// Added to a score's norm over the queries; and the least product of two blocks' norms.
const EPS: f64 = 1e-8;

/// How a side attends, regions to words or words to regions, with this inverse temperature.
pub fn attention(scale: f64, words: WordAxis) -> CrossAttention {
    CrossAttention { leaky: Some(SLOPE), over: QueryNorm::Plus(EPS), scale, words }
}

/// The product over the norms of two blocks, from the product and the norms' squares.
fn cosine(dot: &Expr, squares: Expr) -> Expr {
    squares.greater(EPS * EPS).select(dot / squares.sqrt(), dot * (1.0 / EPS))
}

/// The three leading sizes of a tensor.
pub(super) fn dims(x: &Tensor) -> [usize; 3] {
    [0, 1, 2].map(|k| x.shape()[k])
}

/// Compares the nodes `x [images or 1, captions or 1, nodes, embed]` with what they attend to among `others`, of shapes that
/// broadcast, as the papers write it: `[images, captions, nodes, blocks]`. `note` hears of the `weights [images, captions,
/// nodes, context]` and the `contexts [images, captions, nodes, embed]`.
pub(super) fn compared(
    attention: &CrossAttention,
    x: &Tensor,
    others: &Tensor,
    lengths: &Tensor,
    blocks: usize,
    note: &mut dyn FnMut(&str, &Tensor),
) -> Tensor {
    let weights = attention.composed(&x.matmul(others, false, true), Some(lengths));
    let contexts = weights.matmul(others, false, false);
    note("weights", &weights);
    note("contexts", &contexts);
    let [i, c, nodes] = dims(&contexts);
    let width = contexts.shape()[3] / blocks;
    let full = [i, c, nodes * blocks, width].into();
    let y = contexts.reshape(full);
    let x = x.reshape([x.shape()[0], x.shape()[1], nodes * blocks, width]).view().broadcast(full);
    let dot = sum_of(vec![x.clone(), y.view()], 3, |x| &x[0] * &x[1]);
    let squares = |x: Viewed| sum_of(vec![x], 3, |x| &x[0] * &x[0]);
    let all =
        map(vec![dot.view(), squares(x).view(), squares(y.view()).view()], |x| cosine(&x[0], &x[1] * &x[2]));
    all.reshape([i, c, nodes, blocks])
}

/// SCAN's score `[images, captions]` of rows `[images, rows, embed]` and `words [captions, words, embed]`, of which `lengths
/// [captions]` count: the mean cosine of the side that attends, rows (`WordAxis::Context`) or words (`WordAxis::Queries`),
/// with its contexts. All forms give the same; `note` hears of what the composed one makes: `weights`, `contexts`,
/// `cosines [images, captions, nodes, 1]`.
pub fn aligned(
    attention: &CrossAttention,
    rows: &Tensor,
    words: &Tensor,
    lengths: &Tensor,
    form: Form,
    note: &mut dyn FnMut(&str, &Tensor),
) -> Tensor {
    match form {
        Form::Composed => aligned_composed(attention, rows, words, lengths, note),
        Form::Fast => aligned_fast(attention, rows, words, lengths),
        Form::Recomputed => {
            let attention = attention.clone();
            recompute(&[rows, words, lengths], move |x| aligned_fast(&attention, &x[0], &x[1], &x[2]))
        }
    }
}

fn aligned_composed(
    attention: &CrossAttention,
    rows: &Tensor,
    words: &Tensor,
    lengths: &Tensor,
    note: &mut dyn FnMut(&str, &Tensor),
) -> Tensor {
    let ([i, r, d], [c, n, _]) = (dims(rows), dims(words));
    let (v, t) = (rows.reshape([i, 1, r, d]), words.reshape([1, c, n, d]));
    let (x, others) = if attention.words == WordAxis::Context { (&v, &t) } else { (&t, &v) };
    let cosines = compared(attention, x, others, lengths, 1, note);
    note("cosines", &cosines);
    match attention.words {
        WordAxis::Context => cosines.reshape([i, c, r]).mean(2),
        WordAxis::Queries => mean_of_words(&cosines, lengths).reshape([i, c]),
    }
}

/// With all scores from one product, and no context where Gram matrices are cheaper.
fn aligned_fast(attention: &CrossAttention, rows: &Tensor, words: &Tensor, lengths: &Tensor) -> Tensor {
    let ([i, r, d], [c, n, _]) = (dims(rows), dims(words));
    let (all_rows, all_words) = (rows.reshape([i * r, d]), words.reshape([c * n, d]));
    // The product's rows are the nodes, so that a pair's scores are copied a row of its context at a time.
    match attention.words {
        WordAxis::Context => {
            let affinity = all_rows.matmul(&all_words, false, true).reshape([i, r, c, n]);
            let scores = materialize(affinity.view().permute(&[2, 0, 1, 3]));
            let lens = materialize(lengths.view().repeat(1, i)).reshape([c * i]);
            let weights = attention.weights(&scores.reshape([1, c * i, r, n]), Some(&lens));
            let weights = weights.reshape([c, i * r, n]);
            let cosines = if n < d {
                by_grams(&weights, [i, r], scores.reshape([c, 1, i, r, n]).view(), words, rows, 1)
            } else {
                by_contexts(&weights, words, rows, 1)
            };
            materialize(cosines.reshape([c, i, r]).mean(2).view().permute(&[1, 0]))
        }
        WordAxis::Queries => {
            let affinity = all_words.matmul(&all_rows, false, true).reshape([c, n, i, r]);
            let scores = materialize(affinity.view().permute(&[2, 0, 1, 3]));
            let weights = attention.weights(&scores, Some(lengths)).reshape([i, c * n, r]);
            let cosines = if r < d {
                by_grams(&weights, [c, n], scores.reshape([i, 1, c, n, r]).view(), rows, words, 1)
            } else {
                by_contexts(&weights, rows, words, 1)
            };
            mean_of_words(&cosines.reshape([i, c, n, 1]), lengths).reshape([i, c])
        }
    }
}

/// The squares of a vector's blocks, `[.., blocks]`.
fn squares(x: &Tensor, blocks: usize) -> Tensor {
    let [a, b, d] = dims(x);
    sum_of(vec![x.reshape([a * b, blocks, d / blocks]).view()], 2, |x| &x[0] * &x[0])
}

/// Comparisons `[outer, nodes, blocks]` of nodes with the means of `x [outer, context, embed]` that `weights [outer, nodes,
/// context]` make; `of` are the nodes' vectors, those of one item after another.
pub(super) fn by_contexts(weights: &Tensor, x: &Tensor, of: &Tensor, blocks: usize) -> Tensor {
    let [outer, nodes, _] = dims(weights);
    let width = x.shape()[2] / blocks;
    let means = weights.matmul(x, false, false).reshape([outer, nodes * blocks, width]);
    let own = of.reshape([nodes * blocks, width]);
    if ![&means, &own].iter().any(|x| x.is_tracked()) {
        return cosines(&means, &own, EPS).reshape([outer, nodes, blocks]);
    }
    let own = own.view().repeat(0, outer);
    let dot = sum_of(vec![means.view(), own], 2, |x| &x[0] * &x[1]);
    let square = sum_of(vec![means.view()], 2, |x| &x[0] * &x[0]);
    let own = squares(of, blocks).reshape([nodes * blocks]).view().repeat(0, outer);
    map(vec![dot.view(), square.view(), own], |x| cosine(&x[0], &x[1] * &x[2]))
        .reshape([outer, nodes, blocks])
}

/// The same from `dots`, each node's blocks' products with those of the context, `[outer, blocks, items, nodes of an item,
/// context]`, and Gram matrices.
pub(super) fn by_grams(
    weights: &Tensor,
    [items, nodes]: [usize; 2],
    dots: Viewed,
    x: &Tensor,
    of: &Tensor,
    blocks: usize,
) -> Tensor {
    let [outer, all, context] = dims(weights);
    let grams = x.head_scores(x, blocks, 1.0);
    if ![weights, &dots.tensor, x, of].iter().any(|x| x.is_tracked()) {
        let squares = squares(of, blocks);
        if let Some(fused) = mean_cosines(weights, &dots, &grams, &squares, EPS) {
            return fused;
        }
    }
    let mixed = weights.reshape([outer, 1, all, context]).matmul(&grams, false, false);
    let square = sum_of(vec![mixed.view(), weights.view().repeat(1, blocks)], 3, |x| &x[0] * &x[1]);
    let each = weights.reshape([outer, items, nodes, context]);
    let dot = sum_of(vec![dots, each.view().repeat(1, blocks)], 4, |x| &x[0] * &x[1]);
    let own = squares(of, blocks).view().repeat(0, outer);
    let last = |x: &Tensor| x.view().permute(&[0, 2, 1]);
    // Where the mean's terms cancel, rounding may leave less of its square than there is: a cosine has its bounds.
    map(vec![last(&dot.reshape([outer, blocks, all])), last(&square), own], |x| {
        cosine(&x[0], &x[1] * &x[2]).max(-1.0).min(1.0)
    })
}

/// Whole numbers from 0 as floats.
pub(super) fn places(n: usize, device: &Device) -> Tensor {
    device.tensor([n], &(0..n).map(|i| i as f32).collect::<Vec<_>>())
}

/// `x` with 0 past each caption's length, which lies along the axis after that of the captions.
pub(super) fn within(x: &Tensor, lengths: &Tensor, captions: usize) -> Tensor {
    map(within_views(x, lengths, captions), |x| x[2].greater(&x[1]).select(&x[0], 0.0))
}

/// `x`, a word's place and its caption's length.
fn within_views(x: &Tensor, lengths: &Tensor, captions: usize) -> Vec<Viewed> {
    let shape = x.shape();
    let (mut place, mut lens) = (places(shape[captions + 1], &x.device()).view(), lengths.view());
    for axis in 0..shape.rank() {
        if axis != captions + 1 {
            place = place.repeat(axis, shape[axis]);
        }
        if axis != captions {
            lens = lens.repeat(axis, shape[axis]);
        }
    }
    vec![x.view(), place, lens]
}

/// The mean over the words of `x [images, captions, words, ..]` within the captions' lengths.
pub(super) fn mean_of_words(x: &Tensor, lengths: &Tensor) -> Tensor {
    sum_of(within_views(x, lengths, 1), 2, |x| x[2].greater(&x[1]).select(&x[0] / x[2].max(1.0), 0.0))
}
