//! The margin hinge loss of image-text matching (VSE++, Faghri et al. 2018), with extra captions or images.

use crate::tensor::Tensor;

/// The loss of similarities `[images, captions]`, a scalar.
///
/// The leading square's diagonal holds the positives. Rows compare each of the first `n` images with every
/// caption, columns each of the first `n` captions with every image, so extra captions join only the first
/// sum and extra images only the second. `max_violation` keeps the hardest negative of each, else all count.
pub fn hinge(sims: &Tensor, margin: f64, max_violation: bool) -> Tensor {
    sims.hinge_costs(None, margin, max_violation).sum_all()
}

/// As [`hinge`]; the pairs of the leading square that `without [n, n]` holds 1 for, the diagonal among them, are no
/// negatives.
pub fn hinge_without(sims: &Tensor, without: &Tensor, margin: f64, max_violation: bool) -> Tensor {
    sims.hinge_costs(Some(without), margin, max_violation).sum_all()
}
