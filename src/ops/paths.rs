//! Path probabilities of dense routing (DIME, section 3.3): what four routers give, over their sum, and the weights of the
//! mixtures; one kernel each way.

use super::map::{add, map};
use super::registry::{Case, Values, case, sums};
use super::route::{route, route_means, route_shares};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Grad, Keep, Op, Pullback, Tensor, compute, split_with};

const KERNEL: Kernel = Kernel { name: "paths", text: include_str!("../../shaders/paths.wgsl") };
const GRAD: Kernel = Kernel { name: "paths_grad", text: include_str!("../../shaders/paths_grad.wgsl") };

/// What keeps a sum of routers that give nothing from dividing by zero.
const TINY: f64 = 1e-8;

/// Path probabilities, all `[outer, inner, outputs, 4]`, a row of four cells for each output of a pair.
pub struct Paths {
    /// The probabilities.
    pub p: Tensor,
    /// Parts of a whole that has no gradient, for [`crate::ops::route_means`] or [`crate::ops::route_shares`]: through `p` a
    /// mixture's gradient of a probability is a difference of large sums, which f32 does not hold.
    pub shares: Tensor,
    /// The cells' weights in a mixture, or those of the inputs they pass on; without a gradient.
    pub weights: Tensor,
}

impl Tensor {
    /// The paths of a layer of four outputs from what its routers give, `[4 cells, outer, inner, outputs]`: of an output
    /// `r` over `sum + 1e-8`; one whose sum is below `gate` takes the first cell with weight 1 besides.
    #[track_caller]
    pub fn paths(&self, gate: f64) -> Paths {
        Routed { last: false, gate }.apply(self)
    }

    /// The paths of the last layer: `r` itself. A cell below `gate` passes on its input with weight 1; shares and those
    /// weights are over the sum of all weights.
    #[track_caller]
    pub fn last_paths(&self, gate: f64) -> Paths {
        Routed { last: true, gate }.apply(self)
    }
}

#[derive(Clone, Debug)]
struct Routed {
    last: bool,
    gate: f64,
}

impl Routed {
    fn apply(self, r: &Tensor) -> Paths {
        let mut all = split_with(self, &[r], |y| (0..3).map(|i| y.select(i)).collect()).into_iter();
        let mut next = || all.next().expect("three results");
        Paths { p: next(), shares: next(), weights: next().detach() }
    }

    fn launch(&self, gpu: &Gpu, kernel: Kernel, reads: &[&Buf], y: &Buf, count: usize) {
        gpu.dispatch(&Launch {
            kernel,
            body: None,
            constants: &[("last", f64::from(u8::from(self.last)))],
            reads,
            writes: &[y],
            params: Words::default().sizes(&[count]).floats(&[self.gate as f32]),
            grid: Grid::Invocations(count),
            loops: 1,
        });
    }

    /// Calls `f` with each output's place, what the routers give for it, which cells are below the gate, and the sum that
    /// shares are of.
    fn each(&self, r: &ArrayView, mut f: impl FnMut(usize, [f64; 4], [f64; 4], f64)) {
        let count = r.data.len() / 4;
        for i in 0..count {
            let own = [0, 1, 2, 3].map(|j| r.data[j * count + i]);
            let below = own.map(|v| f64::from(u8::from(v < self.gate)));
            let sum: f64 = own.iter().sum();
            f(i, own, below, if self.last { sum + below.iter().sum::<f64>() } else { sum + TINY });
        }
    }
}

impl Op for Routed {
    fn name(&self) -> &'static str {
        "paths"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        assert!(x[0].rank() == 4 && x[0][0] == 4, "paths: {x:?}");
        Shape::new(&[3, x[0][1], x[0][2], x[0][3], 4])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        self.launch(gpu, KERNEL, x, y, shapes[0].len() / 4);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let mut y = Array::zeros(self.shape(&[x[0].shape]));
        let plane = x[0].data.len();
        self.each(&x[0], |i, own, below, whole| {
            let skip = f64::from(u8::from(own.iter().sum::<f64>() < self.gate));
            for j in 0..4 {
                let share = own[j] / whole;
                let weight =
                    if self.last { below[j] / whole } else { share + if j == 0 { skip } else { 0.0 } };
                let all = [if self.last { own[j] } else { share }, share, weight];
                all.iter().enumerate().for_each(|(k, v)| y.data[k * plane + 4 * i + j] = *v);
            }
        });
        y
    }
}

impl Pullback for Routed {
    fn keep(&self) -> Keep {
        Keep::inputs([0])
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let g: Vec<&Tensor> = back.gs().take(2).collect();
        vec![Some(compute(RoutedGrad(self.clone()), &[back.x(0), g[0], g[1]]).into())]
    }
}

/// The gradient of what the routers give, from it and the gradients of probabilities and shares.
#[derive(Clone, Debug)]
struct RoutedGrad(Routed);

impl Op for RoutedGrad {
    fn name(&self) -> &'static str {
        "paths_grad"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        self.0.launch(gpu, GRAD, x, y, shapes[0].len() / 4);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let mut y = Array::zeros(x[0].shape);
        let count = x[0].data.len() / 4;
        self.0.each(&x[0], |i, own, _, whole| {
            let [gp, gs] = [1, 2].map(|k| &x[k].data[4 * i..4 * i + 4]);
            let mean: f64 = (0..4).map(|j| gp[j] * own[j] / whole).sum();
            for j in 0..4 {
                let whole_way = if self.0.last { gp[j] } else { (gp[j] - mean) / whole };
                y.data[j * count + i] = whole_way + gs[j] / whole;
            }
        });
        y
    }
}

pub(super) fn cases() -> Vec<Case> {
    // The gradient of shares is that of the mixtures they are made for.
    let means: fn(&[Tensor]) -> Tensor = |x| {
        let paths = x[4].paths(1.5);
        let y = route_means([&x[0], &x[1], &x[2], &x[3]], &paths.weights, &paths.shares);
        let mixed = map(y.iter().map(Tensor::view).collect(), |y| &y[0] + y[1].tanh() * &y[2] - &y[3] * 2.0);
        add(&mixed, &paths.p.map(|p| p * p).sum(-1).sum(-1).reshape([3, 5, 1, 1]))
    };
    let last: fn(&[Tensor]) -> Tensor = |x| {
        let paths = x[4].last_paths(0.4);
        let passed = route([&x[3], &x[2], &x[1], &x[0]], &paths.weights);
        let mixed = route_shares([&x[0], &x[1], &x[2], &x[3]], &paths.shares, &passed);
        add(&mixed, &paths.p.map(|p| p * p).sum(-1).reshape([3, 5, 1, 1]))
    };
    let pair: &[usize] = &[3, 5, 7, 8];
    let of = |outputs: usize| Shape::new(&[4, 3, 5, outputs]);
    vec![
        case("paths", "of a layer", &[pair, pair, pair, pair, of(4).dims()], sums(60), means)
            .with(4, Values::Uniform(0.0, 1.0))
            .bench(),
        case(
            "paths",
            "of routers that give nothing",
            &[pair, pair, pair, pair, of(4).dims()],
            sums(60),
            |x| {
                // All of an output's four are 0 at half of the places.
                let r = map(vec![x[4].view(), x[4].view().slice(0, 0, 1).squeeze(0).repeat(0, 4)], |r| {
                    r[1].greater(0.0).select(&r[0], 0.0)
                });
                r.paths(0.1).p
            },
        ),
        case("paths", "of the last layer", &[pair, pair, pair, pair, of(1).dims()], sums(60), last)
            .with(4, Values::Uniform(0.0, 1.0)),
    ]
}
