//! Sums, means and maxima over an axis, of a formula over viewed tensors.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::codegen::{Codegen, Lane, distinct, fill, param, pointwise};
use super::map::{broadcast_all, gather, kept_inputs, pullbacks};
use super::max_grad::MaxGrad;
use super::pack::alignment;
use super::registry::{Case, POINT, Values, case, sums};
use super::rows::Team;
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Style, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{
    Back, Cost, Expr, Grad, Keep, Op, Program, Pullback, Tensor, View, Viewed, apply, compute,
};

const KERNEL: Kernel = Kernel { name: "reduce", text: include_str!("../../shaders/reduce.wgsl") };

/// Values that are summed before their sum is added to the rest: rounding grows with the longer of both.
const PART: usize = 32;
/// Iterations of one invocation before the axis is split into chunks, and of one of a chunk at least.
const LONG: usize = 512;
pub(super) const LEAST: usize = LONG / 8;
/// The same in teams, on GPUs, whose memory takes long to answer, but answers many at once. Reasoned, not measured.
const LONG_IN_TEAM: usize = 64;
pub(super) const LEAST_IN_TEAM: usize = LONG_IN_TEAM / 8;
/// Invocations that keep each core of a CPU busy.
const ENOUGH_A_CORE: usize = 64;
/// Invocations of a workgroup that walk an axis together where neighbours walk neighbouring axes: eight neighbours load
/// eight values or fours side by side, a sector of memory or a line of it.
pub(super) const ACROSS: usize = 8;
/// Iterations from which on an invocation counts as heavy.
const HEAVY: usize = 64;

/// Invocations that keep the adapter busy.
pub(super) fn enough(gpu: &Gpu) -> usize {
    match gpu.facts().cores {
        Some(cores) if gpu.style() != Style::Workgroup => ENOUGH_A_CORE * cores,
        _ => gpu.facts().enough,
    }
}

/// What is kept of the values along the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Sum,
    Max,
}

impl Kind {
    fn start(self) -> f64 {
        match self {
            Self::Sum => 0.0,
            Self::Max => f64::NEG_INFINITY,
        }
    }
}

/// The sum over `axis` of `f(x0, x1, ..)`, the inputs broadcast; the axis is removed.
#[track_caller]
pub fn sum_of(x: Vec<Viewed>, axis: usize, f: impl FnOnce(&[Expr]) -> Expr) -> Tensor {
    scaled_sum_of(1.0, x, axis, f)
}

/// `factor` times [`sum_of`].
#[track_caller]
pub fn scaled_sum_of(factor: f64, x: Vec<Viewed>, axis: usize, f: impl FnOnce(&[Expr]) -> Expr) -> Tensor {
    let inputs: Vec<Expr> = (0..x.len()).map(Expr::input).collect();
    reduce(Kind::Sum, x, axis, Program::new(f(&inputs)), factor)
}

pub(super) fn sum_axis(x: &Tensor, axis: usize) -> Tensor {
    reduce(Kind::Sum, vec![x.view()], axis, Program::new(Expr::input(0)), 1.0)
}

#[track_caller]
fn reduce(kind: Kind, x: Vec<Viewed>, axis: usize, program: Program, factor: f64) -> Tensor {
    let (_, x) = broadcast_all(x);
    let (tensors, views): (Vec<Tensor>, Vec<View>) = x.into_iter().map(|v| (v.tensor, v.view)).unzip();
    apply(Reduce { kind, program, views, axis, factor }, &tensors.iter().collect::<Vec<_>>())
}

impl Tensor {
    /// The sum over an axis (counted from the end if negative), which is removed.
    #[track_caller]
    pub fn sum(&self, axis: isize) -> Self {
        sum_axis(self, self.shape().axis(axis))
    }

    /// The mean over an axis, which is removed.
    #[track_caller]
    pub fn mean(&self, axis: isize) -> Self {
        let axis = self.shape().axis(axis);
        let factor = 1.0 / self.shape()[axis] as f64;
        reduce(Kind::Sum, vec![self.view()], axis, Program::new(Expr::input(0)), factor)
    }

    /// The largest value over an axis, which is removed; the gradient goes to its first place, as PyTorch's.
    #[track_caller]
    pub fn max(&self, axis: isize) -> Self {
        let axis = self.shape().axis(axis);
        reduce(Kind::Max, vec![self.view()], axis, Program::new(Expr::input(0)), 1.0)
    }

