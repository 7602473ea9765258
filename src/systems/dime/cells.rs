//! The four interaction cells and their routers (section 3 of the paper). A cell's input is `[images,
//! captions, rows, embed]`, with 1 for the side it does not depend on.

use std::rc::Rc;

use super::encode::EPS;
use super::mask::{self, Mask};
use super::{AttentionNorm, Direction, Run};
use crate::nn::{Params, Scope, linear, linears, mlp};
use crate::ops::{Act, CrossAttention, Expr, QueryNorm, WordAxis, add, modulated, recompute, stack};
use crate::systems::{Form, Pass};
use crate::tensor::Tensor;

/// What the cells read besides their input.
#[derive(Clone)]
pub(super) struct Guides {
    /// The other side's vector: `[images or 1, captions or 1, 1, embed]`.
    pub(super) global: Tensor,
    /// The other side's local features: `[images or 1, captions or 1, rows, embed]`.
    pub(super) context: Tensor,
    /// Lengths of the context's captions, where the context is words.
    pub(super) lengths: Option<Tensor>,
    /// Where rows are words and padding is masked.
    pub(super) mask: Option<Rc<Mask>>,
}

/// The order of cells in every computation.
pub(super) const CELLS: [&str; 4] = ["ric", "glgc", "imrc", "cmrc"];

type Cell = fn(&Run, &Scope, &Tensor, &Guides) -> Tensor;

/// The four cells' outputs for their inputs, in the order of [`CELLS`], but for the first one's ReLU, which the mixtures
/// take: its input. The others are recomputed where the run says so.
pub(super) fn outputs(run: &Run, scope: &Scope, x: [&Tensor; 4], guides: &Guides) -> [Tensor; 4] {
    let rest: [(usize, Cell); 3] = [(1, guidance), (2, intra_modal), (3, cross_modal)];
    let [b, c, d] = rest.map(|(j, cell)| {
        let scope = scope.sub(CELLS[j]);
        match run.pass.form {
            Form::Recomputed => recomputed(run, &scope, x[j], guides, cell),
            _ => cell(run, &scope, x[j], guides),
        }
    });
    [x[0].clone(), b, c, d]
}

/// A cell of which the tape keeps the inputs and weights only.
fn recomputed(run: &Run, scope: &Scope, x: &Tensor, guides: &Guides, cell: Cell) -> Tensor {
    let (names, weights): (Vec<String>, Vec<&Tensor>) = scope.all().into_iter().unzip();
    let inputs: Vec<&Tensor> = [x, &guides.global, &guides.context].into_iter().chain(weights).collect();
    let config = run.config.clone();
    let guides =
        Guides { global: guides.global.detach(), context: guides.context.detach(), ..guides.clone() };
    recompute(&inputs, move |x| {
        let params: Params = names.iter().cloned().zip(x[3..].iter().cloned()).collect();
        let pass = Pass::evaluation(params.root()).computed(Form::Recomputed, usize::MAX);
        let run = Run { config: &config, pass: &pass };
        let guides = Guides { global: x[1].clone(), context: x[2].clone(), ..guides.clone() };
        cell(&run, &pass.scope, &x[0], &guides)
    })
}

/// What a layer's four routers give, `[4 cells, .., outputs]`. A router takes the mean over the rows of its cell's input
/// through two linear maps, tanh and ReLU.
pub(super) fn routers(run: &Run, scope: &Scope, x: [&Tensor; 4], mask: Option<&Mask>) -> Tensor {
    let maps = |name: &str| CELLS.map(|cell| scope.sub(cell).sub("router").sub("mlp").sub(name));
    let (first, second) = (maps("0"), maps("2"));
    match run.pass.form {
        Form::Composed => {
            let router = |j: usize| {
                let hidden = linear(&first[j], &mask::mean(x[j], mask), Act::Relu);
                linear(&second[j], &hidden, Act::Tanh).map(Expr::relu)
            };
            stack(&[&router(0), &router(1), &router(2), &router(3)])
        }
        _ => {
            // The first layer's four read one input.
            let one = x.iter().all(|other| std::ptr::eq(*other, x[0]));
            let pooled = mask::mean(&if one { stack(&[x[0]]) } else { stack(&x) }, mask);
            let s = pooled.shape();
            let each = linears(&first).mlps(
                &linears(&second),
                &pooled.reshape([s[0], s[1] * s[2], s[3]]),
                Act::TanhRelu,
            );
            each.reshape([4, s[1], s[2], each.shape()[2]])
        }
    }
}

/// Global-local guidance: `(1 + z) x` with `z` the product of a linear map of `x` and the other side's
/// vector, normalised over rows.
///
/// A positive factor common to all rows cancels in that norm, so only the vector's signs survive: the fast
/// form normalises the map alone, which in the first layer belongs to the item, not to the pair.
fn guidance(run: &Run, scope: &Scope, x: &Tensor, guides: &Guides) -> Tensor {
    let global = &guides.global;
    let mapped = mask::zeroed(&linear(&scope.sub("fc_1"), x, Act::None), guides.mask.as_deref());
    match run.pass.form {
        Form::Composed => {
            let z = mapped.map2(global, |m, g| m * g).l2norm(2, EPS);
            z.map2(x, |z, x| (z + 1.0) * x)
        }
        _ => mapped.l2norm(2, EPS).map3(global, x, |z, g, x| (g.sign() * z + 1.0) * x),
    }
}

