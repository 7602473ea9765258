//! Matrix products: batched, broadcast and transposed by strides, so that no operand is ever copied.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::walk::fill;
use crate::gpu::{Buf, Class, Gpu, Kernel, Launch, Words, groups_of};
use crate::host::Array;
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Keep, Op, Tensor, apply};

const KERNEL: Kernel = Kernel { name: "matmul", text: include_str!("../../shaders/matmul.wgsl") };

/// Applied to the product before it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Act {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
}

/// How an operand's elements lie in memory: strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Layout {
    /// Of the outer and inner batch; 0 repeats.
    batch: [usize; 2],
    /// Of the batch summed over.
    sum: usize,
    row: usize,
    col: usize,
}

impl Layout {
    fn transposed(self) -> Self {
        Self { row: self.col, col: self.row, ..self }
    }
}

/// One product `c = a b` for each of `batch`, summed over `sum` further pairs.
#[derive(Clone, Debug)]
struct MatMul {
    m: usize,
    n: usize,
    k: usize,
    batch: [usize; 2],
    sum: usize,
    a: Layout,
    b: Layout,
    c: Layout,
    scale: f64,
    bias: bool,
    act: Act,
    shape: Shape,
}

impl Tensor {
    /// `act(x wᵀ + bias)`: x `[.., k]`, w `[n, k]` as PyTorch keeps it, bias `[n]`; the result is `[.., n]`.
    #[track_caller]
    pub fn linear(&self, w: &Self, bias: Option<&Self>, act: Act) -> Self {
        let (n, k) = (w.shape()[0], w.shape()[1]);
        assert_eq!(self.shape().last(), k, "linear: x {} with w {}", self.shape(), w.shape());
        let rank = self.shape().rank();
        let m = self.dims()[..rank - 1].iter().product();
        let flat = |row, col| Layout { batch: [0, 0], sum: 0, row, col };
        let op = MatMul {
            m,
            n,
            k,
            batch: [1, 1],
            sum: 1,
            a: flat(k, 1),
            b: flat(1, k),
            c: flat(n, 1),
            scale: 1.0,
            bias: bias.is_some(),
            act,
            shape: self.shape().with(rank - 1, n),
        };
        match bias {
            Some(bias) => apply(op, &[self, w, bias]),
            None => apply(op, &[self, w]),
        }
    }

