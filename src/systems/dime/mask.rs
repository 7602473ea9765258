//! Masked padding, for models with `mask_padding`. The functions take tensors `[.., captions,
//! words, width]`; where nothing is masked they are the plain mean and maximum over words.

use super::Run;
use crate::ops::{materialize, sum_of};
use crate::tensor::{Tensor, Viewed};

/// What padding is before a maximum.
const LOWEST: f64 = -3e38;

/// Which words of a batch's captions are true.
pub(super) struct Mask {
    /// True words of each caption: `[captions]`.
    pub(super) lengths: Tensor,
    /// 1 for a true word, 0 for padding: `[captions, words]`.
    words: Tensor,
    /// What is added to the scores of words as keys: 0, or -1e30 for padding: `[captions, words]`.
    pub(super) keys: Tensor,
    /// The mask over the caption's length: weights of a mean.
    share: Tensor,
}

impl Mask {
    /// The mask of captions of these lengths, padded to `words`; `None` where padding counts.
    pub(super) fn of(run: &Run, lengths: &Tensor, words: usize) -> Option<Self> {
        if !run.config.options.mask_padding {
            return None;
        }
        let places: Vec<f32> = (0..words).map(|i| i as f32).collect();
        let places = lengths.device().tensor([words], &places);
        let column = || lengths.view().repeat(1, 1);
        let mask = places.map2(column(), |place, n| n.greater(place));
        let share = mask.map2(column(), |m, n| m / n.max(1.0));
        let keys = mask.map(|m| (m - 1.0) * 1e30);
        Some(Self { lengths: lengths.clone(), words: mask, keys, share })
    }

    /// 1 for each row of a true word of `x`, 0 for padding: `[rows, 1]`.
    pub(super) fn rows(&self, x: &Tensor) -> Tensor {
        let one = x.shape().with(x.shape().rank() - 1, 1);
        materialize(column(&self.words).broadcast(one)).reshape([one.len(), 1])
    }
}

/// `[captions, words]` as a factor of `[.., captions, words, width]`.
fn column(mask: &Tensor) -> Viewed {
    mask.view().repeat(2, 1)
}

/// `x` with zeros at padded words.
pub(super) fn zeroed(x: &Tensor, mask: Option<&Mask>) -> Tensor {
    match mask {
        Some(mask) => x.map2(column(&mask.words), |x, m| m.select(x, 0.0)),
        None => x.clone(),
    }
}

/// The mean over words.
pub(super) fn mean(x: &Tensor, mask: Option<&Mask>) -> Tensor {
    let words = x.shape().rank() - 2;
    match mask {
        Some(mask) => sum_of(vec![x.view(), column(&mask.share)], words, |x| &x[0] * &x[1]),
        None => x.mean(words as isize),
    }
}

/// The maximum over words.
pub(super) fn max(x: &Tensor, mask: Option<&Mask>) -> Tensor {
    let words = x.shape().rank() as isize - 2;
    match mask {
        Some(mask) => x.map2(column(&mask.words), |x, m| m.select(x, LOWEST)).max(words),
        None => x.max(words),
    }
}
