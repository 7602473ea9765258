//! Every op's cases in one list. The tests, `crossweave selftest` and the benches read it: a new op adds its
//! rows here and gets the GPU against f64 both ways, finite differences, repeatability and a bench row.

use super::{
    Act, Attend, Expr, Linears, OverQueries, WordsAre, map, materialize, pack, route, route_shares, stack,
    sum_of,
};
use crate::error::Result;
use crate::gpu::Precision;
use crate::host::{Array, Rng, ratios};
use crate::shape::Shape;
use crate::tensor::{Device, Tape, Tensor, Viewed};

/// How an input's values are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Standard normal.
    Normal,
    /// Uniform in these bounds.
    Uniform(f64, f64),
    /// Whole numbers below the bound: ids and lengths; no gradient is asked.
    Whole(usize),
    /// From a coarse grid, so that ties are common; no finite differences.
    Grid,
    /// Normal times 1e4 with zeros among them; no finite differences.
    Extreme,
}

/// One op on inputs of certain shapes.
pub struct Case {
    /// The op's name.
    pub op: &'static str,
    /// What this case is about.
    pub about: &'static str,
    /// The inputs.
    pub inputs: Vec<(Shape, Values)>,
    /// Calls the op.
    pub run: fn(&[Tensor]) -> Tensor,
    /// The largest norm ratio of the result in f32, and (ten times this) of the inf-norm.
    pub bound: f64,
    /// Whether `cargo bench` times it.
    pub bench: bool,
}

/// How a case fared.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The forward result's worst ratio to the f64 definition.
    pub forward: f64,
    /// The gradients' worst ratio to the f64 gradients.
    pub backward: f64,
    /// Whether a second run gave the same bits.
    pub repeats: bool,
}

impl Outcome {
    /// Whether the case holds at `bound` (gradients accumulate: four times it).
    pub fn passes(&self, bound: f64) -> bool {
        self.forward <= bound && self.backward <= 4.0 * bound && self.repeats
    }
}

/// Products under [`Precision::F16`]: each operand is off by up to 2^-11, at random in sign, whatever the length of the
/// sum (measured: 2.5e-4 to 3.5e-4).
const HALF: f64 = 1e-3;

/// Pointwise results.
const POINT: f64 = 2e-6;

/// Sums of `k` terms.
fn sums(k: usize) -> f64 {
    4e-7 * (k as f64).sqrt().max(5.0)
}

fn case(
    op: &'static str,
    about: &'static str,
    dims: &[&[usize]],
    bound: f64,
    run: fn(&[Tensor]) -> Tensor,
) -> Case {
    let inputs = dims.iter().map(|d| (Shape::new(d), Values::Normal)).collect();
    Case { op, about, inputs, run, bound, bench: false }
}

impl Case {
    fn with(mut self, i: usize, values: Values) -> Self {
        self.inputs[i].1 = values;
        self
    }

    fn all(mut self, values: Values) -> Self {
        self.inputs.iter_mut().for_each(|x| x.1 = values);
        self
    }

    fn bench(mut self) -> Self {
        self.bench = true;
        self
    }

    /// The inputs' values, the same for a seed.
    pub fn draw(&self, seed: u64) -> Vec<Array> {
        let mut rng = Rng::of(seed, &[self.inputs.len() as u64]);
        let mut value = |values: Values| match values {
            Values::Normal => rng.normal(),
            Values::Uniform(low, high) => rng.range(low, high),
            Values::Whole(n) => rng.below(n) as f64,
            Values::Grid => rng.below(5) as f64 / 4.0 - 0.5,
            Values::Extreme if rng.below(8) == 0 => 0.0,
            Values::Extreme => 1e4 * rng.normal(),
        };
        let round = |v: f64| f64::from(v as f32);
        self.inputs
            .iter()
            .map(|(shape, values)| {
                Array::new(*shape, (0..shape.len()).map(|_| round(value(*values))).collect())
            })
            .collect()
    }

    /// The bound on a device: its own, or that of products of f16 operands.
    pub fn bound_on(&self, device: &Device) -> f64 {
        let half = device.gpu().is_some_and(|gpu| gpu.precision() == Precision::F16);
        if half && self.op == "matmul" { self.bound.max(HALF) } else { self.bound }
    }

