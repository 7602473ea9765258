//! Pointwise work: a formula over any number of viewed tensors, with its derived gradient.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::codegen::{Codegen, Lane, distinct, fill, param, pointwise};
use super::matmul::Act;
use super::pack::alignment;
use super::reduce::{Kind, Reduce, sum_axis};
use super::registry::{Case, POINT, Values, case, sums};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{
    Back, Cost, Device, Expr, Grad, Keep, Op, Program, Pullback, Tensor, View, Viewed, apply, compute,
};

const KERNEL: Kernel = Kernel { name: "map", text: include_str!("../../shaders/map.wgsl") };

/// Tensors that one pass reads: with the result, as many buffers as any adapter binds.
pub(super) const AT_ONCE: usize = 7;
/// Words of parameters that a kernel holds.
const PARAM_WORDS: usize = 256;

/// `y = f(x0, x1, ..)`, element by element, over the broadcast of the inputs' shapes. At most 7 tensors.
#[track_caller]
pub fn map(x: Vec<Viewed>, f: impl FnOnce(&[Expr]) -> Expr) -> Tensor {
    let inputs: Vec<Expr> = (0..x.len()).map(Expr::input).collect();
    map_program(x, Program::new(f(&inputs)))
}

/// A view as a tensor, without a copy where that is possible.
#[track_caller]
pub fn materialize(x: Viewed) -> Tensor {
    Tensor::aliased(&x).unwrap_or_else(|| map(vec![x], |x| x[0].clone()))
}

/// `a + b`, broadcast.
#[track_caller]
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    a.map2(b, |a, b| a + b)
}

/// Tensors concatenated on an axis.
#[track_caller]
pub fn concat(parts: &[Tensor], axis: usize) -> Tensor {
    if let [one] = parts {
        return one.clone();
    }
    let total: usize = parts.iter().map(|p| p.shape()[axis]).sum();
    let mut before = 0;
    let padded: Vec<Viewed> = parts
        .iter()
        .map(|p| {
            let n = p.shape()[axis];
            before += n;
            p.view().pad(axis, before - n, total - before)
        })
        .collect();
    let sum = |x: &[Expr]| x.iter().skip(1).fold(x[0].clone(), |sum, x| sum + x);
    let groups = padded.chunks(AT_ONCE).map(|c| map(c.to_vec(), sum));
    groups.reduce(|a, b| add(&a, &b)).expect("at least one part")
}

impl Tensor {
    /// This tensor as a view to refine.
    pub fn view(&self) -> Viewed {
        Viewed::from(self)
    }

    /// `f(x)`, element by element.
    #[track_caller]
    pub fn map(&self, f: impl FnOnce(&Expr) -> Expr) -> Self {
        map(vec![self.view()], |x| f(&x[0]))
    }

    /// `f(x, b)`, broadcast.
    #[track_caller]
    pub fn map2(&self, b: impl Into<Viewed>, f: impl FnOnce(&Expr, &Expr) -> Expr) -> Self {
        map(vec![self.view(), b.into()], |x| f(&x[0], &x[1]))
    }

    /// `f(x, b, c)`, broadcast.
    #[track_caller]
    pub fn map3(
        &self,
        b: impl Into<Viewed>,
        c: impl Into<Viewed>,
        f: impl FnOnce(&Expr, &Expr, &Expr) -> Expr,
    ) -> Self {
        map(vec![self.view(), b.into(), c.into()], |x| f(&x[0], &x[1], &x[2]))
    }
}

/// The broadcast of all views, each refined to it.
#[track_caller]
pub(super) fn broadcast_all(x: Vec<Viewed>) -> (Shape, Vec<Viewed>) {
    let shape = x.iter().skip(1).fold(x[0].shape(), |s, v| {
        s.broadcast(&v.shape()).unwrap_or_else(|| panic!("broadcast {s} with {}", v.shape()))
    });
    (shape, x.into_iter().map(|v| v.broadcast(shape)).collect())
}

#[track_caller]
fn map_program(x: Vec<Viewed>, program: Program) -> Tensor {
    let (_, x) = broadcast_all(x);
    let (tensors, views): (Vec<Tensor>, Vec<View>) = x.into_iter().map(|v| (v.tensor, v.view)).unzip();
    apply(Map { program, views }, &tensors.iter().collect::<Vec<_>>())
}

