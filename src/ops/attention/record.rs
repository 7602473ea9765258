//! How attention's kernels are recorded: in the way that is fastest, and with which parameters.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::plan::{PASSES, Part, Plan, ways};
use super::{Attention, Sizes};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Ways, Words};
use crate::shape::Shape;

impl Attention {
    /// Records a kernel whose invocations own one side's rows and stream over the other's: of inputs `x`, and of
    /// what that kernel reads besides.
    pub(super) fn launch(
        &self,
        gpu: &Gpu,
        part: Part,
        x: &[&Buf],
        besides: &[&Buf],
        writes: &[&Buf],
        shapes: &[Shape],
    ) {
        let Sizes { n, r, l, d } = self.sizes(shapes);
        let (own, other) = if part == Part::Keys { (l, r) } else { (r, l) };
        let plan = Plan {
            quads: d / 4,
            bias: self.bias,
            stacked: self.stacked,
            plus: self.plus && part == Part::Forward,
            windowed: self.window.is_some(),
            drops: self.dropout.is_some(),
            ..Plan::of(part, gpu)
        };
        let plans = ways(plan, gpu, other);
        let run = |way: usize| self.record(gpu, &plans[way], x, besides, writes, shapes);
        if plans.len() == 1 {
            return run(0);
        }
        // Which ways there are follows from their number.
        let sizes = [own, other, n * self.heads].map(|n| 1_usize << n.max(1).ilog2());
        let mut hash = DefaultHasher::new();
        ("attention", plan, plans.len(), sizes).hash(&mut hash);
        let names = || {
            let names: Vec<String> = plans.iter().map(Plan::name).collect();
            let [own, other, heads] = sizes;
            (format!("{}, {own} over {other}, {heads} of them, of {}", plan.class(), names.join(", ")), names)
        };
        let all: Vec<usize> = (0..plans.len()).collect();
        run(gpu.choose(&Ways { key: hash.finish(), names: &names, planned: &all }, &mut |way| run(way)));
    }

    fn record(
        &self,
        gpu: &Gpu,
        plan: &Plan,
        x: &[&Buf],
        besides: &[&Buf],
        writes: &[&Buf],
        shapes: &[Shape],
    ) {
        #[cfg(test)]
        crate::ops::gates::planned("attention", plan);
        let Sizes { n, r, l, .. } = self.sizes(shapes);
        let (own, other) = if plan.part == Part::Keys { (l, r) } else { (r, l) };
        // What a variant does not read is bound to the queries.
        let (k, v) = if self.stacked { (x[0], x[0]) } else { (x[1], x[2]) };
        let reads = [&[x[0], k, v, self.bias(x).unwrap_or(x[0])], besides].concat();
        let padded = own.div_ceil(plan.span).next_multiple_of(plan.lanes);
        let masks = self.bias(shapes).map_or(1, |b| b[0]);
        let count = n * self.heads * padded;
        let [grid, side, shift, across] =
            self.window.map_or([0; 4], |w| [w.grid, w.size, w.shift, w.grid / w.size]);
        let (rate, seed) = self.dropout.unwrap_or_default();
        let mut params = Words::default()
            .sizes(&[count, self.heads, own, padded, other, masks, l, grid, side, shift, across])
            .floats(&[self.scale as f32]);
        params.0.extend([seed as u32, (seed >> 32) as u32]);
        let mut hash = DefaultHasher::new();
        plan.hash(&mut hash);
        gpu.dispatch(&Launch {
            kernel: Kernel { name: plan.part.name(), text: plan.part.text() },
            body: Some((hash.finish(), &|| plan.source())),
            constants: &[],
            reads: &reads,
            writes,
            params: params.floats(&[rate, self.kept()]),
            grid: Grid::Heavy(count),
            loops: PASSES * other.div_ceil(plan.chunk()),
        });
    }
}
