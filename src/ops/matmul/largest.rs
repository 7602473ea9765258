//! The largest value of a tensor, from which products scale their operands.

use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Words};

const KERNEL: Kernel = Kernel { name: "largest", text: include_str!("../../../shaders/largest.wgsl") };
/// Workgroups, each of which leaves the largest of what it read.
pub(super) const PARTS: usize = 256;

/// Invocations of one, as the kernel has it.
const SIZE: usize = 256;

/// The largest magnitudes of parts of the first `len` values of `x`, as bits of f32; computed once for what `x` holds.
pub(super) fn largest(gpu: &Gpu, x: &Buf, len: usize) -> Buf {
    let x = x.part(0, len).unwrap_or_else(|| x.clone());
    x.derived(gpu, || {
        let y = gpu.alloc(PARTS);
        gpu.dispatch(&Launch {
            kernel: KERNEL,
            body: None,
            constants: &[],
            reads: &[&x],
            writes: &[&y],
            params: Words::default().sizes(&[x.len(), 0, 0, 0]),
            grid: Grid::Groups(PARTS),
            loops: (x.len().div_ceil(4 * PARTS * SIZE)).min(MAX_LOOP),
        });
        y
    })
}