/// Intra-modal reasoning: self-attention over rows and a two-layer map, each with its residual.
fn intra_modal(run: &Run, scope: &Scope, x: &Tensor, guides: &Guides) -> Tensor {
    let mask = guides.mask.as_deref();
    let s = x.shape();
    let rows = x.reshape([s[0] * s[1], s[2], s[3]]);
    let own = scope.sub("sa");
    let maps = [0, 1, 2].map(|i| own.sub(&format!("att_layer.linears.{i}")));
    let heads = run.config.options.num_head_IMRC;
    let scale = 1.0 / ((s[3] / heads) as f64).sqrt();
    let y = match run.pass.form {
        Form::Composed => {
            let [q, k, v] = maps.map(|scope| linear(&scope, &rows, Act::None));
            let scores = q.head_scores(&k, heads, scale);
            let weights = match mask {
                Some(mask) => scores.softmax_to(-1, 1.0, &mask.lengths, heads * s[2]),
                None => scores.softmax(-1, 1.0),
            };
            add(&rows, &weights.head_mix(&v))
        }
        _ => {
            let bias = mask.map(|m| &m.keys);
            linears(&maps).concat(&rows).self_attention(heads, scale, bias, Some(&rows), None)
        }
    };
    let forward = own.sub("feed_forward_layer");
    feed_forward(run, &forward.sub("fc1"), &forward.sub("fc2"), &y, &y).reshape(s)
}

/// Cross-modal refinement: each row attends to the other side's local features; the attended feature scales
/// and shifts it, and a two-layer map with a residual follows.
///
/// Attention weights sum to 1, so a linear map of the attended feature is the attended map of the features:
/// the fast form maps the context once per item instead of once per pair and row.
fn cross_modal(run: &Run, scope: &Scope, x: &Tensor, guides: &Guides) -> Tensor {
    let refine = scope.sub("refine");
    let (how, lens) = attention(run, guides);
    let softmax = run.config.options.raw_feature_norm_CMRC == AttentionNorm::Softmax;
    let weights = || {
        let scores = x.matmul(&guides.context, false, true);
        let scores = if softmax { over_queries(&scores, guides) } else { scores };
        if run.pass.form == Form::Composed { how.composed(&scores, lens) } else { how.weights(&scores, lens) }
    };
    let mapped = || linears(&[refine.sub("fc_scale"), refine.sub("fc_shift")]).concat(&guides.context);
    let moved = match run.pass.form {
        Form::Composed => {
            let attended = weights().matmul(&guides.context, false, false);
            let scale = linear(&refine.sub("fc_scale"), &attended, Act::Tanh);
            let shift = linear(&refine.sub("fc_shift"), &attended, Act::None);
            x.map3(&scale, &shift, |x, a, b| x * a + b)
        }
        // What is recomputed takes the same kernels, tracked or not.
        _ if softmax || run.pass.form == Form::Recomputed => modulated(x, &weights(), &mapped()),
        _ => how.modulate(x, &guides.context, &mapped(), lens),
    };
    feed_forward(run, &refine.sub("fc_1"), &refine.sub("fc_2"), &moved, x)
}

/// Two linear maps with a ReLU between, plus `residual`: the fast form adds it before the second map is stored,
/// where it does not repeat.
fn feed_forward(run: &Run, first: &Scope, second: &Scope, x: &Tensor, residual: &Tensor) -> Tensor {
    match run.pass.form {
        Form::Composed => add(residual, &linear(second, &linear(first, x, Act::Relu), Act::None)),
        _ if residual.len() == x.len() => mlp(first, Act::Relu, second, x, Some(residual)),
        _ => add(residual, &mlp(first, Act::Relu, second, x, None)),
    }
}

/// How scores `[images, captions, rows, context]` become attention weights: normalised over the rows (the queries), then
/// by softmax over the context, words past a caption's end left out; and the captions' lengths.
fn attention<'a>(run: &Run, guides: &'a Guides) -> (CrossAttention, Option<&'a Tensor>) {
    let scale = run.config.options.lambda_softmax_CMRC;
    let (leaky, over) = match run.config.options.raw_feature_norm_CMRC {
        AttentionNorm::ClippedL2norm => (Some(0.1), QueryNorm::Max(EPS)),
        AttentionNorm::L2norm => (None, QueryNorm::Plus(1e-8)),
        AttentionNorm::Clipped => (Some(0.1), QueryNorm::None),
        AttentionNorm::NoNorm | AttentionNorm::Softmax => (None, QueryNorm::None),
    };
    let (words, lens) = match run.config.options.direction {
        Direction::I2t => (WordAxis::Context, guides.lengths.as_ref()),
        Direction::T2i => (WordAxis::Queries, guides.mask.as_ref().map(|mask| &mask.lengths)),
    };
    (CrossAttention { leaky, over, scale, words }, lens)
}

/// Scores through a softmax over the rows.
fn over_queries(scores: &Tensor, guides: &Guides) -> Tensor {
    match &guides.mask {
        Some(mask) => scores.softmax_to(2, 1.0, &mask.lengths, 1),
        None => scores.softmax(2, 1.0),
    }
}