/// Formulas over untracked tensors viewed as one shape, in one pass; as many as [`fits_a_pass`] allows.
pub(super) fn maps(x: Vec<Viewed>, formulas: Vec<Expr>) -> Vec<Tensor> {
    let (shape, x) = broadcast_all(x);
    let count = formulas.len();
    let programs = formulas.into_iter().map(Program::new).collect();
    let (tensors, views): (Vec<Tensor>, Vec<View>) = x.into_iter().map(|v| (v.tensor, v.view)).unzip();
    let all = compute(Maps { programs, views }, &tensors.iter().collect::<Vec<_>>());
    (0..count).map(|i| all.section(i * shape.len(), shape)).collect()
}

/// Whether one pass binds these inputs, all of one shape, and so many results of so many operations together.
pub(super) fn fits_a_pass(x: &[Viewed], results: usize, operations: usize) -> bool {
    let shape = x[0].shape();
    let Device::Gpu(gpu) = x[0].tensor.device() else { return x.iter().all(|v| v.shape() == shape) };
    let buffers: Vec<&Buf> = x.iter().filter_map(|v| v.tensor.buf()).collect();
    let axis = |v: &Viewed, k: usize| 1 + 2 * usize::from(v.view.is_padded(k));
    let input = |v: &Viewed| 2 + (0..shape.rank()).map(|k| axis(v, k)).sum::<usize>();
    // An operation brings a constant at most.
    let words = 1 + shape.rank() + x.iter().map(input).sum::<usize>() + operations;
    let facts = gpu.facts();
    x.iter().all(|v| v.shape() == shape)
        && distinct(&buffers).0.len() < facts.buffers
        && words <= PARAM_WORDS
        && (4 * results * shape.len()) as u64 <= facts.max_binding.min(facts.max_buffer)
        && shape.len().is_multiple_of(alignment(&gpu))
}

/// The pointwise op. All views have the output's shape.
#[derive(Clone, Debug)]
struct Map {
    program: Program,
    views: Vec<View>,
}

/// Several formulas over the same inputs, their results one after the other.
#[derive(Clone, Debug)]
struct Maps {
    programs: Vec<Program>,
    views: Vec<View>,
}

impl Op for Map {
    fn name(&self) -> &'static str {
        "map"
    }

    fn shape(&self, _: &[Shape]) -> Shape {
        self.views[0].shape
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, _: &[Shape]) {
        launch(gpu, std::slice::from_ref(&self.program), &self.views, x, y);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let shape = self.views[0].shape;
        Array::new(shape, values(std::slice::from_ref(&self.program), &self.views, x))
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = self.views[0].shape.len();
        let moved = n + x.iter().map(Shape::len).sum::<usize>();
        Cost { flops: (n * self.program.flops()) as f64, bytes: 4.0 * moved as f64 }
    }
}

impl Op for Maps {
    fn name(&self) -> &'static str {
        "maps"
    }

    fn shape(&self, _: &[Shape]) -> Shape {
        Shape::new(&[self.programs.len() * self.views[0].shape.len()])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, _: &[Shape]) {
        launch(gpu, &self.programs, &self.views, x, y);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        Array::new(self.shape(&[]), values(&self.programs, &self.views, x))
    }
}

/// Records the pass that computes the formulas' values one after the other.
fn launch(gpu: &Gpu, programs: &[Program], views: &[View], x: &[&Buf], y: &Buf) {
    let used: Vec<usize> = (0..x.len()).filter(|i| programs.iter().any(|p| p.reads(*i))).collect();
    let (buffers, places) = distinct(&used.iter().map(|i| x[*i]).collect::<Vec<_>>());
    let read: Vec<&View> = used.iter().map(|i| &views[*i]).collect();
    let codegen = Codegen::new(views[0].shape, None, &read, &places);
    let mut params = vec![codegen.invocations() as u32];
    codegen.params(&mut params);
    let constants = params.len();
    let all = programs.iter().flat_map(Program::constants);
    params.extend(all.map(|c| (*c as f32).to_bits()));

    let mut hash = DefaultHasher::new();
    (&used, buffers.len()).hash(&mut hash);
    programs.iter().for_each(|program| program.key().hash(&mut hash));
    codegen.hash(&mut hash);
    let text = || {
        let vector = codegen.lane == Lane::Out;
        let place = |i: usize| format!("in{}", used.iter().position(|u| *u == i).unwrap_or(0));
        let mut body = codegen.coordinates(1, "i") + &codegen.loads(1, |_| true);
        let mut first = constants;
        for (k, program) in programs.iter().enumerate() {
            let (steps, result) = program.wgsl(place, |i| format!("bitcast<f32>({})", param(first + i)));
            body += &format!("    {{\n{steps}    y[{k}u * {} + i] = {result};\n    }}\n", param(0));
            first += program.constants().len();
        }
        let bindings = codegen.bindings(buffers.len(), vector);
        format!("{}{}", pointwise(vector), fill(KERNEL.text, &[("bindings", &bindings), ("body", &body)]))
    };
    gpu.dispatch(&Launch {
        kernel: KERNEL,
        body: Some((hash.finish(), &text)),
        constants: &[],
        reads: &buffers,
        writes: &[y],
        params: Words(params),
        grid: Grid::Invocations(codegen.invocations()),
        loops: 1,
    });
}

