//! Writing into a tensor that outlives the step: it keeps its memory, so the next step finds the pool as this
//! one did and takes the same buffers.

use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::tensor::Tensor;

const KERNEL: Kernel = Kernel { name: "write", text: include_str!("../../shaders/write.wgsl") };

/// Writes the values of `x` into `y`, row-major from its value `place` on. On a GPU this happens in place: clones
/// of `y` see it, and nothing recorded before does.
#[track_caller]
pub fn write(y: &mut Tensor, place: usize, x: &Tensor) {
    let n = x.len();
    assert!(place + n <= y.len(), "write: {n} values from place {place} of shape {}", y.shape());
    if let (Some(to), Some(from)) = (y.buf(), x.buf()) {
        let gpu = to.gpu().expect("a tensor never outlives its device");
        launch(&gpu, to, place, from);
    } else {
        let array = |t: &Tensor| t.array().expect("both live on one side").clone();
        let mut values = array(y);
        values.data[place..place + n].copy_from_slice(&array(x).data);
        *y = Tensor::on_host(values);
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