    fn differentiable(&self, i: usize) -> bool {
        !matches!(self.inputs[i].1, Values::Whole(_))
    }

    /// Runs forward, and backward with a random gradient, where `device` is: the result and the gradients
    /// of the inputs that have one.
    ///
    /// # Errors
    /// What the device reports.
    pub fn evaluate(&self, device: &Device, x: &[Array], seed: u64) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
        let tape = Tape::new();
        let leaves: Vec<Tensor> = x
            .iter()
            .enumerate()
            .map(|(i, a)| {
                let t = device.tensor(a.shape, &a.to_f32());
                if self.differentiable(i) { tape.leaf(&t) } else { t }
            })
            .collect();
        let y = (self.run)(&leaves);
        let mut rng = Rng::of(seed, &[99]);
        let g: Vec<f32> = (0..y.len()).map(|_| rng.normal() as f32).collect();
        let grads = tape.backward_from(&y, device.tensor(y.shape(), &g));
        let of = |t: &Tensor| grads.of(t).map_or(Ok(vec![0.0; t.len()]), Tensor::to_f64);
        let wanted = (0..x.len()).filter(|i| self.differentiable(*i));
        Ok((y.to_f64()?, wanted.map(|i| of(&leaves[i])).collect::<Result<_>>()?))
    }

    /// Compares a device with the f64 definition.
    ///
    /// # Errors
    /// What the device reports.
    pub fn check(&self, device: &Device, seed: u64) -> Result<Outcome> {
        let x = self.draw(seed);
        let (want, want_grads) = self.evaluate(&Device::Host, &x, seed)?;
        let (y, grads) = self.evaluate(device, &x, seed)?;
        let again = self.evaluate(device, &x, seed)?;
        let scale = |g: &[f64]| g.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let largest = want_grads.iter().map(|g| scale(g)).fold(0.0, f64::max);
        let backward = grads
            .iter()
            .zip(&want_grads)
            // A gradient that is zero by mathematics is noise in f32: it must be small beside the others.
            .map(|(g, w)| if scale(w) < 1e-9 * largest { scale(g) / largest } else { ratios(g, w).worst() })
            .fold(0.0, |m: f64, r| if r.is_nan() || m.is_nan() { f64::NAN } else { m.max(r) });
        let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let repeats =
            bits(&y) == bits(&again.0) && grads.iter().zip(&again.1).all(|(a, b)| bits(a) == bits(b));
        Ok(Outcome { forward: ratios(&y, &want).worst(), backward, repeats })
    }

    /// The largest relative difference between the f64 gradients and central differences along random
    /// directions; `None` where differences mean nothing (ties, extremes).
    ///
    /// # Errors
    /// None on the host.
    pub fn differences(&self, seed: u64) -> Result<Option<f64>> {
        if self.inputs.iter().any(|(_, v)| matches!(v, Values::Grid | Values::Extreme)) {
            return Ok(None);
        }
        let x = self.draw(seed);
        let (y, grads) = self.evaluate(&Device::Host, &x, seed)?;
        let mut rng = Rng::of(seed, &[99]);
        let g: Vec<f64> = (0..y.len()).map(|_| f64::from(rng.normal() as f32)).collect();
        let wanted: Vec<usize> = (0..x.len()).filter(|i| self.differentiable(*i)).collect();
        let mut worst = 0.0f64;
        for _ in 0..3 {
            let along: Vec<Vec<f64>> =
                wanted.iter().map(|i| (0..x[*i].data.len()).map(|_| rng.normal()).collect()).collect();
            let h = 1e-5;
            let at = |sign: f64| {
                let mut moved: Vec<Tensor> = x.iter().map(|a| Tensor::on_host(a.clone())).collect();
                for (i, d) in wanted.iter().zip(&along) {
                    let data = x[*i].data.iter().zip(d).map(|(v, d)| v + sign * h * d).collect();
                    moved[*i] = Tensor::on_host(Array::new(x[*i].shape, data));
                }
                Ok((self.run)(&moved).to_f64()?.iter().zip(&g).map(|(y, g)| y * g).sum::<f64>())
            };
            let slope = (at(1.0)? - at(-1.0)?) / (2.0 * h);
            let exact: f64 =
                grads.iter().zip(&along).map(|(g, d)| g.iter().zip(d).map(|(g, d)| g * d).sum::<f64>()).sum();
            let norm: f64 = grads.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
            worst = worst.max((slope - exact).abs() / norm.max(1e-3));
        }
        Ok(Some(worst))
    }
}

