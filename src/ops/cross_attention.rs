//! The weights of cross-attention between the rows of an image and of a caption, pair by pair (SCAN, Lee et al.
//! 2018, section 3.1; DIME's section 3.2): from scores to weights in one kernel each way, nothing kept between.

mod modulate;

use std::hash::{DefaultHasher, Hash, Hasher};

use super::codegen::{each, fill, pointwise};
use super::registry::{Case, Values, case, sums};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, MAX_LOOP, Style, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};
pub use modulate::modulated;
#[cfg(test)]
pub(super) use modulate::variants as modulate_variants;

const OWN: &str = include_str!("../../shaders/cross_attention.wgsl");
const SHARED: &str = include_str!("../../shaders/cross_attention_shared.wgsl");
/// What OWN does with elements of one value.
const ONE: &str = "fn fold_sum(x: T) -> f32 { return x; }\nfn fold_max(x: T) -> f32 { return x; }\n\
    fn places(n: f32) -> T { return n; }";

/// Columns whose norms an invocation keeps in registers: in fours where there are whole fours, else one by one and
/// rounded up to eights, so that captions of any length share few kernels.
const MOST_FOURS: usize = 16;
const MOST_ONES: usize = 40;
/// Steps in which a kernel's room in workgroup memory grows: for scores of a pair, and for rows or columns.
const CELLS: usize = 512;
const SIDE: usize = 64;

/// What scores are divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QueryNorm {
    /// Nothing.
    None,
    /// `max(norm, eps)` of a context row's scores over the queries.
    Max(f64),
    /// `norm + eps`.
    Plus(f64),
}

/// Which rows of a pair are words, where captions have lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WordAxis {
    /// The queries: padding counts as a score of 0.
    Queries,
    /// The context: padding has no weight.
    Context,
}

/// How scores `[images, captions, queries, context]` become weights of the same shape: past a leaky ReLU, divided by
/// their norm over the queries, and through a softmax over the context.
#[derive(Clone, Debug)]
pub struct CrossAttention {
    /// The leaky ReLU's slope, if there is one.
    pub leaky: Option<f64>,
    /// What the scores are divided by.
    pub over: QueryNorm,
    /// Factor of the softmax (inverse temperature).
    pub scale: f64,
    /// What the captions' lengths mean, where they are given.
    pub words: WordAxis,
}

impl CrossAttention {
    /// The weights, in one kernel where a pair fits it. `lens [captions]` are true words of each caption.
    #[track_caller]
    pub fn weights(&self, scores: &Tensor, lens: Option<&Tensor>) -> Tensor {
        let lens = lens.filter(|_| self.heeds_lens());
        let mut x = vec![scores];
        x.extend(lens);
        let fits = scores
            .device()
            .gpu()
            .is_none_or(|gpu| Plan::of(self, gpu, scores.shape(), lens.is_some()).is_some());
        if fits { apply(self.clone(), &x) } else { self.composed(scores, lens) }
    }

    /// The same by the ops it is made of.
    #[track_caller]
    pub fn composed(&self, scores: &Tensor, lens: Option<&Tensor>) -> Tensor {
        let s = scores.shape();
        let (queries, context) = match self.words {
            WordAxis::Queries => (lens, None),
            WordAxis::Context => (None, lens),
        };
        let activated =
            self.leaky.map_or_else(|| scores.clone(), |slope| scores.map(|x| x.leaky_relu(slope)));
        let kept = match queries.filter(|_| self.heeds_lens()) {
            Some(lens) => {
                let places: Vec<f32> = (0..s[2]).map(|i| i as f32).collect();
                let places = scores.device().tensor([s[2], 1], &places);
                let lens = lens.view().repeat(1, 1).repeat(2, 1);
                activated.map3(&places, lens, |x, place, n| n.greater(place).select(x, 0.0))
            }
            None => activated,
        };
        let over = match self.over {
            QueryNorm::None => kept,
            QueryNorm::Max(eps) => kept.l2norm(2, eps),
            QueryNorm::Plus(eps) => kept.l2norm_plus(2, eps),
        };
        match context {
            Some(lens) => over.softmax_to(3, self.scale, lens, s[2]),
            None => over.softmax(3, self.scale),
        }
    }

