//! The text of products on cooperative matrices: operands as halves, sums in f32.

use std::fmt::Write;

use super::COOPERATIVE;
use super::lanes::{bindings, formulas, four_of, store_quad};
use super::largest::PARTS;
use super::tile::Tile;
use crate::gpu::QUARTERS;
use crate::ops::codegen::fill;

/// What becomes of an operand's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Halves {
    /// Rounded to f16; past 65,504 they are infinite.
    Rounded,
    /// Scaled by a power of two that brings the tensor's largest value near 2^14, then rounded: a gradient's values lie
    /// far below what f16 holds.
    Scaled,
    /// Scaled, then a sum of two f16 with 22 bits together: f32's accuracy, in three products (Ootomo and Yokota, 2022).
    Split,
}

/// A workgroup of four subgroups (or more that repeat their work and store the same), each `each x each` matrices of
/// `side x side`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Size {
    pub(super) halves: Halves,
    pub(super) side: usize,
    pub(super) each: usize,
    pub(super) invocations: usize,
    /// Matrices beside each other that a subgroup stores at a time.
    pub(super) staged: usize,
}

/// Values between the lines of a tile beyond its own.
const PADDING: usize = 8;

/// k that matrices sum before their sums are added to the rest in f32: their own adders truncate.
pub(super) const PROMOTED: usize = 512;

impl Size {
    /// Rows and columns of the square.
    pub(super) fn edge(self) -> usize {
        2 * self.each * self.side
    }

    /// k of a step.
    pub(super) fn depth(self) -> usize {
        if self.halves == Halves::Split { 16 } else { 32 }
    }

    /// Lines of a tile, and their vectors of four.
    fn lines(self, along_k: bool) -> (usize, usize) {
        if along_k { (self.edge(), self.depth() / 4) } else { (self.depth(), self.edge() / 4) }
    }

    /// Values between a tile's lines.
    fn row(self, along_k: bool) -> usize {
        4 * self.lines(along_k).1 + PADDING
    }

    /// Vectors of four that an invocation brings into a tile.
    fn items(self) -> usize {
        (self.edge() * self.depth() / 4).div_ceil(self.invocations)
    }

    /// f32 of workgroup memory for staged matrices, and for sums of rows.
    fn staging(self) -> usize {
        let sums = (4 * self.invocations).max(self.items() * self.invocations);
        (QUARTERS as usize * self.side * self.side * self.staged).max(sums)
    }

    /// Workgroup memory in bytes, at most.
    pub(super) fn memory(self) -> usize {
        let tile = |along_k| self.lines(along_k).0 * self.row(along_k);
        let parts = if self.halves == Halves::Split { 2 } else { 1 };
        2 * 2 * parts * tile(true).max(tile(false)) + 4 * self.staging()
    }
}

/// The kernel's text for a tile.
pub(super) fn source(t: &Tile, size: Size) -> String {
    let text = fill(
        COOPERATIVE.text,
        &[
            ("bindings", &bindings(t)),
            ("sizes", &sizes(t, size)),
            ("halves", &halves(t, size)),
            ("fetch", &(fetch(t, size, true) + &fetch(t, size, false))),
            ("epilogue", &epilogue(t)),
            ("start", &start(t, size)),
            ("first", &fetched(size, "var ", "k0")),
            ("put", &put(t, size)),
            ("next", &fetched(size, "", "k + DEPTH")),
            ("products", &products(t, size)),
            ("promote", &promote(t, size)),
            ("store", &store(size, if t.long { "first" } else { "true" }, "true")),
            ("sums", &sums(t, size)),
        ],
    );
    text + &formulas(t)
}

