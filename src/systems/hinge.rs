//! The margin hinge loss of image-text matching (VSE++, Faghri et al. 2018), with extra captions or images.

use crate::ops::{map, sum_of};
use crate::tensor::Tensor;

/// The loss of similarities `[images, captions]`, a scalar.
///
/// The leading square's diagonal holds the positives. Rows compare each of the first `n` images with every
/// caption, columns each of the first `n` captions with every image, so extra captions join only the first
/// sum and extra images only the second. `max_violation` keeps the hardest negative of each, else all count.
pub fn hinge(sims: &Tensor, margin: f64, max_violation: bool) -> Tensor {
    let n = sims.shape()[0].min(sims.shape()[1]);
    hinge_without(sims, &eye(sims, n), margin, max_violation)
}

/// What each of the first `n` images, and each of the first `n` captions, costs by [`hinge`]: the sums of both are the loss.
pub fn costs(sims: &Tensor, margin: f64, max_violation: bool) -> [Tensor; 2] {
    let n = sims.shape()[0].min(sims.shape()[1]);
    costs_without(sims, &eye(sims, n), margin, max_violation)
}

/// As [`hinge`]; the pairs of the leading square that `without [n, n]` holds 1 for, the diagonal among them, are no
/// negatives.
pub fn hinge_without(sims: &Tensor, without: &Tensor, margin: f64, max_violation: bool) -> Tensor {
    let [images, captions] = costs_without(sims, without, margin, max_violation);
    crate::ops::add(&images.sum_all(), &captions.sum_all())
}

fn costs_without(sims: &Tensor, without: &Tensor, margin: f64, max_violation: bool) -> [Tensor; 2] {
    let (images, captions) = (sims.shape()[0], sims.shape()[1]);
    let n = images.min(captions);
    let square = sims.view().slice(0, 0, n).slice(1, 0, n);
    let positives = sum_of(vec![square, eye(sims, n).view()], 1, |x| &x[0] * &x[1]);
    let side = |axis: usize, others: usize| {
        let scores = sims.view().slice(1 - axis, 0, n);
        let own = without.view().pad(axis, 0, others - n);
        let violations = map(vec![scores, positives.view().repeat(axis, others), own], |x| {
            (&x[0] - &x[1] + margin).relu() * (1.0 - x[2].clone())
        });
        if max_violation { violations.max(axis as isize) } else { violations.sum(axis as isize) }
    };
    [side(1, captions), side(0, images)]
}

/// The identity matrix.
fn eye(like: &Tensor, n: usize) -> Tensor {
    let mut eye = vec![0.0; n * n];
    eye.iter_mut().step_by(n + 1).for_each(|v| *v = 1.0);
    like.device().tensor([n, n], &eye)
}