    fn launch(&self, gpu: &Gpu, grad: bool, reads: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let s = shapes[0];
        let plan = Plan::of(self, gpu, s, shapes.len() > 1).expect("`weights` composes what has no plan");
        #[cfg(test)]
        super::gates::planned("cross_attention", &plan);
        let (pairs, rows, columns) = (s[0] * s[1], s[2], s[3] / plan.vector);
        // What a variant does not read is bound to the scores.
        let lens = if shapes.len() > 1 { reads[reads.len() - 1] } else { reads[0] };
        let mut hash = DefaultHasher::new();
        (&plan, grad).hash(&mut hash);
        gpu.dispatch(&Launch {
            kernel: Kernel {
                name: if grad { "cross_attention_grad" } else { "cross_attention" },
                text: if plan.shared { SHARED } else { OWN },
            },
            body: Some((hash.finish(), &|| plan.source(grad))),
            constants: &[],
            reads: &[reads[0], reads[usize::from(grad)], lens],
            writes: &[y],
            params: Words::default()
                .sizes(&[pairs, rows, columns, shapes.get(1).map_or(0, |l| l[0])])
                .floats(&self.numbers()),
            grid: if plan.shared { Grid::Groups(pairs) } else { Grid::Heavy(pairs) },
            loops: plan.loops(rows, columns),
        });
    }

    /// The scale, the norms' eps and the leaky ReLU's slope, as kernels take them.
    fn numbers(&self) -> [f32; 3] {
        let eps = match self.over {
            QueryNorm::None => 0.0,
            QueryNorm::Max(eps) | QueryNorm::Plus(eps) => eps,
        };
        [self.scale, eps, self.leaky.unwrap_or(1.0)].map(|v| v as f32)
    }

    /// Whether scores are divided by their norm, and by norm + eps.
    fn norms(&self) -> (bool, bool) {
        (self.over != QueryNorm::None, matches!(self.over, QueryNorm::Plus(_)))
    }

    /// Calls `f` with each pair's place, its scores past the leaky ReLU, their norms and their weights, in f64.
    fn pairs(&self, x: &[ArrayView], mut f: impl FnMut(usize, &[f64], &[f64], &[f64])) {
        let s = x[0].shape;
        let (rows, columns) = (s[2], s[3]);
        for pair in 0..s[0] * s[1] {
            let (first, n) = (pair * rows * columns, x.get(1).map(|l| l.data[pair % l.data.len()] as usize));
            let (used, len) = self.used(n, rows, columns);
            let activate = |v: f64| if v > 0.0 { v } else { v * self.leaky.unwrap_or(1.0) };
            let score = |e: usize| if e / columns < used { activate(x[0].data[first + e]) } else { 0.0 };
            let activated: Vec<f64> = (0..rows * columns).map(score).collect();
            let norm = |l: usize| (0..rows).map(|r| activated[r * columns + l].powi(2)).sum::<f64>().sqrt();
            let norms: Vec<f64> = (0..columns).map(norm).collect();
            let mut weights = vec![0.0; rows * columns];
            for (row, out) in activated.chunks(columns).zip(weights.chunks_mut(columns)) {
                let at = |l: usize| self.scale * row[l] / self.divisor(norms[l]);
                let most = (0..len).map(at).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = (0..len).map(|l| (at(l) - most).exp()).sum();
                (0..len).for_each(|l| out[l] = (at(l) - most).exp() / sum);
            }
            f(first, &activated, &norms, &weights);
        }
    }

    /// Whether lengths change the weights: a query's padding does so through the norms alone.
    fn heeds_lens(&self) -> bool {
        self.words == WordAxis::Context || self.over != QueryNorm::None
    }

    /// Queries and columns that are not masked, of a caption of `n` words.
    fn used(&self, n: Option<usize>, rows: usize, columns: usize) -> (usize, usize) {
        match (self.words, n) {
            (WordAxis::Queries, Some(n)) => (n.min(rows), columns),
            (WordAxis::Context, Some(n)) => (rows, n.min(columns)),
            _ => (rows, columns),
        }
    }