/// Every case of every op.
pub fn cases() -> Vec<Case> {
    let mut all = pointwise();
    all.extend(reductions());
    all.extend(products());
    all.extend(attend());
    all.extend(attention());
    all.extend(rows());
    all.extend(routing());
    all.extend(top());
    all
}

fn top() -> Vec<Case> {
    vec![
        case("top", "of columns", &[&[5, 9, 12]], POINT, |x| x[0].top(2, 1)).bench(),
        case("top", "of rows, all of them", &[&[7, 10]], POINT, |x| x[0].top(10, -1)),
        case("top", "equal values", &[&[6, 11, 3]], POINT, |x| x[0].top(4, 1)).all(Values::Grid),
        case("top", "to lengths, fewer than are asked", &[&[4, 8, 5], &[2]], POINT, |x| {
            x[0].top_to(3, 1, &x[1], 2)
        })
        .with(1, Values::Whole(9)),
    ]
}

fn pointwise() -> Vec<Case> {
    vec![
        case("map", "one input, in fours", &[&[64, 256]], POINT, |x| x[0].map(|x| x.gelu())).bench(),
        case("map", "odd length", &[&[257]], POINT, |x| x[0].map(|x| x.tanh() + x.sigmoid())),
        case("map", "extremes", &[&[3, 84]], POINT, |x| {
            x[0].map(|x| x.tanh() + x.sigmoid() + x.gelu() * 1e-4 + x.softplus() * 1e-4)
        })
        .all(Values::Extreme),
        case("map", "near zero", &[&[1024]], POINT, |x| x[0].map(|x| x.tanh() + x.erf()))
            .all(Values::Uniform(-0.1, 0.1)),
        case("map", "erf between its two fits", &[&[4096]], 2e-7, |x| x[0].map(|x| x.erf()))
            .all(Values::Uniform(-5.0, 5.0)),
        case("map", "exp, log, roots", &[&[5, 36]], POINT, |x| {
            x[0].map(|x| x.exp() + x.log() * x.sqrt() + x.rsqrt())
        })
        .all(Values::Uniform(0.1, 4.0)),
        case("map", "kinks", &[&[7, 32], &[7, 32]], POINT, |x| {
            x[0].map2(&x[1], |a, b| a.max(b) + a.min(0.5) + b.leaky_relu(0.1) + a.abs() * b.sign())
        }),
        case("map", "bias over rows", &[&[37, 36], &[36]], POINT, |x| x[0].map2(&x[1], |a, b| a * b + b)),
        case("map", "a scalar and a column", &[&[5, 3, 8], &[], &[3, 1]], POINT, |x| {
            x[0].map3(&x[1], &x[2], |a, s, c| a * s + c / (s * s + 1.0))
        }),
        case("map", "outer product", &[&[7, 1, 5], &[1, 3, 1]], POINT, |x| x[0].map2(&x[1], |a, b| a * b)),
        case("map", "permuted", &[&[3, 5, 8], &[8, 3, 5]], POINT, |x| {
            map(vec![x[0].view().permute(&[2, 0, 1]), x[1].view()], |x| &x[0] * &x[1])
        }),
        case("map", "sliced and padded", &[&[4, 12], &[4, 6]], POINT, |x| {
            map(vec![x[0].view().slice(1, 3, 8), x[1].view().pad(1, 2, 0)], |x| &x[0] * 2.0 + &x[1] * &x[0])
        }),
        case("map", "cuts whose slopes have no value past their ends", &[&[4, 12], &[4, 5]], POINT, |x| {
            let cut = x[0].map(|x| x * x + 1.0).view().slice(1, 4, 5);
            map(vec![cut, x[1].view()], |x| &x[1] / &x[0] + x[0].rsqrt())
        }),
        case("map", "windows over words", &[&[3, 7, 8]], POINT, |x| {
            map(vec![x[0].view().slice(1, 1, 6).pad(1, 0, 1), x[0].view()], |x| &x[0] * &x[1])
        }),
        case("map", "a new axis, padded", &[&[3, 5], &[3, 5]], POINT, |x| {
            let at = |i: usize, j: usize| x[i].view().repeat(2, 1).pad(2, j, 1 - j);
            map(vec![at(0, 0), at(1, 1)], |x| &x[0] * 2.0 + &x[1])
        }),
        case("map", "one entry over many", &[&[3, 5, 7, 8], &[3, 5, 1, 4]], sums(56), |x| {
            map(vec![x[0].view(), x[1].view().slice(3, 2, 1)], |x| &x[0] * &x[1])
        }),
        case("map", "empty", &[&[0, 4]], POINT, |x| x[0].map(Expr::exp)),
        case("select", "entries of the leading axis", &[&[3, 5, 64]], POINT, |x| {
            x[0].select(2).map2(&x[0].select(0), |a, b| a * b)
        }),
        case("stack", "of its entries", &[&[3, 64], &[3, 64]], POINT, |x| {
            let y = stack(&[&x[0], &x[1], &x[0]]);
            let z = y.map(Expr::tanh);
            z.select(1).map3(&y.select(0), &z.select(2), |a, b, c| a * b + c)
        }),
        case("stack", "of what lies stacked, summed over rows", &[&[2, 5, 7, 64]], sums(7), |x| {
            stack(&[&x[0].select(0), &x[0].select(1)]).sum(2).map(|s| s * s)
        }),
        case("stack", "under other shapes", &[&[6, 5], &[6, 5]], sums(12), |x| {
            let y = stack(&[&x[0].reshape([5, 6]), &x[1].reshape([5, 6])]).reshape([10, 6]);
            y.linear(&x[0].reshape([5, 6]), None, Act::None)
        }),
        case("pack", "odd lengths", &[&[5, 7], &[3], &[64]], POINT, |x| {
            let first = |x: &[&Tensor]| materialize(pack(x).view().slice(0, 0, x[0].len()));
            let y = first(&[&x[0], &x[1], &x[2]]).map(Expr::tanh);
            y.map2(&first(&[&x[1], &x[0]]).sum_all(), |y, s| y * s)
        }),
        case("dropout", "half", &[&[33, 8]], POINT, |x| x[0].dropout(0.5, 0x1234_5678_9abc)),
        case("gather", "repeated ids", &[&[5, 7], &[11, 12]], POINT, |x| x[1].gather(&x[0]))
            .with(0, Values::Whole(11)),
        case("gather", "ids past the table", &[&[9], &[3, 5]], POINT, |x| x[1].gather(&x[0]))
            .with(0, Values::Whole(7)),
    ]
}

