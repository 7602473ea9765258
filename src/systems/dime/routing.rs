//! Three layers of dense routing over a tile of image-caption pairs, and the similarity on top.

use std::rc::Rc;

use super::cells::{self, CELLS, Guides, routers};
use super::encode::EPS;
use super::mask::{self, Mask};
use super::{Direction, Run};
use crate::nn::{Scope, add_all, linear};
use crate::ops::{
    Act, Expr, Paths, add, concat, materialize, route, route_means, route_shares, scaled_sum_of, sum_of,
};
use crate::systems::Items;
use crate::tensor::Tensor;

/// Below this sum of its probabilities an output falls back to the first cell.
const GATE: f64 = 1e-4;

/// What the layers make of a tile of pairs.
pub(super) struct Pairs {
    /// The last layer's output, `[images, captions, rows, embed]`.
    output: Tensor,
    /// Path probabilities of the three layers; the first belongs to one side's items.
    paths: [Tensor; 3],
    /// The captions' sentences `[1, captions, embed]` or the images' vectors `[images, 1, embed]`.
    target: Tensor,
    /// Where rows are words and padding is masked.
    mask: Option<Rc<Mask>>,
}

/// A tile `[images, captions]` of similarities and, in training, the path embedding.
pub(super) struct Scored {
    /// Similarities `[images, captions]`.
    pub sims: Tensor,
    /// Mean path probabilities `[images (i2t) or captions (t2i), 36]`; training only.
    pub paths: Option<Tensor>,
}

/// Passes every pair of `images` and `captions` through the three layers.
pub(super) fn interact(run: &Run, images: &Items, captions: &Items) -> Pairs {
    let image_rows = images.at("regions").reshape(lift(images.at("regions").dims(), 1));
    let caption_rows = captions.at("words").reshape(lift(captions.at("words").dims(), 0));
    let d = run.config.options.embed_size;
    let sentence = captions.at("sentence").reshape([1, captions.at("sentence").shape()[0], d]);
    let vector = images.at("global").reshape([images.at("global").shape()[0], 1, d]);
    let (x, context, global) = match run.config.options.direction {
        Direction::I2t => (image_rows, caption_rows, sentence),
        Direction::T2i => (caption_rows, image_rows, vector),
    };
    let wide = [global.shape()[0], global.shape()[1], 1, d];
    let i2t = run.config.options.direction == Direction::I2t;
    let mask =
        if i2t { None } else { Mask::of(run, captions.at("lengths"), captions.at("words").shape()[1]) };
    let mask = mask.map(Rc::new);
    let guides = Guides {
        global: global.reshape(wide),
        context,
        lengths: i2t.then(|| captions.at("lengths").clone()),
        mask: mask.clone(),
    };
    let module = run.pass.scope.sub("itr_module");
    let (first, p0) = dense(run, &module, 0, [&x, &x, &x, &x], &guides);
    let (second, p1) = dense(run, &module, 1, [&first[0], &first[1], &first[2], &first[3]], &guides);
    let (output, p2) = last(run, &module, [&second[0], &second[1], &second[2], &second[3]], &guides);
    Pairs { output, paths: [p0, p1, p2], target: global, mask }
}

/// `[n, rows, d]` with an axis of length 1 for the other side at `axis`.
fn lift(dims: &[usize], axis: usize) -> [usize; 4] {
    let mut dims = vec![dims[0], dims[1], dims[2]];
    dims.insert(axis, 1);
    [dims[0], dims[1], dims[2], dims[3]]
}

/// The four cells' outputs, the first before its ReLU, and what their routers give, `[4 cells, .., outputs]`.
fn cells(run: &Run, module: &Scope, layer: usize, x: [&Tensor; 4], guides: &Guides) -> ([Tensor; 4], Tensor) {
    let scope = module.sub(&format!("dynamic_itr_l{layer}"));
    let outputs = cells::outputs(run, &scope, x, guides);
    let routers = routers(run, &scope, x, guides.mask.as_deref());
    for (j, name) in CELLS.iter().enumerate().filter(|_| run.pass.taps().is_some()) {
        let output = if j == 0 { outputs[0].map(Expr::relu) } else { outputs[j].clone() };
        run.pass.tap(&format!("cell_l{layer}.{name}"), &output);
        let router = materialize(routers.view().slice(0, j, 1).squeeze(0));
        run.pass.tap(&format!("router_l{layer}.{name}"), &router);
    }
    (outputs, routers)
}