    /// `a b` over the last two axes, each transposed first if asked; up to two leading axes are batches and
    /// broadcast.
    #[track_caller]
    pub fn matmul(&self, b: &Self, transpose_a: bool, transpose_b: bool) -> Self {
        let (sa, sb) = (four(self.shape()), four(b.shape()));
        let (m, k) = if transpose_a { (sa[3], sa[2]) } else { (sa[2], sa[3]) };
        let (k2, n) = if transpose_b { (sb[3], sb[2]) } else { (sb[2], sb[3]) };
        assert_eq!(k, k2, "matmul: {} with {}", self.shape(), b.shape());
        let batch = [0, 1].map(|i| match (sa[i], sb[i]) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => panic!("matmul: batches of {} and {}", self.shape(), b.shape()),
        });
        let layout = |s: [usize; 4], transpose| {
            let stride = [s[1] * s[2] * s[3], s[2] * s[3]];
            let one = Layout {
                batch: [0, 1].map(|i| if s[i] == 1 { 0 } else { stride[i] }),
                sum: 0,
                row: s[3],
                col: 1,
            };
            if transpose { one.transposed() } else { one }
        };
        let rank = self.shape().rank().max(b.shape().rank());
        let shape = Shape::new(&[batch[0], batch[1], m, n][4 - rank..]);
        let c = Layout { batch: [batch[1] * m * n, m * n], sum: 0, row: n, col: 1 };
        let (a, b_layout) = (layout(sa, transpose_a), layout(sb, transpose_b));
        apply(
            MatMul {
                m,
                n,
                k,
                batch,
                sum: 1,
                a,
                b: b_layout,
                c,
                scale: 1.0,
                bias: false,
                act: Act::None,
                shape,
            },
            &[self, b],
        )
    }

    /// Attention scores by heads: q `[n, r, heads*d]`, k `[n, l, heads*d]`, the result `[n, heads, r, l]` is
    /// `scale * q kᵀ` of each head's contiguous channels.
    #[track_caller]
    pub fn head_scores(&self, k: &Self, heads: usize, scale: f64) -> Self {
        let (q, s) = (self.shape(), k.shape());
        assert!(
            q[0] == s[0] && q[2] == s[2] && q[2] % heads == 0,
            "head_scores: {q} with {s}, {heads} heads"
        );
        let (n, r, l, width) = (q[0], q[1], s[1], q[2]);
        let d = width / heads;
        let op = MatMul {
            m: r,
            n: l,
            k: d,
            batch: [n, heads],
            sum: 1,
            a: Layout { batch: [r * width, d], sum: 0, row: width, col: 1 },
            b: Layout { batch: [l * width, d], sum: 0, row: 1, col: width },
            c: Layout { batch: [heads * r * l, r * l], sum: 0, row: l, col: 1 },
            scale,
            bias: false,
            act: Act::None,
            shape: Shape::new(&[n, heads, r, l]),
        };
        apply(op, &[self, k])
    }

    /// Weighted sums by heads: weights `[n, heads, r, l]`, v `[n, l, heads*d]`, the result `[n, r, heads*d]`.
    #[track_caller]
    pub fn head_mix(&self, v: &Self) -> Self {
        let (w, s) = (self.shape(), v.shape());
        assert!(w[0] == s[0] && w[3] == s[1] && s[2] % w[1] == 0, "head_mix: {w} with {s}");
        let (n, heads, r, l, width) = (w[0], w[1], w[2], w[3], s[2]);
        let d = width / heads;
        let op = MatMul {
            m: r,
            n: d,
            k: l,
            batch: [n, heads],
            sum: 1,
            a: Layout { batch: [heads * r * l, r * l], sum: 0, row: l, col: 1 },
            b: Layout { batch: [l * width, d], sum: 0, row: width, col: 1 },
            c: Layout { batch: [r * width, d], sum: 0, row: width, col: 1 },
            scale: 1.0,
            bias: false,
            act: Act::None,
            shape: Shape::new(&[n, r, width]),
        };
        apply(op, &[self, v])
    }
}

fn four(s: Shape) -> [usize; 4] {
    assert!((2..=4).contains(&s.rank()), "matmul of shape {s}");
    let mut dims = [1; 4];
    dims[4 - s.rank()..].copy_from_slice(s.dims());
    dims
}

impl MatMul {
    fn batches(&self) -> usize {
        self.batch[0] * self.batch[1]
    }

    /// The product that yields a gradient of shape `shape` laid out as `c`: batches over which `c` repeats
    /// are summed.
    fn product(&self, size: [usize; 3], a: Layout, b: Layout, c: Layout, shape: Shape) -> Self {
        let mut op = Self {
            m: size[0],
            n: size[1],
            k: size[2],
            a,
            b,
            c,
            bias: false,
            act: Act::None,
            shape,
            ..self.clone()
        };
        for i in 0..2 {
            if c.batch[i] == 0 && op.batch[i] > 1 {
                assert_eq!(op.sum, 1, "matmul: a gradient summed over two batch axes");
                op.sum = op.batch[i];
                (op.a.sum, op.b.sum) = (a.batch[i], b.batch[i]);
                op.batch[i] = 1;
            }
        }
        op
    }

    /// The same product with contiguous rows of `c`.
    fn oriented(&self) -> Self {
        if self.c.col == 1 || self.c.row != 1 {
            return self.clone();
        }
        Self {
            m: self.n,
            n: self.m,
            a: self.b.transposed(),
            b: self.a.transposed(),
            c: self.c.transposed(),
            ..self.clone()
        }
    }

    fn is_dense(&self) -> bool {
        let (m, n, inner) = (self.m, self.n, self.batch[1]);
        let batch = |i: usize, stride| self.batch[i] == 1 || self.c.batch[i] == stride;
        self.c.col == 1 && self.c.row == n && batch(1, m * n) && batch(0, inner * m * n)
    }
}

/// The shape of a kernel: the tile an invocation owns and how it reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    rows: usize,
    cols: usize,
    /// a is contiguous along k (else along m), and can be read four at a time.
    a_along_k: bool,
    a_vector: bool,
    /// b is contiguous along n (else along k), and can be read four at a time.
    b_along_n: bool,
    b_vector: bool,
    c_vector: bool,
    /// k is not a multiple of 4.
    ragged: bool,
    bias: bool,
    act: Act,
}

