//! Batch norm (Ioffe and Szegedy 2015): channels taken to mean 0 and variance 1 over the rows of a batch, then to a weight
//! and a bias of each channel. Each way a kernel for each part of the rows, one that joins what they sum, and a pointwise pass.

use super::codegen::{Lane, fill};
use super::map::map;
use super::reduce::{ACROSS, LEAST, LEAST_IN_TEAM, enough};
use super::registry::{Case, POINT, Values, case, sums};
use super::rows::Team;
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Style, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Expr, Grad, Keep, Kind, Op, Pullback, Tensor, Viewed, compute, record};

const CHUNKS: Kernel =
    Kernel { name: "batch_norm_chunks", text: include_str!("../../shaders/batch_norm_chunks.wgsl") };
const STATISTICS: Kernel = Kernel { name: "batch_norm", text: include_str!("../../shaders/batch_norm.wgsl") };
const SUMS: Kernel =
    Kernel { name: "batch_norm_sums", text: include_str!("../../shaders/batch_norm_sums.wgsl") };
const GRAD: Kernel =
    Kernel { name: "batch_norm_grad", text: include_str!("../../shaders/batch_norm_grad.wgsl") };

/// PyTorch's default epsilon.
const EPS: f64 = 1e-5;
/// PyTorch's default momentum.
const MOMENTUM: f64 = 0.1;
/// A divisor in place of the weight of no rows.
const TINY: f64 = 1e-30;
/// Chunks of a part unless its rows ask for more: so few that walking them takes no time.
const MOST_CHUNKS: usize = 512;
/// Loops over the rows of a chunk, and iterations of a team's sums.
const LOOPS: usize = 3;
const FOLDS: usize = 18;

/// Batch norm's parameters and running statistics, all `[channels]`.
pub struct BatchNorm {
    /// What normalised values are multiplied by.
    pub weight: Tensor,
    /// What is added to them.
    pub bias: Tensor,
    /// The running mean, without a gradient.
    pub mean: Tensor,
    /// The running variance, without a gradient.
    pub var: Tensor,
}

impl BatchNorm {
    /// `x [.., channels]` normalised by the running statistics.
    #[track_caller]
    pub fn by_running(&self, x: &Tensor) -> Tensor {
        let scale = self.weight.map2(&self.var.detach(), |w, v| w * (v + EPS).rsqrt());
        applied(x, self.mean.detach().view(), scale.view(), &self.bias)
    }

    /// A batch in parts, each `[rows, channels]`, normalised by the statistics of all rows together, or of those that
    /// `masks`, each `[rows, 1]` and without a gradient, hold 1 for: their mean and their biased variance, both 0 where no
    /// row counts. Besides, the running mean and variance after it: they move by a tenth, towards the unbiased variance.
    #[track_caller]
    pub fn by_batch(&self, parts: &[Tensor], masks: Option<&[Tensor]>) -> (Vec<Tensor>, [Tensor; 2]) {
        let Self { weight, bias, mean, var } = self;
        let op = Statistics { parts: parts.len(), masked: masks.is_some() };
        let x: Vec<Tensor> = parts.iter().map(Tensor::detach).collect();
        let about: Vec<Tensor> = [weight, mean, var].iter().map(|t| t.detach()).collect();
        let all: Vec<&Tensor> = x.iter().chain(masks.unwrap_or_default()).chain(&about).collect();
        let statistics = compute(op, &all);
        let running = [RUNNING_MEAN, RUNNING_VAR].map(|row| statistics.select(row));
        let [centre, scale] = [MEAN, SCALE].map(|row| entry(&statistics, row));
        let bias = bias.detach();
        let y = x.iter().map(|x| applied(x, centre.clone(), scale.clone(), &bias)).collect();
        let inputs: Vec<&Tensor> = parts.iter().chain([weight, &self.bias]).collect();
        let op = Normalised { x, masks: masks.map(<[Tensor]>::to_vec), statistics };
        (record("batch_norm", Kind::Op(Box::new(op)), &inputs, y), running)
    }
}

