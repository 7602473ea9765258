//! What regions and words are compared with, and the score of each pair of an image and a caption (sections 3.2 and 3.3
//! of the paper).
//!
//! Both sides share one affinity `v t`.

use super::graph::KERNELS;
use super::{Config, Run};
use crate::nn::Scope;
use crate::ops::{Act, WordAxis, add, concat, map, materialize, recompute};
use crate::systems::contexts::{attention, by_contexts, by_grams, compared, dims, mean_of_words, within};
use crate::systems::{Form, Items};
use crate::tensor::Tensor;

/// Similarities `[images, captions]`, as many captions at a time as the pass says.
pub(super) fn scores(run: &Run, images: &Items, captions: &Items) -> Tensor {
    let heads = Heads::of(run);
    let (n, tile) = (captions.len(), run.pass.tile.clamp(1, captions.len().max(1)));
    let tiles: Vec<Tensor> = (0..n)
        .step_by(tile)
        .map(|start| of_tile(run, &heads, images, &captions.part(start, tile.min(n - start))))
        .collect();
    concat(&tiles, 1)
}

/// The largest tensor of a pair.
pub(super) fn pair_values(config: &Config, regions: usize, words: usize) -> usize {
    let [width, blocks] = config.options.blocks();
    let side = |nodes: usize, context: usize| nodes * blocks * context.min(width);
    side(regions, words).max(side(words, regions)).max(regions.max(words) * config.options.hid_dim)
}

/// A side's maps from comparisons to a score. What the published maps make of a node before the hyperbolic tangent is
/// linear: among words, whose kernels all see one comparison, it is one map.
#[derive(Clone)]
struct Head {
    /// Of the graph layer, every kernel's output: `[hid, blocks]`, and biases `[hid]` on the side of words.
    graph: Tensor,
    graph_bias: Option<Tensor>,
    /// The first map `[hid, hid]`, `[hid]`.
    first: [Tensor; 2],
    /// The second map `[out, hid]`, `[out]`.
    second: [Tensor; 2],
}

struct Heads {
    image: Head,
    text: Head,
}

impl Heads {
    fn of(run: &Run) -> Self {
        let scope = &run.pass.scope;
        let (image, text) = (scope.sub("i2t_match_G"), scope.sub("t2i_match_G"));
        let convolutions = |at: &Scope, name: &str| {
            let all: Vec<Tensor> =
                (0..KERNELS).map(|k| at.sub("conv_weights").sub(&k.to_string()).at(name).clone()).collect();
            concat(&all, 0)
        };
        let of = |at: &Scope, graph: Scope, bias: bool| Head {
            graph: convolutions(&graph, "weight"),
            graph_bias: bias.then(|| convolutions(&graph, "bias")),
            first: weight_normed(&at.sub("out_1")),
            second: weight_normed(&at.sub("out_2")),
        };
        let heads = Self {
            image: of(&image, image.sub("graph_convolution_1"), false),
            text: of(&text, text.sub("graph_convolution_3"), true),
        };
        if run.pass.form == Form::Composed { heads } else { heads.joined() }
    }

    /// The same scores with fewer maps: that of words as one, and the mean over the outputs taken of the last maps.
    fn joined(self) -> Self {
        let Self { mut image, mut text } = self;
        let [weight, bias] = &text.first;
        text.graph = weight.matmul(&text.graph, false, false);
        let shift = text.graph_bias.expect("words have biases");
        let hid = shift.len();
        text.graph_bias = Some(shift.reshape([1, hid]).linear(weight, Some(bias), Act::None).reshape([hid]));
        for head in [&mut image, &mut text] {
            head.second = head.second.clone().map(|x| if x.shape()[0] == 1 { x } else { mean_row(&x) });
        }
        Self { image, text }
    }

    fn tensors(&self) -> Vec<&Tensor> {
        [&self.image, &self.text]
            .into_iter()
            .flat_map(|head| {
                [&head.graph].into_iter().chain(&head.graph_bias).chain(&head.first).chain(&head.second)
            })
            .collect()
    }