impl Tile {
    fn of(op: &MatMul, biased: bool, class: Class, can_split: bool) -> Self {
        let fours = |values: &[usize]| values.iter().all(|v| v.is_multiple_of(4));
        let a_along_k = op.a.col == 1;
        let b_along_n = op.b.col == 1;
        let (a, b, c) = (op.a, op.b, op.c);
        let a_rest = if a_along_k { [op.k, a.row] } else { [op.m, a.col] };
        let b_rest = if b_along_n { [op.n, b.row] } else { [op.k, b.col] };
        let (rows, cols) = tile_size(op, class, can_split);
        Self {
            rows,
            cols,
            a_along_k,
            a_vector: (a_along_k || (a.row == 1 && rows.is_multiple_of(4)))
                && fours(&a_rest)
                && fours(&[a.batch[0], a.batch[1], a.sum]),
            b_along_n,
            b_vector: (b_along_n || b.row == 1) && fours(&b_rest) && fours(&[b.batch[0], b.batch[1], b.sum]),
            c_vector: c.col == 1 && fours(&[op.n, c.row, c.batch[0], c.batch[1]]),
            ragged: !op.k.is_multiple_of(4),
            bias: biased,
            act: op.act,
        }
    }
}

/// What decides the tile on one class of adapter.
struct Tuning {
    /// Tiles an invocation can own, largest first.
    tiles: &'static [(usize, usize)],
    /// What a load costs, in multiply-adds.
    load: f64,
    /// What compiling costs for each product of the tile, in multiply-adds spread over a run.
    compile: f64,
}

/// lavapipe, measured: registers are the CPU's cache, so larger tiles win until compiling them stalls
/// (docs/rejected.md); a load costs eight multiply-adds; 12 x 16 takes half a second to compile.
const SOFTWARE: Tuning = Tuning {
    tiles: &[(12, 16), (8, 16), (12, 8), (8, 8), (4, 8), (4, 4), (2, 4), (1, 4)],
    load: 8.0,
    compile: 3e4,
};

/// Unmeasured: a larger tile spills the registers of most GPUs.
const HARDWARE: Tuning = Tuning { tiles: &[(8, 8), (4, 8), (4, 4), (2, 4), (1, 4)], load: 2.0, compile: 0.0 };

/// Invocations below which a smaller tile is taken, and below which a long k is split.
const ENOUGH: usize = 512;
/// Steps of four k that a split keeps at least.
const LEAST_SPLIT: usize = 32;

