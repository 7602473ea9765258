//! Many small tensors in one: a dispatch then does for all of them. Where they are contiguous so already, it aliases them.

use super::codegen::fill;
use super::registry::{Case, POINT, case};
use super::{Expr, materialize};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Style, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Device, Grad, Keep, Kind, Op, Pullback, Tensor, apply, record};

const KERNEL: Kernel = Kernel { name: "pack", text: include_str!("../../shaders/pack.wgsl") };
/// Tensors a dispatch takes at most: the lengths its parameters hold.
const PARTS: usize = 32;
/// Where the adapter is the CPU, which passes through the loads of every other tensor for each value.
const PARTS_ON_CORES: usize = 12;

/// The place of each length and the total, which the device can bind all: a multiple of four.
pub(super) fn places(device: &Device, lengths: impl IntoIterator<Item = usize>) -> (Vec<usize>, usize) {
    let align = alignment(device);
    let mut total = 0;
    let places = lengths
        .into_iter()
        .map(|n| {
            total += n.next_multiple_of(align);
            total - n.next_multiple_of(align)
        })
        .collect();
    (places, total)
}

fn alignment(device: &Device) -> usize {
    let bytes = device.gpu().map_or(1, |gpu| gpu.facts().storage_align as usize);
    bytes.div_ceil(4).next_multiple_of(4)
}

/// The tensors in one `[total]`, each at an offset that the device can bind, without a copy where they are at these
/// offsets already. The values between them mean nothing.
#[track_caller]
pub fn pack(tensors: &[&Tensor]) -> Tensor {
    let op = Pack::of(tensors);
    let whole = || {
        let first = tensors[0].buf()?;
        let (memory, start) = first.place();
        let is_there = |(t, place): (&&Tensor, &usize)| {
            t.buf().is_some_and(|buf| buf.place() == (memory, start + 4 * *place as u64))
        };
        tensors.iter().zip(&op.places).all(is_there).then(|| first.extended(op.total)).flatten()
    };
    match whole() {
        Some(buf) => {
            let y = Tensor::on_gpu(Shape::new(&[op.total]), buf);
            record("pack", Kind::Op(Box::new(op)), tensors, vec![y]).remove(0)
        }
        None => apply(op, tensors),
    }
}

/// As [`pack`], in memory of its own and with zeros between the tensors.
#[track_caller]
pub fn pack_with_zeros(tensors: &[&Tensor]) -> Tensor {
    apply(Pack::of(tensors), tensors)
}

/// The buffers with their places, those joined that are as far apart in memory as their places are.
fn joined(x: &[&Buf], places: &[usize]) -> Vec<(Buf, usize)> {
    let mut pieces: Vec<(Buf, usize)> = Vec::new();
    for (buf, place) in x.iter().zip(places) {
        let last = pieces.last_mut().filter(|(last, at)| at + last.len() == *place);
        match last.and_then(|(last, at)| Some((last.joined(buf)?, *at))) {
            Some(joined) => *pieces.last_mut().expect("it has a last") = joined,
            None => pieces.push(((*buf).clone(), *place)),
        }
    }
    pieces
}

/// Tensors of any shapes at their places in one.
#[derive(Clone, Debug)]
struct Pack {
    places: Vec<usize>,
    total: usize,
}

impl Pack {
    fn of(tensors: &[&Tensor]) -> Self {
        let (places, total) = places(&tensors[0].device(), tensors.iter().map(|t| t.len()));
        Self { places, total }
    }
}

impl Op for Pack {
    fn name(&self) -> &'static str {
        "pack"
    }

    fn shape(&self, _: &[Shape]) -> Shape {
        Shape::new(&[self.total])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, _: &[Shape]) {
        let align = alignment(&Device::Gpu(gpu.clone()));
        let most = if gpu.style() == Style::Workgroup { PARTS } else { PARTS_ON_CORES };
        let pieces = joined(x, &self.places);
        for chunk in pieces.chunks(most.min(gpu.facts().buffers - 1)) {
            let bufs: Vec<&Buf> = chunk.iter().map(|(buf, _)| buf).collect();
            let mut lengths: Vec<usize> = bufs.iter().map(|buf| buf.len()).collect();
            let count: usize = lengths.iter().map(|n| n.next_multiple_of(align) / 4).sum();
            lengths.resize(PARTS, 0);
            gpu.dispatch(&Launch {
                kernel: KERNEL,
                body: Some((bufs.len() as u64, &|| text(bufs.len()))),
                constants: &[],
                reads: &bufs,
                writes: &[y],
                params: Words::default().sizes(&[count, chunk[0].1 / 4, align / 4, 0]).sizes(&lengths),
                grid: Grid::Invocations(count),
                loops: PARTS,
            });
        }
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let mut y = Array::zeros(Shape::new(&[self.total]));
        for (x, place) in x.iter().zip(&self.places) {
            y.data[*place..place + x.data.len()].copy_from_slice(x.data);
        }
        y
    }
}

impl Pullback for Pack {
    fn keep(&self) -> Keep {
        Keep::NOTHING
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let part = |i: usize| back.g().section(self.places[i], back.shape(i)).into();
        (0..self.places.len()).map(|i| back.needs(i).then(|| part(i))).collect()
    }
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

/// The parts of a packed tensor; on a GPU without a copy.
pub fn unpack(packed: &Tensor, shapes: &[Shape]) -> Vec<Tensor> {
    let (places, _) = places(&packed.device(), shapes.iter().map(Shape::len));
    shapes.iter().zip(places).map(|(shape, place)| packed.section(place, *shape)).collect()
}

pub(super) fn cases() -> Vec<Case> {
    vec![case("pack", "odd lengths", &[&[5, 7], &[3], &[64]], POINT, |x| {
        let first = |x: &[&Tensor]| materialize(pack(x).view().slice(0, 0, x[0].len()));
        let y = first(&[&x[0], &x[1], &x[2]]).map(Expr::tanh);
        y.map2(&first(&[&x[1], &x[0]]).sum_all(), |y, s| y * s)
    })]
}