    /// The heads of what [`Heads::tensors`] gives.
    fn of_tensors(x: &[Tensor]) -> Self {
        let pair = |i: usize| [x[i].clone(), x[i + 1].clone()];
        let image = Head { graph: x[0].clone(), graph_bias: None, first: pair(1), second: pair(3) };
        let text =
            Head { graph: x[5].clone(), graph_bias: Some(x[6].clone()), first: pair(7), second: pair(9) };
        Self { image, text }
    }
}

/// The mean over the leading axis, which is kept.
fn mean_row(x: &Tensor) -> Tensor {
    x.mean(0).reshape(x.shape().with(0, 1))
}

/// A map's weight, kept as a length and a direction for each row, and its bias. That of the last map adds to all scores
/// alike, of which the hinge loss compares two: its gradient is 0, and none is taken.
fn weight_normed(at: &Scope) -> [Tensor; 2] {
    let weight = at.at("weight_v").l2norm(-1, f64::from(f32::MIN_POSITIVE));
    [weight.map2(at.at("weight_g"), |v, g| v * g), at.at("bias").clone()]
}

fn of_tile(run: &Run, heads: &Heads, images: &Items, captions: &Items) -> Tensor {
    let words = captions.at("words");
    let own = captions.get("own").cloned();
    let sides = [images.at("regions"), images.at("kernels"), words, captions.at("lengths")];
    match run.pass.form {
        Form::Composed => composed(run, heads, sides, own.as_ref()),
        Form::Fast => fast(run.config, heads, sides, own.as_ref()),
        Form::Recomputed => {
            let inputs: Vec<&Tensor> = sides.into_iter().chain(heads.tensors()).chain(&own).collect();
            let (config, maps) = (run.config.clone(), heads.tensors().len());
            recompute(&inputs, move |x| {
                let heads = Heads::of_tensors(&x[4..4 + maps]);
                fast(&config, &heads, [&x[0], &x[1], &x[2], &x[3]], x.get(4 + maps))
            })
        }
    }
}

/// As the paper writes it.
fn composed(
    run: &Run,
    heads: &Heads,
    [regions, kernels, words, lengths]: [&Tensor; 4],
    own: Option<&Tensor>,
) -> Tensor {
    let ([i, r, d], [c, n, _]) = (dims(regions), dims(words));
    let (v, t) = (regions.reshape([i, 1, r, d]), words.reshape([1, c, n, d]));
    let [_, blocks] = run.config.options.blocks();
    let hid = run.config.options.hid_dim;
    let compare = |x: &Tensor, others: &Tensor, axis: WordAxis| {
        let attention = attention(run.config.options.lambda_softmax, axis);
        compared(&attention, x, others, lengths, blocks, &mut |_, _| ())
    };
    let by_caption = |x: &Tensor| materialize(x.view().permute(&[1, 0, 2, 3]));
    let of_nodes = |head: &Head, hidden: &Tensor| {
        let [w, b] = &head.first;
        let [w2, b2] = &head.second;
        hidden.linear(w, Some(b), Act::Tanh).linear(w2, Some(&b2.detach()), Act::None).mean(3)
    };
    let m = compare(&v, &t, WordAxis::Context);
    let hidden = m.linear(&heads.image.graph, None, Act::None);
    let factor = kernels.view().repeat(1, c).repeat(4, hid / KERNELS);
    let hidden =
        map(vec![hidden.reshape([i, c, r, KERNELS, hid / KERNELS]).view(), factor], |x| &x[0] * &x[1]);
    let hidden = hidden.reshape([i, c, r, hid]);
    let nodes = of_nodes(&heads.image, &hidden);
    let i2t = nodes.mean(2);
    run.pass.tap("i2t.nodes", &nodes);
    run.pass.tap("i2t.node_match", &by_caption(&m));
    run.pass.tap("i2t.graph_hidden", &by_caption(&hidden));
    run.pass.tap("i2t.scores", &i2t);

    let m = compare(&t, &v, WordAxis::Queries);
    let mapped = m.linear(&heads.text.graph, None, Act::None);
    let bias = heads.text.graph_bias.as_ref().expect("words have biases");
    let factor = own.map_or_else(|| words.device().full([c, n], 1.0), Tensor::clone);
    let views =
        vec![mapped.view(), factor.view().repeat(0, i).repeat(3, hid), bias.view().broadcast(mapped.shape())];
    let hidden = map(views, |x| &x[0] * &x[1] + &x[2]);
    let nodes = of_nodes(&heads.text, &hidden);
    let t2i = mean_of_words(&nodes, lengths);
    run.pass.tap("t2i.nodes", &nodes);
    run.pass.tap("t2i.node_match", &by_caption(&within(&m, lengths, 1)));
    run.pass.tap("t2i.graph_hidden", &by_caption(&within(&hidden, lengths, 1)));
    run.pass.tap("t2i.scores", &t2i);
    add(&i2t, &t2i)
}