/// The tile that costs least: loads, waste at the edges, idle cores and compiling weighed.
fn tile_size(op: &MatMul, class: Class, can_split: bool) -> (usize, usize) {
    let tuning = if class == Class::Software { SOFTWARE } else { HARDWARE };
    let splits = if can_split { (op.k / (4 * LEAST_SPLIT)).max(1) } else { 1 };
    let cost = |(rows, cols): (usize, usize)| {
        let (down, across) = (op.m.div_ceil(rows), op.n.div_ceil(cols));
        let products = (rows * cols) as f64;
        let work = (down * across * op.batches() * op.k * op.sum) as f64 * products;
        // A tile of r x c loads r + c values for r c products.
        let loads = 1.0 + tuning.load * (rows + cols) as f64 / products;
        let idle = (ENOUGH as f64 / (down * across * op.batches() * splits) as f64).clamp(1.0, 4.0);
        work * loads * idle + tuning.compile * products
    };
    tuning.tiles.iter().copied().min_by(|x, y| cost(*x).total_cmp(&cost(*y))).expect("there are tiles")
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn shape(&self, _: &[Shape]) -> Shape {
        self.shape
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, _: &[Shape]) {
        let op = self.oriented();
        let swapped = self.c.col != 1 && self.c.row == 1;
        let (a, b) = if swapped { (x[1], x[0]) } else { (x[0], x[1]) };
        let can_split = op.is_dense() && !self.bias && self.act == Act::None && op.sum == 1;
        let tile = Tile::of(&op, self.bias, gpu.facts().class, can_split);
        let tiles = op.m.div_ceil(tile.rows) * op.n.div_ceil(tile.cols) * op.batches();
        let steps = op.k.div_ceil(4);
        let wanted = if tiles < ENOUGH { ENOUGH.div_ceil(tiles.max(1)).min(steps / LEAST_SPLIT) } else { 1 };
        let splits = if can_split { wanted.max(steps.div_ceil(crate::gpu::MAX_LOOP / 2)).max(1) } else { 1 };
        let chunk = steps.div_ceil(splits);
        let splits = steps.div_ceil(chunk.max(1)).max(1);
        let out = op.m * op.n * op.batches();
        let partial = (splits > 1).then(|| gpu.alloc(splits * out));
        let target = partial.as_ref().unwrap_or(y);
        let l = |l: Layout, third: usize| [l.batch[0], l.batch[1], third, l.row];
        let params = Words::default()
            .sizes(&[tiles * splits, op.m, op.n, op.k])
            .sizes(&[op.batch[1], op.sum, 4 * chunk, splits])
            .sizes(&l(op.a, op.a.sum))
            .sizes(&l(op.b, op.b.sum))
            .sizes(&l(op.c, out))
            .sizes(&[op.a.col, op.b.col])
            .floats(&[op.scale as f32])
            .sizes(&[op.batch[0]]);
        let mut hash = DefaultHasher::new();
        tile.hash(&mut hash);
        let text = || source(&tile);
        let mut reads = vec![a, b];
        reads.extend(self.bias.then(|| x[2]));
        gpu.dispatch(&Launch {
            kernel: KERNEL,
            body: Some((hash.finish(), &text)),
            constants: &[],
            reads: &reads,
            writes: &[target],
            params,
            groups: groups_of(tiles * splits),
            loops: op.sum * (chunk + 1),
        });
        if let Some(partial) = &partial {
            super::reduce::sum_buffers(gpu, partial, y, splits, out);
        }
    }

    fn host(&self, x: &[&Array]) -> Array {
        let mut y = Array::zeros(self.shape);
        for b0 in 0..self.batch[0] {
            for b1 in 0..self.batch[1] {
                let at = |l: &Layout| b0 * l.batch[0] + b1 * l.batch[1];
                let (a, b, c) = (at(&self.a), at(&self.b), at(&self.c));
                for m in 0..self.m {
                    for n in 0..self.n {
                        let mut sum = 0.0;
                        for s in 0..self.sum {
                            let row = a + s * self.a.sum + m * self.a.row;
                            let col = b + s * self.b.sum + n * self.b.col;
                            for k in 0..self.k {
                                sum += x[0].data[row + k * self.a.col] * x[1].data[col + k * self.b.row];
                            }
                        }
                        let biased = sum * self.scale + if self.bias { x[2].data[n] } else { 0.0 };
                        y.data[c + m * self.c.row + n * self.c.col] = match self.act {
                            Act::None => biased,
                            Act::Relu => biased.max(0.0),
                            Act::Tanh => biased.tanh(),
                        };
                    }
                }
            }
        }
        y
    }

    fn keep(&self) -> Keep {
        let keep = Keep::inputs([0, 1]);
        if self.act == Act::None { keep } else { keep.and_output() }
    }

    fn grad(&self, back: &Back) -> Vec<Option<Tensor>> {
        let g = match self.act {
            Act::None => back.g().clone(),
            Act::Relu => back.g().map2(back.y(), |g, y| g * y.greater(0.0)),
            Act::Tanh => back.g().map2(back.y(), |g, y| g * (1.0 - y * y)),
        };
        let (m, n, k) = (self.m, self.n, self.k);
        let ga = back.needs(0).then(|| {
            let op = self.product([m, k, n], self.c, self.b.transposed(), self.a, back.shape(0));
            apply(op, &[&g, back.x(1)])
        });
        let gb = back.needs(1).then(|| {
            let op = self.product([k, n, m], self.a.transposed(), self.c, self.b, back.shape(1));
            apply(op, &[back.x(0), &g])
        });
        let mut grads = vec![ga, gb];
        if self.bias {
            grads.push(back.needs(2).then(|| g.reshape([m, n]).sum(0)));
        }
        grads
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let moved: usize = x.iter().map(Shape::len).sum::<usize>() + self.shape.len();
        Cost {
            flops: 2.0 * (self.m * self.n * self.k * self.batches() * self.sum) as f64,
            bytes: 4.0 * moved as f64,
        }
    }
}

