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
const TEAM: usize = 32;

/// Who walks a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Team {
    /// One invocation.
    Own,
    /// A subgroup of this size: its own sums and maxima.
    Subgroup(usize),
    /// So many invocations of a workgroup: a tree in its memory.
    Workgroup(usize),
}

impl Team {
    fn size(self) -> usize {
        match self {
            Self::Own => 1,
            Self::Subgroup(n) | Self::Workgroup(n) => n,
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

    /// Who walks a row: where neighbours would read long rows apart, a GPU wants them side by side.
    fn team(&self, gpu: &Gpu) -> Team {
        let long = |team: &usize| self.lane == Lane::Axis && self.steps >= *team;
        if gpu.style() != Style::Workgroup || !long(&TEAM) {
            return Team::Own;
        }
        let one_size = gpu.facts().subgroup.filter(|(low, high)| low == high).map(|(n, _)| n as usize);
        match one_size.filter(|n| [8, 16, 32, 64].contains(n)).filter(long) {
            Some(n) => Team::Subgroup(n),
            None => Team::Workgroup(TEAM),
        }
    }

    /// Records `kernel` with parameters count, steps, inner and then `rest`.
    pub(super) fn dispatch(&self, gpu: &Gpu, kernel: Kernel, reads: &[&Buf], writes: &[&Buf], rest: Words) {
        let who = self.team(gpu);
        let team = who.size();
        let loops = LOOPS * self.steps.div_ceil(team) + if team > 1 { 2 * LOOPS * 5 } else { 0 };
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
            constants: &[],
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
        let folds = match self.team {
            Team::Own => own_folds(self.lane),
            Team::Subgroup(n) => subgroup_folds(n),
            Team::Workgroup(n) => shared_folds(n),
        };
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
fn own_folds(lane: Lane) -> String {
    let [sum, max] = match lane {
        Lane::Axis => ["T(x.x + x.y + x.z + x.w)", "T(max(max(x.x, x.y), max(x.z, x.w)))"],
        _ => ["x", "x"],
    };
    format!(
        "const TEAM = 1u;
fn join(local: u32) {{}}
fn fold_sum(x: T) -> T {{ return {sum}; }}
fn fold_max(x: T) -> T {{ return {max}; }}"
    )
}

/// The same for a subgroup that walks a row together.
fn subgroup_folds(size: usize) -> String {
    format!(
        "const TEAM = {size}u;
fn join(local: u32) {{}}
fn fold_sum(x: T) -> T {{ return T(subgroupAdd(x.x + x.y + x.z + x.w)); }}
fn fold_max(x: T) -> T {{ return T(subgroupMax(max(max(x.x, x.y), max(x.z, x.w)))); }}"
    )
}

/// The same for `team` invocations that walk a row together: a tree in workgroup memory.
fn shared_folds(team: usize) -> String {
    let fold = |name: &str, own: &str, join: &str| {
        format!(
            "fn {name}(x: T) -> T {{
    parts[place] = {own};
    workgroupBarrier();
    for (var half = TEAM / 2u; half > 0u; half /= 2u) {{
        if place % TEAM < half {{
            parts[place] = {join};
        }}
        workgroupBarrier();
    }}
    let total = parts[place - place % TEAM];
    workgroupBarrier();
    return T(total);
}}
"
        )
    };
    format!(
        "const TEAM = {team}u;
var<workgroup> parts: array<f32, GROUP>;
var<private> place: u32;
fn join(local: u32) {{ place = local; }}
{}{}",
        fold("fold_sum", "x.x + x.y + x.z + x.w", "parts[place] + parts[place + half]"),
        fold("fold_max", "max(max(x.x, x.y), max(x.z, x.w))", "max(parts[place], parts[place + half])"),
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