/// A layer of four outputs, and its path probabilities `[.., 4 outputs, 4 cells]`. An output whose
/// probabilities sum to almost nothing takes the first cell's output besides.
fn dense(run: &Run, module: &Scope, layer: usize, x: [&Tensor; 4], guides: &Guides) -> (Vec<Tensor>, Tensor) {
    let (e, routers) = cells(run, module, layer, x, guides);
    let Paths { p, shares, weights } = routers.paths(GATE);
    let outputs = route_means([&e[0], &e[1], &e[2], &e[3]], &weights, &shares);
    run.pass.tap(&format!("path_l{layer}"), &p);
    for (i, y) in outputs.iter().enumerate() {
        run.pass.tap(&format!("aggr_l{layer}.{i}"), y);
    }
    (outputs, p)
}

/// The last layer, of one output, and its raw probabilities `[.., 1, 4]`. A cell with almost no probability
/// passes its input on; the sum is divided by that of all weights.
fn last(run: &Run, module: &Scope, x: [&Tensor; 4], guides: &Guides) -> (Tensor, Tensor) {
    let (e, routers) = cells(run, module, 2, x, guides);
    let Paths { p, shares, weights } = routers.last_paths(GATE / 4.0);
    let passed = route(x, &weights);
    let output = route_shares([&e[0], &e[1], &e[2], &e[3]], &shares, &passed);
    run.pass.tap("path_l2", &p);
    run.pass.tap("aggr_l2", &output);
    (output, p)
}

/// Similarities of a batch given as tiles of captions, in order. In training, batch norm's statistics are
/// those of all tiles together.
pub(super) fn score(run: &Run, tiles: &[Pairs]) -> Scored {
    let d = run.config.options.embed_size;
    let flat: Vec<Tensor> = tiles.iter().map(|t| t.output.reshape([t.output.len() / d, d])).collect();
    let masks = || tiles.iter().map(|t| Some(t.mask.as_ref()?.rows(&t.output))).collect::<Option<Vec<_>>>();
    let masks = run.pass.is_train().then(masks).flatten();
    let normalised = run.pass.batch_norm("itr_module.bn", &flat, masks.as_deref());
    let sims: Vec<Tensor> = tiles
        .iter()
        .zip(&normalised)
        .map(|(tile, x)| {
            let x = x.reshape(tile.output.shape());
            let mask = tile.mask.as_deref();
            let pooled = add(&mask::mean(&x, mask), &mask::max(&x, mask)).l2norm(-1, EPS);
            sum_of(vec![pooled.view(), tile.target.view()], 2, |v| &v[0] * &v[1])
        })
        .collect();
    let sims = concat(&sims, 1);
    run.pass.tap("sims", &sims);
    let paths = run.pass.is_train().then(|| mean_paths(run, tiles));
    if run.pass.is_train() || run.pass.taps().is_some() {
        let paths = paths.clone().unwrap_or_else(|| mean_paths(run, tiles));
        run.pass.tap("paths_mean", &paths);
        if !run.pass.is_train() {
            path_embedding(run, &paths);
        }
    }
    Scored { sims, paths }
}

/// The 36 path probabilities of each image (i2t) or caption (t2i), averaged over the other side.
fn mean_paths(run: &Run, tiles: &[Pairs]) -> Tensor {
    let images = run.config.options.direction == Direction::I2t;
    let layer = |l: usize| {
        let width = [16, 16, 4][l];
        let count: usize = tiles.iter().map(|t| t.paths[l].shape()[1]).sum();
        let mean = |t: &Pairs| {
            let s = t.paths[l].shape();
            let p = t.paths[l].reshape([s[0], s[1], width]);
            if images {
                scaled_sum_of(1.0 / count as f64, vec![p.view()], 1, |p| p[0].clone())
            } else {
                p.mean(0)
            }
        };
        let parts: Vec<Tensor> = tiles.iter().map(mean).collect();
        if images { add_all(parts) } else { concat(&parts, 0) }
    };
    concat(&[layer(0), layer(1), layer(2)], 1)
}

/// The path embedding, `[items, path_hid]`, before its norm.
pub(super) fn path_embedding(run: &Run, paths: &Tensor) -> Tensor {
    let y = linear(&run.pass.scope.sub("itr_module").sub("path_mapping"), paths, Act::None);
    run.pass.tap("path_map", &y);
    y
}
