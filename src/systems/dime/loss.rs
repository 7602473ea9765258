//! The training loss: hinge on similarities, and path regularisation (section 3.5 of the paper).

use super::encode::EPS;
use super::routing::path_embedding;
use super::{Run, Scored};
use crate::ops::{materialize, scaled_sum_of};
use crate::systems::hinge::hinge;
use crate::tensor::Tensor;

/// The loss and its terms, scalars.
pub struct Losses {
    /// `rank + trade_off * path`.
    pub total: Tensor,
    /// The hinge loss.
    pub rank: Tensor,
    /// The path regularisation, divided by the option `batch_size`.
    pub path: Tensor,
}

/// The loss of a scored batch; `label` is [`super::Captions::label`], cut to the images where extra captions
/// are more.
pub fn losses(run: &Run, scored: &Scored, label: &Tensor) -> Losses {
    let config = run.config;
    let rank = hinge(&scored.sims, config.margin, config.max_violation);
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
    let total = rank.map2(&path, |r, p| r + p * config.trade_off);
    run.tap("sim_paths", &agreement);
    run.tap("sim_label", &wanted);
    run.tap("loss_rank", &rank);
    run.tap("loss_path", &path);
    run.tap("loss_total", &total);
    Losses { total, rank, path }
}
