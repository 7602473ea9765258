//! Work along one axis: softmax and the norms. An invocation owns a row, four neighbouring rows where the
//! axis is not the last, or a row four values at a time where it is; on a GPU a few invocations share such a row.

use super::codegen::{Lane, fill, pointwise};
use crate::error::Error;
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Style, Words};
use crate::shape::Shape;

/// Loops over the axis in the longest kernel of this family.
const LOOPS: usize = 3;
/// Invocations that share a row on a GPU without subgroups of one size, where each has at least four values of it.
/// Unmeasured.
pub(super) const TEAM: usize = 32;

/// Who walks a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Team {
    /// One invocation.
    Own,
    /// A subgroup of this size: its own sums and maxima.
    Subgroup(usize),
    /// So many neighbours in a workgroup: a tree in its memory.
    Workgroup(usize),
    /// So many invocations of a workgroup, the same of each of its runs of neighbours, who walk neighbouring rows.
    Across(usize),
}

impl Team {
    pub(super) fn size(self) -> usize {
        match self {
            Self::Own => 1,
            Self::Subgroup(n) | Self::Workgroup(n) | Self::Across(n) => n,
        }
    }

    /// Who walks a row of so many fours of values, which are side by side: a GPU wants neighbours to read long rows so.
    pub(super) fn along(gpu: &Gpu, fours: usize) -> Self {
        let long = |team: &usize| fours >= *team;
        if gpu.style() != Style::Workgroup || !long(&TEAM) {
            return Self::Own;
        }
        let one_size = gpu.facts().subgroup.filter(|(low, high)| low == high).map(|(n, _)| n as usize);
        match one_size.filter(|n| [8, 16, 32, 64].contains(n)).filter(long) {
            Some(n) => Self::Subgroup(n),
            None => Self::Workgroup(TEAM),
        }
    }

    /// The most iterations in which a team makes a sum or a maximum of its own.
    pub(super) fn fold_loops(self) -> usize {
        if self == Self::Own { 0 } else { 6 }
    }

    /// What a team makes of its sums and maxima, of values of the type `value`.
    pub(super) fn folds(self, value: &str, lane: Lane) -> String {
        let [kept, sum, max] = match lane {
            Lane::Axis => ["f32", "x.x + x.y + x.z + x.w", "max(max(x.x, x.y), max(x.z, x.w))"],
            _ => [value, "x", "x"],
        };
        match self {
            Self::Own => own_folds(value, sum, max),
            Self::Subgroup(n) => subgroup_folds(n, value, sum, max),
            Self::Workgroup(n) => shared_folds(n, "1u", kept, value, sum, max),
            Self::Across(n) => shared_folds(n, "GROUP / TEAM", kept, value, sum, max),
        }
    }
}

/// Whether an invocation of `kernel` that loops so often may walk an axis of `n` values; if not, the device's next
/// flush says so.
pub(super) fn fits(gpu: &Gpu, kernel: &Kernel, n: usize, loops: usize) -> bool {
    if loops > MAX_LOOP {
        let what = format!("{}: the axis is too long for one invocation to walk", kernel.name);
        let limit = n * MAX_LOOP / loops;
        gpu.refuse(Error::new(what).expected(format!("at most {limit} values")).found(n));
    }
    loops <= MAX_LOOP
}

/// How the kernels of this family see a shape: `count` invocations, each `steps` values apart by `inner`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    lane: Lane,
    count: usize,
    pub(super) steps: usize,
    inner: usize,
    /// Values along the axis.
    pub(super) n: usize,
}

impl Rows {
    pub(super) fn of(shape: Shape, axis: usize) -> Self {
        let (outer, n, inner) = shape.split(axis);
        if inner == 1 && n.is_multiple_of(4) {
            return Self { lane: Lane::Axis, count: outer, steps: n / 4, inner: 1, n };
        }
        if inner.is_multiple_of(4) {
            return Self { lane: Lane::Out, count: outer * inner / 4, steps: n, inner: inner / 4, n };
        }
        Self { lane: Lane::Single, count: outer * inner, steps: n, inner, n }
    }

    /// Who walks a row: where neighbours would read long rows apart, a team.
    fn team(&self, gpu: &Gpu) -> Team {
        if self.lane == Lane::Axis { Team::along(gpu, self.steps) } else { Team::Own }
    }

    /// Records `kernel` with parameters count, steps, inner and then `rest`.
    pub(super) fn dispatch(&self, gpu: &Gpu, kernel: Kernel, reads: &[&Buf], writes: &[&Buf], rest: Words) {
        self.dispatch_with(gpu, kernel, &[], reads, writes, rest);
    }

