//! Which part of a product one invocation, subgroup or workgroup computes, and how it reads and writes.

use super::{Act, MatMul};
use crate::gpu::{Gpu, Precision, QUARTERS, Style};

/// Who computes a tile of c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// `lanes` invocations, each `rows x cols` in its registers, straight from memory: one, or a subgroup whose
    /// invocations own different rows of the same columns and load the columns for each other.
    Lanes { lanes: usize, rows: usize, cols: usize },
    /// A workgroup of `side x side` invocations, each `4 halves x 4 halves`, through workgroup memory.
    Block { side: usize, halves: usize },
    /// A workgroup of four subgroups (or more that repeat their work), each `each x each` cooperative matrices of
    /// `side x side`.
    Cooperative { side: usize, each: usize, invocations: usize, subgroups: usize },
}

impl Form {
    /// Rows and columns of c.
    pub(super) fn covers(self) -> (usize, usize) {
        match self {
            Self::Lanes { lanes, rows, cols } => (lanes * rows, cols),
            Self::Block { side, halves } => (4 * side * halves, 4 * side * halves),
            Self::Cooperative { side, each, .. } => (2 * side * each, 2 * side * each),
        }
    }

    /// Loop iterations over `k`: a step of four, or of sixteen with loops of its own; at most.
    pub(super) fn loops(self, k: usize) -> usize {
        match self {
            Self::Lanes { .. } => k.div_ceil(4),
            Self::Block { .. } | Self::Cooperative { .. } => 17 * k.div_ceil(16),
        }
    }

    /// Invocations.
    pub(super) fn invocations(self) -> usize {
        match self {
            Self::Lanes { lanes, .. } => lanes,
            Self::Block { side, .. } => side * side,
            Self::Cooperative { invocations, .. } => invocations,
        }
    }
}

/// A kernel's variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub(super) form: Form,
    /// a is contiguous along k (else along m), and can be read four at a time.
    pub(super) a_along_k: bool,
    pub(super) a_vector: bool,
    /// b is contiguous along n (else along k), and can be read four at a time.
    pub(super) b_along_n: bool,
    pub(super) b_vector: bool,
    pub(super) c_vector: bool,
    /// k is not a multiple of 4.
    pub(super) ragged: bool,
    pub(super) bias: bool,
    pub(super) residual: bool,
    pub(super) sums: bool,
    pub(super) act: Act,
}

impl Tile {
    pub(super) fn of(op: &MatMul, gpu: &Gpu, can_split: bool) -> Self {
        let fours = |values: &[usize]| values.iter().all(|v| v.is_multiple_of(4));
        let a_along_k = op.a.col == 1;
        let b_along_n = op.b.col == 1;
        let (a, b, c) = (op.a, op.b, op.c);
        let a_rest = if a_along_k { [op.k, a.row] } else { [op.m, a.col] };
        let b_rest = if b_along_n { [op.n, b.row] } else { [op.k, b.col] };
        let form = form(op, gpu, can_split);
        let down = match form {
            Form::Lanes { rows, .. } => rows,
            Form::Block { .. } | Form::Cooperative { .. } => 4,
        };
        let a_vector = (a_along_k || (a.row == 1 && down.is_multiple_of(4)))
            && fours(&a_rest)
            && fours(&[a.batch[0], a.batch[1], a.sum]);
        // Sums are stored four rows at a time only where an invocation owns rows in fours.
        let sums_in_fours = !op.sums
            || (op.m.is_multiple_of(4) && (matches!(form, Form::Block { .. }) || (a_vector && !a_along_k)));
        Self {
            form,
            a_along_k,
            a_vector,
            b_along_n,
            b_vector: (b_along_n || b.row == 1) && fours(&b_rest) && fours(&[b.batch[0], b.batch[1], b.sum]),
            c_vector: c.col == 1 && fours(&[op.n, c.row, c.batch[0], c.batch[1]]) && sums_in_fours,
            ragged: !op.k.is_multiple_of(4),
            bias: op.bias,
            residual: op.residual,
            sums: op.sums,
            act: op.act,
        }
    }
}

/// What decides the tile in one style of kernels. Costs are in multiply-adds of one invocation.
struct Tuning {
    /// Rows and columns of an invocation's tile, largest first.
    tiles: &'static [(usize, usize)],
    /// Of a load.
    load: f64,
    /// Of hearing a value that another invocation loaded.
    broadcast: f64,
    /// Of compiling, for each product of the tile, spread over a run.
    compile: f64,
}

