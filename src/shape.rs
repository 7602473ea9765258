//! Shapes: up to five dimensions, row-major, with broadcasting as in NumPy.

use std::fmt;
use std::ops::Index;

/// The most dimensions a [`Shape`] can have.
pub const MAX_RANK: usize = 5;

/// The dimensions of a contiguous row-major tensor; rank 0 is a scalar.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: u8,
    dims: [usize; MAX_RANK],
}

impl Shape {
    /// A shape of these dimensions. Panics past [`MAX_RANK`].
    #[track_caller]
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= MAX_RANK, "shape {dims:?} has more than {MAX_RANK} dimensions");
        let mut own = [1; MAX_RANK];
        own[..dims.len()].copy_from_slice(dims);
        Self { rank: dims.len() as u8, dims: own }
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// Whether a dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last dimension, 1 for a scalar.
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// An axis counted from the end if negative, as an index.
    #[track_caller]
    pub fn axis(&self, axis: isize) -> usize {
        let i = if axis < 0 { axis + self.rank as isize } else { axis };
        assert!((0..self.rank as isize).contains(&i), "axis {axis} of shape {self}");
        i as usize
    }

    /// The shape with one axis' length replaced.
    #[track_caller]
    pub fn with(&self, axis: usize, n: usize) -> Self {
        let mut s = *self;
        assert!(axis < s.rank(), "axis {axis} of shape {self}");
        s.dims[axis] = n;
        s
    }

    /// The shape without one axis.
    #[track_caller]
    pub fn without(&self, axis: usize) -> Self {
        let mut dims = self.dims().to_vec();
        dims.remove(axis);
        Self::new(&dims)
    }

    /// Elements before, on and after an axis: the `[outer, n, inner]` view reductions work on.
    #[track_caller]
    pub fn split(&self, axis: usize) -> (usize, usize, usize) {
        let d = self.dims();
        (d[..axis].iter().product(), d[axis], d[axis + 1..].iter().product())
    }

    /// Row-major strides in elements.
    pub fn strides(&self) -> Vec<usize> {
        let d = self.dims();
        let mut strides = vec![1; d.len()];
        for i in (0..d.len().saturating_sub(1)).rev() {
            strides[i] = strides[i + 1] * d[i + 1];
        }
        strides
    }

    /// The NumPy broadcast of two shapes, if they are compatible.
    pub fn broadcast(&self, other: &Self) -> Option<Self> {
        let rank = self.rank().max(other.rank());
        let from_end = |s: &Self, i: usize| {
            let pad = rank - s.rank();
            if i < pad { 1 } else { s.dims()[i - pad] }
        };
        let mut dims = Vec::with_capacity(rank);
        for i in 0..rank {
            dims.push(match (from_end(self, i), from_end(other, i)) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => return None,
            });
        }
        Some(Self::new(&dims))
    }
}

impl Index<usize> for Shape {
    type Output = usize;

    #[track_caller]
    fn index(&self, i: usize) -> &usize {
        &self.dims()[i]
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self::new(&dims)
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Self::new(dims)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        let b = |a: &[usize], b: &[usize]| Shape::new(a).broadcast(&Shape::new(b));
        assert_eq!(b(&[3, 1, 5], &[4, 1]), Some(Shape::new(&[3, 4, 5])));
        assert_eq!(b(&[], &[2, 0]), Some(Shape::new(&[2, 0])));
        assert_eq!(b(&[3], &[4]), None);
    }

    #[test]
    fn split_covers_every_element() {
        assert_eq!(Shape::new(&[2, 3, 4]).split(1), (2, 3, 4));
        assert_eq!(Shape::new(&[2, 3, 4]).strides(), [12, 4, 1]);
    }
}