fn sizes(t: &Tile, size: Size) -> String {
    let Size { side, each, invocations, staged, .. } = size;
    let values = [
        ("SIDE", side),
        ("EACH", each),
        ("SIZE", invocations),
        ("DEPTH", size.depth()),
        ("ROW_A", size.row(t.a_along_k)),
        ("ROW_B", size.row(!t.b_along_n)),
        ("STAGED", staged),
    ];
    let mut s: String = values.iter().map(|(name, value)| format!("const {name} = {value}u;\n")).collect();
    for (role, element) in [("A", "f16"), ("B", "f16"), ("C", "f32")] {
        let _ = writeln!(s, "alias Matrix{role} = coop_mat{side}x{side}<{element}, {role}>;");
    }
    let _ = write!(s, "var<workgroup> tc: array<f32, {}>;", size.staging());
    s
}

/// The parts of a value, the greater last.
fn parts(size: Size) -> &'static [&'static str] {
    if size.halves == Halves::Split { &["low", "high"] } else { &["high"] }
}

/// The tiles, and how values come into them and out of the sums.
fn halves(t: &Tile, size: Size) -> String {
    let mut s = String::new();
    let scaled = size.halves != Halves::Rounded;
    for (name, along_k) in [("a", t.a_along_k), ("b", !t.b_along_n)] {
        let values = size.lines(along_k).0 * size.row(along_k);
        for part in parts(size) {
            let _ = writeln!(s, "var<workgroup> t{name}_{part}: array<f16, {values}>;");
        }
        let _ = writeln!(s, "fn put_{name}(at: u32, v: vec4<f32>) {{");
        let _ = match size.halves {
            Halves::Rounded => writeln!(s, "    let high = vec4<f16>(v);"),
            Halves::Scaled => writeln!(s, "    let high = vec4<f16>(v * scale_{name});"),
            // By bits: a compiler may take a number less its rounded self for 0. The low part of what is infinite is NaN.
            Halves::Split => writeln!(
                s,
                "    let scaled = v * scale_{name};\n    \
                 let bits = (bitcast<vec4<u32>>(scaled) + vec4<u32>(0x1000u)) & vec4<u32>(0xffffe000u);\n    \
                 let upper = bitcast<vec4<f32>>(bits);\n    \
                 let high = vec4<f16>(upper);\n    let low = vec4<f16>(scaled - upper);"
            ),
        };
        for part in parts(size) {
            for (l, x) in ["x", "y", "z", "w"].iter().enumerate() {
                let _ = writeln!(s, "    t{name}_{part}[at + {l}u] = {part}.{x};");
            }
        }
        s.push_str("}\n");
    }
    if scaled {
        let _ = writeln!(s, "const PARTS = {PARTS}u;");
        s.push_str(MEASURE);
    } else {
        s.push_str(
            "fn whole(sum: vec4<f32>) -> vec4<f32> { return sum; }\nfn measure(lane: u32, lanes: u32) {}\n",
        );
    }
    s
}

/// The operands' scales, from the parts of their largest values.
const MEASURE: &str = "\
var<private> scale_a: f32;
var<private> scale_b: f32;
var<private> back: vec2<f32>; // what undoes the scales
fn whole(sum: vec4<f32>) -> vec4<f32> { return sum * back.x * back.y; }
fn measure(lane: u32, lanes: u32) {
    var most = vec2<u32>(0u);
    for (var i = lane; i < PARTS; i += lanes) {
        most = max(most, vec2<u32>(largest_a[i], largest_b[i]));
    }
    // Exponents as f32 keeps them, of values whose scale and its inverse are numbers.
    let power = clamp(subgroupMax(most) >> vec2<u32>(23u), vec2<u32>(15u), vec2<u32>(254u));
    let scale = bitcast<vec2<f32>>((vec2<u32>(268u) - power) << vec2<u32>(23u));
    scale_a = scale.x;
    scale_b = scale.y;
    back = bitcast<vec2<f32>>((power - vec2<u32>(14u)) << vec2<u32>(23u));
}
";