    fn divisor(&self, norm: f64) -> f64 {
        match self.over {
            QueryNorm::None => 1.0,
            QueryNorm::Max(eps) => norm.max(eps),
            QueryNorm::Plus(eps) => norm + eps,
        }
    }

    /// Whether the divisor depends on the scores, and has a gradient.
    fn norm_has_grad(&self, norm: f64) -> bool {
        match self.over {
            QueryNorm::None => false,
            QueryNorm::Max(eps) => norm > eps,
            QueryNorm::Plus(_) => norm > 0.0,
        }
    }
}

impl Op for CrossAttention {
    fn name(&self) -> &'static str {
        "cross_attention"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        assert!(x[0].rank() == 4 && x.get(1).is_none_or(|l| l.dims() == [x[0][1]]), "cross_attention: {x:?}");
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        self.launch(gpu, false, x, y, shapes);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let mut y = Array::zeros(x[0].shape);
        self.pairs(x, |first, _, _, w| y.data[first..first + w.len()].copy_from_slice(w));
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: 12.0 * n, bytes: 8.0 * n }
    }
}

impl Pullback for CrossAttention {
    fn keep(&self) -> Keep {
        Keep::inputs(0..2)
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let mut x = vec![back.x(0), back.g()];
        x.extend((back.inputs() > 1).then(|| back.x(1)));
        let mut grads = vec![back.needs(0).then(|| compute(CrossAttentionGrad(self.clone()), &x).into())];
        grads.resize(back.inputs(), None);
        grads
    }
}

/// The gradient of the scores, from the scores, the weights' gradient and the lengths.
#[derive(Clone, Debug)]
struct CrossAttentionGrad(CrossAttention);

impl Op for CrossAttentionGrad {
    fn name(&self) -> &'static str {
        "cross_attention_grad"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let shapes: Vec<Shape> =
            shapes.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, s)| *s).collect();
        self.0.launch(gpu, true, x, y, &shapes);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (op, columns) = (&self.0, x[0].shape[3]);
        let mut y = Array::zeros(x[0].shape);
        let inputs: Vec<ArrayView> = x.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, a)| *a).collect();
        op.pairs(&inputs, |first, activated, norms, weights| {
            let g = &x[1].data[first..first + activated.len()];
            let n = x.get(2).map(|l| l.data[first / activated.len() % l.data.len()] as usize);
            let (used, _) = op.used(n, activated.len() / columns, columns);
            let mut d = vec![0.0; activated.len()];
            for r in 0..used {
                let row = r * columns..(r + 1) * columns;
                let mean: f64 = row.clone().map(|e| weights[e] * g[e]).sum();
                row.for_each(|e| d[e] = op.scale * weights[e] * (g[e] - mean));
            }
            for (l, norm) in norms.iter().enumerate() {
                let column = || (0..used).map(|r| r * columns + l);
                let divisor = op.divisor(*norm);
                let dot: f64 = column().map(|e| activated[e] * d[e]).sum();
                let share = if op.norm_has_grad(*norm) { dot / (norm * divisor) } else { 0.0 };
                for e in column() {
                    let slope = if x[0].data[first + e] > 0.0 { 1.0 } else { op.leaky.unwrap_or(1.0) };
                    y.data[first + e] = (d[e] - activated[e] * share) / divisor * slope;
                }
            }
        });
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: 24.0 * n, bytes: 12.0 * n }
    }
}

/// A kernel's variant.
#[derive(Clone, Copy, Debug, Hash)]
struct Plan {
    /// Whether a workgroup shares a pair, in its memory; else an invocation owns one.
    shared: bool,
    /// There: room for scores, and for rows or columns.
    cells: usize,
    side: usize,
    /// Values of an element.
    vector: usize,
    /// Elements of a row that are unrolled, and whether a row has as many.
    unrolled: usize,
    exact: bool,
    normed: bool,
    plus: bool,
    masked: Option<WordAxis>,
}