    /// As [`Rows::dispatch`], with values of the kernel's constants.
    pub(super) fn dispatch_with(
        &self,
        gpu: &Gpu,
        kernel: Kernel,
        constants: &[(&'static str, f64)],
        reads: &[&Buf],
        writes: &[&Buf],
        rest: Words,
    ) {
        let who = self.team(gpu);
        let team = who.size();
        let loops = LOOPS * (self.steps.div_ceil(team) + 2 * who.fold_loops());
        if !fits(gpu, &kernel, self.n, loops) {
            return;
        }
        let mut params = Words::default().sizes(&[self.count, self.steps, self.inner]);
        params.0.extend(rest.0);
        let walk = RowWalk { lane: self.lane, team: who };
        #[cfg(test)]
        super::gates::planned(kernel.name, &walk);
        gpu.dispatch(&Launch {
            kernel,
            body: Some((
                (self.lane as u64) << 9 | (team as u64) << 1 | u64::from(who == Team::Subgroup(team)),
                &|| walk.source(kernel),
            )),
            constants,
            reads,
            writes,
            params,
            grid: Grid::Invocations(self.count * team),
            loops,
        });
    }
}

/// A kernel's variant.
#[derive(Clone, Copy, Debug)]
struct RowWalk {
    lane: Lane,
    team: Team,
}

impl RowWalk {
    fn source(&self, kernel: Kernel) -> String {
        let folds = self.team.folds("T", self.lane);
        let lane = format!("{}{}{folds}", pointwise(self.lane != Lane::Single), places(self.lane));
        fill(kernel.text, &[("lane", &lane)])
    }
}

/// The kernels of this family as an adapter's style walks rows; a team shares rows of the last axis alone.
#[cfg(test)]
pub(super) fn variants(gpu: &Gpu) -> Vec<super::gates::Variant> {
    let own = [Lane::Single, Lane::Axis, Lane::Out].map(|lane| RowWalk { lane, team: Team::Own });
    let mut walks = own.to_vec();
    if gpu.style() == Style::Workgroup {
        let long = Rows::of(Shape::new(&[1, 4096]), 1);
        walks.extend([long.team(gpu), Team::Workgroup(TEAM)].map(|team| RowWalk { lane: Lane::Axis, team }));
    }
    let kernels = super::softmax::KERNELS.iter().chain(super::norm::KERNELS);
    let all = kernels.flat_map(|kernel| walks.iter().map(move |walk| (kernel, walk)));
    let last = walks.iter().filter(|walk| walk.lane != Lane::Out);
    let along_rows =
        last.flat_map(|walk| super::layer_norm::KERNELS.iter().map(move |kernel| (kernel, walk)));
    all.chain(along_rows)
        .map(|(kernel, walk)| super::gates::Variant::new(kernel.name, walk, walk.source(*kernel)))
        .collect()
}

/// Where on the axis the values of a step are; where it is the last one, the value that all of an element have.
fn places(lane: Lane) -> &'static str {
    match lane {
        Lane::Single => "fn places(n: u32) -> T { return T(n); }\nfn first(x: T) -> f32 { return x; }\n",
        Lane::Axis => {
            "fn places(n: u32) -> T { return T(f32(4u * n)) + T(0.0, 1.0, 2.0, 3.0); }\nfn first(x: T) -> f32 { return x.x; }\n"
        }
        Lane::Out => "fn places(n: u32) -> T { return T(f32(n)); }\n",
    }
}

/// What an invocation that walks its rows alone makes of its sums and maxima.
fn own_folds(value: &str, sum: &str, max: &str) -> String {
    format!(
        "const TEAM = 1u;
const APART = 1u;
fn join(local: u32) {{}}
fn fold_sum(x: {value}) -> {value} {{ return {value}({sum}); }}
fn fold_max(x: {value}) -> {value} {{ return {value}({max}); }}"
    )
}

/// The same for a subgroup that walks a row together.
fn subgroup_folds(size: usize, value: &str, sum: &str, max: &str) -> String {
    format!(
        "const TEAM = {size}u;
const APART = 1u;
fn join(local: u32) {{}}
fn fold_sum(x: {value}) -> {value} {{ return {value}(subgroupAdd({sum})); }}
fn fold_max(x: {value}) -> {value} {{ return {value}(subgroupMax({max})); }}"
    )
}

/// The same for `team` invocations of a workgroup that walk a row together: a tree in workgroup memory, of values of the
/// type `kept`, those of a row so far `apart`.
fn shared_folds(team: usize, apart: &str, kept: &str, value: &str, sum: &str, max: &str) -> String {
    let fold = |name: &str, own: &str, join: &str| {
        format!(
            "fn {name}(x: {value}) -> {value} {{
    let member = place / APART % TEAM;
    parts[place] = {own};
    workgroupBarrier();
    for (var half = TEAM / 2u; half > 0u; half /= 2u) {{
        if member < half {{
            parts[place] = {join};
        }}
        workgroupBarrier();
    }}
    let total = parts[place - member * APART];
    workgroupBarrier();
    return {value}(total);
}}
"
        )
    };
    let other = "parts[place + half * APART]";
    format!(
        "const TEAM = {team}u;
const APART = {apart};
var<workgroup> parts: array<{kept}, GROUP>;
var<private> place: u32;
fn join(local: u32) {{ place = local; }}
{}{}",
        fold("fold_sum", sum, &format!("parts[place] + {other}")),
        fold("fold_max", max, &format!("max(parts[place], {other})")),
    )
}

/// For each row of `shape` along `axis`, in f64: gathers it, lets `f` replace it, and stores it.
pub(super) fn each_row(shape: Shape, axis: usize, mut f: impl FnMut(usize, &dyn Fn(usize) -> usize)) {
    let (outer, n, inner) = shape.split(axis);
    for o in 0..outer {
        for i in 0..inner {
            f(o, &|k| (o * n + k) * inner + i);
        }
    }
}