/// `(x - mean) * scale + bias`. The mean first: a scale's gradient is then a sum of what varies, not a difference of two
/// large sums.
#[track_caller]
fn applied(x: &Tensor, mean: Viewed, scale: Viewed, bias: &Tensor) -> Tensor {
    map(vec![x.view(), mean, scale, bias.view()], |v| (&v[0] - &v[1]) * &v[2] + &v[3])
}

/// A row as a view.
fn entry(rows: &Tensor, i: usize) -> Viewed {
    rows.view().slice(0, i, 1).squeeze(0)
}

/// Who walks a column, and which.
#[derive(Clone, Copy, Debug)]
struct Walk {
    lane: Lane,
    team: Team,
}

impl Walk {
    /// Who walks columns of so many rows: where neighbours walk neighbouring columns, a GPU wants more of them.
    fn of(gpu: &Gpu, channels: usize, rows: usize) -> Self {
        let lane = if channels.is_multiple_of(4) { Lane::Out } else { Lane::Single };
        let long = gpu.style() == Style::Workgroup && rows >= LEAST_IN_TEAM * ACROSS;
        Self { lane, team: if long { Team::Across(ACROSS) } else { Team::Own } }
    }

    /// Channels of a column.
    fn width(&self) -> usize {
        if self.lane == Lane::Out { 4 } else { 1 }
    }

    /// The chunks that so many rows are walked in.
    fn chunks(&self, gpu: &Gpu, columns: usize, rows: usize) -> usize {
        let (own, least) = match self.team {
            Team::Own => (rows, LEAST),
            team => (rows.div_ceil(team.size()), LEAST_IN_TEAM),
        };
        let wanted = enough(gpu).div_ceil(columns * self.team.size()).min(MOST_CHUNKS);
        wanted.min(own.div_ceil(least)).max(own.div_ceil((MAX_LOOP - FOLDS) / LOOPS))
    }

    fn source(&self, kernel: Kernel) -> String {
        let element = if self.lane == Lane::Out { "vec4<f32>" } else { "f32" };
        fill(kernel.text, &[("lane", &format!("alias T = {element};\n{}", self.team.folds("T", self.lane)))])
    }

    /// Records `kernel` over so many columns, or chunks of them, each of `steps` rows at most.
    fn dispatch(&self, gpu: &Gpu, count: usize, steps: usize, of: &Records) {
        #[cfg(test)]
        super::gates::planned(of.kernel.name, self);
        let body = 2 * self.width() as u64 + u64::from(self.team != Team::Own);
        gpu.dispatch(&Launch {
            kernel: of.kernel,
            body: Some((body, &|| self.source(of.kernel))),
            constants: of.constants,
            reads: &of.reads,
            writes: &[of.y],
            params: of.params.clone(),
            grid: Grid::Heavy(count * self.team.size()),
            loops: LOOPS * steps.div_ceil(self.team.size()) + FOLDS,
        });
    }
}

/// What a kernel reads and writes.
struct Records<'a> {
    kernel: Kernel,
    constants: &'a [(&'a str, f64)],
    reads: Vec<&'a Buf>,
    y: &'a Buf,
    params: Words,
}

/// The variants that an adapter's style can choose.
#[cfg(test)]
pub(super) fn variants(gpu: &Gpu) -> Vec<super::gates::Variant> {
    let mut all = Vec::new();
    for (channels, rows) in [(8, 1), (5, 1), (8, 1024), (5, 1024)] {
        let walk = Walk::of(gpu, channels, rows);
        let variant = |kernel: Kernel| super::gates::Variant::new(kernel.name, &walk, walk.source(kernel));
        all.extend([CHUNKS, STATISTICS, SUMS, GRAD].map(variant));
    }
    all
}

/// A kernel over chunks of the rows of each part, and one that makes the result of what it gives for each.
struct InChunks<'a> {
    kernels: [Kernel; 2],
    /// The shapes of the parts.
    parts: &'a [Shape],
    /// Values of a chunk for each channel.
    values: usize,
    constants: &'a [(&'a str, f64)],
    /// What the second reads besides the chunks.
    about: &'a [&'a Buf],
    /// The second's parameters after columns and chunks.
    rest: Words,
}