impl Plan {
    /// The variant for scores of a shape, if a pair fits one.
    fn of(op: &CrossAttention, gpu: &Gpu, s: Shape, masked: bool) -> Option<Self> {
        let (rows, columns) = (s[2], s[3]);
        let shared = gpu.style() == Style::Workgroup;
        let vector = if columns.is_multiple_of(4) && !shared { 4 } else { 1 };
        let needed = columns / vector;
        let unrolled = if vector == 4 { needed } else { needed.next_multiple_of(8) };
        let (normed, plus) = op.norms();
        let masked = masked.then_some(op.words);
        let (cells, side) = match shared {
            true => {
                let up = |n: usize, step| n.max(1).next_multiple_of(step);
                (up(rows * columns, CELLS), up(rows.max(columns), SIDE))
            }
            false => (0, 0),
        };
        let exact = unrolled == needed;
        let plan = Self { shared, cells, side, vector, unrolled, exact, normed, plus, masked };
        let fits = match (shared, vector) {
            (true, _) => 8 * cells + 12 * side <= gpu.facts().workgroup_memory as usize,
            (false, 4) => unrolled <= MOST_FOURS,
            (false, _) => unrolled <= MOST_ONES,
        };
        let plan = if shared { Self { unrolled: 0, exact: true, ..plan } } else { plan };
        (fits && plan.loops(rows, needed) <= MAX_LOOP).then_some(plan)
    }

    /// Loop iterations of an invocation, at most.
    fn loops(&self, rows: usize, columns: usize) -> usize {
        let each = |n: usize| n.div_ceil(64);
        match self.shared {
            true => {
                3 * each(rows * columns) + each(rows) * (1 + 4 * columns) + 2 * each(columns) * (1 + rows)
            }
            false => 3 * rows,
        }
    }

    fn source(&self, grad: bool) -> String {
        let variant = variant(self.normed, self.plus, self.masked, self.cells, self.side)
            + &format!(
                "const GRAD = {grad};\nconst VECTOR = {}u;\nconst EXACT = {};",
                self.vector, self.exact
            );
        let mut parts = vec![("variant", &*variant)];
        parts.extend((self.vector == 1).then_some(("type", ONE)));
        let text = fill(if self.shared { SHARED } else { OWN }, &parts);
        format!("{}{}", pointwise(self.vector == 4), each(&text, "q", self.unrolled))
    }
}

/// What the steps that all kernels share are compiled for.
fn variant(normed: bool, plus: bool, masked: Option<WordAxis>, cells: usize, side: usize) -> String {
    format!(
        "const NORMED = {normed};\nconst PLUS = {plus};\nconst MASKED_QUERIES = {};\nconst MASKED_CONTEXT = {};\n\
         const CELLS = {cells}u;\nconst SIDE = {side}u;\n",
        masked == Some(WordAxis::Queries),
        masked == Some(WordAxis::Context),
    )
}

#[cfg(test)]
pub(super) fn variants(gpu: &Gpu) -> Vec<super::gates::Variant> {
    let mut all = Vec::new();
    for (columns, n) in
        [4, 12, 36, 64, 5, 8, 11, 17, 40].into_iter().flat_map(|c| (0..12).map(move |n| (c, n)))
    {
        let over = [QueryNorm::None, QueryNorm::Max(1e-8), QueryNorm::Plus(1e-8)][n / 4];
        let words = if n % 2 == 0 { WordAxis::Queries } else { WordAxis::Context };
        let op = CrossAttention { leaky: None, over, scale: 1.0, words };
        let masked = n / 2 % 2 == 1 && op.heeds_lens();
        let plan = Plan::of(&op, gpu, Shape::new(&[1, 1, 9, columns]), masked).expect("it fits a kernel");
        for grad in [false, true] {
            all.push(super::gates::Variant::new("cross_attention", &plan, plan.source(grad)));
        }
    }
    all
}

/// Attention weights as DIME's default takes them; the second input's values are lengths less one.
fn clipped(x: &[Tensor], words: WordAxis) -> Tensor {
    let how = CrossAttention { leaky: Some(0.1), over: QueryNorm::Max(1e-12), scale: 4.0, words };
    how.weights(&x[0], x.get(1).map(|n| n.map(|n| n + 1.0)).as_ref())
}