/// lavapipe without subgroups, measured: registers are the CPU's cache, so larger tiles win until compiling them
/// stalls (docs/rejected.md); a load costs eight multiply-adds; 12 x 16 takes half a second to compile.
const DIRECT: Tuning = Tuning {
    tiles: &[(12, 16), (8, 16), (12, 8), (8, 8), (4, 8), (4, 4), (2, 4), (1, 4)],
    load: 8.0,
    broadcast: 0.0,
    compile: 3e4,
};

/// lavapipe, measured: a load visits the eight invocations one by one, a broadcast is one instruction. 4 x 32 is
/// 2.0 to 2.5 times as fast as the best direct tile, and compiles in a third of its time.
const SUBGROUP: Tuning = Tuning {
    tiles: &[(4, 32), (3, 32), (4, 24), (2, 32), (4, 16), (2, 16), (4, 8), (2, 8), (1, 8)],
    load: 32.0,
    broadcast: 2.0,
    compile: 2e3,
};

/// Sides and halves of a workgroup's tile for GPUs, largest first: 128, 64 and 32 rows and columns. Unmeasured.
const BLOCKS: [(usize, usize); 3] = [(16, 2), (16, 1), (8, 1)];

/// Matrices along an edge of a subgroup's quarter, most first: with matrices of 16, workgroups own 128, 64 and 32
/// rows and columns. Unmeasured on GPUs.
const EACH: [usize; 3] = [4, 2, 1];

/// Invocations below which a smaller tile is taken, and below which a long k is split: on a CPU, and on a GPU.
const ENOUGH: usize = 512;
const ENOUGH_ON_GPU: usize = 1 << 14;

/// Invocations that keep the adapter busy.
pub(super) fn enough(gpu: &Gpu) -> usize {
    if gpu.style() == Style::Workgroup { ENOUGH_ON_GPU } else { ENOUGH }
}

/// Steps of four k that a split keeps at least.
pub(super) const LEAST_SPLIT: usize = 32;

/// The tile that costs least: loads, waste at the edges, idle cores and compiling weighed.
fn form(op: &MatMul, gpu: &Gpu, can_split: bool) -> Form {
    let splits = if can_split { (op.k / (4 * LEAST_SPLIT)).max(1) } else { 1 };
    let lanes = gpu.facts().lanes().unwrap_or(1);
    let (candidates, tuning): (Vec<Form>, _) = match (cooperative(op, gpu), gpu.style()) {
        (Some(forms), _) => (forms, &DIRECT),
        (None, Style::Direct) => (lanes_of(&DIRECT, 1), &DIRECT),
        (None, Style::Subgroup) => (lanes_of(&SUBGROUP, lanes), &SUBGROUP),
        // A GPU's tile only weighs waste against idle cores: its loads are shared, its compiler is quick.
        (None, Style::Workgroup) => {
            (BLOCKS.map(|(side, halves)| Form::Block { side, halves }).to_vec(), &DIRECT)
        }
    };
    let cost = |form: &Form| {
        let (height, width) = form.covers();
        let tiles = op.m.div_ceil(height) * op.n.div_ceil(width) * op.batches();
        let products = (height * width) as f64;
        let work = (tiles * op.k * op.sum) as f64 * products;
        let busy = (tiles * splits * form.invocations()) as f64;
        let idle = (enough(gpu) as f64 / busy).clamp(1.0, 4.0);
        match *form {
            Form::Lanes { lanes, rows, cols } => {
                let own = (rows * cols) as f64;
                let loads = tuning.load * (rows as f64 + cols as f64 / lanes as f64);
                work * (1.0 + (loads + tuning.broadcast * cols as f64) / own) * idle + tuning.compile * own
            }
            Form::Block { .. } | Form::Cooperative { .. } => work * (1.0 + 32.0 / height as f64) * idle,
        }
    };
    candidates.into_iter().min_by(|x, y| cost(x).total_cmp(&cost(y))).expect("there are tiles")
}

fn lanes_of(tuning: &Tuning, lanes: usize) -> Vec<Form> {
    tuning.tiles.iter().map(|&(rows, cols)| Form::Lanes { lanes, rows, cols }).collect()
}

/// The forms on cooperative matrices, for products in f16 that fill at least one: a smaller one would mostly multiply
/// padding. Unmeasured on GPUs. Gradients stay in f32: some lie wholly below what f16 holds (docs/rejected.md).
fn cooperative(op: &MatMul, gpu: &Gpu) -> Option<Vec<Form>> {
    let side = gpu.facts().cooperative_matrix.filter(|_| gpu.precision() == Precision::F16)?;
    let (low, high) = gpu.facts().subgroup?;
    if op.backward || op.m.min(op.n).min(op.k) < side {
        return None;
    }
    let invocations = (QUARTERS * high) as usize;
    let subgroups = (QUARTERS * high / low) as usize;
    Some(EACH.map(|each| Form::Cooperative { side, each, invocations, subgroups }).to_vec())
}
