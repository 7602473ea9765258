//! The text of products on cooperative matrices: operands rounded to f16, sums in f32.

use std::fmt::Write;

use super::block::fetches;
use super::lanes::{bindings, four_of, store_quad};
use super::tile::Tile;
use super::{Act, COOPERATIVE};
use crate::ops::codegen::{fill, pointwise};

/// A workgroup of four subgroups (or more that repeat their work), each `each x each` matrices of `side x side`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Size {
    pub(super) side: usize,
    pub(super) each: usize,
    pub(super) invocations: usize,
    pub(super) subgroups: usize,
}

/// The kernel's text for a tile.
pub(super) fn source(t: &Tile, size: Size) -> String {
    let Size { side, each, invocations, subgroups } = size;
    let mut sizes = format!(
        "const SIDE = {side}u;\nconst EACH = {each}u;\nconst SIZE = {invocations}u;\n\
         const SUBGROUPS = {subgroups}u;\n"
    );
    for (role, element) in [("A", "f16"), ("B", "f16"), ("C", "f32")] {
        let _ = writeln!(sizes, "alias Matrix{role} = coop_mat{side}x{side}<{element}, {role}>;");
    }
    let text = fill(
        COOPERATIVE.text,
        &[
            ("bindings", &bindings(t)),
            ("sizes", &sizes),
            ("fetch", &fetches(t)),
            ("epilogue", &epilogue(t)),
            ("start", &start(each)),
            ("products", &products(each)),
            ("store", &store(each)),
        ],
    );
    match t.act {
        Act::Tanh | Act::TanhRelu => format!("{text}{}", pointwise(true)),
        _ => text,
    }
}

fn start(each: usize) -> String {
    let name = |i: usize| format!("    var s{}_{}: MatrixC;\n", i / each, i % each);
    (0..each * each).map(name).collect()
}

fn products(each: usize) -> String {
    let mut s = String::new();
    for i in 0..each {
        let _ = writeln!(s, "    let a{i} = coopLoad<MatrixA>(&ta[kk * ROW + y + {i}u * SIDE], ROW);");
        let _ = writeln!(s, "    let b{i} = coopLoadT<MatrixB>(&tb[kk * ROW + x + {i}u * SIDE], ROW);");
    }
    for r in 0..each {
        for c in 0..each {
            let _ = writeln!(s, "    s{r}_{c} = coopMultiplyAdd(a{r}, b{c}, s{r}_{c});");
        }
    }
    s
}

fn store(each: usize) -> String {
    let mut s = String::new();
    for r in 0..each {
        for c in 0..each {
            let _ = writeln!(
                s,
                "    coopStoreT(s{r}_{c}, &tc[own], SIDE);\n    workgroupBarrier();\n    \
                 store(c0, biases, m0 + {r}u * SIDE, n0 + {c}u * SIDE, local);\n    workgroupBarrier();"
            );
        }
    }
    s
}

fn epilogue(t: &Tile) -> String {
    let bias = four_of(|l| format!("bias[biases + min(n + {l}u, p.n - 1u)]"));
    store_quad(t, "n", &if t.bias { format!("(sum + {bias})") } else { "sum".into() })
}

#[cfg(test)]
mod tests {
    use super::super::Epilogue;
    use super::super::tile::Form;
    use super::*;
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    /// Most adapters have no such matrices: the texts of all sizes are at least sound, and uniform where they must be.
    #[test]
    fn every_text_is_valid() {
        let needed = Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
        for (side, each) in [(8, 1), (8, 4), (16, 2), (16, 4)] {
            for odd in [false, true] {
                let size = Size { side, each, invocations: 128, subgroups: 4 };
                let act = if odd { Act::Tanh } else { Act::Relu };
                let tile = Tile {
                    form: Form::Cooperative(size),
                    a_along_k: !odd,
                    a_vector: !odd,
                    b_along_n: odd,
                    b_vector: !odd,
                    c_vector: !odd,
                    ragged: odd,
                    bias: true,
                    epilogue: if odd { Epilogue::Residual } else { Epilogue::None },
                    sums: false,
                    act,
                };
                let text = source(&tile, size);
                let module = naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
                let valid = Validator::new(ValidationFlags::all(), needed).validate(&module);
                assert!(valid.is_ok(), "{:?}\n{text}", valid.err());
            }
        }
    }
}
