//! Many tensors in one: a dispatch then does for all of them. Where they are contiguous already, it is their memory.

use super::codegen::fill;
use super::registry::{Case, POINT, case, sums};
use super::{Expr, materialize};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Style, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Device, Grad, Keep, Kind, Op, Pullback, Tensor, apply, record};

const KERNEL: Kernel = Kernel { name: "pack", text: include_str!("../../shaders/pack.wgsl") };
/// The same under a name of its own: gradients are copied so in every step, parameters never.
const LAY_OUT: Kernel = Kernel { name: "lay_out", ..KERNEL };
/// Tensors a dispatch takes at most: the lengths its parameters hold.
const PARTS: usize = 32;
/// Where the adapter is the CPU, which passes through the loads of every other tensor for each value.
const PARTS_ON_CORES: usize = 12;

/// The place of each length and the total, which the device can bind all: a multiple of four.
pub(crate) fn places(device: &Device, lengths: impl IntoIterator<Item = usize>) -> (Vec<usize>, usize) {
    let align = device.gpu().map_or(4, alignment);
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

/// Values between places that the device can bind: a multiple of four.
pub(super) fn alignment(gpu: &Gpu) -> usize {
    (gpu.facts().storage_align as usize).div_ceil(4).next_multiple_of(4)
}

/// The tensors in one `[total]`, each at an offset that the device can bind, without a copy where they are at these
/// offsets already. The values between them mean nothing.
#[track_caller]
pub fn pack(tensors: &[&Tensor]) -> Tensor {
    let op = Pack::of(tensors);
    let whole = || {
        let first = tensors[0].buf()?;
        let (memory, start) = first.place();
        let lies = |(t, place): (&&Tensor, &usize)| {
            t.buf().is_some_and(|buf| buf.place() == (memory, start + 4 * *place as u64))
        };
        tensors.iter().zip(&op.places).all(lies).then(|| first.extended(op.total)).flatten()
    };
    match whole() {
        Some(buf) => {
            let y = Tensor::on_gpu(Shape::new(&[op.total]), buf);
            record("pack", Kind::Op(Box::new(op)), tensors, vec![y]).remove(0)
        }
        None => apply(op, tensors),
    }
}

/// Tensors of these lengths at their places in one `[total]`, untracked: zeros between them and in place of those that are
/// not there. Without a copy where the only one fills it.
#[track_caller]
pub fn lay_out(device: &Device, parts: &[(usize, Option<&Tensor>)]) -> Tensor {
    let (places, total) = places(device, parts.iter().map(|(len, _)| *len));
    let there = parts.iter().zip(places).filter_map(|((len, t), place)| {
        t.inspect(|t| assert_eq!(t.len(), *len, "lay_out: shape {}", t.shape())).map(|t| (t, place))
    });
    let (tensors, places): (Vec<&Tensor>, Vec<usize>) = there.unzip();
    if tensors.is_empty() {
        return device.full([total], 0.0);
    }
    match device {
        Device::Gpu(gpu) => {
            let bufs: Vec<&Buf> = tensors.iter().map(|t| t.buf().expect("all on one device")).collect();
            let y = match bufs.as_slice() {
                [only] if only.len() == total => (*only).clone(),
                _ => {
                    let y = gpu.alloc(total);
                    launch(gpu, LAY_OUT, &bufs, &places, &y);
                    y
                }
            };
            Tensor::on_gpu(Shape::new(&[total]), y)
        }
        Device::Host => {
            let values: Vec<_> = tensors.iter().map(|t| t.values().expect("all on one device")).collect();
            Tensor::on_host(on_host(values.iter().map(|v| &**v), &places, total))
        }
    }
}

/// A stretch of the result: the values of a buffer, or the sum of so many, each so far after the last; then zeros up to the
/// next.
struct Piece {
    buf: Buf,
    place: usize,
    len: usize,
    count: usize,
    apart: usize,
}

impl Piece {
    fn new(buf: &Buf, place: usize, len: usize) -> Self {
        Self { buf: buf.clone(), place, len, count: 1, apart: 0 }
    }

    /// The same with a sum that is not recorded taken on the way.
    fn unsummed(self) -> Self {
        match self.buf.parts() {
            Some((buf, count, apart)) => Self { buf, count, apart, ..self },
            None => self,
        }
    }
}

/// The buffers at their places, those as one that are contiguous as their places are.
fn pieces(x: &[&Buf], places: &[usize]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    // The zeros before the first are those after a piece of no values.
    if let Some(first) = x.first().filter(|_| places[0] > 0) {
        pieces.push(Piece::new(first, 0, 0));
    }
    for (buf, &place) in x.iter().zip(places) {
        let last = pieces.last_mut().filter(|last| last.place + last.len == place);
        match last.and_then(|last| Some((last.buf.joined(buf)?, last))) {
            Some((joined, last)) => (last.len, last.buf) = (joined.len(), joined),
            None => pieces.push(Piece::new(buf, place, buf.len())),
        }
    }
    pieces.into_iter().map(Piece::unsummed).collect()
}

/// Records the copies of buffers to their places in `y`, with zeros elsewhere.
fn launch(gpu: &Gpu, kernel: Kernel, x: &[&Buf], places: &[usize], y: &Buf) {
    let pieces = pieces(x, places);
    let most = if gpu.style() == Style::Workgroup { PARTS } else { PARTS_ON_CORES };
    let most = most.min(gpu.facts().buffers - 1);
    for (i, chunk) in pieces.chunks(most).enumerate() {
        let bufs: Vec<&Buf> = chunk.iter().map(|piece| &piece.buf).collect();
        let next = pieces.get(most * (i + 1)).map_or(y.len(), |piece| piece.place);
        let begin = chunk[0].place;
        let count = (next - begin) / 4;
        let ends = chunk.iter().skip(1).map(|piece| piece.place).chain([next]);
        let sizes: [Vec<usize>; 4] = [
            chunk.iter().map(|piece| piece.len).collect(),
            ends.map(|end| (end - begin) / 4).collect(),
            chunk.iter().map(|piece| piece.count).collect(),
            chunk.iter().map(|piece| piece.apart / 4).collect(),
        ];
        let params = Words::default().sizes(&[count, begin / 4, 0, 0]);
        let params = sizes.into_iter().fold(params, |params, mut sizes| {
            sizes.resize(PARTS, 0);
            params.sizes(&sizes)
        });
        gpu.dispatch(&Launch {
            kernel,
            body: Some((bufs.len() as u64, &|| text(bufs.len()))),
            constants: &[],
            reads: &bufs,
            writes: &[y],
            params,
            grid: Grid::Invocations(count),
            loops: PARTS + chunk.iter().map(|piece| piece.count).max().unwrap_or(0),
        });
    }
}

fn on_host<'a>(x: impl Iterator<Item = &'a [f64]>, places: &[usize], total: usize) -> Array {
    let mut y = Array::zeros(Shape::new(&[total]));
    for (x, place) in x.zip(places) {
        y.data[*place..place + x.len()].copy_from_slice(x);
    }
    y
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
        launch(gpu, KERNEL, x, &self.places, y);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        on_host(x.iter().map(|x| x.data), &self.places, self.total)
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
    let case = |i: usize| format!("            case {i}u: {{ value += x{i}[at]; }}\n");
    let cases = (0..parts - 1).map(case).collect::<String>()
        + &format!("            default: {{ value += x{}[at]; }}", parts - 1);
    fill(KERNEL.text, &[("bindings", &bindings), ("cases", &cases)])
}

