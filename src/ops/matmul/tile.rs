//! Which part of a product one invocation, subgroup or workgroup computes, and how it reads and writes.

use super::{Act, Epilogue, MatMul, block, cooperative, lanes};
use cooperative::Halves;

use crate::gpu::{Gpu, Precision, Products, QUARTERS, Style};

/// Who computes a tile of c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// A few invocations in their registers, straight from memory.
    Lanes(lanes::Size),
    /// A workgroup of `side x side` invocations, each `4 halves x 4 halves`, through workgroup memory.
    Block { side: usize, halves: usize },
    /// A workgroup in cooperative matrices.
    Cooperative(cooperative::Size),
}

impl Form {
    /// Rows and columns of c.
    pub(super) fn covers(self) -> (usize, usize) {
        match self {
            Self::Lanes(size) => (size.lanes * size.rows, size.cols),
            Self::Block { side, halves } => (4 * side * halves, 4 * side * halves),
            Self::Cooperative(size) => (size.edge(), size.edge()),
        }
    }

    /// Loop iterations over `k`: a step of four, or of sixteen with loops of its own; at most.
    pub(super) fn loops(self, k: usize) -> usize {
        match self {
            Self::Lanes(_) => k.div_ceil(4),
            Self::Block { .. } | Self::Cooperative(_) => 17 * k.div_ceil(16),
        }
    }

    /// Whether the kernel scales its operands by their largest values.
    pub(super) fn scales(self) -> bool {
        matches!(self, Self::Cooperative(size) if size.halves != Halves::Rounded)
    }

    /// What a multiply-add costs beside one of `Block` in large tiles, what the whole costs beside its products, and each
    /// value of an operand, in such multiply-adds: from an H200, where three products of halves ran at 2.5 times the
    /// speed of one of f32, and values are read for the largest at 1.5 TB/s, which the other operand mostly was before.
    fn costs(self) -> [f64; 3] {
        match self {
            Self::Lanes(_) | Self::Block { .. } => [1.0, 0.0, 0.0],
            Self::Cooperative(size) => match size.halves {
                Halves::Rounded => [0.2, 0.0, 0.0],
                Halves::Scaled => [0.2, 5e7, 40.0],
                Halves::Split => [0.4, 5e7, 40.0],
            },
        }
    }

    /// Whether it multiplies on matrix units.
    fn on_matrices(self) -> bool {
        matches!(self, Self::Cooperative(_))
    }

