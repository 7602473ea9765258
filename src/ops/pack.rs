//! Many small tensors in one, for the optimiser: one dispatch then does for all of them.

use super::walk::fill;
use crate::gpu::{Buf, Grid, Kernel, Launch, Style, Words};
use crate::shape::Shape;
use crate::tensor::Tensor;

const KERNEL: Kernel = Kernel { name: "pack", text: include_str!("../../shaders/pack.wgsl") };
/// Tensors a dispatch takes at most: the lengths its parameters hold.
const PARTS: usize = 32;
/// Where the adapter is the CPU, which passes through the loads of every other tensor for each value.
const PARTS_ON_CORES: usize = 12;
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

/// The kernel's text for a number of tensors.
fn text(parts: usize) -> String {
    let binding = |i: usize, access: &str, name: &str| {
        format!("@group(0) @binding({i}) var<storage, {access}> {name}: array<vec4<f32>>;\n")
    };
    let mut bindings: String = (0..parts).map(|i| binding(i, "read", &format!("x{i}"))).collect();
    bindings += &binding(parts, "read_write", "y");
    bindings += &format!("@group(0) @binding({}) var<uniform> p: Params;", parts + 1);
    let case = |i: usize| format!("            case {i}u: {{ value = x{i}[local]; }}\n");
    let cases = (0..parts - 1).map(case).collect::<String>()
        + &format!("            default: {{ value = x{}[local]; }}", parts - 1);
    fill(KERNEL.text, &[("bindings", &bindings), ("cases", &cases)])
}

/// The tensors behind each other in one, with zeros between; `None` on the host, where there is no need.
pub fn pack(tensors: &[&Tensor]) -> Option<Tensor> {
    let gpu = tensors.first()?.buf()?.gpu()?;
    let (places, total) = places(tensors.iter().map(|t| t.len()));
    let y = gpu.alloc(total);
    let most = if gpu.style() == Style::Workgroup { PARTS } else { PARTS_ON_CORES };
    let at_once = most.min(gpu.facts().buffers - 1);
    for (chunk, place) in tensors.chunks(at_once).zip(places.iter().step_by(at_once)) {
        let bufs: Vec<&Buf> = chunk.iter().map(|t| t.buf()).collect::<Option<_>>()?;
        let mut lengths: Vec<usize> = chunk.iter().map(|t| t.len()).collect();
        let count: usize = lengths.iter().map(|n| n.next_multiple_of(ALIGN) / 4).sum();
        lengths.resize(PARTS, 0);
        gpu.dispatch(&Launch {
            kernel: KERNEL,
            body: Some((bufs.len() as u64, &|| text(bufs.len()))),
            constants: &[],
            reads: &bufs,
            writes: &[&y],
            params: Words::default().sizes(&[count, place / 4, 0, 0]).sizes(&lengths),
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