    /// The sum of all values, a scalar.
    pub fn sum_all(&self) -> Self {
        sum_axis(&self.reshape([self.len()]), 0)
    }
}

/// The reduction op. All views have the shape before the axis is removed; a maximum takes one plain input.
#[derive(Clone, Debug)]
pub(super) struct Reduce {
    pub(super) kind: Kind,
    pub(super) program: Program,
    pub(super) views: Vec<View>,
    pub(super) axis: usize,
    pub(super) factor: f64,
}

/// Values of parts up to which their sum waits for who reads it: so much memory is held for each meanwhile.
const FEW: usize = 1 << 18;

/// `y[i]` is the sum of `parts[s, i]` over `count` partial results: for all values of `y`'s memory, recorded when it is
/// first read where the parts are few, so that [`super::lay_out`] sums many such at once.
pub(super) fn sum_parts(gpu: &Gpu, parts: Buf, y: &Buf, count: usize) {
    let sum = |gpu: &Gpu, parts: &Buf, y: &Buf, count: usize| {
        Reduce::rows(Kind::Sum, 1.0, count, y.len()).gpu(gpu, &[parts], y, &[]);
    };
    if parts.len() <= FEW && count <= LONG && y.len().is_multiple_of(4) {
        y.sum_later(parts, count, sum);
    } else {
        sum(gpu, &parts, y, count);
    }
}

/// Records the sum of the squares of all values of several buffers: a dispatch each, and those that join them.
pub(super) fn sum_squares(gpu: &Gpu, x: &[&Buf], y: &Buf) {
    // Chunks of no values fill each buffer's sums up to where the next's can be bound.
    let align = alignment(gpu);
    let planned: Vec<(Reduce, Codegen, Team, usize)> = x
        .iter()
        .map(|x| {
            let op = Reduce::squares(x.len());
            let views = [&op.views[0]];
            let codegen = Codegen::new(op.full(), Some(0), &views, &[0]);
            let (team, chunks) = op.plan(gpu, &codegen, &views);
            (op, codegen, team, chunks.next_multiple_of(align))
        })
        .collect();
    let sums = gpu.alloc(planned.iter().map(|(.., chunks)| chunks).sum());
    let mut place = 0;
    for ((op, codegen, team, chunks), x) in planned.into_iter().zip(x) {
        let part = sums.part(place, chunks).expect("a place it can bind");
        op.launch(gpu, &Reading { codegen, buffers: vec![x], used: vec![0] }, &part, team, chunks);
        place += chunks;
    }
    Reduce::rows(Kind::Sum, 1.0, place, 1).gpu(gpu, &[&sums], y, &[]);
}

impl Reduce {
    fn rows(kind: Kind, factor: f64, rows: usize, n: usize) -> Self {
        let views = vec![View::identity(Shape::new(&[rows, n]))];
        Self { kind, program: Program::new(Expr::input(0)), views, axis: 0, factor }
    }

    fn squares(n: usize) -> Self {
        let program = Program::new(Expr::input(0) * Expr::input(0));
        Self { program, ..Self::rows(Kind::Sum, 1.0, n, 1) }
    }

    fn full(&self) -> Shape {
        self.views[0].shape
    }

    /// Whether most of what is read is contiguous along the axis, not along the last that stays.
    fn along(&self, views: &[&View]) -> bool {
        let full = self.full();
        let last = (0..full.rank()).rev().find(|k| *k != self.axis && full[*k] > 1);
        let contiguous = |axis: usize| {
            let strides = views.iter().map(|v| v.strides().1).filter(|strides| strides[axis] == 1);
            let stored = |strides: Vec<usize>| {
                (0..full.rank()).filter(|k| strides[*k] > 0).map(|k| full[k]).product::<usize>()
            };
            strides.map(stored).sum::<usize>()
        };
        contiguous(self.axis) > last.map_or(0, contiguous)
    }

