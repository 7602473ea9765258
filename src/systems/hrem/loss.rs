//! The losses (section 3.3 of the paper): of the embeddings, and of the instance level's.

use super::config::Criterion;
use super::encode::places;
use super::{Run, fusion};
use crate::host::uniform;
use crate::ops::{Expr, add, map, sum_of};
use crate::systems::hinge::hinge_without;
use crate::systems::{Batch, Items, Loss};
use crate::tensor::Tensor;

/// The margin of the triplets, whatever the option says.
const MARGIN: f64 = 0.2;
/// The dimension whose sphere the distances' density is of, whatever the embedding's.
const DIMENSION: f64 = 512.0;
/// Distances below count as this.
const NEAR: f64 = 0.5;

/// The loss of a batch: of the embeddings alone in the first `warmup` steps, then of the fused ones besides.
pub(super) fn loss(run: &Run, images: &Items, captions: &Items, batch: &Batch) -> Loss {
    let options = &run.config.options;
    let facts = Facts::of(batch, &images.at("emb").device());
    let sides = |i: &Tensor, c: &Tensor| i.matmul(c, false, true);
    let (img, txt) = (images.at("emb"), captions.at("emb"));
    let mut terms: Vec<(&'static str, Tensor)> = Vec::new();
    terms.push(("base", criterion(run, options.base_loss, "base", &sides(img, txt), &facts)));
    if run.relates() {
        let fusion::Fused { img: g_img, txt: g_txt, regulariser } = fusion::fuse(run, images, captions);
        let crossed = [("gnn1", img, &g_txt), ("gnn2", &g_img, txt), ("gnn3", &g_img, &g_txt)];
        let wanted = if options.cross_loss == 0 { &crossed[2..] } else { &crossed[..] };
        for (name, i, c) in wanted {
            terms.push((name, criterion(run, options.gnn_loss, name, &sides(i, c), &facts)));
        }
        terms.push(("reg", regulariser));
    }
    let weights = terms.iter().map(|(name, _)| if *name == "reg" { options.reg_loss_weight } else { 1.0 });
    let weights: Vec<f64> = weights.collect();
    let views = terms.iter().map(|(_, term)| term.view()).collect();
    let total = map(views, |x| {
        let mut sum = &x[0] * weights[0];
        for (term, weight) in x.iter().zip(&weights).skip(1) {
            sum = sum + term * *weight;
        }
        sum
    });
    for (name, term) in &terms {
        run.pass.tap(&format!("loss.{name}"), term);
    }
    run.pass.tap("loss.total", &total);
    Loss { total, terms }
}

/// What the losses know of a batch's images.
struct Facts<'a> {
    given: Option<&'a Items>,
    /// 1 where image and caption belong together.
    same: Tensor,
    /// 1 on the diagonal.
    own: Tensor,
    /// Every pair that belongs together, row by row: the rows and the columns.
    positives: [Tensor; 2],
}

impl<'a> Facts<'a> {
    fn of(batch: &Batch<'a>, device: &crate::tensor::Device) -> Self {
        let ids = batch.image_ids;
        let n = ids.len();
        let matrix = |is: &dyn Fn(usize, usize) -> bool| {
            let value = |at: usize| if is(at / n, at % n) { 1.0 } else { 0.0 };
            device.tensor([n, n], &(0..n * n).map(value).collect::<Vec<f32>>())
        };
        let pairs = (0..n * n).filter(|at| ids[at / n] == ids[at % n]);
        let (rows, columns): (Vec<f32>, Vec<f32>) =
            pairs.map(|at| ((at / n) as f32, (at % n) as f32)).unzip();
        let list = |values: &[f32]| device.tensor([values.len()], values);
        Self {
            given: batch.given,
            same: matrix(&|i, j| ids[i] == ids[j]),
            own: matrix(&|i, j| i == j),
            positives: [list(&rows), list(&columns)],
        }
    }
}

/// One loss of similarities `[images, captions]`.
fn criterion(run: &Run, which: Criterion, name: &str, sims: &Tensor, facts: &Facts) -> Tensor {
    run.pass.tap(&format!("simmat.{name}"), sims);
    let options = &run.config.options;
    match which {
        Criterion::Vse => {
            let without = if options.mask_repeat == 0 { &facts.own } else { &facts.same };
            hinge_without(sims, without, options.margin, run.hardest_only())
        }
        Criterion::Trip => {
            let turned = map(vec![sims.view().permute(&[1, 0])], |x| x[0].clone());
            add(&triplets(run, name, "im", sims, facts), &triplets(run, name, "s", &turned, facts))
        }
    }
}

/// Triplets with distance-weighted negatives (Wu et al. 2017): for each pair that belongs together one negative of its
/// row is drawn, with a chance that is higher the rarer its distance would be on a sphere.
///
/// Where some row has nothing to draw from, the authors' draw fails and the whole side counts 0.
fn triplets(run: &Run, name: &str, side: &str, sims: &Tensor, facts: &Facts) -> Tensor {
    let n = sims.shape()[0];
    let tap = |part: &str, value: &Tensor| run.pass.tap(&format!("trip.{name}.{side}.{part}"), value);
    let [anchors, positives] = &facts.positives;
    let weights = chances(&sims.detach(), &facts.same, run.config.far());
    let drawable = weights.sum(1).map(|mass| mass.greater(0.0));
    let alive = drawable.sum(0).map(|rows| rows.greater(n as f64 - 0.5));
    let negatives = match facts.given.and_then(|given| given.get(&format!("trip.{name}.{side}.neg_idx"))) {
        Some(given) => given.clone(),
        None => draw(&weights, anchors, run.pass.draws(stream(name, side))),
    };
    let flat = sims.reshape([n * n, 1]);
    let at = |column: &Tensor| {
        let place = anchors.map2(column, |a, c| a * n as f64 + c);
        flat.gather(&place).reshape([anchors.len()])
    };
    let views = vec![at(&negatives).view(), at(positives).view(), alive.view()];
    let loss = sum_of(views, 0, |x| x[2].select((&x[0] - &x[1] + MARGIN).relu(), 0.0));
    tap("anchor_idx", anchors);
    tap("pos_idx", positives);
    tap("weight", &weights.gather(anchors));
    tap("loss", &loss);
    loss
}

