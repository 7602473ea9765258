//! Views: how a contiguous tensor is read as another shape. Permuting, slicing, padding and broadcasting are
//! arguments of [`crate::ops::map`], fused into its formula; each has its adjoint as a view (and sums).

use super::Tensor;
use crate::shape::Shape;

/// One axis of a view's shape: coordinate `c` reads coordinate `c + shift` of `source` (or repeats it where
/// there is none), and reads zero outside `low..high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Axis {
    /// The source's axis; `None` repeats.
    pub source: Option<usize>,
    /// Added to the coordinate.
    pub shift: isize,
    /// First coordinate that is not padding.
    pub low: usize,
    /// One past the last coordinate that is not padding.
    pub high: usize,
}

impl Axis {
    /// All of an axis of a tensor.
    fn whole(axis: usize, shape: Shape) -> Self {
        Self { source: Some(axis), shift: 0, low: 0, high: shape[axis] }
    }
}

/// How a tensor of shape `source` is read as one of shape `shape`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The shape read.
    pub shape: Shape,
    /// The shape stored.
    pub source: Shape,
    /// One per dimension of `shape`.
    pub axes: Vec<Axis>,
    /// For each source axis that no axis maps, the coordinate read.
    pub fixed: Vec<usize>,
}

impl View {
    /// The tensor as it is.
    pub fn identity(shape: Shape) -> Self {
        let axes = (0..shape.rank()).map(|i| Axis::whole(i, shape)).collect();
        Self { shape, source: shape, axes, fixed: vec![0; shape.rank()] }
    }

    /// Whether it reads the tensor as it is.
    pub fn is_identity(&self) -> bool {
        let whole = |(i, axis): (usize, &Axis)| *axis == Axis::whole(i, self.shape);
        self.shape == self.source && self.axes.iter().enumerate().all(whole)
    }

    /// What it leaves out before and after each axis, if it reads each axis of the source, or a slice of it, in its order.
    pub fn ends(&self) -> Option<Vec<(usize, usize)>> {
        let whole = self.shape.rank() == self.source.rank();
        let end = |k: usize| {
            let a = self.axes[k];
            let before = usize::try_from(a.shift).ok()?;
            let in_order = a.source == Some(k) && !self.is_padded(k);
            in_order.then(|| (before, self.source[k] - before - self.shape[k]))
        };
        (0..self.axes.len()).map(end).collect::<Option<_>>().filter(|_| whole)
    }

    /// Whether part of it reads zero instead of the source.
    pub fn is_padded(&self, axis: usize) -> bool {
        let a = self.axes[axis];
        a.low > 0 || a.high < self.shape[axis]
    }

    /// The same reading with axes `k` and `k + 1` as one, where that is one step in memory: both repeat, or both
    /// read whole neighbouring source axes.
    pub fn merged(&self, k: usize) -> Option<Self> {
        let (a, b) = (self.axes[k], self.axes[k + 1]);
        let whole = |i: usize, s: usize| {
            let axis = self.axes[i];
            !self.is_padded(i) && axis.shift == 0 && self.shape[i] == self.source[s]
        };
        let n = self.shape[k] * self.shape[k + 1];
        let join = |dims: &[usize], at: usize, n: usize| {
            let mut dims = dims.to_vec();
            dims.remove(at + 1);
            dims[at] = n;
            dims
        };
        let mut view = self.clone();
        view.shape = Shape::new(&join(self.shape.dims(), k, n));
        view.axes.remove(k + 1);
        match (a.source, b.source) {
            (None, None) if !self.is_padded(k) && !self.is_padded(k + 1) => {
                view.axes[k] = Axis { source: None, shift: 0, low: 0, high: n };
            }
            (Some(s), Some(t)) if t == s + 1 && whole(k, s) && whole(k + 1, t) => {
                view.source = Shape::new(&join(self.source.dims(), s, n));
                view.fixed = join(&self.fixed, s, 0);
                view.axes[k].high = n;
                for axis in &mut view.axes {
                    axis.source = axis.source.map(|i| if i > s { i - 1 } else { i });
                }
            }
            _ => return None,
        }
        Some(view)
    }

