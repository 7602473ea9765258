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
        launch(&gpu, to, place, from);
    } else {
        let from = x.values().expect("both are on one side").to_vec();
        let mut to = y.values_mut().expect("both are on one side");
        to[place..place + n].copy_from_slice(&from);
    }
}

/// Records the copy of all of `from` into `to`, from its value `place` on.
pub(super) fn launch(gpu: &Gpu, to: &Buf, place: usize, from: &Buf) {
    gpu.dispatch(&Launch {
        kernel: KERNEL,
        body: None,
        constants: &[],
        reads: &[from],
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
    vec![case("write", "a part, seen by an alias", &[&[3, 5], &[4]], POINT, part).untracked()]
}
