//! Many small tensors in one, for the optimiser: one dispatch then does for all of them.

use crate::gpu::{Buf, Grid, Kernel, Launch, Words};
use crate::shape::Shape;
use crate::tensor::Tensor;

const KERNEL: Kernel = Kernel { name: "pack", text: include_str!("../../shaders/pack.wgsl") };
/// Tensors a dispatch takes.
const PARTS: usize = 7;
/// Values between places: 256 bytes, the coarsest alignment WebGPU allows.
const ALIGN: usize = 64;

/// The place of each length and the total, every place aligned for binding.
fn places(lengths: impl Iterator<Item = usize>) -> (Vec<usize>, usize) {
    let mut total = 0;
    let places = lengths
        .map(|n| {
            total += n.next_multiple_of(ALIGN);
            total - n.next_multiple_of(ALIGN)
        })
        .collect();
    (places, total)
}

/// The tensors behind each other in one, with zeros between; `None` on the host, where there is no need.
pub fn pack(tensors: &[&Tensor]) -> Option<Tensor> {
    let gpu = tensors.first()?.buf()?.gpu()?;
    let (places, total) = places(tensors.iter().map(|t| t.len()));
    let y = gpu.alloc(total);
    for (chunk, place) in tensors.chunks(PARTS).zip(places.iter().step_by(PARTS)) {
        let mut bufs: Vec<&Buf> = chunk.iter().map(|t| t.buf()).collect::<Option<_>>()?;
        let mut sizes: Vec<usize> = chunk.iter().map(|t| t.len()).collect();
        let count: usize = sizes.iter().map(|n| n.next_multiple_of(ALIGN)).sum();
        bufs.resize(PARTS, bufs[0]);
        sizes.resize(PARTS + 1, 0);
        gpu.dispatch(&Launch {
            kernel: KERNEL,
            body: None,
            constants: &[],
            reads: &bufs,
            writes: &[&y],
            params: Words::default().sizes(&[count, chunk.len(), *place, 0]).sizes(&sizes),
            grid: Grid::Invocations(count),
            loops: PARTS,
        });
    }
    Some(Tensor::on_gpu(Shape::new(&[total]), y))
}

/// The parts of a packed tensor, without a copy; `None` where the adapter cannot bind them in place.
pub fn unpack(packed: &Tensor, shapes: &[Shape]) -> Option<Vec<Tensor>> {
    let (places, _) = places(shapes.iter().map(Shape::len));
    let part = |(shape, place): (&Shape, usize)| {
        Some(Tensor::on_gpu(*shape, packed.buf()?.part(place, shape.len())?))
    };
    shapes.iter().zip(places).map(part).collect()
}
