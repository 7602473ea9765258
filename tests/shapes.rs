//! Random shapes and views: the GPU against f64, forward and backward, where the registry's cases are too few.

mod adapters;
mod half;

use ::half::f16;
use adapters::gpus;
use crossweave::gpu::{Options, Precision};
use crossweave::host::{Ratios, Rng, ratios};
use crossweave::ops::{Act, map, sum_of};
use crossweave::shape::Shape;
use crossweave::tensor::{Device, Tape, Tensor, Viewed};
use half::half;

/// Runs `f` on a device and on the host from the same values; the largest difference of results and
/// gradients, relative past 1.
fn worst(device: &Device, rng: &mut Rng, dims: &[Shape], f: impl Fn(&[Tensor]) -> Tensor) -> f64 {
    // Numbers that f16 holds, so that products in it are as exact as in f32.
    let mut value = || f16::from_f64(rng.normal()).to_f32();
    let data: Vec<Vec<f32>> = dims.iter().map(|s| (0..s.len()).map(|_| value()).collect()).collect();
    let seed = rng.next_u64();
    let run = |device: &Device| {
        let tape = Tape::new();
        let x: Vec<Tensor> = dims.iter().zip(&data).map(|(s, d)| tape.leaf(&device.tensor(*s, d))).collect();
        let y = f(&x);
        let mut rng = Rng::new(seed);
        let g: Vec<f32> = (0..y.len()).map(|_| rng.normal() as f32).collect();
        let grads = tape.backward_from(&y, device.tensor(y.shape(), &g));
        let mut all = vec![y.to_f64().expect("the device works")];
        for x in &x {
            all.push(grads.of(x).map_or(vec![0.0; x.len()], |g| g.to_f64().expect("the device works")));
        }
        all
    };
    let (got, want) = (run(device), run(&Device::Host));
    let pairs = got.iter().zip(&want).map(|(a, b)| {
        let r = ratios(a, b);
        // Few values may cancel: their error is then small beside the terms, which are near 1.
        let near = |r: Ratios| r.max * r.scale / r.scale.max(1.0);
        if b.iter().all(|v| *v == 0.0) { r.size } else { near(r) }
    });
    pairs.fold(0.0, |m: f64, r| if m.is_nan() || r.is_nan() { f64::NAN } else { m.max(r) })
}

fn check(what: &str, device: &Device, rng: &mut Rng, dims: &[Shape], f: impl Fn(&[Tensor]) -> Tensor) {
    let far = worst(device, rng, dims, f);
    // Gradients are no numbers that f16 holds.
    let half = device.gpu().is_some_and(|gpu| gpu.precision() == Precision::F16);
    let bound = if half { 3e-3 } else { 1e-5 };
    assert!(far < bound, "{what} of {dims:?}: {far:.1e} from f64");
}

/// Lengths that meet every edge: below, at and above a vector and a tile.
fn length(rng: &mut Rng) -> usize {
    const LENGTHS: [usize; 16] = [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 20, 24, 33, 36];
    LENGTHS[rng.below(LENGTHS.len())]
}

#[test]
fn products_of_any_shape() {
    for gpu in gpus(&Options::default()).into_iter().chain(half()) {
        let device = Device::Gpu(gpu);
        let mut rng = Rng::new(21);
        for _ in 0..30 {
            let [m, n, k] = [0; 3].map(|_| length(&mut rng));
            let (ta, tb) = (rng.below(2) == 1, rng.below(2) == 1);
            let a = if ta { [k, m] } else { [m, k] };
            let b = if tb { [n, k] } else { [k, n] };
            let (outer, inner) = (1 + rng.below(3), 1 + rng.below(3));
            let side = |own: [usize; 2], rng: &mut Rng| {
                // A side that repeats over one batch axis has length 1 there.
                let lead = [[outer, inner], [1, inner], [outer, 1]][rng.below(3)];
                Shape::new(&[lead[0], lead[1], own[0], own[1]])
            };
            let (a, b) = (side(a, &mut rng), side(b, &mut rng));
            check("matmul", &device, &mut rng, &[a, b], |x| x[0].matmul(&x[1], ta, tb));
            let act = [Act::None, Act::Relu, Act::Tanh][rng.below(3)];
            let dims = [Shape::new(&[outer, m, k]), Shape::new(&[n, k]), Shape::new(&[n])];
            check("linear", &device, &mut rng, &dims, |x| x[0].linear(&x[1], Some(&x[2]), act));
        }
    }
}