fn reductions() -> Vec<Case> {
    vec![
        case("reduce", "rows, in fours", &[&[257, 36]], sums(36), |x| x[0].sum(-1)),
        case("reduce", "rows, odd", &[&[5, 37]], sums(37), |x| x[0].mean(-1)),
        case("reduce", "columns", &[&[255, 64]], sums(255), |x| x[0].sum(0)),
        case("reduce", "long columns in chunks", &[&[9216, 64]], sums(9216), |x| x[0].sum(0)).bench(),
        case("reduce", "a long axis, past the loop limit", &[&[300_001]], sums(300_001), |x| x[0].sum(0))
            .all(Values::Uniform(0.0, 1.0)),
        case("reduce", "the middle axis", &[&[6, 36, 5]], sums(36), |x| x[0].mean(1)),
        case("reduce", "of a formula", &[&[9, 36], &[9, 36]], sums(36), |x| {
            sum_of(vec![x[0].view(), x[1].view()], 1, |x| &x[0] * x[1].tanh())
        }),
        case("reduce", "of one row", &[&[1, 5]], POINT, |x| x[0].sum(0)),
        case("reduce", "of nothing", &[&[0, 5]], POINT, |x| x[0].sum(0)),
        case("reduce", "maximum", &[&[7, 36, 8]], POINT, |x| x[0].max(1)).bench(),
        case("reduce", "the longest maximum", &[&[16_384]], POINT, |x| x[0].max(0)),
        case("reduce", "maximum with ties", &[&[7, 12]], POINT, |x| x[0].max(-1)).all(Values::Grid),
    ]
}