impl InChunks<'_> {
    /// Records both; `reads` gives what the first reads of a part.
    fn record<'b>(self, gpu: &Gpu, reads: impl Fn(usize) -> Vec<&'b Buf>, y: &Buf) {
        let channels = self.parts[0].last();
        if channels == 0 {
            return;
        }
        let columns = channels / Walk::of(gpu, channels, 0).width();
        let plan = |s: &Shape| {
            let walk = Walk::of(gpu, channels, s[0]);
            (walk, s[0], walk.chunks(gpu, columns, s[0]))
        };
        let plans: Vec<(Walk, usize, usize)> = self.parts.iter().map(plan).collect();
        let total: usize = plans.iter().map(|plan| plan.2).sum();
        let partial = gpu.alloc((total * self.values * channels).max(1));
        let mut first = 0;
        for (i, (walk, rows, chunks)) in plans.into_iter().enumerate().filter(|(_, plan)| plan.2 > 0) {
            let len = rows.div_ceil(chunks);
            let params = Words::default().sizes(&[columns * chunks, columns, rows, len, first]);
            let [kernel, _] = self.kernels;
            let of = Records { kernel, constants: self.constants, reads: reads(i), y: &partial, params };
            walk.dispatch(gpu, columns * chunks, len, &of);
            first += chunks;
        }
        let mut params = Words::default().sizes(&[columns, total]);
        params.0.extend(self.rest.0);
        let reads = [&partial].into_iter().chain(self.about.iter().copied()).collect();
        let [_, kernel] = self.kernels;
        let of = Records { kernel, constants: &[], reads, y, params };
        Walk::of(gpu, channels, total).dispatch(gpu, columns, total, &of);
    }
}

/// Rows of the statistics: mean; `1 / sqrt(variance + eps)`; that times the weight; what the rows weigh together; the
/// running mean and variance.
const MEAN: usize = 0;
const INVERSE: usize = 1;
const SCALE: usize = 2;
const COUNT: usize = 3;
const RUNNING_MEAN: usize = 4;
const RUNNING_VAR: usize = 5;

/// The statistics, `[6, channels]`, of so many parts, from them, their masks if they have some, the weight and the running
/// statistics.
#[derive(Clone, Debug)]
struct Statistics {
    parts: usize,
    masked: bool,
}

impl Statistics {
    /// Calls `f` with the values of each row of each part, and what it weighs.
    fn each(&self, x: &[ArrayView], mut f: impl FnMut(&[f64], f64)) {
        for (i, part) in x[..self.parts].iter().enumerate() {
            for (row, values) in part.data.chunks_exact(part.shape[1].max(1)).enumerate() {
                f(values, if self.masked { x[self.parts + i].data[row] } else { 1.0 });
            }
        }
    }
}