    /// Who walks the axis, and in how many chunks.
    fn plan(&self, gpu: &Gpu, codegen: &Codegen, views: &[&View]) -> (Team, usize) {
        let (steps, units) = (codegen.axis_steps(), codegen.invocations());
        let team = match gpu.style() {
            Style::Workgroup if self.along(views) => Team::along(gpu, self.full()[self.axis] / 4),
            Style::Workgroup if units < gpu.facts().enough && steps >= LEAST_IN_TEAM * ACROSS => {
                Team::Across(ACROSS)
            }
            _ => Team::Own,
        };
        let own = steps.div_ceil(team.size());
        let enough = enough(gpu).div_ceil((units * team.size()).max(1));
        let (long, least, most) = match team {
            Team::Own => (LONG, LEAST, enough),
            // So few that their sums, unless they are of two or three rows, need no chunks again.
            _ => (LONG_IN_TEAM, LEAST_IN_TEAM, enough.min(LONG_IN_TEAM * team.size())),
        };
        let wanted = if own > long { most } else { 1 };
        let chunks = wanted.min(own.div_ceil(least)).max(own.div_ceil(MAX_LOOP - team.fold_loops()));
        (team, chunks.max(1))
    }

    fn launch(&self, gpu: &Gpu, of: &Reading, y: &Buf, team: Team, chunks: usize) {
        let Reading { codegen, buffers, used } = of;
        let steps = codegen.axis_steps();
        let chunk = steps.div_ceil(chunks);
        let per_chunk = codegen.invocations();
        let factor = if chunks == 1 { self.factor } else { 1.0 };
        let mut params = Words::default()
            .sizes(&[per_chunk * chunks, steps, chunk])
            .floats(&[factor as f32])
            .sizes(&[per_chunk])
            .0;
        codegen.params(&mut params);
        params.extend(self.program.constants().iter().map(|c| (*c as f32).to_bits()));
        let walk = Walk { kind: self.kind, lane: codegen.lane, team, chunked: chunks > 1 };
        #[cfg(test)]
        super::gates::planned("reduce", &walk);
        let mut hash = DefaultHasher::new();
        (self.program.key(), used, buffers.len(), walk).hash(&mut hash);
        codegen.hash(&mut hash);
        gpu.dispatch(&Launch {
            kernel: KERNEL,
            body: Some((hash.finish(), &|| walk.source(&self.program, of))),
            constants: &[],
            reads: buffers,
            writes: &[y],
            params: Words(params),
            grid: if chunk < HEAVY { Grid::Invocations } else { Grid::Heavy }(
                per_chunk * chunks * team.size(),
            ),
            loops: chunk.div_ceil(team.size()) + team.fold_loops(),
        });
    }
}

/// What a formula reads: distinct buffers, and the inputs that are used, in the plan's order.
struct Reading<'a> {
    codegen: Codegen,
    buffers: Vec<&'a Buf>,
    used: Vec<usize>,
}

/// A kernel's variant.
#[derive(Clone, Copy, Debug, Hash)]
struct Walk {
    kind: Kind,
    lane: Lane,
    team: Team,
    chunked: bool,
}

/// The parameters before those of the inputs.
const FIRST: usize = 5;

/// How a team's invocation begins: its place in the team, and what they own together, `unit`, past the end none.
const ENTRY: &str = "@compute @workgroup_size(GROUP)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    join(local);
    let at = linear_id(id, groups);
    let member = at / APART % TEAM;
    let unit = at / (TEAM * APART) * APART + at % APART;
    let i = min(unit, p[0].x - 1u);";

impl Walk {
    fn source(&self, program: &Program, of: &Reading) -> String {
        let Reading { codegen, buffers, used } = of;
        let together = self.team != Team::Own;
        let body = self.sum(program, codegen, used) + &self.store();
        let mut bindings = codegen.bindings(buffers.len(), self.lane == Lane::Out);
        if together {
            bindings += &self.team.folds("T", self.lane);
        }
        let parts = [("bindings", bindings.as_str()), ("body", &body), ("entry", ENTRY)];
        let text = fill(KERNEL.text, if together { &parts } else { &parts[..2] });
        pointwise(self.lane != Lane::Single) + &text
    }