/// How an invocation reads its vector `item` of a tile: items past the edge read the last, k past the end are zero.
fn fetch(t: &Tile, size: Size, of_a: bool) -> String {
    let (name, item, count, across, down, along_k, vector) = if of_a {
        ("a", "m", "p.m", "p.a.w", "p.a_col", t.a_along_k, t.a_vector)
    } else {
        ("b", "n", "p.n", "p.b_col", "p.b.w", !t.b_along_n, t.b_vector)
    };
    let quads = size.lines(along_k).1;
    let mut s = format!(
        "fn fetch_{name}(item: u32, {name}1: u32, {item}0: u32, k0: u32, end: u32) -> vec4<f32> {{\n"
    );
    let (line, four) = (format!("item / {quads}u"), format!("item % {quads}u * 4u"));
    let [own, k] = if along_k { [line, four] } else { [four, line] };
    let _ = writeln!(s, "    let {item} = {item}0 + {own};\n    let k = k0 + {k};");
    let at = |item: String, k: String| format!("{name}1 + {item} * {across} + min({k}, end - 1u) * {down}");
    if vector {
        // The stride along the vector is 1.
        let at = if along_k {
            format!("{name}1 + min({item}, {count} - 1u) * {across} + min(k, end - 1u)")
        } else {
            format!("{name}1 + min({item}, {count} - 4u) + min(k, end - 1u) * {down}")
        };
        let _ = writeln!(s, "    return select(vec4<f32>(0.0), {name}[({at}) >> 2u], k < end);");
    } else {
        let part = |l: usize| {
            let (item, k) = if along_k {
                (format!("min({item}, {count} - 1u)"), format!("k + {l}u"))
            } else {
                (format!("min({item} + {l}u, {count} - 1u)"), "k".to_string())
            };
            format!("select(0.0, {name}[{}], {k} < end)", at(item, k.clone()))
        };
        let _ = writeln!(s, "    return {};", four_of(part));
    }
    s + "}\n"
}

fn fetched(size: Size, declare: &str, k: &str) -> String {
    let mut s = String::new();
    for i in 0..size.items() {
        let item = format!("local + {}u", i * size.invocations);
        let _ = writeln!(s, "        {declare}na{i} = fetch_a({item}, a1, m0, {k}, k1);");
        let _ = writeln!(s, "        {declare}nb{i} = fetch_b({item}, b1, n0, {k}, k1);");
    }
    s
}

fn put(t: &Tile, size: Size) -> String {
    let mut s = String::new();
    let all = size.edge() * size.depth() / 4;
    for i in 0..size.items() {
        let item = format!("(local + {}u)", i * size.invocations);
        let place = |along_k: bool, row: &str| {
            let quads = size.lines(along_k).1;
            format!("{item} / {quads}u * {row} + {item} % {quads}u * 4u")
        };
        let (a, b) = (place(t.a_along_k, "ROW_A"), place(!t.b_along_n, "ROW_B"));
        let sum = match (t.sums, t.a_along_k) {
            (false, _) => String::new(),
            (true, true) => format!("sum{i} += dot(na{i}, vec4<f32>(1.0));"),
            (true, false) => format!("sum0 += na{i};"),
        };
        let guard =
            if (i + 1) * size.invocations > all { format!("if {item} < {all}u ") } else { String::new() };
        let _ = writeln!(s, "            {guard}{{ put_a({a}, na{i}); put_b({b}, nb{i}); {sum} }}");
    }
    s
}

fn start(t: &Tile, size: Size) -> String {
    let each = size.each;
    let mut s: String =
        (0..each * each).map(|i| format!("    var s{}_{}: MatrixC;\n", i / each, i % each)).collect();
    if t.long {
        s.push_str("    var none: MatrixC;\n    var first = true;\n    var held = 0u;\n");
    }
    match (t.sums, t.a_along_k) {
        (false, _) => {}
        (true, true) => (0..size.items()).for_each(|i| _ = writeln!(s, "    var sum{i} = 0.0;")),
        (true, false) => s.push_str("    var sum0 = vec4<f32>(0.0);\n"),
    }
    s
}