/// The stream of a side's draws.
fn stream(name: &str, side: &str) -> u64 {
    name.bytes().chain(side.bytes()).fold(0, |hash, byte| hash * 31 + u64::from(byte))
}

/// The chance of each negative of a row, `[rows, columns]`: of the inverse density of its distance on a sphere, 0 for
/// positives and from the distance `far` on.
fn chances(sims: &Tensor, same: &Tensor, far: f64) -> Tensor {
    // Squared distances, which are none below 0 and leave the sphere from 4 on.
    let exists = |s: &Expr| (s.greater(1.0)).select(0.0, s.greater(-1.0));
    let squared = |s: &Expr| (2.0 - s.clone() * 2.0).max(NEAR * NEAR);
    let log = sims.map2(same, |s, same| {
        let d = squared(s);
        let density =
            d.log() * ((2.0 - DIMENSION) / 2.0) - (1.0 - d.clone() * 0.25).log() * ((DIMENSION - 3.0) / 2.0);
        (exists(s) * (1.0 - same.clone())).select(density, 0.0)
    });
    let most = log.max(1);
    let mass = map(vec![log.view(), most.view().repeat(1, 1), sims.view(), same.view()], |x| {
        let reached = Expr::from(far * far).greater(squared(&x[2]));
        let negative = (1.0 - x[3].clone()) * exists(&x[2]) * reached;
        negative.select((&x[0] - &x[1]).exp(), 0.0)
    });
    let total = mass.sum(1);
    mass.map2(total.view().repeat(1, 1), |m, t| m / (t + 1e-20))
}

/// Draws a column for each of the rows `anchors` by the chances of its row: the first where the running sum exceeds a
/// uniform share of the whole.
fn draw(chances: &Tensor, anchors: &Tensor, seed: u64) -> Tensor {
    let (device, n) = (chances.device(), chances.shape()[1]);
    let place = places(n, &device);
    let views = vec![chances.view().repeat(1, 1), place.view().repeat(1, 1), place.view()];
    let sums = sum_of(views, 2, |x| x[2].greater(&x[1]).select(0.0, x[0].clone())).gather(anchors);
    let shares: Vec<f32> = (0..anchors.len()).map(|i| uniform(seed, i as u32)).collect();
    let shares = device.tensor([anchors.len()], &shares);
    let views = vec![sums.view(), shares.view().repeat(1, 1), sums.max(1).view().repeat(1, 1)];
    sum_of(views, 1, |x| {
        let passed = 1.0 - x[0].greater(&x[1] * &x[2]);
        // Nothing follows what reaches the whole, whatever the product rounds to.
        passed * x[2].greater(&x[0])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Device;

    /// Similarities of unit vectors: one near negative, some at a right angle, one opposite.
    const SIMS: [f32; 16] = [0.9, 0.4, 0.0, 0.1, 0.0, 0.8, 0.3, 0.0, 0.1, 0.0, 0.7, 0.2, 0.5, 0.1, 0.0, 0.9];

    fn eye(n: usize) -> Tensor {
        let values: Vec<f32> = (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
        Device::Host.tensor([n, n], &values)
    }

    fn chances_of(sims: &[f32]) -> Vec<f64> {
        chances(&Device::Host.tensor([4, 4], sims), &eye(4), 1.7).to_f64().unwrap()
    }

    #[test]
    fn chances_are_of_negatives_within_reach() {
        let p = chances_of(&SIMS);
        for row in 0..4 {
            let sum: f64 = p[4 * row..4 * row + 4].iter().sum();
            assert!((sum - 1.0).abs() < 1e-9 && p[5 * row] == 0.0, "{p:?}");
        }
        let mut far = SIMS;
        far[1] = -0.99;
        assert_eq!(chances_of(&far)[1], 0.0);
        far[1] = 1.5;
        assert_eq!(chances_of(&far)[1], 0.0, "no distance belongs to it");
    }

    #[test]
    fn a_row_without_a_negative_in_reach_has_no_chances() {
        let mut sims = SIMS;
        sims[1..4].fill(-0.9);
        assert_eq!(chances_of(&sims)[..4], [0.0; 4]);
    }

    #[test]
    fn draws_follow_the_chances() {
        let p = Device::Host.tensor([2, 4], &[0.0, 0.75, 0.0, 0.25, 1.0, 0.0, 0.0, 0.0]);
        let n = 4000;
        let anchors: Vec<f32> = (0..n).map(|i| (i % 2) as f32).collect();
        let drawn = draw(&p, &Device::Host.tensor([n], &anchors), 5).to_vec().unwrap();
        let count = |anchor: usize, column: f32| {
            drawn.iter().enumerate().filter(|(i, d)| i % 2 == anchor && **d == column).count()
        };
        assert_eq!(count(1, 0.0), n / 2);
        assert_eq!(count(0, 1.0) + count(0, 3.0), n / 2);
        assert!((count(0, 1.0) as f64 / (n / 2) as f64 - 0.75).abs() < 0.03);
    }
}
