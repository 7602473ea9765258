//! The instance level's fusion (section 3.2 of the paper): every image and caption of the batch attends to those it is
//! connected with.

use super::Run;
use super::relations::graph;
use crate::nn::transformer::{Keys, Layer};
use crate::ops::{concat, materialize};
use crate::systems::Items;
use crate::tensor::Tensor;

/// Of what is not connected: no weight.
const NOWHERE: f64 = -1e30;
/// PyTorch's `normalize` epsilon.
const EPS: f64 = 1e-12;

/// A batch's embeddings after each has seen the others.
pub(super) struct Fused {
    /// Of images, of norm 1: `[samples, embed]`.
    pub(super) img: Tensor,
    /// Of captions, of norm 1: `[samples, embed]`.
    pub(super) txt: Tensor,
    /// The regulariser of the relevance, a scalar.
    pub(super) regulariser: Tensor,
}

/// Passes a batch through the fusion transformer. Relevance is added to the attention scores, of all heads alike, so
/// that its gradient reaches the embeddings' distances.
pub(super) fn fuse(run: &Run, images: &Items, captions: &Items) -> Fused {
    let options = &run.config.options;
    let graph = graph(run, images, captions);
    let weighted =
        |x: f64| graph.connected.map2(&graph.relevance, |c, r| c.select(r * options.mask_weight, x));
    let column = if options.norm_input == 0 { "unnormalised" } else { "emb" };
    let input = concat(&[images.at(column).clone(), captions.at(column).clone()], 0);
    let (rows, width) = (input.shape()[0], input.shape()[1]);
    let layer = Layer {
        heads: options.nhead,
        dropout: run.pass.dropouts.as_ref().map(|d| (d, options.dropout)),
        fused: run.fused(),
    };
    let mask = weighted(NOWHERE);
    let scope = run.pass.scope.sub("criterion.gnn.layers");
    let mut x = input.reshape([1, rows, width]);
    for i in 0..options.num_layers_enc {
        x = layer.run(&scope.sub(&i.to_string()), &x, Keys::Plus(&mask));
    }
    let output = x.reshape([rows, width]);
    let normal = output.l2norm(-1, EPS);
    let half = |i: usize| materialize(normal.view().slice(0, i * rows / 2, rows / 2));
    let (img, txt) = (half(0), half(1));
    if run.pass.taps().is_some() {
        run.pass.tap("gnn.input", &input);
        run.pass.tap("gnn.connect_mask", &graph.connected);
        run.pass.tap("gnn.attn_mask_finite", &weighted(0.0));
        run.pass.tap("gnn.output", &output);
        run.pass.tap("gnn.img_emb", &img);
        run.pass.tap("gnn.cap_emb", &txt);
    }
    Fused { img, txt, regulariser: graph.regulariser }
}
