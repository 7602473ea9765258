//! The cases of products.

use super::{Act, Linears};
use crate::ops::registry::{Case, case, sums};
use crate::tensor::Tensor;

/// Rows, and weights and biases of two maps and of two that follow them.
const MAPS_OF_ROWS: &[&[usize]] =
    &[&[2, 30, 12], &[8, 12], &[8], &[8, 12], &[8], &[4, 8], &[4], &[4, 8], &[4]];
const MAPS_OF_ONE: &[&[usize]] = &[&[1, 30, 7], &[5, 7], &[5], &[5, 7], &[5], &[3, 5], &[3], &[3, 5], &[3]];

fn two_layers(x: &[Tensor]) -> Tensor {
    let maps = |i: usize| Linears::new(&[[&x[i], &x[i + 1]], [&x[i + 2], &x[i + 3]]]);
    maps(1).mlps(&maps(5), &x[0], Act::TanhRelu)
}

pub(in crate::ops) fn cases() -> Vec<Case> {
    let linear: fn(&[Tensor]) -> Tensor = |x| x[0].linear(&x[1], Some(&x[2]), Act::None);
    vec![
        case("matmul", "linear", &[&[8, 36, 64], &[48, 64], &[48]], sums(64), linear),
        case("matmul", "linear, odd", &[&[5, 37], &[3, 37], &[3]], sums(37), linear),
        case("matmul", "linear with tanh", &[&[33, 20], &[8, 20], &[8]], sums(20), |x| {
            x[0].linear(&x[1], Some(&x[2]), Act::Tanh)
        }),
        case("matmul", "linear with relu", &[&[33, 20], &[8, 20]], sums(20), |x| {
            x[0].linear(&x[1], None, Act::Relu)
        }),
        case(
            "matmul",
            "two maps around which their input goes",
            &[&[5, 33, 20], &[12, 20], &[12], &[20, 12], &[20]],
            sums(33),
            |x| x[0].linear(&x[1], Some(&x[2]), Act::None).linear_plus(&x[3], &x[4], &x[0]),
        ),
        case(
            "matmul",
            "three maps of one around which it goes",
            &[&[33, 20], &[20, 20], &[20], &[20, 20], &[20]],
            sums(33),
            |x| {
                let maps = Linears::new(&[[&x[1], &x[2]], [&x[3], &x[4]]]).concat(&x[0]);
                super::super::map(
                    vec![maps.view().slice(1, 0, 20), maps.view().slice(1, 20, 20), x[0].view()],
                    |v| &v[0] * &v[1] + &v[2],
                )
            },
        ),
        case(
            "matmul",
            "two maps, of long sums, around which their input goes",
            &[&[33, 20], &[600, 20], &[600], &[20, 600], &[20]],
            sums(600),
            |x| x[0].linear(&x[1], Some(&x[2]), Act::None).linear_plus(&x[3], &x[4], &x[0]),
        ),
        case("matmul", "scores of heads beside a map", &[&[3, 5, 8], &[3, 7, 8], &[8, 8]], sums(24), |x| {
            let scores = x[0].head_scores(&x[1], 2, 0.3).sum(-1).reshape([3, 10, 1]);
            let mapped = x[0].linear(&x[2], None, Act::None).reshape([3, 10, 4]);
            super::super::map(vec![scores.view().squeeze(2).repeat(2, 4), mapped.view()], |v| &v[0] + &v[1])
        }),
        case("matmul", "linear with a residual", &[&[33, 20], &[12, 20], &[12], &[33, 12]], sums(33), |x| {
            x[0].linear_plus(&x[1], &x[2], &x[3])
        }),
        case(
            "matmul",
            "linear with a residual, odd",
            &[&[33, 20], &[5, 20], &[5], &[33, 5]],
            sums(33),
            |x| x[0].linear_plus(&x[1], &x[2], &x[3]),
        ),
        case(
            "matmul",
            "linear with a residual, long",
            &[&[33, 1100], &[20, 1100], &[20], &[33, 20]],
            sums(1100),
            |x| x[0].linear_plus(&x[1], &x[2], &x[3]),
        ),
        case("matmul", "long and odd", &[&[2, 17, 1027], &[2, 13, 1027]], sums(1027), |x| {
            x[0].matmul(&x[1], false, true)
        }),
        case("matmul", "two maps", &[&[33, 20], &[12, 20], &[12], &[8, 12], &[8], &[33, 8]], sums(33), |x| {
            x[0].mlp([&x[1], &x[2]], Act::Relu, [&x[3], &x[4]], Act::None, Some(&x[5]))
        }),
        case(
            "matmul",
            "two maps and a GELU",
            &[&[33, 20], &[12, 20], &[12], &[8, 12], &[8], &[33, 8]],
            sums(33),
            |x| x[0].mlp([&x[1], &x[2]], Act::Gelu, [&x[3], &x[4]], Act::None, Some(&x[5])),
        ),
        case(
            "matmul",
            "two maps and a GELU, odd",
            &[&[33, 20], &[7, 20], &[7], &[3, 7], &[3]],
            sums(33),
            |x| x[0].mlp([&x[1], &x[2]], Act::Gelu, [&x[3], &x[4]], Act::TanhRelu, None),
        ),
        case(
            "matmul",
            "several tiles of two maps and a GELU",
            &[&[150, 72], &[136, 72], &[136], &[72, 136], &[72]],
            sums(150),
            |x| x[0].mlp([&x[1], &x[2]], Act::Gelu, [&x[3], &x[4]], Act::None, None),
        ),
        case(
            "matmul",
            "two maps and a GELU of nothing tracked",
            &[&[33, 20], &[12, 20], &[12], &[8, 12], &[8]],
            sums(33),
            |x| x[0].mlp([&x[1], &x[2]], Act::Gelu, [&x[3], &x[4]], Act::None, None),
        )
        .untracked(),
        case("matmul", "two maps, odd", &[&[33, 20], &[7, 20], &[7], &[3, 7], &[3]], sums(33), |x| {
            x[0].mlp([&x[1], &x[2]], Act::Relu, [&x[3], &x[4]], Act::TanhRelu, None)
        }),
        case("matmul", "rows that share a side", &[&[3, 4, 9, 16], &[3, 1, 36, 16]], sums(36), |x| {
            x[0].matmul(&x[1], false, true)
        }),
        case("matmul", "several tiles", &[&[150, 72], &[136, 72], &[136]], sums(150), linear),
        case("matmul", "several tiles, odd", &[&[139, 67], &[133, 67], &[133]], sums(139), linear),
        case("matmul", "several tiles, first transposed", &[&[68, 140], &[68, 132]], sums(140), |x| {
            x[0].matmul(&x[1], true, false)
        }),
        case("matmul", "several tiles, both transposed", &[&[2, 37, 141], &[2, 70, 37]], sums(141), |x| {
            x[0].matmul(&x[1], true, true)
        }),
        case("matmul", "one row", &[&[1, 255], &[257, 255]], sums(257), |x| {
            x[0].linear(&x[1], None, Act::None)
        }),
        case("matmul", "batched", &[&[6, 36, 20], &[6, 20, 12]], sums(36), |x| {
            x[0].matmul(&x[1], false, false)
        }),
        case("matmul", "second transposed", &[&[5, 7, 36], &[5, 9, 36]], sums(36), |x| {
            x[0].matmul(&x[1], false, true)
        }),
        case("matmul", "first transposed", &[&[5, 36, 8], &[5, 36, 12]], sums(36), |x| {
            x[0].matmul(&x[1], true, false)
        }),
        case("matmul", "both transposed", &[&[2, 9, 5], &[2, 7, 9]], sums(9), |x| {
            x[0].matmul(&x[1], true, true)
        }),
        case("matmul", "every image with every caption", &[&[4, 1, 36, 16], &[1, 3, 7, 16]], sums(64), |x| {
            x[0].matmul(&x[1], false, true)
        }),
        case("matmul", "weights repeat over images", &[&[4, 3, 36, 8], &[3, 8, 20]], sums(144), |x| {
            x[0].matmul(&x[1].reshape([1, 3, 8, 20]), false, false)
        }),
        case("matmul", "a long sum in splits", &[&[4096, 20], &[4096, 12]], sums(4096), |x| {
            x[0].matmul(&x[1], true, false)
        }),
        case("matmul", "heads", &[&[6, 36, 32], &[6, 12, 32]], sums(36), |x| {
            let p = x[0].head_scores(&x[1], 4, 0.25);
            p.head_mix(&x[1])
        }),
        case("matmul", "one head of odd width", &[&[2, 5, 7], &[2, 3, 7]], sums(7), |x| {
            x[0].head_scores(&x[1], 1, 0.5).head_mix(&x[1])
        }),
        case("matmul", "maps concatenated", &[&[5, 7, 12], &[8, 12], &[8], &[8, 12], &[8]], sums(70), |x| {
            Linears::new(&[[&x[1], &x[2]], [&x[3], &x[4]]]).concat(&x[0])
        }),
        case(
            "matmul",
            "maps concatenated, odd",
            &[&[9, 5], &[3, 5], &[3], &[3, 5], &[3], &[3, 5], &[3]],
            sums(27),
            |x| Linears::new(&[[&x[1], &x[2]], [&x[3], &x[4]], [&x[5], &x[6]]]).concat(&x[0]),
        ),
        case("matmul", "two layers of maps with rows of their own", MAPS_OF_ROWS, sums(60), two_layers),
        case("matmul", "two layers of maps, odd, of the same rows", MAPS_OF_ONE, sums(60), two_layers),
        case("matmul", "large", &[&[1152, 256], &[256, 256], &[256]], sums(1152), linear).bench(),
    ]
}