/// Queries that attend as [`clipped`] does and are moved; the last of four inputs as its second.
fn moved(x: &[Tensor], over: QueryNorm, words: WordAxis) -> Tensor {
    let how = CrossAttention { leaky: Some(0.1), over, scale: 4.0, words };
    let lens = x.get(3).map(|n| n.map(|n| n + 1.0)).filter(|_| how.heeds_lens());
    how.modulate_at_once(&[&x[0], &x[1], &x[2]].into_iter().chain(&lens).collect::<Vec<_>>())
}

pub(super) fn cases() -> Vec<Case> {
    let queries: fn(&[Tensor]) -> Tensor = |x| clipped(x, WordAxis::Queries);
    let context: fn(&[Tensor]) -> Tensor = |x| clipped(x, WordAxis::Context);
    let bound = sums(37);
    vec![
        case("cross_attention", "of regions by words", &[&[3, 5, 12, 36]], bound, queries).bench(),
        case("cross_attention", "words padded as queries", &[&[3, 4, 7, 36], &[4]], bound, queries)
            .with(1, Values::Whole(7)),
        case("cross_attention", "words padded as context", &[&[3, 4, 36, 11], &[4]], bound, context)
            .with(1, Values::Whole(11)),
        case("cross_attention", "norm plus eps", &[&[2, 3, 5, 8]], bound, |x| {
            let over = QueryNorm::Plus(1e-8);
            CrossAttention { leaky: None, over, scale: 4.0, words: WordAxis::Context }.weights(&x[0], None)
        }),
        case(
            "cross_attention",
            "clipped only, words padded as queries",
            &[&[2, 3, 5, 9], &[3]],
            bound,
            |x| {
                let how = CrossAttention {
                    leaky: Some(0.1),
                    over: QueryNorm::None,
                    scale: 4.0,
                    words: WordAxis::Queries,
                };
                how.weights(&x[0], Some(&x[1]))
            },
        )
        .with(1, Values::Whole(5)),
        case("cross_attention", "many regions by words", &[&[2, 2, 49, 38], &[2]], bound, context)
            .with(1, Values::Whole(38)),
        case("cross_attention", "a context past one kernel", &[&[2, 2, 9, 147], &[2]], bound, context)
            .with(1, Values::Whole(147)),
        case("cross_attention", "queries past one kernel", &[&[2, 2, 147, 41], &[2]], bound, queries)
            .with(1, Values::Whole(147)),
        case(
            "modulate",
            "regions by words",
            &[&[3, 1, 36, 32], &[1, 4, 11, 32], &[1, 4, 11, 64], &[4]],
            bound,
            |x| moved(x, QueryNorm::Max(1e-12), WordAxis::Context),
        )
        .with(3, Values::Whole(11))
        .untracked(),
        case(
            "modulate",
            "words by regions",
            &[&[1, 4, 7, 20], &[3, 1, 37, 20], &[3, 1, 37, 40], &[4]],
            bound,
            |x| moved(x, QueryNorm::Plus(1e-8), WordAxis::Queries),
        )
        .with(3, Values::Whole(7))
        .untracked(),
        case(
            "modulate",
            "of every pair its own",
            &[&[2, 3, 5, 4], &[2, 3, 3, 4], &[2, 3, 3, 8]],
            bound,
            |x| moved(x, QueryNorm::None, WordAxis::Context),
        )
        .untracked(),
        case(
            "modulate",
            "more scores than invocations, four by four",
            &[&[1, 1, 67, 8], &[2, 1, 70, 8], &[2, 1, 70, 16]],
            bound,
            |x| moved(x, QueryNorm::Max(1e-12), WordAxis::Context),
        )
        .untracked(),
        case("modulate", "of an odd width", &[&[2, 1, 5, 5], &[1, 2, 7, 5], &[1, 2, 7, 10]], bound, |x| {
            moved(x, QueryNorm::Max(1e-12), WordAxis::Context)
        }),
    ]
}
