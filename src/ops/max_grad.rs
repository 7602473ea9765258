//! The gradient of a maximum over an axis. The maximum itself is a reduction.

use super::codegen::{Lane, fill};
use super::rows::{Team, fits};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::Op;

const KERNEL: Kernel = Kernel { name: "max_grad", text: include_str!("../../shaders/max_grad.wgsl") };

/// The gradient of a maximum: `g` at the first place of the largest value, 0 elsewhere.
#[derive(Clone, Debug)]
pub(super) struct MaxGrad {
    pub(super) axis: usize,
}

/// A kernel's variant: who walks an axis.
#[derive(Clone, Copy, Debug)]
struct Walk {
    team: Team,
}

/// How a team's invocation begins: its axis, its place in the team, and where it ends to store.
const ENTRY: &str = "@compute @workgroup_size(GROUP)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    join(local);
    let at = linear_id(id, groups);
    let i = min(at / TEAM, p.count - 1u);
    let end = select(0u, p.n, i == at / TEAM);
    let member = at % TEAM;";

/// The first place among those of the team's members that found the largest value: floats hold places as they are.
const JOINED: &str = "    let most = fold_max(largest);
    first = u32(-fold_max(select(-3e38, -f32(first), largest == most)));";

impl Walk {
    fn source(self) -> String {
        let folds = self.team.folds("f32", Lane::Single);
        let parts = [("team", folds.as_str()), ("entry", ENTRY), ("joined", JOINED)];
        fill(KERNEL.text, if self.team == Team::Own { &[] } else { &parts })
    }
}

impl Op for MaxGrad {
    fn name(&self) -> &'static str {
        "max_grad"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let (outer, n, inner) = shapes[0].split(self.axis);
        let team = if inner == 1 { Team::along(gpu, n / 4) } else { Team::Own };
        let loops = 2 * (n.div_ceil(team.size()) + team.fold_loops());
        if !fits(gpu, &KERNEL, n, loops) {
            return;
        }
        let walk = Walk { team };
        #[cfg(test)]
        super::gates::planned("max_grad", &walk);
        let together = matches!(team, Team::Subgroup(_));
        gpu.dispatch(&Launch {
            kernel: KERNEL,
            body: Some((2 * team.size() as u64 + u64::from(together), &|| walk.source())),
            constants: &[],
            reads: x,
            writes: &[y],
            params: Words::default().sizes(&[outer * inner, n, inner]),
            grid: Grid::Invocations(outer * inner * team.size()),
            loops,
        });
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (outer, n, inner) = x[0].shape.split(self.axis);
        let mut y = Array::zeros(x[0].shape);
        for o in 0..outer {
            for i in 0..inner {
                let at = |k: usize| (o * n + k) * inner + i;
                let first = (0..n).fold(0, |m, k| if x[0].data[at(k)] > x[0].data[at(m)] { k } else { m });
                if n > 0 {
                    y.data[at(first)] = x[1].data[o * inner + i];
                }
            }
        }
        y
    }
}

/// The variants of these teams: none walks across.
#[cfg(test)]
pub(super) fn variants(teams: &[Team]) -> Vec<super::gates::Variant> {
    let along = teams.iter().filter(|team| !matches!(team, Team::Across(_)));
    let walks = along.map(|team| Walk { team: *team });
    walks.map(|walk| super::gates::Variant::new("max_grad", &walk, walk.source())).collect()
}