    /// Statements that make `acc` of an invocation's steps.
    fn sum(&self, program: &Program, codegen: &Codegen, used: &[usize]) -> String {
        let mut words = vec![0; FIRST];
        codegen.params(&mut words);
        let place = |i: usize| format!("in{}", used.iter().position(|u| *u == i).unwrap_or(0));
        let constant = |i: usize| format!("bitcast<f32>({})", param(words.len() + i));
        let (formula, result) = program.wgsl(place, constant);
        let (start, [join, join_parts]) = match self.kind {
            Kind::Sum => ("0.0", [format!("part + {result}"), "acc + part".to_owned()]),
            Kind::Max => ("-0x1.fffffep+127", [format!("max(part, {result})"), "max(acc, part)".to_owned()]),
        };
        let times = if self.lane == Lane::Axis { "4u" } else { "1u" };
        let per = param(4);
        let (chunk, index) = match self.chunked {
            false => ("0u".to_owned(), "i".to_owned()),
            true => (format!("i / {per}"), format!("i % {per}")),
        };
        let (member, next) =
            if self.team == Team::Own { ("", "step++") } else { (" + member", "step += TEAM") };
        format!(
            "    let chunk = {chunk};\n{coordinates}    var acc = T({start});\n    \
             let end = min(chunk * {len} + {len}, {all});\n    \
             for (var first = chunk * {len}{member}; first < end; first += {part}u) {{\n    var part = T({start});\n    \
             for (var step = first; step < min(first + {part}u, end); {next}) {{\n    let n = step * {times};\n\
             {loads}{formula}    part = {join};\n    }}\n    acc = {join_parts};\n    }}\n",
            coordinates = codegen.coordinates(FIRST, &index),
            len = param(2),
            all = param(1),
            part = PART * self.team.size(),
            loads = codegen.loads(FIRST, |_| true),
        )
    }

    /// Statements that store `acc`, or what a team makes of all of its own.
    fn store(&self) -> String {
        let factor = param(3);
        if self.team == Team::Own {
            let fold = match (self.lane, self.kind) {
                (Lane::Axis, Kind::Sum) => "acc.x + acc.y + acc.z + acc.w",
                (Lane::Axis, Kind::Max) => "max(max(acc.x, acc.y), max(acc.z, acc.w))",
                _ => "acc",
            };
            return format!("    y[i] = ({fold}) * bitcast<f32>({factor});");
        }
        let fold = if self.kind == Kind::Sum { "fold_sum" } else { "fold_max" };
        let first = if self.lane == Lane::Axis { ".x" } else { "" };
        format!(
            "    let total = {fold}(acc){first};\n    \
             if unit == i && member == 0u {{\n        y[i] = total * bitcast<f32>({factor});\n    }}"
        )
    }
}

/// The variants that an adapter's style can choose, of a sum of one input.
#[cfg(test)]
pub(super) fn variants(gpu: &Gpu) -> Vec<super::gates::Variant> {
    let mut teams = vec![Team::Own];
    if gpu.style() == Style::Workgroup {
        teams.extend([Team::along(gpu, 4096), Team::Workgroup(super::rows::TEAM), Team::Across(ACROSS)]);
    }
    let buf = gpu.alloc(1);
    let of = |kind, rows, n, team, chunked| {
        let op = Reduce::rows(kind, 1.0, rows, n);
        let codegen = Codegen::new(op.full(), Some(0), &[&op.views[0]], &[0]);
        let walk = Walk { kind, lane: codegen.lane, team, chunked };
        let text = walk.source(&op.program, &Reading { codegen, buffers: vec![&buf], used: vec![0] });
        super::gates::Variant::new("reduce", &walk, text)
    };
    let mut all = Vec::new();
    for &team in &teams {
        for kind in [Kind::Sum, Kind::Max] {
            for (rows, n) in [(8, 1), (5, 8), (5, 7)] {
                all.extend([false, true].map(|chunked| of(kind, rows, n, team, chunked)));
            }
        }
    }
    all.extend(super::max_grad::variants(&teams));
    all
}