fn products(t: &Tile, size: Size) -> String {
    let mut s = String::new();
    // naga's SPIR-V writer wants the places of matrices in names.
    let load = |name: &str, i: usize, along_k: bool, s: &mut String| {
        let (corner, row) = if name == "a" { ("y", "ROW_A") } else { ("x", "ROW_B") };
        let item = format!("({corner} + {}u)", i * size.side);
        let place = if along_k { format!("{item} * {row} + kk") } else { format!("kk * {row} + {item}") };
        let _ = writeln!(s, "                let o{name}{i} = {place};");
        // Lines of a's tile are rows, or columns; of b's, columns, or rows.
        let load = if (name == "a") == along_k { "coopLoadT" } else { "coopLoad" };
        let role = name.to_uppercase();
        for part in parts(size) {
            let _ = writeln!(
                s,
                "                let {name}{i}_{part} = {load}<Matrix{role}>(&t{name}_{part}[o{name}{i}], {row});"
            );
        }
    };
    (0..size.each).for_each(|i| load("a", i, t.a_along_k, &mut s));
    for c in 0..size.each {
        load("b", c, !t.b_along_n, &mut s);
        for r in 0..size.each {
            let terms: &[[&str; 2]] = match size.halves {
                Halves::Split => &[["low", "high"], ["high", "low"], ["high", "high"]],
                _ => &[["high", "high"]],
            };
            for [a, b] in terms {
                let _ =
                    writeln!(s, "                s{r}_{c} = coopMultiplyAdd(a{r}_{a}, b{c}_{b}, s{r}_{c});");
            }
        }
    }
    s
}

/// Adds the matrices' sums to what c holds of the earlier ones, if more k follow.
fn promote(t: &Tile, size: Size) -> String {
    if !t.long {
        return String::new();
    }
    let mut s = format!(
        "            held += DEPTH;\n            \
         if held >= {PROMOTED}u && (k + DEPTH < k1 || batch_sum + 1u < p.batch.y) {{\n{}",
        store(size, "first", "false")
    );
    for r in 0..size.each {
        (0..size.each).for_each(|c| _ = writeln!(s, "    s{r}_{c} = none;"));
    }
    s + "    first = false;\n    held = 0u;\n            }\n"
}

fn store(size: Size, first: &str, last: &str) -> String {
    let Size { each, side, staged, .. } = size;
    let mut s = String::new();
    for r in 0..each {
        for from in (0..each).step_by(staged) {
            for c in from..from + staged {
                let name = format!("place{r}_{c}");
                let _ = writeln!(
                    s,
                    "    let {name} = own + {}u;\n    coopStoreT(s{r}_{c}, &tc[{name}], {}u);",
                    (c - from) * side,
                    staged * side
                );
            }
            let _ = writeln!(
                s,
                "    workgroupBarrier();\n    \
                 store(c0, biases, m0 + {}u, n0 + {}u, local, {first}, {last});\n    workgroupBarrier();",
                r * side,
                from * side
            );
        }
    }
    s
}

fn epilogue(t: &Tile) -> String {
    let bias = four_of(|l| format!("bias[biases + min(n + {l}u, p.n - 1u)]"));
    let finished =
        store_quad(t, "n", &if t.bias { format!("(whole(sum) + {bias})") } else { "whole(sum)".into() });
    if !t.long {
        return finished;
    }
    // Each value of c is its invocation's own.
    let (earlier, later) = if t.c_vector {
        let at = "c[(row + n) >> 2u]";
        (format!("if n < p.n {{ sum += {at}; }}"), format!("if n < p.n {{ {at} = sum; }}"))
    } else {
        let each = |f: &dyn Fn(usize, &str) -> String| -> String {
            ["x", "y", "z", "w"].iter().enumerate().map(|(l, x)| f(l, x)).collect()
        };
        (
            each(&|l, x| format!("if n + {l}u < p.n {{ sum.{x} += c[row + n + {l}u]; }}\n")),
            each(&|l, x| format!("if n + {l}u < p.n {{ c[row + n + {l}u] = sum.{x}; }}\n")),
        )
    };
    format!("    if !first {{ {earlier} }}\n    if !last {{ {later} continue; }}\n{finished}")
}

