//! Windows of a grid (Swin, Liu et al. 2021, section 3.2).

use crate::ops::{concat, materialize};
use crate::tensor::Tensor;

/// How a square grid is cut into square windows, after it is rolled so that row and column `shift` come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Rows and columns of the grid.
    pub grid: usize,
    /// Rows and columns of a window; it divides the grid.
    pub size: usize,
    /// Rows and columns that the grid is rolled by.
    pub shift: usize,
}

impl Window {
    /// The windows of an image.
    pub fn count(self) -> usize {
        (self.grid / self.size).pow(2)
    }

    /// The number of row `i` of sequence `n` among all rows.
    pub(super) fn row_at(self, n: usize, i: usize) -> usize {
        let Self { grid, size, shift } = self;
        let (image, window, across) = (n / self.count(), n % self.count(), grid / size);
        let y = (window / across * size + i / size + shift) % grid;
        let x = (window % across * size + i % size + shift) % grid;
        (image * grid + y) * grid + x
    }

    /// `x [images, grid * grid, width]` as sequences `[images * windows, rows of a window, width]`.
    pub(super) fn partition(self, x: &Tensor) -> Tensor {
        let Self { grid, size, shift } = self;
        let (images, width, across) = (x.shape()[0], x.shape()[2], grid / size);
        let rolled = rolled(&x.reshape([images, grid, grid, width]), shift);
        let cut = rolled.reshape([images * across, size, across, size * width]);
        materialize(cut.view().permute(&[0, 2, 1, 3])).reshape([images * across * across, size * size, width])
    }

    /// The reverse of [`Window::partition`].
    pub(super) fn merge(self, x: &Tensor, images: usize) -> Tensor {
        let Self { grid, size, shift } = self;
        let (width, across) = (x.shape()[2], grid / size);
        let rows = x.reshape([images * across, across, size, size * width]);
        let joined = materialize(rows.view().permute(&[0, 2, 1, 3])).reshape([images, grid, grid, width]);
        rolled(&joined, (grid - shift) % grid).reshape([images, grid * grid, width])
    }
}

/// `x [images, grid, grid, width]` with row and column `shift` first.
fn rolled(x: &Tensor, shift: usize) -> Tensor {
    if shift == 0 {
        return x.clone();
    }
    [1, 2].into_iter().fold(x.clone(), |x, axis| {
        let rest = x.shape()[axis] - shift;
        let parts = [x.view().slice(axis, shift, rest), x.view().slice(axis, 0, shift)].map(materialize);
        concat(&parts, axis)
    })
}