    /// Invocations.
    pub(super) fn invocations(self) -> usize {
        match self {
            Self::Lanes(size) => size.lanes,
            Self::Block { side, .. } => side * side,
            Self::Cooperative(size) => size.invocations,
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
    pub(super) epilogue: Epilogue,
    pub(super) sums: bool,
    /// Matrices add their sums to c's several times: their own adders truncate.
    pub(super) long: bool,
    pub(super) act: Act,
    /// What the activation is taken of is stored besides.
    pub(super) before: bool,
}

impl Tile {
    /// The variant for a product in parts of `k`.
    pub(super) fn of(op: &MatMul, form: Form, k: usize) -> Self {
        let fours = |values: &[usize]| values.iter().all(|v| v.is_multiple_of(4));
        let a_along_k = op.a.col == 1;
        let b_along_n = op.b.col == 1;
        let (a, b, c) = (op.a, op.b, op.c);
        let a_rest = if a_along_k { [op.k, a.row] } else { [op.m, a.col] };
        let b_rest = if b_along_n { [op.n, b.row] } else { [op.k, b.col] };
        let down = match form {
            Form::Lanes(size) => size.rows,
            Form::Block { .. } | Form::Cooperative(_) => 4,
        };
        let a_vector = (a_along_k || (a.row == 1 && down.is_multiple_of(4)))
            && fours(&a_rest)
            && fours(&[a.batch[0], a.batch[1], a.sum]);
        // Sums are stored four rows at a time only where an invocation owns rows in fours.
        let sums_in_fours = !op.sums
            || (fours(&[op.m, op.offset]) && (!matches!(form, Form::Lanes(_)) || (a_vector && !a_along_k)));
        Self {
            form,
            a_along_k,
            a_vector,
            b_along_n,
            b_vector: (b_along_n || b.row == 1) && fours(&b_rest) && fours(&[b.batch[0], b.batch[1], b.sum]),
            c_vector: c.col == 1 && fours(&[op.n, c.row, c.batch[0], c.batch[1]]) && sums_in_fours,
            ragged: !op.k.is_multiple_of(4),
            bias: op.bias,
            epilogue: op.epilogue,
            sums: op.sums,
            long: matches!(form, Form::Cooperative(_)) && k * op.sum > cooperative::PROMOTED,
            act: op.act,
            before: op.before.is_some(),
        }
    }
}

impl Tile {
    /// The kernel's text.
    pub(super) fn source(&self) -> String {
        match self.form {
            Form::Lanes(size) => lanes::source(self, size),
            Form::Block { side, halves } => block::source(self, side, halves),
            Form::Cooperative(size) => cooperative::source(self, size),
        }
    }
}

/// What decides the tile where invocations compute from registers. Costs are in multiply-adds of one invocation.
struct Tuning {
    /// Rows and columns of an invocation's tile, largest first.
    tiles: &'static [(usize, usize)],
    /// Of a load.
    load: f64,
    /// Of receiving a value that another invocation loaded.
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
    compile: 3e3,
};

/// lavapipe, measured: a load visits the eight invocations one by one, a broadcast is one instruction. 4 x 32 is
/// 2.0 to 2.5 times as fast as the best direct tile, and compiles in a third of its time.
const SUBGROUP: Tuning = Tuning {
    tiles: &[(3, 40), (2, 40), (4, 32), (3, 32), (4, 24), (2, 32), (4, 16), (2, 16), (4, 8), (2, 8), (1, 8)],
    load: 32.0,
    broadcast: 2.0,
    compile: 2e2,
};

/// Of storing one product, and of beginning a tile: measured on lavapipe, as the loads.
const STORE: f64 = 27.0;
const START: f64 = 1e3;
/// Of a dispatch, which wakes every core and waits for the last: 40 us on two cores.
const DISPATCH: f64 = 1e5;
/// Invocations that a CPU's core runs at once.
const VECTOR: usize = 8;
/// Steps of four k that a split keeps at least.
const LEAST_SPLIT: usize = 8;

/// Sides and halves of a workgroup's tile for GPUs, largest first: 128, 64 and 32 rows and columns.
const BLOCKS: [(usize, usize); 3] = [(16, 2), (16, 1), (8, 1)];
/// Steps of four k that a split keeps at least on a GPU: a shorter one takes less time than the dispatch that joins them.
const LEAST_SPLIT_ON_GPU: usize = 64;

/// Matrices along an edge of a subgroup's quarter, most first: with matrices of 16, workgroups own 128, 64 and 32
/// rows and columns.
const EACH: [usize; 3] = [4, 2, 1];

/// A tile, and in how many parts k is computed.
pub(super) type Way = (Form, usize);

/// The ways to compute a product, in an order that is the same for all of its class, and the places of those that cost
/// least, the best first. k is in one part, unless `can_split`.
pub(super) fn plan(op: &MatMul, gpu: &Gpu, can_split: bool) -> (Vec<Way>, Vec<usize>) {
    #[cfg(test)]
    if let Some(form) = FORCED.get() {
        return (vec![(form, 1)], vec![0]);
    }
    let lanes = gpu.facts().lanes().unwrap_or(1);
    let matrices = in_matrices(op, gpu);
    match gpu.style() {
        // Who asks for matrices gets them, whatever they cost.
        _ if !matrices.is_empty() && asked(gpu) => in_blocks(op, &matrices, can_split, gpu.facts().enough),
        Style::Direct => (vec![on_cores(op, gpu, &DIRECT, 1, can_split)], vec![0]),
        Style::Subgroup => (vec![on_cores(op, gpu, &SUBGROUP, lanes, can_split)], vec![0]),
        Style::Workgroup => {
            let blocks = BLOCKS.map(|(side, halves)| Form::Block { side, halves });
            in_blocks(op, &[&blocks, matrices.as_slice()].concat(), can_split, gpu.facts().enough)
        }
    }
}

/// Whether products on matrices were asked for.
fn asked(gpu: &Gpu) -> bool {
    gpu.precision() == Precision::F16 || gpu.products() == Some(Products::Split)
}

/// For a CPU's cores: what the busiest has to do.
fn on_cores(op: &MatMul, gpu: &Gpu, tuning: &Tuning, lanes: usize, can_split: bool) -> (Form, usize) {
    let cores = gpu.facts().cores.unwrap_or(1);
    let most = if can_split { (op.k / (4 * LEAST_SPLIT)).max(1) } else { 1 };
    let cost = |(rows, cols): (usize, usize), splits: usize| {
        let tiles = op.m.div_ceil(rows * lanes) * op.n.div_ceil(cols) * op.batches();
        let in_turn = (tiles * splits * lanes).div_ceil(VECTOR).div_ceil(cores);
        let own = (rows * cols) as f64;
        let loads = tuning.load * (rows as f64 + cols as f64 / lanes as f64);
        let step = own + loads + tuning.broadcast * cols as f64;
        let tile = (op.k * op.sum) as f64 / splits as f64 * step + STORE * own + START;
        let parts = (op.m * op.n * op.batches() * splits) as f64;
        let joining = if splits > 1 { DISPATCH + parts / (VECTOR * cores) as f64 * STORE } else { 0.0 };
        in_turn as f64 * tile + joining + tuning.compile * own
    };
    let splits = || std::iter::successors(Some(1), |s| Some(2 * s)).take_while(|s| *s <= most);
    let all = tuning.tiles.iter().flat_map(|tile| splits().map(move |s| (*tile, s)));
    let ((rows, cols), splits) =
        all.min_by(|x, y| cost(x.0, x.1).total_cmp(&cost(y.0, y.1))).expect("there are tiles");
    (Form::Lanes(lanes::Size { lanes, rows, cols }), splits)
}

/// For a GPU: waste weighed against idle cores; its loads are shared, its compiler is quick. A long k is split so that
/// `enough` invocations share it, or a quarter as many.
fn in_blocks(op: &MatMul, forms: &[Form], can_split: bool, enough: usize) -> (Vec<Way>, Vec<usize>) {
    let most = if can_split { (op.k / (4 * LEAST_SPLIT_ON_GPU)).max(1) } else { 1 };
    let tiles = |form: Form| {
        let (height, width) = form.covers();
        op.m.div_ceil(height) * op.n.div_ceil(width) * op.batches()
    };
    let cost = |form: Form| {
        let (height, width) = form.covers();
        let work = (tiles(form) * op.k * op.sum * height * width) as f64;
        let idle = (enough as f64 / (tiles(form) * most * form.invocations()) as f64).clamp(1.0, 4.0);
        let [each, once, of_value] = form.costs();
        let values = (op.m * op.k * op.batches() * op.sum) as f64;
        work * (1.0 + 32.0 / height as f64) * idle * each + once + of_value * values
    };
    let way = |form: &Form, enough: usize| {
        (*form, enough.div_ceil((tiles(*form) * form.invocations()).max(1)).clamp(1, most))
    };
    let ways: Vec<Way> = [enough, enough / 4].iter().flat_map(|n| forms.iter().map(|f| way(f, *n))).collect();
    let mut planned: Vec<usize> = (0..forms.len()).collect();
    planned.sort_by(|x, y| cost(forms[*x]).total_cmp(&cost(forms[*y])));
    // The best of either kind is among them: no plan knows how fast a card's matrix units are.
    let kind = |way: &usize| forms[*way].on_matrices();
    let other = planned.iter().position(|way| kind(way) != kind(&planned[0]));
    if let Some(other) = other.filter(|at| *at >= TIMED) {
        planned.swap(TIMED - 1, other);
    }
    planned.truncate(TIMED);
    // The best with fewer parts, where that differs.
    let fewer = planned[0] + forms.len();
    planned.extend((ways[fewer] != ways[planned[0]]).then_some(fewer));
    (ways, planned)
}

/// Forms worth timing.
const TIMED: usize = 3;

/// What tells a class of products from others: how operands lie, powers of two below the sizes.
#[derive(Debug, Hash)]
pub(super) struct SizeClass {
    tile: [bool; 5],
    sizes: [u32; 4],
    splits: bool,
    forms: Vec<Form>,
    backward: bool,
}

impl SizeClass {
    pub(super) fn of(op: &MatMul, ways: &[Way], can_split: bool) -> Self {
        let t = Tile::of(op, ways[0].0, op.k);
        let log = |n: usize| n.max(1).ilog2();
        Self {
            tile: [t.a_along_k, t.a_vector, t.b_along_n, t.b_vector, t.c_vector],
            sizes: [log(op.m), log(op.n), log(op.k * op.sum), log(op.batches())],
            splits: can_split,
            forms: ways[..ways.len().div_ceil(2)].iter().map(|way| way.0).collect(),
            backward: op.backward,
        }
    }

    /// Its name, and those of the ways.
    pub(super) fn names(&self, ways: &[Way]) -> (String, Vec<String>) {
        let bits: String = self.tile.iter().map(|b| if *b { '1' } else { '0' }).collect();
        let [m, n, k, batches] = self.sizes.map(|log| 1u64 << log);
        let way = if self.backward { "back" } else { "forward" };
        let half = ways.len() / 2;
        let name = |(i, (form, _)): (usize, &Way)| {
            let form = match form {
                Form::Lanes(size) => format!("lanes {} x {}", size.rows, size.cols),
                Form::Block { .. } => format!("block {}", form.covers().0),
                Form::Cooperative(size) => format!("{:?} {}", size.halves, form.covers().0).to_lowercase(),
            };
            if i < half { form } else { format!("{form}, fewer parts") }
        };
        let names: Vec<String> = ways.iter().enumerate().map(name).collect();
        let class = format!(
            "matmul {way} {m} x {n} x {k}, {batches} of them, {bits}, splits {}, of {}",
            self.splits,
            names[..half].join(", ")
        );
        (class, names)
    }
}

/// The forms on cooperative matrices, for products that fill at least one: a smaller one would mostly multiply padding.
fn in_matrices(op: &MatMul, gpu: &Gpu) -> Vec<Form> {
    let facts = gpu.facts();
    let halves = match (gpu.precision(), op.backward) {
        (Precision::F16, false) => Halves::Rounded,
        (Precision::F16, true) => Halves::Scaled,
        (Precision::F32, _) if facts.splits(gpu.products()) => Halves::Split,
        (Precision::F32, _) => return Vec::new(),
    };
    match facts.cooperative_matrix {
        Some(side) if op.m.min(op.n).min(op.k) >= side => cooperative_forms(gpu, halves),
        _ => Vec::new(),
    }
}

/// Products on cooperative matrices of every size that the adapter has workgroup memory for.
fn cooperative_forms(gpu: &Gpu, halves: Halves) -> Vec<Form> {
    let facts = gpu.facts();
    let (Some(side), Some((_, high))) = (facts.cooperative_matrix, facts.subgroup) else {
        return Vec::new();
    };
    let invocations = (QUARTERS * high) as usize;
    let size = |each, staged| cooperative::Size { halves, side, each, invocations, staged };
    let fits = |size: &cooperative::Size| size.memory() <= facts.workgroup_memory as usize;
    EACH.into_iter()
        .filter_map(|each| [each, 1].map(|s| size(each, s)).into_iter().find(fits))
        .map(Form::Cooperative)
        .collect()
}

/// Every form that a style's plans choose among with every way to load, and an epilogue each; and every epilogue.
#[cfg(test)]
pub(in crate::ops) fn variants(gpu: &Gpu) -> Vec<crate::ops::gates::Variant> {
    let forms = forms(gpu);
    let flags = |n: usize, i: usize| n >> i & 1 == 1;
    let (mut epilogues, mut all) = (Vec::new(), Vec::new());
    let acts = [Act::None, Act::Relu, Act::Tanh, Act::TanhRelu, Act::Gelu].map(|act| (act, false));
    let acts: Vec<(Act, bool)> = acts.into_iter().chain([(Act::Gelu, true)]).collect();
    for n in 0..192 {
        let all = [Epilogue::None, Epilogue::Residual, Epilogue::ReluGrad, Epilogue::GeluGrad];
        let (epilogue, (act, before)) = (all[n / 48], acts[n / 8 % 6]);
        let (bias, sums, c_vector) = (flags(n, 0), flags(n, 1), flags(n, 2));
        // Software drivers' products take no GELU (see `Tensor::mlp`).
        let gelu = act == Act::Gelu || epilogue == Epilogue::GeluGrad;
        if gelu && gpu.style() != Style::Workgroup {
            continue;
        }
        if !sums || (!bias && epilogue == Epilogue::None && act == Act::None) {
            epilogues.push((bias, epilogue, act, before, sums, c_vector));
        }
    }
    let mut add = |form: Form, loads: usize, epilogue: usize| {
        let (bias, epilogue, act, before, sums, c_vector) = epilogues[epilogue % epilogues.len()];
        let [a_along_k, a_vector, b_along_n, b_vector, ragged] = [0, 1, 2, 3, 4].map(|i| flags(loads, i));
        let rows_in_fours = match form {
            Form::Lanes(size) => size.rows.is_multiple_of(4),
            Form::Block { .. } | Form::Cooperative(_) => true,
        };
        let long = matches!(form, Form::Cooperative(_)) && loads % 2 == 1;
        let possible = (!a_vector || a_along_k || rows_in_fours)
            && !(ragged && (a_vector && a_along_k || b_vector && !b_along_n))
            && (!sums || !c_vector || !matches!(form, Form::Lanes(_)) || a_vector && !a_along_k);
        let tile = Tile {
            form,
            a_along_k,
            a_vector,
            b_along_n,
            b_vector,
            c_vector,
            ragged,
            bias,
            epilogue,
            sums,
            long,
            act,
            before,
        };
        if possible {
            all.push(crate::ops::gates::Variant::new("matmul", &tile, tile.source()));
        }
    };
    for (i, form) in forms.iter().enumerate() {
        (0..32).for_each(|loads| add(*form, loads, 7 * loads + i));
    }
    (0..epilogues.len()).for_each(|epilogue| {
        (0..32).step_by(5).for_each(|loads| add(forms[forms.len() - 1], loads, epilogue))
    });
    all
}

/// The forms that a style's plans choose among.
#[cfg(test)]
fn forms(gpu: &Gpu) -> Vec<Form> {
    let on_cores = |tuning: &Tuning, lanes| {
        let form =
            |(rows, cols): &(usize, usize)| Form::Lanes(lanes::Size { lanes, rows: *rows, cols: *cols });
        tuning.tiles.iter().map(form).collect()
    };
    match gpu.style() {
        Style::Direct => on_cores(&DIRECT, 1),
        Style::Subgroup => on_cores(&SUBGROUP, gpu.facts().lanes().unwrap_or(1)),
        Style::Workgroup => BLOCKS.map(|(side, halves)| Form::Block { side, halves }).to_vec(),
    }
}

#[cfg(test)]
thread_local! {
    /// What plans choose, whatever it costs.
    static FORCED: std::cell::Cell<Option<Form>> = const { std::cell::Cell::new(None) };
}

/// Calls `f` while plans choose each form in turn: which cases take which depends on the adapter.
#[cfg(test)]
pub(in crate::ops) fn with_each_form(gpu: &Gpu, mut f: impl FnMut(&str)) {
    for form in forms(gpu) {
        FORCED.set(Some(form));
        f(&format!("{form:?}"));
    }
    FORCED.set(None);
}