impl Op for Statistics {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        let (parts, rest) = x.split_at(self.parts);
        let (masks, about) = rest.split_at(if self.masked { self.parts } else { 0 });
        let channels = about[0];
        let fits = |s: &Shape| s.rank() == 2 && s.last() == channels.len();
        let masked = parts.iter().zip(masks).all(|(part, mask)| mask.dims() == [part[0], 1]);
        assert!(
            channels.rank() == 1 && parts.iter().all(fits) && masked && about[1..] == [channels; 2],
            "batch_norm: {x:?}"
        );
        Shape::new(&[6, channels.len()])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let in_chunks = InChunks {
            kernels: [CHUNKS, STATISTICS],
            parts: &shapes[..self.parts],
            values: 3,
            constants: &[("masked", f64::from(u8::from(self.masked)))],
            about: &x[x.len() - 3..],
            rest: Words::default().floats(&[EPS as f32, MOMENTUM as f32]),
        };
        in_chunks.record(gpu, |i| vec![x[i], x[if self.masked { self.parts + i } else { i }]], y);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let shapes: Vec<Shape> = x.iter().map(|x| x.shape).collect();
        let mut y = Array::zeros(self.shape(&shapes));
        let [weight, mean, var] = [3, 2, 1].map(|back| x[x.len() - back].data);
        let channels = weight.len();
        let (mut count, mut centre, mut squares) = (0.0, vec![0.0; channels], vec![0.0; channels]);
        self.each(x, |row, weighs| {
            count += weighs;
            centre.iter_mut().zip(row).for_each(|(sum, v)| *sum += weighs * v);
        });
        centre.iter_mut().for_each(|sum| *sum /= f64::max(count, TINY));
        self.each(x, |row, weighs| {
            for (sum, (v, mean)) in squares.iter_mut().zip(row.iter().zip(&centre)) {
                *sum += weighs * (v - mean) * (v - mean);
            }
        });
        for c in 0..channels {
            let inverse = 1.0 / (squares[c] / f64::max(count, TINY) + EPS).sqrt();
            let moved = |old: f64, new: f64| old * (1.0 - MOMENTUM) + new * MOMENTUM;
            let running_var = moved(var[c], squares[c] / f64::max(count - 1.0, 1.0));
            let all =
                [centre[c], inverse, weight[c] * inverse, count, moved(mean[c], centre[c]), running_var];
            all.iter().enumerate().for_each(|(row, v)| y.data[row * channels + c] = *v);
        }
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[..self.parts].iter().map(Shape::len).sum::<usize>() as f64;
        Cost { flops: 5.0 * n, bytes: 4.0 * n }
    }
}

/// The way back. It keeps itself what it reads: there may be more parts than [`Keep`] counts.
struct Normalised {
    x: Vec<Tensor>,
    masks: Option<Vec<Tensor>>,
    statistics: Tensor,
}

impl Pullback for Normalised {
    fn keep(&self) -> Keep {
        Keep::NOTHING
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let (parts, channels) = (self.x.len(), back.shape(self.x.len()));
        let g: Vec<&Tensor> = (0..parts).map(|i| back.g_of(i)).collect();
        let all: Vec<&Tensor> = self.x.iter().chain(g.iter().copied()).chain([&self.statistics]).collect();
        let sums = compute(BatchNormGrad { parts }, &all);
        let part = |i: usize| {
            let rows = [entry(&self.statistics, SCALE), entry(&self.statistics, MEAN)]
                .into_iter()
                .chain([SLOPE, SHIFT].map(|row| entry(&sums, row)))
                .chain(self.masks.iter().map(|masks| masks[i].view()));
            let shape = self.x[i].shape();
            let inputs = [g[i].view(), self.x[i].view()].into_iter().chain(rows);
            let [g, x, scale, mean, slope, shift] = [0, 1, 2, 3, 4, 5].map(Expr::input);
            let taken = shift + (x - mean) * slope;
            let counted = if self.masks.is_some() { taken * Expr::input(6) } else { taken };
            Grad { inputs: inputs.map(|v| v.broadcast(shape)).collect(), formula: (g - counted) * scale }
        };
        let of_parts = (0..parts).map(|i| back.needs(i).then(|| part(i)));
        let of_channels = (0..2)
            .map(|row| back.needs(parts + row).then(|| sums.section(row * channels.len(), channels).into()));
        of_parts.chain(of_channels).collect()
    }
}

/// Rows of what [`BatchNormGrad`] gives after the gradients of the weight and the bias.
const SLOPE: usize = 2;
const SHIFT: usize = 3;

/// The gradients of the weight and the bias, and what those of the parts take from them, `[4, channels]`, from so many
/// parts, the gradients of what they become, and their statistics.
#[derive(Clone, Debug)]
struct BatchNormGrad {
    parts: usize,
}