/// A view of rank 3 made by random steps, and what it is a view of.
fn view_of(x: &Tensor, steps: &[(usize, usize, usize, usize)], shape: Shape) -> Viewed {
    let mut v = x.view();
    for (kind, axis, a, b) in steps {
        let n = v.shape()[*axis];
        v = match kind {
            0 => v.permute(&[[1, 0, 2], [2, 1, 0], [0, 2, 1]][*axis]),
            1 => v.slice(*axis, a % n, (n - a % n).min(b + 1)),
            _ => v.pad(*axis, *a % 5, *b % 5),
        };
    }
    // Cut or padded to the shape wanted, so that several views meet.
    for axis in 0..3 {
        let (n, wanted) = (v.shape()[axis], shape[axis]);
        v = if n > wanted { v.slice(axis, n - wanted, wanted) } else { v.pad(axis, 0, wanted - n) };
    }
    v
}

#[test]
fn formulas_over_any_views() {
    for gpu in gpus(&Options::default()) {
        let device = Device::Gpu(gpu);
        let mut rng = Rng::new(22);
        for _ in 0..25 {
            let shape = |rng: &mut Rng| Shape::new(&[1 + rng.below(9), length(rng), length(rng)]);
            let (sa, sb, out) = (shape(&mut rng), shape(&mut rng), shape(&mut rng));
            let steps = |rng: &mut Rng| {
                let step = |_| (rng.below(3), rng.below(3), rng.below(9), rng.below(17));
                (0..3).map(step).collect::<Vec<_>>()
            };
            let (of_a, of_b) = (steps(&mut rng), steps(&mut rng));
            let views = |x: &[Tensor]| vec![view_of(&x[0], &of_a, out), view_of(&x[1], &of_b, out)];
            check(&format!("map over {of_a:?} and {of_b:?}"), &device, &mut rng, &[sa, sb], |x| {
                map(views(x), |x| &x[0] * x[1].tanh() + &x[0])
            });
            for axis in 0..3 {
                check(&format!("sum {axis} over {of_a:?} and {of_b:?}"), &device, &mut rng, &[sa, sb], |x| {
                    sum_of(views(x), axis, |x| &x[0] * &x[1] + &x[0])
                });
            }
        }
    }
}

#[test]
fn rows_of_any_shape() {
    for gpu in gpus(&Options::default()) {
        let device = Device::Gpu(gpu);
        let mut rng = Rng::new(23);
        for _ in 0..15 {
            let dims = [Shape::new(&[1 + rng.below(9), length(&mut rng), length(&mut rng)])];
            for axis in [0, 1, 2] {
                check("softmax", &device, &mut rng, &dims, |x| x[0].softmax(axis, 2.0));
                check("l2norm", &device, &mut rng, &dims, |x| x[0].l2norm_plus(axis, 1e-3));
                check("max", &device, &mut rng, &dims, |x| x[0].max(axis));
            }
            let channels = Shape::new(&[dims[0].last()]);
            check("layer_norm", &device, &mut rng, &[dims[0], channels, channels], |x| {
                x[0].layer_norm(&x[1], &x[2], 0.5)
            });
        }
    }
}

#[test]
fn broadcasts_of_any_shape() {
    for gpu in gpus(&Options::default()) {
        let device = Device::Gpu(gpu);
        let mut rng = Rng::new(24);
        for _ in 0..40 {
            let rank = 1 + rng.below(5);
            let whole: Vec<usize> = (0..rank).map(|_| 1 + rng.below(8)).collect();
            let part = |rng: &mut Rng| {
                let from = rng.below(rank + 1);
                let dims: Vec<usize> =
                    whole[from..].iter().map(|n| if rng.below(3) == 0 { 1 } else { *n }).collect();
                Shape::new(&dims)
            };
            let dims = [part(&mut rng), part(&mut rng), part(&mut rng)];
            check("broadcast", &device, &mut rng, &dims, |x| {
                x[0].map3(&x[1], &x[2], |a, b, c| a * b + c.sigmoid())
            });
        }
    }
}