/// The formulas' values one after the other, in f64.
fn values(programs: &[Program], views: &[View], x: &[ArrayView]) -> Vec<f64> {
    let read: Vec<Vec<f64>> = x.iter().zip(views).map(|(x, v)| gather(x, v)).collect();
    let (mut row, mut scratch) = (vec![0.0; x.len()], Vec::new());
    let mut data = Vec::with_capacity(programs.len() * views[0].shape.len());
    for program in programs {
        data.extend((0..views[0].shape.len()).map(|e| {
            for (value, values) in row.iter_mut().zip(&read) {
                *value = values[e];
            }
            program.value(&row, &mut scratch)
        }));
    }
    data
}

impl Pullback for Map {
    fn keep(&self) -> Keep {
        kept_inputs(&self.program, self.views.len())
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        pullbacks(&self.program, &self.views, back, None, 1.0)
    }
}

/// The inputs that some derivative of the formula reads.
pub(super) fn kept_inputs(program: &Program, n: usize) -> Keep {
    let slopes: Vec<Expr> = (0..n).map(|i| program.expr().derivative(i)).collect();
    Keep::inputs((0..n).filter(|i| slopes.iter().any(|slope| slope.reads(*i))))
}

/// The gradient of each input of `program` over `views`, where the incoming gradient, repeated along an axis that was
/// `summed` and times `factor`, is that of its values.
pub(super) fn pullbacks(
    program: &Program,
    views: &[View],
    back: &Back,
    summed: Option<usize>,
    factor: f64,
) -> Vec<Option<Grad>> {
    let n = views.len();
    let slope = |i: usize| Some(program.expr().derivative(i)).filter(|s| s.constant() != Some(0.0));
    let slopes: Vec<Option<Expr>> = (0..n).map(|i| if back.needs(i) { slope(i) } else { None }).collect();
    let read = |slope: &Expr| (0..n).filter(|j| slope.reads(*j)).count();
    let most = slopes.iter().flatten().map(read).max().unwrap_or(0);
    // What several gradients or values read is computed once, unless that is next to nothing.
    let once = slopes.iter().flatten().count() > 1 || summed.is_some();
    let g = if once { back.plain() } else { back.formula(AT_ONCE.saturating_sub(most)) };
    let repeated = |g: Viewed| summed.map_or_else(|| g.clone(), |k| g.clone().repeat(k, views[0].shape[k]));
    let g = Grad { inputs: g.inputs.into_iter().map(repeated).collect(), formula: g.formula };
    slopes
        .into_iter()
        .enumerate()
        .map(|(i, slope)| Some(pullback(slope?, i, views, back, &g, factor)))
        .collect()
}

