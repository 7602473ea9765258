//! Work along one axis: softmax and the norms. An invocation owns a row, four neighbouring rows where the
//! axis is not the last, or a row four values at a time where it is.

use super::walk::{Lane, fill, pointwise};
use crate::error::Error;
use crate::gpu::{Buf, Gpu, Kernel, Launch, MAX_LOOP, Words, groups_of};
use crate::shape::Shape;

/// Loops over the axis in the longest kernel of this family.
const LOOPS: usize = 3;

/// Whether an invocation of `kernel` that loops so often may walk an axis of `n` values; if not, the device's next
/// flush says so.
pub(super) fn fits(gpu: &Gpu, kernel: &Kernel, n: usize, loops: usize) -> bool {
    if loops > MAX_LOOP {
        let what = format!("{}: the axis is too long for one invocation to walk", kernel.name);
        let limit = n * MAX_LOOP / loops;
        gpu.refuse(Error::new(what).expected(format!("at most {limit} values")).found(n));
    }
    loops <= MAX_LOOP
}

/// How the kernels of this family see a shape: `count` invocations, each `steps` values apart by `inner`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    lane: Lane,
    count: usize,
    pub(super) steps: usize,
    inner: usize,
    /// Values along the axis.
    pub(super) n: usize,
}

impl Rows {
    pub(super) fn of(shape: Shape, axis: usize) -> Self {
        let (outer, n, inner) = shape.split(axis);
        if inner == 1 && n.is_multiple_of(4) {
            return Self { lane: Lane::Axis, count: outer, steps: n / 4, inner: 1, n };
        }
        if inner.is_multiple_of(4) {
            return Self { lane: Lane::Out, count: outer * inner / 4, steps: n, inner: inner / 4, n };
        }
        Self { lane: Lane::Single, count: outer * inner, steps: n, inner, n }
    }

    /// Records `kernel` with parameters count, steps, inner and then `rest`.
    pub(super) fn dispatch(&self, gpu: &Gpu, kernel: Kernel, reads: &[&Buf], y: &Buf, rest: Words) {
        if !fits(gpu, &kernel, self.n, LOOPS * self.steps) {
            return;
        }
        let mut params = Words::default().sizes(&[self.count, self.steps, self.inner]);
        params.0.extend(rest.0);
        let text = || {
            let lane = match self.lane {
                Lane::Single => {
                    "fn fold_sum(x: T) -> T { return x; }
fn fold_max(x: T) -> T { return x; }
fn places(n: u32) -> T { return T(n); }"
                }
                Lane::Axis => {
                    "fn fold_sum(x: T) -> T { return T(x.x + x.y + x.z + x.w); }
fn fold_max(x: T) -> T { return T(max(max(x.x, x.y), max(x.z, x.w))); }
fn places(n: u32) -> T { return T(f32(4u * n)) + T(0.0, 1.0, 2.0, 3.0); }"
                }
                Lane::Out => {
                    "fn fold_sum(x: T) -> T { return x; }
fn fold_max(x: T) -> T { return x; }
fn places(n: u32) -> T { return T(f32(n)); }"
                }
            };
            let lane = format!("{}{lane}", pointwise(self.lane != Lane::Single));
            fill(kernel.text, &[("lane", &lane)])
        };
        gpu.dispatch(&Launch {
            kernel,
            body: Some((self.lane as u64, &text)),
            constants: &[],
            reads,
            writes: &[y],
            params,
            groups: groups_of(self.count),
            loops: LOOPS * self.steps,
        });
    }
}

/// For each row of `shape` along `axis`, in f64: gathers it, lets `f` replace it, and stores it.
pub(super) fn each_row(shape: Shape, axis: usize, mut f: impl FnMut(usize, &dyn Fn(usize) -> usize)) {
    let (outer, n, inner) = shape.split(axis);
    for o in 0..outer {
        for i in 0..inner {
            f(o, &|k| (o * n + k) * inner + i);
        }
    }
}
