//! Writing into a tensor that outlives the step: it keeps its memory, so the next step finds the pool as this
//! one did and takes the same buffers.

use super::registry::{Case, POINT, case};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::tensor::Tensor;

const KERNEL: Kernel = Kernel { name: "write", text: include_str!("../../shaders/write.wgsl") };

/// Writes the values of `x` into `y` in place, row-major from its value `place` on: clones of `y`, and what else
/// aliases it, see it, and nothing computed before does.
#[track_caller]
pub fn write(y: &mut Tensor, place: usize, x: &Tensor) {
    let n = x.len();
    assert!(place + n <= y.len(), "write: {n} values from place {place} of shape {}", y.shape());
    if let (Some(to), Some(from)) = (y.buf(), x.buf()) {
        let gpu = to.gpu().expect("a tensor never outlives its device");
        launch(&gpu, to, place, from, None);
    } else {
        let from = x.values().expect("both are on one side").to_vec();
        let mut to = y.values_mut().expect("both are on one side");
        to[place..place + n].copy_from_slice(&from);
    }
}

/// Writes the values of `x` over all of `y`'s in place, as [`write()`] does, unless `number`, of one value, is NaN or infinite.
#[track_caller]
pub fn write_if_finite(y: &mut Tensor, x: &Tensor, number: &Tensor) {
    assert!(x.len() == y.len() && number.len() == 1, "write_if_finite: {} into {}", x.shape(), y.shape());
    match (y.buf(), x.buf(), number.buf()) {
        (Some(to), Some(from), Some(number)) => {
            let gpu = to.gpu().expect("a tensor never outlives its device");
            launch(&gpu, to, 0, from, Some(number));
        }
        _ if number.values().expect("all are on one side")[0].is_finite() => write(y, 0, x),
        _ => {}
    }
}

/// Records the copy of all of `from` into `to`, from its value `place` on, unless a number is not finite.
pub(super) fn launch(gpu: &Gpu, to: &Buf, place: usize, from: &Buf, number: Option<&Buf>) {
    gpu.dispatch(&Launch {
        kernel: KERNEL,
        body: None,
        constants: &[("watched", f64::from(u8::from(number.is_some())))],
        reads: &[from, number.unwrap_or(from)],
        writes: &[to],
        params: Words::default().sizes(&[from.len(), place]),
        grid: Grid::Invocations(from.len()),
        loops: 1,
    });
}

pub(super) fn cases() -> Vec<Case> {
    let part: fn(&[Tensor]) -> Tensor = |x| {
        let mut y = x[0].map(|x| x * 1.0);
        let alias = y.reshape([y.len()]);
        write(&mut y, 6, &x[1]);
        alias
    };
    let finite: fn(&[Tensor]) -> Tensor = |x| {
        let over = |number: Tensor| {
            let mut y = x[0].map(|x| x * 1.0);
            write_if_finite(&mut y, &x[1], &number);
            y
        };
        let [zero, infinite] = [0.0, f32::INFINITY].map(|v| x[0].device().scalar(v));
        over(zero).map2(&over(infinite), |a, b| a * 2.0 + b)
    };
    vec![
        case("write", "a part, seen by an alias", &[&[3, 5], &[4]], POINT, part).untracked(),
        case("write", "if a number is finite", &[&[3, 5], &[3, 5]], POINT, finite).untracked(),
    ]
}
