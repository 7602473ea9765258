//! The training loss: hinge on similarities, and path regularisation (section 3.5 of the paper).

use super::Run;
use super::encode::EPS;
use super::routing::{Scored, path_embedding};
use crate::ops::{materialize, scaled_sum_of};
use crate::systems::Loss;
use crate::systems::hinge::hinge;
use crate::tensor::Tensor;

/// `rank + trade_off * path` of a scored batch: the hinge loss, and the path regularisation divided by the option
/// `batch_size`. `label` is [`super::encode::captions`]'s; it is cut to the images where extra captions are more.
pub(super) fn loss(run: &Run, scored: &Scored, label: &Tensor) -> Loss {
    let config = run.config;
    let rank = hinge(&scored.sims, config.options.margin, config.options.max_violation);
    let paths = scored.paths.as_ref().expect("paths are returned in training");
    let embedding = path_embedding(run, paths).l2norm(-1, EPS);
    let agreement = embedding.matmul(&embedding, false, true);
    let (images, captions) = (scored.sims.shape()[0], scored.sims.shape()[1]);
    let label = if images < captions { materialize(label.view().slice(0, 0, images)) } else { label.clone() };
    let wanted = label.matmul(&label, false, true).detach();
    let n = agreement.len();
    let views = vec![agreement.reshape([n]).view(), wanted.reshape([n]).view()];
    let path = scaled_sum_of(1.0 / config.batch_size as f64, views, 0, |x| {
        let off = &x[0] - &x[1];
        &off * &off
    });
    let total = rank.map2(&path, |r, p| r + p * config.options.trade_off);
    run.pass.tap("sim_paths", &agreement);
    run.pass.tap("sim_label", &wanted);
    run.pass.tap("loss_rank", &rank);
    run.pass.tap("loss_path", &path);
    run.pass.tap("loss_total", &total);
    Loss { total, terms: vec![("rank", rank), ("path", path)] }
}