/// The kernel's text for a tile, its loops unrolled.
fn source(t: &Tile) -> String {
    let element = |vector| if vector { "vec4<f32>" } else { "f32" };
    let mut bindings = format!(
        "@group(0) @binding(0) var<storage, read> a: array<{}>;\n\
         @group(0) @binding(1) var<storage, read> b: array<{}>;\n",
        element(t.a_vector),
        element(t.b_vector)
    );
    if t.bias {
        bindings.push_str("@group(0) @binding(2) var<storage, read> bias: array<f32>;\n");
    }
    let next = 2 + usize::from(t.bias);
    let _ = write!(
        bindings,
        "@group(0) @binding({next}) var<storage, read_write> c: array<{}>;\n\
         @group(0) @binding({}) var<uniform> p: Params;",
        element(t.c_vector),
        next + 1
    );
    let body = format!("{}{}{}", origin(t), inner_loop(t), store(t));
    let text = fill(KERNEL.text, &[("bindings", &bindings), ("body", &body)]);
    match t.act {
        Act::Tanh => format!("{}{text}", super::walk::pointwise(true)),
        _ => text,
    }
}

fn origin(t: &Tile) -> String {
    let (rows, cols) = (t.rows, t.cols);
    let quads = cols / 4;
    let mut s = format!(
        "    let across = (p.n + {}u) / {cols}u;\n    let down = (p.m + {}u) / {rows}u;\n    \
         let n0 = (i % across) * {cols}u;\n    let m0 = (i / across % down) * {rows}u;\n    \
         let batch = i / (across * down);\n    let inner = batch % p.batch.x;\n    \
         let outer = batch / p.batch.x % p.outer;\n    let split = batch / (p.batch.x * p.outer);\n    \
         let k0 = split * p.batch.z;\n    let k1 = min(k0 + p.batch.z, p.k);\n    \
         let a0 = outer * p.a.x + inner * p.a.y;\n    let b0 = outer * p.b.x + inner * p.b.y;\n",
        cols - 1,
        rows - 1
    );
    for q in 0..quads {
        let part = |l: usize| format!("bias[min(n0 + {}u, p.n - 1u)]", 4 * q + l);
        let start = match t.bias {
            true => format!("vec4<f32>({}, {}, {}, {})", part(0), part(1), part(2), part(3)),
            false => "vec4<f32>(0.0)".into(),
        };
        let _ = writeln!(s, "    let start{q} = {start};");
        for r in 0..rows {
            let _ = writeln!(s, "    var s{r}_{q} = start{q};");
        }
    }
    // Rows and columns past the edge read the last one; their results are not stored.
    if t.a_along_k || !t.a_vector {
        for r in 0..rows {
            let _ = writeln!(s, "    let ra{r} = min(m0 + {r}u, p.m - 1u) * p.a.w;");
        }
    } else {
        for r in 0..rows / 4 {
            let _ = writeln!(s, "    let ra{r} = min(m0 + {}u, p.m - 4u);", 4 * r);
        }
    }
    if t.b_along_n && t.b_vector {
        for q in 0..quads {
            let _ = writeln!(s, "    let cb{q} = min(n0 + {}u, p.n - 4u);", 4 * q);
        }
    } else {
        for c in 0..cols {
            let _ = writeln!(s, "    let cb{c} = min(n0 + {c}u, p.n - 1u) * p.b_col;");
        }
    }
    s
}

fn inner_loop(t: &Tile) -> String {
    let mut s = String::from(
        "    for (var batch_sum = 0u; batch_sum < p.batch.y; batch_sum++) {\n    \
         let a1 = a0 + batch_sum * p.a.z;\n    let b1 = b0 + batch_sum * p.b.z;\n    \
         for (var k = k0; k < k1; k += 4u) {\n",
    );
    load_a(t, &mut s);
    // Four columns at a time, so that few values of b are held at once.
    for q in 0..t.cols / 4 {
        load_b(t, q, &mut s);
        for (kk, x) in X.iter().enumerate() {
            for r in 0..t.rows {
                let _ = writeln!(s, "    s{r}_{q} = fma(vec4<f32>(va{r}.{x}), vb{kk}_{q}, s{r}_{q});");
            }
        }
    }
    s.push_str("    }\n    }\n");
    s
}