/// Stores the sums of a's rows, from what each invocation summed of them.
fn sums(t: &Tile, size: Size) -> String {
    if !t.sums {
        return String::new();
    }
    let (edge, all) = (size.edge(), size.edge() * size.depth() / 4);
    let (held, of_row) = if t.a_along_k {
        let held = (0..size.items())
            .map(|i| format!("    tc[local + {0}u] = sum{i};\n", i * size.invocations))
            .collect::<String>();
        let quads = size.lines(true).1;
        (held, format!("for (var i = 0u; i < {quads}u; i++) {{ total += tc[row * {quads}u + i]; }}"))
    } else {
        let held = (0..4).map(|l| format!("    tc[4u * local + {l}u] = sum0[{l}];\n")).collect::<String>();
        let (quads, count) = (edge / 4, all.min(size.invocations));
        let place = "tc[4u * i + row % 4u]";
        (held, format!("for (var i = row / 4u; i < {count}u; i += {quads}u) {{ total += {place}; }}"))
    };
    let target = if t.c_vector { "c[at >> 2u][at & 3u]" } else { "c[at]" };
    format!(
        "{held}    workgroupBarrier();\n    \
         for (var row = local; row < {edge}u; row += SIZE) {{\n    \
         var total = 0.0;\n    {of_row}\n    let at = c0 + p.offset + m0 + row;\n    \
         if n0 == 0u && m0 + row < p.m {{ {target} = total; }}\n    }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::tile::Form;
    use super::super::{Act, Epilogue};
    use super::*;
    use naga::back::spv;
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    /// Most adapters have no such matrices: the texts of all sizes are at least sound, uniform where they must be, and
    /// such that naga can write them, which panics at some that it takes for valid.
    #[test]
    fn every_text_can_be_compiled() {
        let needed = Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
        let halves = [Halves::Rounded, Halves::Scaled, Halves::Split];
        let sizes = [(8, 1, 1), (8, 4, 4), (16, 1, 1), (16, 2, 2), (16, 4, 4), (16, 4, 1)];
        let flag = |n: usize, i: usize| n >> i & 1 == 1;
        for (n, (halves, (side, each, staged))) in
            halves.into_iter().flat_map(|h| sizes.map(|s| (h, s))).enumerate()
        {
            let size = Size { halves, side, each, invocations: 128, staged };
            for loads in 0..8 {
                let odd = flag(loads + n, 0);
                let sums = flag(loads, 2) && halves != Halves::Rounded;
                let epilogues = [Epilogue::Residual, Epilogue::ReluGrad, Epilogue::None, Epilogue::GeluGrad];
                let act = if loads < 4 { Act::Tanh } else { Act::Gelu };
                let tile = Tile {
                    form: Form::Cooperative(size),
                    a_along_k: flag(loads, 0),
                    a_vector: !odd,
                    b_along_n: flag(loads, 1),
                    b_vector: !odd,
                    c_vector: !odd,
                    ragged: odd,
                    bias: !sums,
                    epilogue: if sums { Epilogue::None } else { epilogues[(n + loads) % 4] },
                    sums,
                    long: flag(n + loads / 2, 0),
                    act: if odd && !sums { act } else { Act::None },
                    before: odd && !sums && act == Act::Gelu,
                };
                let text = source(&tile, size);
                let module = naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
                let valid = Validator::new(ValidationFlags::all(), needed)
                    .validate(&module)
                    .unwrap_or_else(|e| panic!("{e:?}\n{text}"));
                let options = spv::Options { lang_version: (1, 4), ..Default::default() };
                let written = spv::write_vec(&module, &valid, &options, None);
                assert!(written.is_ok(), "{:?}\n{text}", written.err());
            }
        }
    }
}
