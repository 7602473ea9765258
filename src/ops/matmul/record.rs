//! How a product is recorded: its kernel's variant, parameters, and the parts that a split k leaves.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::largest::largest;
use super::tile::{Form, Tile, Way};
use super::{BLOCK, COOPERATIVE, KERNEL, Layout, MatMul};
use crate::gpu::{Buf, Gpu, Grid, Launch, Words};
use crate::ops::reduce::sum_parts;

impl MatMul {
    /// Records the product `op`, which is this one as its kernel takes it, in one way.
    pub(super) fn run(
        &self,
        gpu: &Gpu,
        op: &Self,
        (form, splits): Way,
        can_split: bool,
        x: &[&Buf],
        y: &Buf,
    ) {
        let swapped = self.c.col != 1 && self.c.row == 1;
        let (a, b) = if swapped { (x[1], x[0]) } else { (x[0], x[1]) };
        let (height, width) = form.covers();
        let tiles = op.m.div_ceil(height) * op.n.div_ceil(width) * op.batches();
        let steps = op.k.div_ceil(4);
        let most = 2 * crate::gpu::MAX_LOOP / form.loops(16);
        let splits = if can_split { splits.max(steps.div_ceil(most)) } else { 1 };
        let chunk = steps.div_ceil(splits);
        let splits = steps.div_ceil(chunk.max(1)).max(1);
        let tile = Tile::of(op, form, 4 * chunk);
        #[cfg(test)]
        crate::ops::gates::planned("matmul", &tile);
        let out = op.shape.len();
        let partial = (splits > 1).then(|| gpu.alloc(splits * out));
        let part = |place| y.part(place, op.m * op.n).expect("a place it can bind");
        let both = op.before.map(|place| [part(0), part(place)]);
        let writes = match &both {
            Some(both) => both.each_ref().to_vec(),
            None => vec![partial.as_ref().unwrap_or(y)],
        };
        let (kernel, count, grid) = match form {
            Form::Lanes(size) => {
                let count = tiles * splits * size.lanes;
                (KERNEL, count, Grid::Heavy(count))
            }
            Form::Block { .. } => (BLOCK, tiles * splits, Grid::Groups(tiles * splits)),
            Form::Cooperative(_) => (COOPERATIVE, tiles * splits, Grid::Groups(tiles * splits)),
        };
        let l = |l: Layout, third: usize| [l.batch[0], l.batch[1], third, l.row];
        let params = Words::default()
            .sizes(&[count, op.m, op.n, op.k])
            .sizes(&[op.batch[1], op.sum, 4 * chunk, splits])
            .sizes(&l(op.a, op.a.sum))
            .sizes(&l(op.b, op.b.sum))
            .sizes(&l(op.c, out))
            .sizes(&[op.a.col, op.b.col])
            .floats(&[op.scale as f32])
            .sizes(&[op.batch[0], op.offset]);
        let mut hash = DefaultHasher::new();
        tile.hash(&mut hash);
        let mut reads = vec![a, b];
        reads.extend(self.packed.then_some(b));
        reads.extend(&x[2..]);
        let largest = if form.scales() {
            let extents = [op.a.extent(op, op.m, op.k), op.b.extent(op, op.k, op.n)];
            vec![largest(gpu, a, extents[0].min(a.len())), largest(gpu, b, extents[1].min(b.len()))]
        } else {
            Vec::new()
        };
        reads.extend(&largest);
        gpu.dispatch(&Launch {
            kernel,
            body: Some((hash.finish(), &|| tile.source())),
            constants: &[],
            reads: &reads,
            writes: &writes,
            params,
            grid,
            loops: op.sum * (form.loops(4 * chunk) + 1),
        });
        if let Some(partial) = partial {
            sum_parts(gpu, partial, y, splits);
        }
    }
}