const X: [&str; 4] = ["x", "y", "z", "w"];

/// Loads `va{r}`, four k of each row.
fn load_a(t: &Tile, s: &mut String) {
    let guard = |value: String, kk: usize| {
        if t.ragged { format!("select(0.0, {value}, k + {kk}u < k1)") } else { value }
    };
    if t.a_vector && t.a_along_k {
        for r in 0..t.rows {
            let _ = writeln!(s, "    let va{r} = a[(a1 + ra{r} + k) >> 2u];");
        }
    } else if t.a_vector {
        for r in 0..t.rows / 4 {
            for kk in 0..4 {
                let _ = writeln!(s, "    let qa{r}_{kk} = a[(a1 + (k + {kk}u) * p.a_col + ra{r}) >> 2u];");
            }
        }
        for r in 0..t.rows {
            let part = |kk: usize| guard(format!("qa{}_{kk}.{}", r / 4, X[r % 4]), kk);
            let _ = writeln!(s, "    let va{r} = {};", four_of(part));
        }
    } else {
        for r in 0..t.rows {
            let part = |kk: usize| guard(format!("a[a1 + ra{r} + (k + {kk}u) * p.a_col]"), kk);
            let _ = writeln!(s, "    let va{r} = {};", four_of(part));
        }
    }
}

/// Loads `vb{kk}_{q}`, columns `4 q` to `4 q + 3` of each of four k.
fn load_b(t: &Tile, q: usize, s: &mut String) {
    if t.b_vector && t.b_along_n {
        for kk in 0..4 {
            let value = format!("b[(b1 + (k + {kk}u) * p.b.w + cb{q}) >> 2u]");
            let value =
                if t.ragged { format!("select(vec4<f32>(0.0), {value}, k + {kk}u < k1)") } else { value };
            let _ = writeln!(s, "    let vb{kk}_{q} = {value};");
        }
        return;
    }
    for c in 4 * q..4 * q + 4 {
        if t.b_vector {
            let _ = writeln!(s, "    let qb{c} = b[(b1 + cb{c} + k) >> 2u];");
        } else {
            let part = |kk: usize| {
                let value = format!("b[b1 + cb{c} + (k + {kk}u) * p.b.w]");
                if t.ragged { format!("select(0.0, {value}, k + {kk}u < k1)") } else { value }
            };
            let _ = writeln!(s, "    let qb{c} = {};", four_of(part));
        }
    }
    for (kk, x) in X.iter().enumerate() {
        let part = |l: usize| format!("qb{}.{x}", 4 * q + l);
        let _ = writeln!(s, "    let vb{kk}_{q} = {};", four_of(part));
    }
}

/// A vector of four parts.
fn four_of(part: impl Fn(usize) -> String) -> String {
    format!("vec4<f32>({}, {}, {}, {})", part(0), part(1), part(2), part(3))
}

fn store(t: &Tile) -> String {
    let mut s = String::from("    let c0 = outer * p.c.x + inner * p.c.y + split * p.c.z;\n");
    let act = |v: String| match t.act {
        Act::None => v,
        Act::Relu => format!("max({v}, vec4<f32>(0.0))"),
        Act::Tanh => format!("safe_tanh({v})"),
    };
    for r in 0..t.rows {
        let _ = writeln!(s, "    if m0 + {r}u < p.m {{\n    let row = c0 + (m0 + {r}u) * p.c.w;");
        for q in 0..t.cols / 4 {
            let n = format!("n0 + {}u", 4 * q);
            let _ = writeln!(s, "    let v{q} = {};", act(format!("s{r}_{q} * p.scale")));
            if t.c_vector {
                let _ = writeln!(s, "    if {n} < p.n {{ c[(row + {n}) >> 2u] = v{q}; }}");
            } else {
                for (l, x) in X.iter().enumerate() {
                    let _ = writeln!(s, "    if {n} + {l}u < p.n {{ c[row + {n} + {l}u] = v{q}.{x}; }}");
                }
            }
        }
        s.push_str("    }\n");
    }
    s
}