/// Rows, and weights and biases of two maps and of two that follow them.
const MAPS_OF_ROWS: &[&[usize]] =
    &[&[2, 30, 12], &[8, 12], &[8], &[8, 12], &[8], &[4, 8], &[4], &[4, 8], &[4]];
const MAPS_OF_ONE: &[&[usize]] = &[&[1, 30, 7], &[5, 7], &[5], &[5, 7], &[5], &[3, 5], &[3], &[3, 5], &[3]];

fn two_layers(x: &[Tensor]) -> Tensor {
    let maps = |i: usize| Linears::new(&[[&x[i], &x[i + 1]], [&x[i + 2], &x[i + 3]]]);
    maps(1).mlps(&maps(5), &x[0], Act::TanhRelu)
}

fn products() -> Vec<Case> {
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
        case("matmul", "two maps", &[&[33, 20], &[12, 20], &[12], &[8, 12], &[8], &[33, 8]], sums(33), |x| {
            x[0].mlp([&x[1], &x[2]], [&x[3], &x[4]], Act::None, Some(&x[5]))
        }),
        case("matmul", "two maps, odd", &[&[33, 20], &[7, 20], &[7], &[3, 7], &[3]], sums(33), |x| {
            x[0].mlp([&x[1], &x[2]], [&x[3], &x[4]], Act::TanhRelu, None)
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
        case(
            "matmul",
            "maps beside each other",
            &[&[5, 7, 12], &[8, 12], &[8], &[8, 12], &[8]],
            sums(70),
            |x| Linears::new(&[[&x[1], &x[2]], [&x[3], &x[4]]]).beside(&x[0]),
        ),
        case(
            "matmul",
            "maps beside each other, odd",
            &[&[9, 5], &[3, 5], &[3], &[3, 5], &[3], &[3, 5], &[3]],
            sums(27),
            |x| Linears::new(&[[&x[1], &x[2]], [&x[3], &x[4]], [&x[5], &x[6]]]).beside(&x[0]),
        ),
        case("matmul", "two layers of maps with rows of their own", MAPS_OF_ROWS, sums(60), two_layers),
        case("matmul", "two layers of maps, odd, of the same rows", MAPS_OF_ONE, sums(60), two_layers),
        case("matmul", "large", &[&[1152, 256], &[256, 256], &[256]], sums(1152), linear).bench(),
    ]
}

fn attention() -> Vec<Case> {
    let plain: fn(&[Tensor]) -> Tensor = |x| x[0].attention(&x[1], &x[2], 4, 0.35, None);
    let masked: fn(&[Tensor]) -> Tensor =
        |x| x[0].attention(&x[1], &x[2], 2, 0.35, Some(&x[3].map(|m| (m - 1.0) * 1e30)));
    let (q, k): (&[usize], &[usize]) = (&[6, 36, 32], &[6, 12, 32]);
    vec![
        case("attention", "eight channels a head", &[q, k, k], sums(36), plain).bench(),
        case(
            "attention",
            "sixteen channels a head",
            &[&[2, 37, 64], &[2, 33, 64], &[2, 33, 64]],
            sums(64),
            plain,
        ),
        case(
            "attention",
            "twelve channels a head",
            &[&[2, 7, 48], &[2, 5, 48], &[2, 5, 48]],
            sums(48),
            plain,
        ),
        case("attention", "one query, one key", &[&[2, 1, 16], &[2, 1, 16], &[2, 1, 16]], sums(16), plain),
        case(
            "attention",
            "keys left out",
            &[&[6, 9, 64], &[6, 10, 64], &[6, 10, 64], &[3, 10]],
            sums(64),
            masked,
        )
        .with(3, Values::Whole(2)),
        case(
            "attention",
            "heads of odd width, keys left out",
            &[&[4, 5, 14], &[4, 3, 14], &[4, 3, 14], &[2, 3]],
            sums(14),
            masked,
        )
        .with(3, Values::Whole(2)),
        case("attention", "of a sequence over itself", &[&[6, 13, 96]], sums(32), |x| {
            x[0].self_attention(4, 0.35, None, None)
        }),
        case(
            "attention",
            "over itself, keys left out, added",
            &[&[6, 10, 96], &[3, 10], &[6, 10, 32]],
            sums(32),
            |x| x[0].self_attention(2, 0.35, Some(&x[1].map(|m| (m - 1.0) * 1e30)), Some(&x[2])),
        )
        .with(1, Values::Whole(2)),
        case(
            "attention",
            "over itself, heads of odd width, added",
            &[&[4, 5, 42], &[4, 5, 14]],
            sums(14),
            |x| x[0].self_attention(2, 0.35, None, Some(&x[1])),
        ),
        case("attention", "large scores", &[&[2, 9, 16], &[2, 6, 16], &[2, 6, 16]], sums(16), |x| {
            x[0].map(|x| x * 1e-2).attention(&x[1].map(|x| x * 1e-4), &x[2].map(|x| x * 1e-4), 4, 1.0, None)
        })
        .all(Values::Extreme),
    ]
}

/// Attention weights as DIME's default takes them; the second input's values are lengths less one.
fn clipped(x: &[Tensor], words: WordsAre) -> Tensor {
    let how = Attend { leaky: Some(0.1), over: OverQueries::Norm(1e-12), scale: 4.0, words };
    how.weights(&x[0], x.get(1).map(|n| n.map(|n| n + 1.0)).as_ref())
}

fn attend() -> Vec<Case> {
    let queries: fn(&[Tensor]) -> Tensor = |x| clipped(x, WordsAre::Queries);
    let context: fn(&[Tensor]) -> Tensor = |x| clipped(x, WordsAre::Context);
    let bound = sums(37);
    vec![
        case("attend", "of regions by words", &[&[3, 5, 12, 36]], bound, queries).bench(),
        case("attend", "words padded as queries", &[&[3, 4, 7, 36], &[4]], bound, queries)
            .with(1, Values::Whole(7)),
        case("attend", "words padded as context", &[&[3, 4, 36, 11], &[4]], bound, context)
            .with(1, Values::Whole(11)),
        case("attend", "norm plus eps", &[&[2, 3, 5, 8]], bound, |x| {
            let over = OverQueries::NormPlus(1e-8);
            Attend { leaky: None, over, scale: 4.0, words: WordsAre::Context }.weights(&x[0], None)
        }),
        case("attend", "clipped only, words padded as queries", &[&[2, 3, 5, 9], &[3]], bound, |x| {
            let how =
                Attend { leaky: Some(0.1), over: OverQueries::Nothing, scale: 4.0, words: WordsAre::Queries };
            how.weights(&x[0], Some(&x[1]))
        })
        .with(1, Values::Whole(5)),
        case("attend", "a context past one kernel", &[&[2, 2, 9, 147], &[2]], bound, context)
            .with(1, Values::Whole(147)),
        case("attend", "queries past one kernel", &[&[2, 2, 147, 41], &[2]], bound, queries)
            .with(1, Values::Whole(147)),
    ]
}

fn rows() -> Vec<Case> {
    vec![
        case("softmax", "rows, in fours", &[&[5, 7, 32]], sums(32), |x| x[0].softmax(-1, 0.5)).bench(),
        case("softmax", "rows, odd", &[&[5, 37]], sums(37), |x| x[0].softmax(-1, 4.0)),
        case("softmax", "long rows", &[&[5, 260]], sums(260), |x| x[0].softmax(-1, 0.5)),
        case("l2norm", "long rows", &[&[9, 256]], sums(256), |x| x[0].l2norm(-1, 1e-12)),
        case("standardize", "long rows", &[&[9, 768]], sums(768), |x| x[0].standardize(-1, 1e-12)),
        case("softmax", "columns", &[&[3, 36, 8]], sums(36), |x| x[0].softmax(1, 9.0)),
        case("softmax", "large scores", &[&[9, 12]], sums(12), |x| x[0].softmax(-1, 1.0))
            .all(Values::Extreme),
        case("softmax", "to lengths", &[&[2, 5, 6, 12], &[5]], sums(12), |x| {
            x[0].softmax_to(-1, 4.0, &x[1].map(|l| l + 1.0), 6)
        })
        .with(1, Values::Whole(12)),
        case("softmax", "the longest rows", &[&[2, 43_688]], sums(43_688), |x| x[0].softmax(-1, 1.0)),
        case("l2norm", "rows", &[&[9, 36]], sums(36), |x| x[0].l2norm(-1, 1e-12)).bench(),
        case("l2norm", "columns", &[&[4, 7, 12]], sums(12), |x| x[0].l2norm(1, 1e-12)),
        case("l2norm", "plus eps", &[&[4, 7, 5]], sums(12), |x| x[0].l2norm_plus(1, 1e-8)),
        case("l2norm", "zero rows", &[&[4, 1]], sums(12), |x| x[0].map(Expr::relu).l2norm(-1, 1e-12))
            .all(Values::Extreme),
        case("standardize", "rows", &[&[9, 64]], sums(64), |x| x[0].standardize(-1, 1e-12)).bench(),
        case("standardize", "odd rows", &[&[9, 37]], sums(64), |x| x[0].standardize(-1, 1e-5)),
        case("standardize", "columns", &[&[3, 17, 8]], sums(64), |x| x[0].standardize(1, 1e-5)),
        case("standardize", "the longest column", &[&[10_922]], sums(10_922), |x| x[0].standardize(0, 1e-5)),
    ]
}

fn routing() -> Vec<Case> {
    let mixed: fn(&[Tensor]) -> Tensor = |x| {
        let y = route([&x[0], &x[1], &x[2], &x[3]], &x[4]);
        let views = y.iter().map(Viewed::from).collect();
        map(views, |y| &y[0] + y[1].tanh() * &y[2] - &y[3] * 2.0)
    };
    let one: fn(&[Tensor]) -> Tensor = |x| route([&x[0], &x[1], &x[2], &x[3]], &x[4]).remove(0);
    // A mean of five, of which the last weighs 1.
    let shares: fn(&[Tensor]) -> Tensor = |x| {
        let weights = x[4].map(|w| w * w);
        let total = weights.sum(-1).map(|s| s + 1.0).detach();
        let share = weights.map2(total.view().repeat(3, 4), |w, t| w / t);
        let rest = x[5].map2(total.view().repeat(3, 1), |x, t| x / t);
        route_shares([&x[0], &x[1], &x[2], &x[3]], &share, &rest)
    };
    let pair: &[usize] = &[3, 5, 7, 8];
    vec![
        case("route", "weights of a pair", &[pair, pair, pair, pair, &[3, 5, 4, 4]], sums(56), mixed).bench(),
        case(
            "route",
            "items of images",
            &[&[3, 1, 7, 8], pair, &[3, 1, 7, 8], pair, &[3, 1, 4, 4]],
            sums(280),
            mixed,
        ),
        case(
            "route",
            "items of captions, odd",
            &[&[1, 5, 3, 3], &[2, 5, 3, 3], &[1, 5, 3, 3], &[2, 5, 3, 3], &[1, 5, 4, 4]],
            sums(90),
            mixed,
        ),
        case("route", "one mixture", &[pair, pair, pair, pair, &[3, 5, 1, 4]], sums(56), one).bench(),
        case(
            "route",
            "one mixture of items, odd",
            &[&[1, 5, 3, 3], &[2, 5, 3, 3], &[2, 1, 3, 3], &[2, 5, 3, 3], &[1, 5, 1, 4]],
            sums(90),
            one,
        ),
        case("route", "shares", &[pair, pair, pair, pair, &[3, 5, 1, 4], pair], sums(60), shares),
        case(
            "route",
            "shares of items, odd",
            &[&[1, 5, 3, 3], &[2, 5, 3, 3], &[2, 1, 3, 3], &[2, 5, 3, 3], &[1, 5, 1, 4], &[2, 5, 3, 3]],
            sums(90),
            shares,
        ),
    ]
}