/// With one affinity for both directions, no context where Gram matrices are cheaper, and the maps joined. Regions are
/// computed caption by caption, `[captions, images, regions]`, words image by image.
fn fast(
    config: &Config,
    heads: &Heads,
    [regions, kernels, words, lengths]: [&Tensor; 4],
    own: Option<&Tensor>,
) -> Tensor {
    let ([i, r, d], [c, n, _]) = (dims(regions), dims(words));
    let [width, blocks] = config.options.blocks();
    let grams = |context: usize| context < width;
    let (all_words, all_regions) = (words.reshape([1, c * n, d]), regions.reshape([1, i * r, d]));
    let dots = (grams(r) || grams(n))
        .then(|| all_words.head_scores(&all_regions, blocks, 1.0).reshape([blocks, c, n, i, r]));
    let affinity = match &dots {
        Some(dots) => dots.sum(0),
        None => all_words.matmul(&all_regions, false, true).reshape([c, n, i, r]),
    };

    let scores = materialize(affinity.view().permute(&[0, 2, 3, 1])).reshape([1, c * i, r, n]);
    let lens = materialize(lengths.view().repeat(1, i)).reshape([c * i]);
    let weights = attention(config.options.lambda_softmax, WordAxis::Context)
        .weights(&scores, Some(&lens))
        .reshape([c, i * r, n]);
    let m = match dots.as_ref().filter(|_| grams(n)) {
        Some(dots) => {
            let dots = dots.view().permute(&[1, 0, 3, 4, 2]);
            by_grams(&weights, [i, r], dots, words, regions, blocks)
        }
        None => by_contexts(&weights, words, regions, blocks),
    };
    let hid = config.options.hid_dim;
    let hidden = m.linear(&heads.image.graph, None, Act::None).reshape([c, i * r, KERNELS, hid / KERNELS]);
    let factor = kernels.reshape([i * r, KERNELS]).view().repeat(2, hid / KERNELS).repeat(0, c);
    let hidden = map(vec![hidden.view(), factor], |x| &x[0] * &x[1]).reshape([c * i, r, hid]);
    let [w, b] = &heads.image.first;
    let image = heads.image.score(&hidden.linear(w, Some(b), Act::Tanh).mean(1)).reshape([c, i]);

    let scores = materialize(affinity.view().permute(&[2, 0, 1, 3]));
    let weights = attention(config.options.lambda_softmax, WordAxis::Queries)
        .weights(&scores, Some(lengths))
        .reshape([i, c * n, r]);
    let m = match dots.as_ref().filter(|_| grams(r)) {
        Some(dots) => {
            let dots = dots.view().permute(&[3, 0, 1, 2, 4]);
            by_grams(&weights, [c, n], dots, regions, words, blocks)
        }
        None => by_contexts(&weights, regions, words, blocks),
    };
    let (w, b) = (&heads.text.graph, heads.text.graph_bias.as_ref());
    let values = match own {
        None => m.linear(w, b, Act::Tanh),
        Some(own) => {
            let (mapped, b) = (m.linear(w, None, Act::None), b.expect("words have biases"));
            let own = own.reshape([c * n]).view().repeat(1, hid).repeat(0, i);
            map(vec![mapped.view(), own, b.view().broadcast(mapped.shape())], |x| {
                (&x[0] * &x[1] + &x[2]).tanh()
            })
        }
    };
    let text = heads.text.score(&mean_of_words(&values.reshape([i, c, n, hid]), lengths)).reshape([i, c]);
    map(vec![image.view().permute(&[1, 0]), text.view()], |x| &x[0] + &x[1])
}

impl Head {
    /// The last map of the nodes' mean.
    fn score(&self, mean: &Tensor) -> Tensor {
        let [w, b] = &self.second;
        mean.linear(w, Some(&b.detach()), Act::None)
    }
}
