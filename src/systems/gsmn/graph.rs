//! What of the two graphs does not depend on the pair (section 3.3 of the paper).
//!
//! The published layers give each node its own vector in place of every neighbour's, so a neighbourhood is a factor of
//! the node's map, not a sum over others. Among regions it is `Σ_j w_ij` for each kernel, a property of the image's
//! boxes. Among words the weights are normalised over j: the factor is 1, whatever the words, the dependencies and the
//! kernels' `params`, except that a pair of a word with itself counts twice on the diagonal of the adjacency A:
//! `Σ_j w_ij A_ij` with `w_ij = A_ij s_ij / Σ_j A_ij s_ij`, which is `1 + Σ_j A_ij (A_ij - 1) s_ij / Σ_j A_ij s_ij`.

use super::Run;
use crate::ops::{Expr, concat, map, sum_of};
use crate::systems::contexts::{places, within};
use crate::systems::{Form, Items};
use crate::tensor::Tensor;

/// Kernels of each graph layer.
pub(super) const KERNELS: usize = 8;
/// Added to a squared deviation.
const EPS: f64 = 1e-14;

/// What the neighbours of each region weigh, `[images, regions, 8]`, from boxes `[images, regions, 4]`: Gaussian kernels
/// of the distance and the direction of their centres, normalised over the kernels.
///
/// As a softmax over the kernels of the Gaussians' exponents, which cannot underflow to 0 / 0 as the published quotient
/// can.
pub(super) fn kernels(run: &Run, boxes: &Tensor) -> Tensor {
    let (n, r) = (boxes.shape()[0], boxes.shape()[1]);
    let part = |i: usize| boxes.view().slice(2, i, 1).squeeze(2);
    let middle = |low: usize| map(vec![part(low), part(low + 2)], |x| &x[0] + (&x[1] - &x[0]) * 0.5);
    let (x, y) = (middle(0), middle(1));
    let sides = |of: &Tensor| [of.view().repeat(2, r), of.view().repeat(1, r)];
    let all: Vec<_> = sides(&x).into_iter().chain(sides(&y)).collect();
    let rho = map(all.clone(), |x| {
        let (dx, dy) = (&x[0] - &x[1], &x[2] - &x[3]);
        (&dx * &dx + &dy * &dy).sqrt()
    });
    let theta = map(all, |x| (&x[0] - &x[1]).atan2(&x[2] - &x[3]));
    if run.pass.form == Form::Composed {
        let pair = |a: &Tensor, b: &Tensor, rank: usize| {
            let column = |t: &Tensor| t.reshape([t.dims(), &[1][..]].concat().as_slice());
            concat(&[column(a), column(b)], rank)
        };
        run.pass.tap("i2t.bb_centre", &pair(&x, &y, 2));
        run.pass.tap("i2t.pseudo_coord", &pair(&rho, &theta, 3));
    }
    let scope = run.pass.scope.sub("i2t_match_G").sub("graph_convolution_1");
    let of_kernel =
        |name: &str| scope.at(name).reshape([KERNELS]).view().broadcast([n, r, r, KERNELS].into());
    let views = vec![
        rho.view().repeat(3, KERNELS),
        theta.view().repeat(3, KERNELS),
        of_kernel("mean_rho"),
        of_kernel("precision_rho"),
        of_kernel("mean_theta"),
        of_kernel("precision_theta"),
    ];
    let exponents = map(views, |x| {
        let off = &x[0] - &x[2];
        let turn = (&x[1] - &x[4]).abs();
        let turn = turn.min((std::f64::consts::TAU - turn.clone()).abs());
        let part = |off: &Expr, deviation: &Expr| off * off / (deviation * deviation + EPS) * -0.5;
        part(&off, &x[3]) + part(&turn, &x[5])
    });
    let weights = exponents.softmax(-1, 1.0);
    let sums = weights.sum(2);
    run.pass.tap("i2t.gaussian_weights", &weights);
    run.pass.tap("i2t.gaussian_row_sum", &sums);
    sums
}

/// The factor of each word in a sparse graph, `[captions, words]`; `None` in a dense one, where it is 1. `x` has the
/// dependency pairs: the first entry is the root's, and one that points past the caption is none.
pub(super) fn own(run: &Run, words: &Tensor, lengths: &Tensor, x: &Items) -> Option<Tensor> {
    let options = &run.config.options;
    let composed = run.pass.form == Form::Composed;
    if !options.is_sparse && !composed {
        return None;
    }
    let (captions, n) = (words.shape()[0], words.shape()[1]);
    let alike = words.matmul(words, false, true).softmax_to(-1, options.lambda_softmax, lengths, n);
    if composed {
        run.pass.tap("t2i.words_sim", &within(&alike, lengths, 0));
    }
    if !options.is_sparse {
        return None;
    }
    let connected = adjacency(x.at("depends"), x.at("depends_len"), lengths, captions, n);
    run.pass.tap("t2i.adjacency", &connected);
    let both = || vec![connected.view(), alike.view()];
    let total = sum_of(both(), 2, |x| &x[0] * &x[1]);
    let twice = sum_of(both(), 2, |x| &x[0] * (&x[0] - 1.0) * &x[1]);
    Some(twice.map2(&total, |twice, total| 1.0 + twice / total.max(f64::from(f32::MIN_POSITIVE))))
}

/// `[captions, words, words]`: 1 where one word depends on the other, and on the diagonal; 2 there where a word depends
/// on itself.
fn adjacency(pairs: &Tensor, count: &Tensor, lengths: &Tensor, captions: usize, n: usize) -> Tensor {
    let (most, device) = (pairs.shape()[1], pairs.device());
    let part = |i: usize| {
        let end = pairs.view().slice(2, i, 1).squeeze(2);
        end.repeat(1, n).repeat(2, n)
    };
    let of_caption = |x: &Tensor| x.view().repeat(1, n).repeat(2, n).repeat(3, most);
    let word = places(n, &device);
    let place = places(most, &device);
    let views = vec![
        part(0),
        part(1),
        word.view().repeat(1, n).repeat(2, most).repeat(0, captions),
        word.view().repeat(0, n).repeat(2, most).repeat(0, captions),
        place.view().broadcast([captions, n, n, most].into()),
        of_caption(count),
        of_caption(lengths),
    ];
    let found = sum_of(views, 3, |x| {
        let one = Expr::from(1.0);
        let same = |a: &Expr, b: &Expr| &one - a.greater(b) - b.greater(a);
        let there = same(&x[0], &x[2]) * same(&x[1], &x[3]);
        let back = same(&x[0], &x[3]) * same(&x[1], &x[2]);
        let counts = x[4].greater(0.0) * x[5].greater(&x[4]) * x[6].greater(&x[0]) * x[6].greater(&x[1]);
        (there + back).min(1.0) * counts
    });
    let views = vec![
        found.view(),
        word.view().repeat(1, n).repeat(0, captions),
        word.view().broadcast(found.shape()),
        lengths.view().repeat(1, n).repeat(2, n),
    ];
    map(views, |x| {
        let diagonal = 1.0 - x[1].greater(&x[2]) - x[2].greater(&x[1]);
        x[0].min(1.0) + diagonal * x[3].greater(&x[1])
    })
}