impl Op for BatchNormGrad {
    fn name(&self) -> &'static str {
        "batch_norm_grad"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        Shape::new(&[4, x[0].last()])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let about = x[2 * self.parts];
        let in_chunks = InChunks {
            kernels: [SUMS, GRAD],
            parts: &shapes[..self.parts],
            values: 2,
            constants: &[],
            about: &[about],
            rest: Words::default(),
        };
        in_chunks.record(gpu, |i| vec![x[i], x[self.parts + i], about], y);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let channels = x[0].shape.last();
        let mut y = Array::zeros(Shape::new(&[4, channels]));
        let about = |row: usize, c: usize| x[2 * self.parts].data[row * channels + c];
        for i in 0..self.parts {
            for (at, (v, g)) in x[i].data.iter().zip(x[self.parts + i].data).enumerate() {
                let c = at % channels;
                y.data[c] += g * (v - about(MEAN, c)) * about(INVERSE, c);
                y.data[channels + c] += g;
            }
        }
        for c in 0..channels {
            let n = about(COUNT, c).max(1.0);
            y.data[SLOPE * channels + c] = y.data[c] * about(INVERSE, c) / n;
            y.data[SHIFT * channels + c] = y.data[channels + c] / n;
        }
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[..self.parts].iter().map(Shape::len).sum::<usize>() as f64;
        Cost { flops: 5.0 * n, bytes: 8.0 * n }
    }
}

/// Batch norm of a weight and a bias, with running statistics that differ between channels.
fn norm_of(weight: &Tensor, bias: &Tensor) -> BatchNorm {
    let values: Vec<f32> = (0..weight.len()).map(|c| 0.5 + c as f32 / 8.0).collect();
    let running = weight.device().tensor(weight.shape(), &values);
    BatchNorm { weight: weight.clone(), bias: bias.clone(), mean: running.clone(), var: running }
}

pub(super) fn cases() -> Vec<Case> {
    let one: fn(&[Tensor]) -> Tensor = |x| norm_of(&x[1], &x[2]).by_batch(&x[..1], None).0.remove(0);
    let masked: fn(&[Tensor]) -> Tensor = |x| {
        let (y, _) = norm_of(&x[4], &x[5]).by_batch(&x[..2], Some(&x[2..4]));
        super::concat(&y, 0)
    };
    let running: fn(&[Tensor]) -> Tensor = |x| {
        let (_, statistics) = norm_of(&x[2], &x[3]).by_batch(&x[..1], Some(&x[1..2]));
        super::concat(&statistics, 0)
    };
    let of = |about, rows: usize, channels: usize| {
        case("batch_norm", about, &[&[rows, channels], &[channels], &[channels]], sums(rows), one)
    };
    let parts = |about, rows: [usize; 2], channels: usize| {
        let dims: [&[usize]; 6] = [
            &[rows[0], channels],
            &[rows[1], channels],
            &[rows[0], 1],
            &[rows[1], 1],
            &[channels],
            &[channels],
        ];
        let case = case("batch_norm", about, &dims, sums(rows[0] + rows[1]), masked);
        case.with(2, Values::Whole(2)).with(3, Values::Whole(2))
    };
    let moved = |about, rows: usize, weighs: usize| {
        let case = case("batch_norm", about, &[&[rows, 8], &[rows, 1], &[8], &[8]], sums(rows), running);
        case.with(1, Values::Whole(weighs)).untracked()
    };
    vec![
        of("many rows", 9216, 64).bench(),
        of("many odd rows", 5000, 37),
        of("few rows", 40, 12),
        of("few odd rows", 9, 5),
        of("one row", 1, 8),
        of("values far from 0", 1200, 8).with(0, Values::Uniform(31.0, 33.0)),
        of("a frozen weight", 70, 8).with(1, Values::Whole(5)).with(2, Values::Whole(5)),
        of("rows without a gradient", 70, 8).with(0, Values::Whole(5)),
        parts("parts with some rows masked", [300, 70], 12),
        parts("parts with some rows masked, odd", [7, 90], 3),
        parts("parts, one of them empty", [0, 33], 8),
        of("more rows than a chunk's loop holds in two", 21_833, 4),
        parts("parts with all rows masked", [9, 5], 8).with(2, Values::Whole(1)).with(3, Values::Whole(1)),
        moved("running statistics", 300, 2),
        moved("running statistics of one row", 1, 2),
        moved("running statistics of no row", 9, 1),
        case("batch_norm", "by running statistics", &[&[40, 12], &[12], &[12]], POINT, |x| {
            norm_of(&x[1], &x[2]).by_running(&x[0])
        }),
    ]
}