    /// The source offset at the origin and the stride of each axis, in elements; the offset may be negative
    /// where the origin is padding.
    pub fn strides(&self) -> (isize, Vec<usize>) {
        let source = self.source.strides();
        let mut offset: isize = self.fixed.iter().zip(&source).map(|(c, s)| (c * s) as isize).sum();
        let strides = self
            .axes
            .iter()
            .map(|a| {
                let stride = a.source.map_or(0, |s| source[s]);
                offset += a.shift * stride as isize;
                stride
            })
            .collect();
        (offset, strides)
    }

    /// Where the values begin, if it reads neighbours in memory, in order.
    pub fn section(&self) -> Option<usize> {
        let (offset, strides) = self.strides();
        let mut next = 1;
        for k in (0..self.axes.len()).rev().filter(|k| self.shape[*k] != 1) {
            if self.is_padded(k) || strides[k] != next {
                return None;
            }
            next *= self.shape[k];
        }
        let whole = (0..self.axes.len()).all(|k| !self.is_padded(k));
        usize::try_from(offset).ok().filter(|_| whole)
    }

    /// The adjoint: which axes of a gradient of `shape` to sum (kept with length 1), and how to read the sum
    /// as a gradient of `source`.
    pub fn adjoint(&self) -> (Vec<usize>, Self) {
        let summed: Vec<usize> =
            (0..self.axes.len()).filter(|k| self.axes[*k].source.is_none() && self.shape[*k] != 1).collect();
        let mut reduced = self.shape;
        for k in &summed {
            reduced = reduced.with(*k, 1);
        }
        let mut back =
            Self { shape: self.source, source: reduced, axes: Vec::new(), fixed: vec![0; reduced.rank()] };
        for (s, n) in self.source.dims().iter().enumerate() {
            let at = self.axes.iter().position(|a| a.source == Some(s));
            back.axes.push(match at {
                Some(k) => {
                    let a = self.axes[k];
                    let bound = |c: usize| (c as isize + a.shift).clamp(0, *n as isize) as usize;
                    Axis { source: Some(k), shift: -a.shift, low: bound(a.low), high: bound(a.high) }
                }
                None => {
                    let c = self.fixed[s];
                    Axis { source: None, shift: 0, low: c, high: c + 1 }
                }
            });
        }
        (summed, back)
    }
}

/// A tensor and how it is read: what [`crate::ops::map`] takes. Made from a [`Tensor`] and refined by the
/// methods below, none of which copies.
#[derive(Clone, Debug)]
pub struct Viewed {
    /// The tensor.
    pub tensor: Tensor,
    /// How it is read.
    pub view: View,
}

impl Viewed {
    /// Whether both read the same values in the same way.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let tensor = match (self.tensor.buf(), other.tensor.buf()) {
            (Some(a), Some(b)) => a.same(b),
            _ => false,
        };
        tensor && self.view == other.view
    }
}

impl From<&Tensor> for Viewed {
    fn from(tensor: &Tensor) -> Self {
        Self { tensor: tensor.clone(), view: View::identity(tensor.shape()) }
    }
}

impl From<&Viewed> for Viewed {
    fn from(v: &Viewed) -> Self {
        v.clone()
    }
}

impl Viewed {
    /// The shape read.
    pub fn shape(&self) -> Shape {
        self.view.shape
    }

    /// Axis `i` of the result is axis `order[i]`.
    #[track_caller]
    pub fn permute(mut self, order: &[usize]) -> Self {
        let v = &mut self.view;
        assert_eq!(order.len(), v.axes.len(), "permute {} by {order:?}", v.shape);
        let dims: Vec<usize> = order.iter().map(|i| v.shape[*i]).collect();
        v.axes = order.iter().map(|i| v.axes[*i]).collect();
        v.shape = Shape::new(&dims);
        self
    }