/// The parts of a packed tensor; on a GPU without a copy.
pub fn unpack(packed: &Tensor, shapes: &[Shape]) -> Vec<Tensor> {
    let (places, _) = places(&packed.device(), shapes.iter().map(Shape::len));
    shapes.iter().zip(places).map(|(shape, place)| packed.section(place, *shape)).collect()
}

pub(super) fn cases() -> Vec<Case> {
    let packed: fn(&[Tensor]) -> Tensor = |x| {
        let first = |x: &[&Tensor]| materialize(pack(x).view().slice(0, 0, x[0].len()));
        let y = first(&[&x[0], &x[1], &x[2]]).map(Expr::tanh);
        y.map2(&first(&[&x[1], &x[0]]).sum_all(), |y, s| y * s)
    };
    let laid_out: fn(&[Tensor]) -> Tensor = |x| {
        let parts = [(x[0].len(), Some(&x[0])), (9, None), (x[1].len(), Some(&x[1]))];
        let y = lay_out(&x[0].device(), &parts);
        // Where the parts begin is the device's; the first is at the beginning, and between them are zeros.
        materialize(y.view().slice(0, 0, x[0].len())).map2(&y.sum_all(), |y, s| y + s)
    };
    let of_parts: fn(&[Tensor]) -> Tensor = |x| {
        let product = x[0].matmul(&x[1], true, false);
        let y = lay_out(&product.device(), &[(32 * 32, Some(&product)), (9, Some(&x[2]))]);
        let first = materialize(y.view().slice(0, 0, 32 * 32)).reshape([32, 32]);
        // Once as laid out, once summed by itself, and what is between the two.
        first.map3(&product, &y.sum_all(), |y, x, sum| y * x + sum)
    };
    vec![
        case("lay_out", "a product's parts", &[&[16_000, 32], &[16_000, 32], &[9]], sums(16_000), of_parts)
            .untracked(),
        case("pack", "odd lengths", &[&[5, 7], &[3], &[64]], POINT, packed),
        case("lay_out", "one part missing", &[&[5, 7], &[64]], sums(100), laid_out).untracked(),
    ]
}