/// The gradient of input `i`, where `slope` is the formula's derivative and `g` the gradient of its values but for
/// `factor`.
fn pullback(slope: Expr, i: usize, views: &[View], back: &Back, g: &Grad, factor: f64) -> Grad {
    let (n, view) = (views.len(), &views[i]);
    // Past a slice's ends all inputs read zero, which must make the formula zero.
    let is_zero = |e: &Expr, inputs: usize| {
        view.is_identity() || Program::new(e.clone()).value(&vec![0.0; inputs], &mut Vec::new()) == 0.0
    };
    if let Some(c) = slope.constant() {
        let formula = g.formula.clone() * (c * factor);
        let inputs: Option<Vec<Viewed>> = g.inputs.iter().map(|v| reread(v, view)).collect();
        if let Some(inputs) = inputs.filter(|inputs| is_zero(&formula, inputs.len())) {
            return Grad { inputs, formula };
        }
    }
    // The formula's own inputs that the slope reads, then the incoming gradient's.
    let own: Vec<usize> = (0..n).filter(|j| slope.reads(*j)).collect();
    let places: Vec<usize> = (0..n).map(|j| own.iter().position(|k| *k == j).unwrap_or(0)).collect();
    let incoming: Vec<usize> = (own.len()..own.len() + g.inputs.len()).collect();
    let formula = slope.renumbered(&places) * g.formula.renumbered(&incoming) * factor;
    let viewed = |j: &usize| Viewed { tensor: back.x(*j).clone(), view: views[*j].clone() };
    let inputs: Vec<Viewed> = own.iter().map(viewed).chain(g.inputs.iter().cloned()).collect();
    match view.ends().filter(|_| is_zero(&formula, inputs.len())) {
        Some(ends) => {
            let padded = |v: Viewed| ends.iter().enumerate().fold(v, |v, (k, (a, b))| v.pad(k, *a, *b));
            Grad { inputs: inputs.into_iter().map(padded).collect(), formula }
        }
        None => adjoint(Program::new(formula), inputs, view).into(),
    }
}

/// `g`, a gradient of what `view` reads, as one of the view's source; `None` where that takes sums or a view of a
/// view.
fn reread(g: &Viewed, view: &View) -> Option<Viewed> {
    let (summed, back) = view.adjoint();
    let repeats = |k: usize| view.axes[k].source.is_none() && view.is_padded(k);
    if !summed.is_empty() || (0..view.axes.len()).any(repeats) {
        return None;
    }
    if back.is_identity() && back.shape == g.shape() {
        return Some(g.clone());
    }
    let plain = g.view.is_identity();
    plain.then(|| Viewed { tensor: g.tensor.reshape(back.source), view: back })
}

/// `program` over the view's shape, pulled back to the view's source.
fn adjoint(program: Program, mut inputs: Vec<Viewed>, view: &View) -> Tensor {
    let mut trimmed = Viewed { tensor: inputs[0].tensor.clone(), view: view.clone() };
    for k in 0..view.axes.len() {
        // Where a repeated value is padded, the padding has no gradient to sum.
        let axis = view.axes[k];
        if axis.source.is_none() && view.is_padded(k) {
            let slice = |v: Viewed| v.slice(k, axis.low, axis.high - axis.low);
            inputs = inputs.into_iter().map(slice).collect();
            trimmed = slice(trimmed);
        }
    }
    let (summed, back) = trimmed.view.adjoint();
    let runs = runs(&summed);
    let joined = match runs.as_slice() {
        [(first, count)] => joined(&inputs, *first, *count),
        _ => None,
    };
    let y = match (runs.as_slice(), joined) {
        ([], _) => map_program(inputs, program),
        ([(axis, _)], Some(inputs)) => {
            let (tensors, views): (Vec<Tensor>, Vec<View>) =
                inputs.into_iter().map(|v| (v.tensor, v.view)).unzip();
            let op = Reduce { kind: Kind::Sum, program, views, axis: *axis, factor: 1.0 };
            apply(op, &tensors.iter().collect::<Vec<_>>())
        }
        _ => runs.iter().rev().fold(map_program(inputs, program), |y, run| sum_run(&y, *run)),
    };
    materialize(Viewed { tensor: y.reshape(back.source), view: back })
}

/// The inputs with `count` axes from `first` as one, so that one reduction sums them; `None` where an input
/// does not read them in one step.
fn joined(inputs: &[Viewed], first: usize, count: usize) -> Option<Vec<Viewed>> {
    let join = |v: &Viewed| {
        let view = (1..count).try_fold(v.view.clone(), |view, _| view.merged(first))?;
        Some(Viewed { tensor: v.tensor.reshape(view.source), view })
    };
    inputs.iter().map(join).collect()
}

/// Neighbouring axes as (first, count).
fn runs(axes: &[usize]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for a in axes {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *a => *count += 1,
            _ => runs.push((*a, 1)),
        }
    }
    runs
}

fn sum_run(y: &Tensor, (first, count): (usize, usize)) -> Tensor {
    let mut dims = y.dims().to_vec();
    let n: usize = dims.drain(first..first + count).product();
    dims.insert(first, n);
    sum_axis(&y.reshape(Shape::new(&dims)), first)
}

