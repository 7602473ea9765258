//! The text of products for GPUs: a workgroup shares tiles of both operands in its memory.

use std::fmt::Write;

use super::BLOCK;
use super::lanes::{bindings, formulas, four_of, store_quad};
use super::tile::Tile;
use crate::ops::codegen::fill;

/// The kernel's text for a tile.
pub(super) fn source(t: &Tile, side: usize, halves: usize) -> String {
    let sizes = format!("const SIDE = {side}u;\nconst QUADS = {}u;", side * halves);
    let text = fill(
        BLOCK.text,
        &[
            ("bindings", &bindings(t)),
            ("sizes", &sizes),
            ("fetch", &fetches(t)),
            ("start", &start(t, side, halves)),
            ("products", &products(t, side, halves)),
            ("store", &store(t, side, halves)),
        ],
    );
    text + &formulas(t)
}

/// An operand's layout and names in its fetching function.
struct Operand {
    name: &'static str,
    /// Its rows (of a) or columns (of b), and how many there are.
    item: &'static str,
    count: &'static str,
    /// Strides of an item and of k.
    strides: [&'static str; 2],
    /// Contiguous along k (else along its items), and read four at a time.
    along_k: bool,
    vector: bool,
}

/// How both operands are fetched: four k of four rows of a, or columns of b.
pub(super) fn fetches(t: &Tile) -> String {
    let (strides, along_k, vector) = (["p.a.w", "p.a_col"], t.a_along_k, t.a_vector);
    let a = fetch(&Operand { name: "a", item: "m", count: "p.m", strides, along_k, vector });
    let (strides, along_k, vector) = (["p.b_col", "p.b.w"], !t.b_along_n, t.b_vector);
    let b = fetch(&Operand { name: "b", item: "n", count: "p.n", strides, along_k, vector });
    a + &b
}

/// Neighbouring invocations fetch neighbours in memory. Items past the edge read the last ones; k past the
/// end are zero.
fn fetch(o: &Operand) -> String {
    let Operand { name, item, count, strides: [across, down], along_k, vector } = *o;
    let place = if along_k { "item / 4u, item % 4u" } else { "item % QUADS, item / QUADS" };
    let mut s = format!(
        "fn place_{name}(item: u32) -> vec2<u32> {{ return vec2<u32>({place}); }}\n\
         fn fetch_{name}(origin: u32, {item}: u32, k: u32, end: u32) -> Four {{\n"
    );
    match (vector, along_k) {
        (true, true) => {
            for r in 0..4 {
                let at = format!("origin + min({item} + {r}u, {count} - 1u) * {across} + k");
                let _ = writeln!(s, "    let v{r} = select(vec4<f32>(0.0), {name}[({at}) >> 2u], k < end);");
            }
            let turned = ["x", "y", "z", "w"].map(|x| four_of(|r| format!("v{r}.{x}")));
            let _ = writeln!(s, "    return Four({});", turned.join(", "));
        }
        (true, false) => {
            let part = |j: usize| {
                let at = format!("origin + (k + {j}u) * {down} + min({item}, {count} - 4u)");
                format!("select(vec4<f32>(0.0), {name}[({at}) >> 2u], k + {j}u < end)")
            };
            let _ = writeln!(s, "    return Four({}, {}, {}, {});", part(0), part(1), part(2), part(3));
        }
        (false, _) => {
            let part = |j: usize| {
                four_of(|r| {
                    let at =
                        format!("origin + min({item} + {r}u, {count} - 1u) * {across} + (k + {j}u) * {down}");
                    format!("select(0.0, {name}[{at}], k + {j}u < end)")
                })
            };
            let _ = writeln!(s, "    return Four({}, {}, {}, {});", part(0), part(1), part(2), part(3));
        }
    }
    s + "}\n"
}

fn start(t: &Tile, side: usize, halves: usize) -> String {
    let mut s = String::new();
    if t.sums {
        (0..halves).for_each(|h| _ = writeln!(s, "    var sum{h} = vec4<f32>(0.0);"));
    }
    for g in 0..halves {
        let column = |l: usize| format!("bias[biases + min(n0 + 4u * (x + {}u) + {l}u, p.n - 1u)]", g * side);
        let start = if t.bias { four_of(column) } else { "vec4<f32>(0.0)".into() };
        let _ = writeln!(s, "    let start{g} = {start};");
        for r in 0..4 * halves {
            let _ = writeln!(s, "    var s{r}_{g} = start{g};");
        }
    }
    s
}

fn products(t: &Tile, side: usize, halves: usize) -> String {
    let mut s = String::new();
    for h in 0..halves {
        let _ = writeln!(s, "    let va{h} = ta[kk * QUADS + y + {}u];", h * side);
        let _ = writeln!(s, "    let vb{h} = tb[kk * QUADS + x + {}u];", h * side);
        if t.sums {
            let _ = writeln!(s, "    sum{h} += va{h};");
        }
    }
    for r in 0..4 * halves {
        let a = format!("va{}.{}", r / 4, ["x", "y", "z", "w"][r % 4]);
        for g in 0..halves {
            let _ = writeln!(s, "    s{r}_{g} = fma(vec4<f32>({a}), vb{g}, s{r}_{g});");
        }
    }
    s
}

fn store(t: &Tile, side: usize, halves: usize) -> String {
    let mut s = String::new();
    for r in 0..4 * halves {
        let m = format!("m0 + 4u * (y + {}u) + {}u", r / 4 * side, r % 4);
        let _ = writeln!(s, "    if {m} < p.m {{\n    let row = c0 + ({m}) * p.c.w;");
        for g in 0..halves {
            s += &store_quad(t, &format!("n0 + 4u * (x + {}u)", g * side), &format!("s{r}_{g}"));
        }
        s.push_str("    }\n");
    }
    if t.sums {
        for h in 0..halves {
            let m = format!("m0 + 4u * (y + {}u)", h * side);
            let at = format!("c0 + p.offset + {m}");
            if t.c_vector {
                let store = format!("c[({at}) >> 2u] = sum{h};");
                let _ = writeln!(s, "    if n0 + x == 0u && {m} < p.m {{ {store} }}");
                continue;
            }
            for (l, x) in ["x", "y", "z", "w"].iter().enumerate() {
                let store = format!("c[{at} + {l}u] = sum{h}.{x};");
                let _ = writeln!(s, "    if n0 + x == 0u && {m} + {l}u < p.m {{ {store} }}");
            }
        }
    }
    s
}