    /// `len` coordinates of an axis from `start`.
    #[track_caller]
    pub fn slice(mut self, axis: usize, start: usize, len: usize) -> Self {
        let v = &mut self.view;
        assert!(start + len <= v.shape[axis], "slice {start}+{len} of axis {axis} of {}", v.shape);
        v.shape = v.shape.with(axis, len);
        let a = &mut v.axes[axis];
        a.shift += start as isize;
        a.low = a.low.saturating_sub(start).min(len);
        a.high = a.high.saturating_sub(start).min(len);
        self
    }

    /// Zeros before and after an axis.
    pub fn pad(mut self, axis: usize, before: usize, after: usize) -> Self {
        let v = &mut self.view;
        let n = v.shape[axis];
        v.shape = v.shape.with(axis, n + before + after);
        let a = &mut v.axes[axis];
        a.shift -= before as isize;
        a.low += before;
        a.high += before;
        self
    }

    /// A new axis of length `n` that repeats the rest.
    pub fn repeat(mut self, axis: usize, n: usize) -> Self {
        let v = &mut self.view;
        let mut dims = v.shape.dims().to_vec();
        dims.insert(axis, n);
        v.shape = Shape::new(&dims);
        v.axes.insert(axis, Axis { source: None, shift: 0, low: 0, high: n });
        self
    }

    /// Without an axis of length 1.
    #[track_caller]
    pub fn squeeze(mut self, axis: usize) -> Self {
        let v = &mut self.view;
        assert!(v.shape[axis] == 1 && !v.is_padded(axis), "squeeze axis {axis} of {}", v.shape);
        let a = v.axes.remove(axis);
        if let Some(s) = a.source {
            v.fixed[s] = a.shift as usize;
        }
        v.shape = v.shape.without(axis);
        self
    }

    /// Broadcast as in NumPy.
    #[track_caller]
    pub fn broadcast(mut self, shape: Shape) -> Self {
        assert_eq!(self.shape().broadcast(&shape), Some(shape), "broadcast {} to {shape}", self.shape());
        let missing = shape.rank() - self.shape().rank();
        for i in 0..shape.rank() {
            if i < missing {
                self = self.repeat(i, shape[i]);
            } else if self.shape()[i] != shape[i] {
                self = self.squeeze(i).repeat(i, shape[i]);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Device;

    fn viewed(dims: &[usize]) -> Viewed {
        let n = dims.iter().product();
        Viewed::from(&Device::Host.tensor(Shape::new(dims), &vec![0.0; n]))
    }

    #[test]
    fn a_slice_keeps_what_padding_hides() {
        let v = viewed(&[4]).slice(0, 1, 2).pad(0, 1, 1);
        let a = v.view.axes[0];
        assert_eq!((a.shift, a.low, a.high, v.shape().len()), (0, 1, 3, 4));
    }

    #[test]
    fn merging_keeps_what_is_read() {
        let v = viewed(&[2, 3, 4, 5]);
        let one = v.view.merged(1).expect("whole neighbours");
        assert_eq!((one.shape, one.source), (Shape::new(&[2, 12, 5]), Shape::new(&[2, 12, 5])));
        assert_eq!(one.strides(), (0, vec![60, 5, 1]));
        assert!(v.clone().permute(&[0, 2, 1, 3]).view.merged(1).is_none());
        assert!(v.slice(2, 1, 2).view.merged(1).is_none());
        let repeated = viewed(&[2, 5]).repeat(1, 3).repeat(2, 4).view.merged(1).expect("both repeat");
        assert_eq!(repeated.strides(), (0, vec![5, 0, 1]));
    }

    #[test]
    fn the_adjoint_of_a_slice_is_a_pad() {
        let v = viewed(&[3, 5]).slice(1, 2, 2).permute(&[1, 0]);
        let (summed, back) = v.view.adjoint();
        assert!(summed.is_empty());
        assert_eq!(back.shape, Shape::new(&[3, 5]));
        assert_eq!((back.axes[1].low, back.axes[1].high, back.axes[1].shift), (2, 4, -2));
    }
}