/// The values a view reads, in its order.
pub(super) fn gather(x: &ArrayView, view: &View) -> Vec<f64> {
    let (offset, strides) = view.strides();
    let dims = view.shape.dims();
    let mut c = vec![0usize; dims.len()];
    let mut values = Vec::with_capacity(view.shape.len());
    for _ in 0..view.shape.len() {
        let inside = view.axes.iter().zip(&c).all(|(a, c)| (a.low..a.high).contains(c));
        let at = offset + c.iter().zip(&strides).map(|(c, s)| (c * s) as isize).sum::<isize>();
        values.push(if inside { x.data[at as usize] } else { 0.0 });
        for k in (0..dims.len()).rev() {
            c[k] += 1;
            if c[k] < dims[k] {
                break;
            }
            c[k] = 0;
        }
    }
    values
}

pub(super) fn cases() -> Vec<Case> {
    let square: &[usize] = &[8, 8];
    let several: fn(&[Tensor]) -> Tensor = |x| {
        let views = vec![x[0].view(), x[1].view().pad(1, 4, 12), x[2].view()];
        let read = [0, 1, 2].map(Expr::input);
        let formulas = [&read[0] * &read[2] + 0.5, read[1].tanh(), &read[0] * 3.0 - &read[1] * &read[2]];
        let y = maps(views, formulas.to_vec());
        y[0].map3(&y[1], &y[2], |a, b, c| a + b * c)
    };
    vec![
        case("maps", "three formulas at once", &[&[16, 64], &[16, 48], &[64]], POINT, several).untracked(),
        // One term of seven tensors beside one of one.
        case("map", "a gradient of more tensors than a pass reads", &[square; 8], sums(8), |x| {
            let product = x[1..7].iter().fold(x[0].clone(), |y, a| y.map2(a, |y, a| y * a));
            add(&product, &x[0].linear(&x[7], None, Act::None))
        })
        .with(1, Values::Whole(3))
        .with(2, Values::Whole(3))
        .with(3, Values::Whole(3))
        .with(4, Values::Whole(3))
        .with(5, Values::Whole(3))
        .with(6, Values::Whole(3)),
        case("map", "a formula of one tensor nine times", &[&[4, 9], &[4, 9]], POINT, |x| {
            let column = |i: usize| x[1].view().slice(1, i, 1);
            let views = [x[0].view().slice(1, 0, 1)].into_iter().chain((0..8).map(column)).collect();
            map(views, |v| v.iter().skip(1).fold(v[0].clone(), |y, c| y * (c * 0.1 + 1.0))).map(Expr::tanh)
        })
        .with(1, Values::Whole(3)),
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
        case("map", "angles", &[&[7, 32], &[7, 32]], POINT, |x| x[0].map2(&x[1], |a, b| a.atan2(b))),
        case("map", "angles on the axes and at the origin", &[&[64], &[64]], POINT, |x| {
            x[0].map2(&x[1], |a, b| a.atan2(b))
        })
        .all(Values::Grid),
        case("map", "bias over rows", &[&[37, 36], &[36]], POINT, |x| x[0].map2(&x[1], |a, b| a * b + b)),
        case("map", "a scalar and a column", &[&[5, 3, 8], &[], &[3, 1]], POINT, |x| {
            x[0].map3(&x[1], &x[2], |a, s, c| a * s + c / (s * s + 1.0))
        }),
        case("map", "outer product", &[&[7, 1, 5], &[1, 3, 1]], POINT, |x| x[0].map2(&x[1], |a, b| a * b)),
        case("map", "permuted", &[&[3, 5, 8], &[8, 3, 5]], POINT, |x| {
            map(vec![x[0].view().permute(&[2, 0, 1]), x[1].view()], |x| &x[0] * &x[1])
        }),
        case("map", "places that floats divide", &[&[3, 700_001]], POINT, |x| {
            map(vec![x[0].view().permute(&[1, 0]).pad(1, 1, 1)], |x| &x[0] * 2.0)
        }),
        case("map", "sliced and padded", &[&[4, 12], &[4, 6]], POINT, |x| {
            map(vec![x[0].view().slice(1, 3, 8), x[1].view().pad(1, 2, 0)], |x| &x[0] * 2.0 + &x[1] * &x[0])
        }),
        case("map", "slices whose slopes have no value past their ends", &[&[4, 12], &[4, 5]], POINT, |x| {
            let slice = x[0].map(|x| x * x + 1.0).view().slice(1, 4, 5);
            map(vec![slice, x[1].view()], |x| &x[1] / &x[0] + x[0].rsqrt())
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
    ]
}
