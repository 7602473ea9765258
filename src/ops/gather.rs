//! Embedding lookup, and its gradient as a deterministic scatter-add.

use super::codegen::fill;
use super::registry::{Case, POINT, Values, case};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};

const GATHER: Kernel = Kernel { name: "gather", text: include_str!("../../shaders/gather.wgsl") };
const SCATTER: Kernel = Kernel { name: "scatter", text: include_str!("../../shaders/scatter.wgsl") };

impl Tensor {
    /// Rows of this table `[rows, width]` by `ids` of any shape (whole numbers kept as floats): the result
    /// has the ids' shape and then `width`. An id past the table reads its last row.
    #[track_caller]
    pub fn gather(&self, ids: &Self) -> Self {
        assert!(self.shape().rank() == 2 && self.shape()[0] > 0, "gather from shape {}", self.shape());
        apply(Gather, &[ids, self])
    }
}

#[derive(Clone, Debug)]
struct Gather;

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        let mut dims = x[0].dims().to_vec();
        dims.push(x[1][1]);
        Shape::new(&dims)
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let (rows, width) = (shapes[1][0], shapes[1][1]);
        let count = shapes[0].len() * width;
        gpu.dispatch(&Launch {
            kernel: GATHER,
            body: None,
            constants: &[],
            reads: x,
            writes: &[y],
            params: Words::default().sizes(&[count, width, rows]),
            grid: Grid::Invocations(count),
            loops: 1,
        });
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (rows, width) = (x[1].shape[0], x[1].shape[1]);
        let row = |id: &f64| {
            let r = (*id as usize).min(rows - 1);
            &x[1].data[r * width..(r + 1) * width]
        };
        Array::new(self.shape(&[x[0].shape, x[1].shape]), x[0].data.iter().flat_map(row).copied().collect())
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        Cost { flops: 0.0, bytes: 8.0 * (x[0].len() * x[1][1]) as f64 }
    }
}

impl Pullback for Gather {
    fn keep(&self) -> Keep {
        Keep::inputs([0])
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let scatter = Scatter { rows: back.shape(1)[0] };
        vec![None, back.needs(1).then(|| compute(scatter, &[back.x(0), back.g()]).into())]
    }
}

#[derive(Clone, Debug)]
struct Scatter {
    rows: usize,
}

impl Op for Scatter {
    fn name(&self) -> &'static str {
        "scatter"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        Shape::new(&[self.rows, x[1].last()])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let vector = if shapes[1].last().is_multiple_of(4) { 4 } else { 1 };
        let (tokens, width) = (shapes[0].len(), shapes[1].last() / vector);
        let element = if vector == 4 { "alias T = vec4<f32>;" } else { "alias T = f32;" };
        for add in [false, true] {
            let count = if add { tokens } else { self.rows } * width;
            gpu.dispatch(&Launch {
                kernel: SCATTER,
                body: Some((vector as u64, &|| fill(SCATTER.text, &[("type", element)]))),
                constants: &[("add", f64::from(u8::from(add)))],
                reads: x,
                writes: &[y],
                params: Words::default().sizes(&[count, width, tokens, self.rows]),
                grid: Grid::Invocations(count),
                loops: if add { tokens.min(MAX_LOOP + 1) } else { 1 },
            });
        }
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let width = x[1].shape.last();
        let mut y = Array::zeros(self.shape(&[x[0].shape, x[1].shape]));
        for (id, g) in x[0].data.iter().zip(x[1].data.chunks(width)) {
            let row = (*id as usize).min(self.rows - 1) * width;
            y.data[row..row + width].iter_mut().zip(g).for_each(|(y, g)| *y += g);
        }
        y
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("gather", "repeated ids", &[&[5, 7], &[11, 12]], POINT, |x| x[1].gather(&x[0]))
            .with(0, Values::Whole(11)),
        case("gather", "ids past the table", &[&[9], &[3, 5]], POINT, |x| x[1].gather(&x[0]))
            .with(0, Values::Whole(7)),
    ]
}