impl Op for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn shape(&self, _: &[Shape]) -> Shape {
        self.full().without(self.axis)
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, _: &[Shape]) {
        let used: Vec<usize> = (0..x.len()).filter(|i| self.program.reads(*i)).collect();
        let (buffers, places) = distinct(&used.iter().map(|i| x[*i]).collect::<Vec<_>>());
        let views: Vec<&View> = used.iter().map(|i| &self.views[*i]).collect();
        let codegen = Codegen::new(self.full(), Some(self.axis), &views, &places);
        let (team, chunks) = self.plan(gpu, &codegen, &views);
        let of = Reading { codegen, buffers, used };
        if chunks == 1 {
            return self.launch(gpu, &of, y, team, 1);
        }
        let n = of.codegen.outputs();
        let partial = gpu.alloc(chunks * n);
        self.launch(gpu, &of, &partial, team, chunks);
        Self::rows(self.kind, self.factor, chunks, n).gpu(gpu, &[&partial], y, &[]);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let read: Vec<Vec<f64>> = x.iter().zip(&self.views).map(|(x, v)| gather(x, v)).collect();
        let (outer, n, inner) = self.full().split(self.axis);
        let (mut row, mut scratch) = (vec![0.0; x.len()], Vec::new());
        let mut data = vec![self.kind.start(); outer * inner];
        for o in 0..outer {
            for k in 0..n {
                for i in 0..inner {
                    for (value, values) in row.iter_mut().zip(&read) {
                        *value = values[(o * n + k) * inner + i];
                    }
                    let value = self.program.value(&row, &mut scratch);
                    let acc = &mut data[o * inner + i];
                    *acc = match self.kind {
                        Kind::Sum => *acc + value,
                        Kind::Max => acc.max(value),
                    };
                }
            }
        }
        data.iter_mut().for_each(|v| *v *= self.factor);
        Array::new(self.full().without(self.axis), data)
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = self.full().len();
        let moved = self.full().without(self.axis).len() + x.iter().map(Shape::len).sum::<usize>();
        Cost { flops: (n * (1 + self.program.flops())) as f64, bytes: 4.0 * moved as f64 }
    }
}

impl Pullback for Reduce {
    fn keep(&self) -> Keep {
        match self.kind {
            Kind::Sum => kept_inputs(&self.program, self.views.len()),
            Kind::Max => Keep::inputs([0]),
        }
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        match self.kind {
            Kind::Sum => pullbacks(&self.program, &self.views, back, Some(self.axis), self.factor),
            Kind::Max => vec![Some(compute(MaxGrad { axis: self.axis }, &[back.x(0), back.g()]).into())],
        }
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("reduce", "rows, in fours", &[&[257, 36]], sums(36), |x| x[0].sum(-1)),
        case("reduce", "rows, odd", &[&[5, 37]], sums(37), |x| x[0].mean(-1)),
        case("reduce", "columns", &[&[255, 64]], sums(255), |x| x[0].sum(0)),
        case("reduce", "long columns in chunks", &[&[9216, 64]], sums(9216), |x| x[0].sum(0)).bench(),
        case("reduce", "a long axis, past the loop limit", &[&[300_001]], sums(300_001), |x| x[0].sum(0))
            .all(Values::Uniform(0.0, 1.0)),
        case("reduce", "the middle axis", &[&[6, 36, 5]], sums(36), |x| x[0].mean(1)),
        case("reduce", "of a formula", &[&[9, 36], &[9, 36]], sums(36), |x| {
            sum_of(vec![x[0].view(), x[1].view()], 1, |x| &x[0] * x[1].tanh())
        }),
        case("reduce", "of a matrix by a vector", &[&[1024, 24], &[1024]], sums(1024), |x| {
            sum_of(vec![x[0].view(), x[1].view().repeat(1, 24)], 0, |x| &x[0] * &x[1])
        }),
        case("reduce", "long odd rows", &[&[9, 2051]], sums(2051), |x| x[0].mean(-1)),
        case("reduce", "long odd rows, four at a time", &[&[8, 1027]], sums(1027), |x| x[0].sum(-1)),
        case("reduce", "long odd columns", &[&[2500, 37]], sums(2500), |x| x[0].sum(0)),
        case("reduce", "long rows in chunks", &[&[3, 40_960]], sums(40_960), |x| x[0].sum(-1)).bench(),
        case("reduce", "of one row", &[&[1, 5]], POINT, |x| x[0].sum(0)),
        case("reduce", "of nothing", &[&[0, 5]], POINT, |x| x[0].sum(0)),
        case("reduce", "maximum", &[&[7, 36, 8]], POINT, |x| x[0].max(1)).bench(),
        case("reduce", "the longest maximum", &[&[16_384]], POINT, |x| x[0].max(0)),
        case("reduce", "maximum of long columns", &[&[2500, 8]], POINT, |x| x[0].max(0)),
        case("reduce", "maximum of long columns, odd", &[&[2500, 7]], POINT, |x| x[0].max(0)),
        case("reduce", "maximum of long rows", &[&[3, 12_001]], POINT, |x| x[0].max(-1)),
        case("reduce", "maximum of long rows with ties", &[&[7, 516]], POINT, |x| x[0].max(-1))
            .all(Values::Grid),
        case("reduce", "maximum with ties", &[&[7, 12]], POINT, |x| x[0].max(-1)).all(Values::Grid),
    ]
}
