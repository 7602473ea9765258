//! The text of products whose tiles are in registers, its loops unrolled. Tiles are read straight from memory; in
//! a subgroup each invocation owns other rows, loads a share of the common columns and receives the rest.

use std::fmt::Write;

use super::tile::Tile;
use super::{Act, Epilogue, KERNEL};
use crate::ops::codegen::{fill, function, pointwise};
use crate::tensor::Expr;

const X: [&str; 4] = ["x", "y", "z", "w"];

/// Invocations that share a tile, and the rows and columns of each: one, or a subgroup whose invocations own different
/// rows of the same columns and load the columns for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Size {
    pub(super) lanes: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Size {
    /// Vectors of b that one lane loads.
    fn shares(self) -> usize {
        self.cols / self.lanes
    }

    /// The offset of the invocation's row `r` from `m0`: rows of a subgroup alternate, in fours where a is read
    /// four rows at a time.
    fn row(self, t: &Tile, r: usize) -> usize {
        if t.a_vector && !t.a_along_k { r / 4 * 4 * self.lanes + r % 4 } else { r * self.lanes }
    }
}

/// The kernel's text for a tile.
pub(super) fn source(t: &Tile, size: Size) -> String {
    let entry = if size.lanes > 1 {
        "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
         @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {"
    } else {
        "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
         @builtin(num_workgroups) groups: vec3<u32>) {\n    let lane = 0u;"
    };
    let body = format!("{}{}{}", origin(t, size), inner_loop(t, size), store(t, size));
    let text = fill(KERNEL.text, &[("bindings", &bindings(t)), ("entry", entry), ("body", &body)]);
    text + &formulas(t)
}

/// The functions that the activation and the epilogue call.
pub(super) fn formulas(t: &Tile) -> String {
    let gelu = Expr::input(0).gelu();
    let slope = (t.epilogue == Epilogue::GeluGrad).then(|| function("gelu_slope", gelu.derivative(0)));
    let gelu = (t.act == Act::Gelu).then(|| function("gelu", gelu));
    let called = matches!(t.act, Act::Tanh | Act::TanhRelu) || gelu.is_some() || slope.is_some();
    let all = [called.then(|| pointwise(true)), gelu, slope];
    all.into_iter().flatten().collect()
}

/// The bindings' declarations.
pub(super) fn bindings(t: &Tile) -> String {
    let element = |vector| if vector { "vec4<f32>" } else { "f32" };
    let mut bindings = format!(
        "@group(0) @binding(0) var<storage, read> a: array<{}>;\n\
         @group(0) @binding(1) var<storage, read> b: array<{}>;\n",
        element(t.a_vector),
        element(t.b_vector)
    );
    let mut next = 2;
    let others = [
        (t.bias, "bias", "f32"),
        (t.epilogue != Epilogue::None, "other", element(t.c_vector)),
        (t.form.scales(), "largest_a", "u32"),
        (t.form.scales(), "largest_b", "u32"),
    ];
    for (_, name, of) in others.into_iter().filter(|other| other.0) {
        let _ = writeln!(bindings, "@group(0) @binding({next}) var<storage, read> {name}: array<{of}>;");
        next += 1;
    }
    for (_, name) in [(true, "c"), (t.before, "before")].into_iter().filter(|written| written.0) {
        let of = element(t.c_vector);
        let _ =
            writeln!(bindings, "@group(0) @binding({next}) var<storage, read_write> {name}: array<{of}>;");
        next += 1;
    }
    bindings + &format!("@group(0) @binding({next}) var<uniform> p: Params;")
}

/// A vector of four parts.
pub(super) fn four_of(part: impl Fn(usize) -> String) -> String {
    format!("vec4<f32>({}, {}, {}, {})", part(0), part(1), part(2), part(3))
}

/// A value that lane `of` holds.
fn broadcast(size: Size, value: &str, of: usize) -> String {
    if size.lanes > 1 { format!("subgroupBroadcast({value}, {of}u)") } else { value.into() }
}

fn origin(t: &Tile, size: Size) -> String {
    let Size { lanes, rows, cols } = size;
    let quads = cols / 4;
    let height = rows * lanes;
    let first = if t.a_vector && !t.a_along_k { "4u * lane" } else { "lane" };
    let mut s = format!(
        "    let tile = i / {lanes}u;\n    \
         let across = (p.n + {}u) / {cols}u;\n    let down = (p.m + {}u) / {height}u;\n    \
         let n0 = (tile % across) * {cols}u;\n    let m0 = (tile / across % down) * {height}u + {first};\n    \
         let batch = tile / (across * down);\n    let inner = batch % p.batch.x;\n    \
         let outer = batch / p.batch.x % p.outer;\n    let split = batch / (p.batch.x * p.outer);\n    \
         let k0 = split * p.batch.z;\n    let k1 = min(k0 + p.batch.z, p.k);\n    \
         let a0 = outer * p.a.x + inner * p.a.y;\n    let b0 = outer * p.b.x + inner * p.b.y;\n",
        cols - 1,
        height - 1
    );
    if t.bias {
        for j in 0..size.shares() {
            let _ = writeln!(
                s,
                "    let own{j} = bias[b0 + p.offset + min(n0 + {}u + lane, p.n - 1u)];",
                j * lanes
            );
        }
    }
    for q in 0..quads {
        let part = |l: usize| broadcast(size, &format!("own{}", (4 * q + l) / lanes), (4 * q + l) % lanes);
        let start = if t.bias { four_of(part) } else { "vec4<f32>(0.0)".into() };
        let _ = writeln!(s, "    let start{q} = {start};");
        for r in 0..rows {
            let _ = writeln!(s, "    var s{r}_{q} = start{q};");
        }
    }
    if t.sums {
        for r in 0..rows {
            let _ = writeln!(s, "    var sum{r} = vec4<f32>(0.0);");
        }
    }
    // Rows and columns past the edge read the last one; their results are not stored.
    if t.a_along_k || !t.a_vector {
        for r in 0..rows {
            let _ = writeln!(s, "    let ra{r} = min(m0 + {}u, p.m - 1u) * p.a.w;", size.row(t, r));
        }
    } else {
        for r in 0..rows / 4 {
            let _ = writeln!(s, "    let ra{r} = min(m0 + {}u, p.m - 4u);", size.row(t, 4 * r));
        }
    }
    let addresses = if lanes == 1 && t.b_along_n && t.b_vector { quads } else { size.shares() };
    for j in 0..addresses {
        if t.b_along_n && t.b_vector {
            let e = format!("({}u + lane)", j * lanes);
            let _ = writeln!(s, "    let kb{j} = {e} / {quads}u;");
            let _ = writeln!(s, "    let cb{j} = min(n0 + {e} % {quads}u * 4u, p.n - 4u);");
        } else {
            let _ = writeln!(s, "    let cb{j} = min(n0 + {}u + lane, p.n - 1u) * p.b_col;", j * lanes);
        }
    }
    s
}

fn inner_loop(t: &Tile, size: Size) -> String {
    let mut s = String::from(
        "    for (var batch_sum = 0u; batch_sum < p.batch.y; batch_sum++) {\n    \
         let a1 = a0 + batch_sum * p.a.z;\n    let b1 = b0 + batch_sum * p.b.z;\n    \
         for (var k = k0; k < k1; k += 4u) {\n",
    );
    load_a(t, size, &mut s);
    if t.sums {
        (0..size.rows).for_each(|r| _ = writeln!(s, "    sum{r} += va{r};"));
    }
    if size.lanes > 1 {
        (0..size.shares()).for_each(|j| load_share(t, j, &mut s));
    }
    // Four columns at a time, so that few values of b are held at once.
    for q in 0..size.cols / 4 {
        quad_of_b(t, size, q, &mut s);
        for (kk, x) in X.iter().enumerate() {
            for r in 0..size.rows {
                let _ = writeln!(s, "    s{r}_{q} = fma(vec4<f32>(va{r}.{x}), vb{kk}_{q}, s{r}_{q});");
            }
        }
    }
    s.push_str("    }\n    }\n");
    s
}

/// `value`, or zero where `k + kk` is past the end.
fn guard(t: &Tile, zero: &str, value: String, kk: &str) -> String {
    if t.ragged { format!("select({zero}, {value}, k + {kk} < k1)") } else { value }
}

/// Loads `va{r}`, four k of each row.
fn load_a(t: &Tile, size: Size, s: &mut String) {
    if t.a_vector && t.a_along_k {
        for r in 0..size.rows {
            let _ = writeln!(s, "    let va{r} = a[(a1 + ra{r} + k) >> 2u];");
        }
    } else if t.a_vector {
        for r in 0..size.rows / 4 {
            for kk in 0..4 {
                let _ = writeln!(s, "    let qa{r}_{kk} = a[(a1 + (k + {kk}u) * p.a_col + ra{r}) >> 2u];");
            }
        }
        for r in 0..size.rows {
            let part =
                |kk: usize| guard(t, "0.0", format!("qa{}_{kk}.{}", r / 4, X[r % 4]), &format!("{kk}u"));
            let _ = writeln!(s, "    let va{r} = {};", four_of(part));
        }
    } else {
        for r in 0..size.rows {
            let part = |kk: usize| {
                guard(t, "0.0", format!("a[a1 + ra{r} + (k + {kk}u) * p.a_col]"), &format!("{kk}u"))
            };
            let _ = writeln!(s, "    let va{r} = {};", four_of(part));
        }
    }
}

/// Loads `lb{j}`, the lane's share `j`: a column's four k, or four columns of one k.
fn load_share(t: &Tile, j: usize, s: &mut String) {
    let value = if t.b_vector && t.b_along_n {
        let value = format!("b[(b1 + (k + kb{j}) * p.b.w + cb{j}) >> 2u]");
        guard(t, "vec4<f32>(0.0)", value, &format!("kb{j}"))
    } else {
        column(t, j)
    };
    let _ = writeln!(s, "    let lb{j} = {value};");
}

/// Four k of the column at `cb{j}`.
fn column(t: &Tile, j: usize) -> String {
    if t.b_vector {
        return format!("b[(b1 + cb{j} + k) >> 2u]");
    }
    four_of(|kk| guard(t, "0.0", format!("b[b1 + cb{j} + (k + {kk}u) * p.b.w]"), &format!("{kk}u")))
}

/// Declares `vb{kk}_{q}`, columns `4 q` to `4 q + 3` of each of four k.
fn quad_of_b(t: &Tile, size: Size, q: usize, s: &mut String) {
    let quads = size.cols / 4;
    if t.b_vector && t.b_along_n {
        for kk in 0..4 {
            let e = kk * quads + q;
            let value = if size.lanes > 1 {
                broadcast(size, &format!("lb{}", e / size.lanes), e % size.lanes)
            } else {
                let value = format!("b[(b1 + (k + {kk}u) * p.b.w + cb{q}) >> 2u]");
                guard(t, "vec4<f32>(0.0)", value, &format!("{kk}u"))
            };
            let _ = writeln!(s, "    let vb{kk}_{q} = {value};");
        }
        return;
    }
    for c in 4 * q..4 * q + 4 {
        let value = match size.lanes {
            1 => column(t, c),
            lanes => broadcast(size, &format!("lb{}", c / lanes), c % lanes),
        };
        let _ = writeln!(s, "    let qb{c} = {value};");
    }
    for (kk, x) in X.iter().enumerate() {
        let _ = writeln!(s, "    let vb{kk}_{q} = {};", four_of(|l| format!("qb{}.{x}", 4 * q + l)));
    }
}

fn store(t: &Tile, size: Size) -> String {
    let mut s = String::from("    let c0 = outer * p.c.x + inner * p.c.y + split * p.c.z;\n");
    for r in 0..size.rows {
        let row = size.row(t, r);
        let _ = writeln!(s, "    if m0 + {row}u < p.m {{\n    let row = c0 + (m0 + {row}u) * p.c.w;");
        for q in 0..size.cols / 4 {
            s += &store_quad(t, &format!("n0 + {}u", 4 * q), &format!("s{r}_{q}"));
        }
        s.push_str("    }\n");
    }
    if t.sums {
        let total = |r: usize| format!("sum{r}.x + sum{r}.y + sum{r}.z + sum{r}.w");
        let step = if t.c_vector { 4 } else { 1 };
        for r in (0..size.rows).step_by(step) {
            let row = size.row(t, r);
            let at = format!("c0 + p.offset + m0 + {row}u");
            let store = match step {
                4 => format!("c[({at}) >> 2u] = {};", four_of(|l| total(r + l))),
                _ => format!("c[{at}] = {};", total(r)),
            };
            let _ = writeln!(s, "    if n0 == 0u && m0 + {row}u < p.m {{ {store} }}");
        }
    }
    s
}

/// Stores `sum`, four columns from `n` of the row whose place is `row`, through the epilogue.
pub(super) fn store_quad(t: &Tile, n: &str, sum: &str) -> String {
    let value = match t.act {
        Act::None => "u",
        Act::Relu => "max(u, vec4<f32>(0.0))",
        Act::Tanh => "safe_tanh(u)",
        Act::TanhRelu => "max(safe_tanh(u), vec4<f32>(0.0))",
        Act::Gelu => "gelu(u)",
    };
    let finished = |value: &str, zero: &str, other: &str| match t.epilogue {
        Epilogue::None => value.to_string(),
        Epilogue::Residual => format!("{value} + {other}"),
        Epilogue::ReluGrad => format!("select({zero}, {value}, {other} > {zero})"),
        Epilogue::GeluGrad if t.c_vector => format!("{value} * gelu_slope({other})"),
        Epilogue::GeluGrad => format!("{value} * gelu_slope(T({other})).x"),
    };
    let mut s = format!("    {{ let u = {sum} * p.scale;\n    let v = {value};\n");
    let before =
        |at: &str, part: &str| if t.before { format!("before[{at}] = u{part}; ") } else { String::new() };
    if t.c_vector {
        let value = finished("v", "vec4<f32>(0.0)", &format!("other[(row + {n}) >> 2u]"));
        let at = format!("(row + {n}) >> 2u");
        let _ = writeln!(s, "    if {n} < p.n {{ {}c[{at}] = {value}; }}", before(&at, ""));
    } else {
        for (l, x) in X.iter().enumerate() {
            let value = finished(&format!("v.{x}"), "0.0", &format!("other[row + {n} + {l}u]"));
            let at = format!("row + {n} + {l}u");
            let before = before(&at, &format!(".{x}"));
            let _ = writeln!(s, "    if {n} + {l}u < p.n {{ {before}c[{at}] = {value}; }}");
        }
    }
    s + "    }\n"
}
