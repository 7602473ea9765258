//! Adam and AdamW with a global norm clip, in place.

use super::codegen::fill;
use super::reduce::sum_squares;
use super::registry::{Case, POINT, Values, case, sums};
use super::stack;
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Op, Tensor, compute};

const KERNEL: Kernel = Kernel { name: "adam", text: include_str!("../../shaders/adam.wgsl") };

const ONE_SIDE: &str = "all of a step is on one side";

/// The constants of one step.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// The learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of that mean.
    pub eps: f64,
    /// Decoupled weight decay (AdamW); 0 is Adam.
    pub decay: f64,
    /// The largest global norm; 0 or less for none.
    pub clip: f64,
}

/// A parameter, its two moments and how many steps it has taken.
#[derive(Clone, Debug)]
pub struct AdamState {
    /// The parameter.
    pub w: Tensor,
    /// The mean of gradients.
    pub m: Tensor,
    /// The mean of their squares.
    pub v: Tensor,
    /// Steps taken: those in which it had a gradient.
    pub steps: u32,
}

impl AdamState {
    /// A parameter that has taken no step, in memory of its own.
    pub fn new(w: &Tensor) -> Self {
        let zeros = || w.device().full(w.shape(), 0.0);
        Self { w: w.map(|x| x * 1.0 + 0.0), m: zeros(), v: zeros(), steps: 0 }
    }
}

/// The sum of the squares of all gradients, a scalar: the global norm squared.
#[track_caller]
pub fn sum_of_squares(grads: &[&Tensor]) -> Tensor {
    assert!(!grads.is_empty(), "sum_of_squares: there is at least one gradient");
    compute(SumOfSquares, grads)
}

/// Of all values of its inputs.
#[derive(Clone, Debug)]
struct SumOfSquares;

impl Op for SumOfSquares {
    fn name(&self) -> &'static str {
        "sum_of_squares"
    }

    fn shape(&self, _: &[Shape]) -> Shape {
        Shape::new(&[])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, _: &[Shape]) {
        sum_squares(gpu, x, y);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let squares = x.iter().flat_map(|x| x.data).map(|v| v * v);
        Array::new(Shape::new(&[]), vec![squares.sum()])
    }
}

/// Takes one step with gradient `g`, clipped by `squares` (of [`sum_of_squares`]), in place: clones of the state's
/// tensors see it. Where the squares are NaN or infinite nothing moves.
pub fn adam(state: &mut AdamState, g: &Tensor, squares: &Tensor, step: &AdamStep) {
    assert_eq!(state.w.shape(), g.shape(), "adam: parameter and gradient");
    state.steps += 1;
    let t = state.steps as i32;
    match (state.w.buf(), g.buf(), squares.buf()) {
        (Some(w), Some(g), Some(norm)) => {
            let gpu = w.gpu().expect("a tensor never outlives its device");
            let (m, v) = (state.m.buf(), state.v.buf());
            on_gpu(&gpu, [g, norm], [w, m.expect(ONE_SIDE), v.expect(ONE_SIDE)], step, t);
        }
        _ => on_host(state, g, squares, step, t),
    }
}

fn corrections(step: &AdamStep, t: i32) -> (f64, f64) {
    (1.0 - step.beta1.powi(t), (1.0 - step.beta2.powi(t)).sqrt())
}

fn on_gpu(gpu: &Gpu, reads: [&Buf; 2], writes: [&Buf; 3], step: &AdamStep, t: i32) {
    let n = reads[0].len();
    let (width, alias) =
        if n.is_multiple_of(4) { (4, "alias T = vec4<f32>;") } else { (1, "alias T = f32;") };
    let (first, second) = corrections(step, t);
    let floats = [
        step.beta1,
        1.0 - step.beta1,
        step.beta2,
        1.0 - step.beta2,
        step.lr / first,
        second,
        step.eps,
        step.clip,
        1.0 - step.lr * step.decay,
    ]
    .map(|v| v as f32);
    gpu.dispatch(&Launch {
        kernel: KERNEL,
        body: Some((width as u64, &|| fill(KERNEL.text, &[("type", alias)]))),
        constants: &[],
        reads: &reads,
        writes: &writes,
        params: Words::default().sizes(&[n / width]).floats(&floats),
        grid: Grid::Invocations(n / width),
        loops: 1,
    });
}

fn on_host(state: &AdamState, g: &Tensor, squares: &Tensor, step: &AdamStep, t: i32) {
    let norm = squares.values().expect(ONE_SIDE)[0].sqrt();
    if !norm.is_finite() {
        return;
    }
    let scale = if step.clip > 0.0 { (step.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let AdamStep { lr, beta1, beta2, eps, decay, .. } = *step;
    let (correct1, correct2) = corrections(step, t);
    let g = g.values().expect(ONE_SIDE);
    let [mut w, mut m, mut v] = [&state.w, &state.m, &state.v].map(|t| t.values_mut().expect(ONE_SIDE));
    for i in 0..w.len() {
        let grad = g[i] * scale;
        m[i] = beta1 * m[i] + (1.0 - beta1) * grad;
        v[i] = beta2 * v[i] + (1.0 - beta2) * grad * grad;
        w[i] = w[i] * (1.0 - lr * decay) - lr / correct1 * m[i] / (v[i].sqrt() / correct2 + eps);
    }
}

pub(super) fn cases() -> Vec<Case> {
    fn steps(x: &[Tensor], decay: f64, clip: f64) -> Tensor {
        let own = |x: &Tensor| x.map(|x| x * 1.0);
        let mut state = AdamState { w: own(&x[0]), m: own(&x[1]), v: own(&x[2]), steps: 3 };
        let clones = state.clone();
        let step = AdamStep { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, decay, clip };
        let squares = sum_of_squares(&[&x[3]]);
        adam(&mut state, &x[3], &squares, &step);
        adam(&mut state, &x[1], &squares, &step);
        stack(&[&clones.w, &clones.m, &clones.v])
    }
    let of = |about, n: usize, run| {
        case("adam", about, &[&[n], &[n], &[n], &[n]], POINT, run)
            .with(2, Values::Uniform(0.1, 1.0))
            .untracked()
    };
    let squares: fn(&[Tensor]) -> Tensor = |x| sum_of_squares(&x.iter().collect::<Vec<_>>());
    vec![
        case("sum_of_squares", "of several", &[&[40_000], &[7, 5], &[1]], sums(40_036), squares).untracked(),
        of("clipped and decayed, in fours", 64, |x| steps(x, 0.01, 1.0)),
        of("odd, as it is", 37, |x| steps(x, 0.0, 0.0)),
    ]
}
