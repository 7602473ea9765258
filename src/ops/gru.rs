//! Gated recurrent units (Cho et al. 2014) as PyTorch has them, both directions of a sequence at once.
//!
//! `r = σ(x_r + h_r)`, `z = σ(x_z + h_z)`, `n = tanh(x_n + r h_n)`, `h' = (1 - z) n + z h`, where `x_*` are maps of the
//! word, taken before for all words, and `h_*` maps of the state. A step is a product and a kernel, whatever the
//! number of directions; so is a step back.

use super::Linears;
use super::codegen::{fill, pointwise};
use super::registry::{Case, Values, case, sums};
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::shape::Shape;
use crate::tensor::{Back, Grad, Keep, Kind, Pullback, Tensor, record};

const STEP: Kernel = Kernel { name: "gru", text: include_str!("../../shaders/gru.wgsl") };
const GRAD: Kernel = Kernel { name: "gru_grad", text: include_str!("../../shaders/gru_grad.wgsl") };

const ONE_SIDE: &str = "all of a step is on one side";

/// The states `[captions, words, directions, width]` of one or two directions, the second from each caption's end; 0
/// past it. `gates [captions, words, directions * 3 * width]` are the maps of the words in the order r, z, n,
/// `maps` those of the state, one for each direction, and `lens [captions]` words of each caption, 1 or more.
#[track_caller]
pub fn gru(gates: &Tensor, maps: &Linears, lens: &Tensor) -> Tensor {
    let s = gates.shape();
    let size = Size { captions: s[0], words: s[1], directions: maps.maps(), width: maps.width() };
    assert!(
        s[2] == 3 * size.directions * size.width && lens.dims() == [s[0]] && maps.outputs() == 3 * size.width,
        "gru: gates {s}, lengths {}, {} directions of width {}",
        lens.shape(),
        size.directions,
        size.width
    );
    let keep = [gates, maps.packed()].iter().any(|x| x.is_tracked());
    let (x, lengths, plain) = (gates.detach(), lens.detach(), maps.detach());
    let device = x.device();
    let Size { captions, words, directions, width } = size;
    let states = device.full([directions, 1 + words, captions, width], 0.0);
    let kept = device.full(if keep { size.by_step(4) } else { Shape::new(&[1]) }, 0.0);
    let y = device.full([captions, words, directions, width], 0.0);
    for step in 0..words {
        let mapped = plain.of_step(&states, step);
        size.forward([&x, &mapped, &lengths], [&states, &kept, &y], step, keep);
    }
    let op = Gru { size, maps: plain, states, kept };
    record("gru", Kind::Op(Box::new(op)), &[gates, maps.packed(), lens], vec![y]).remove(0)
}

#[derive(Clone, Copy)]
struct Size {
    captions: usize,
    words: usize,
    directions: usize,
    width: usize,
}

/// What the gradients read.
struct Gru {
    size: Size,
    maps: Linears,
    /// `[directions, 1 + words, captions, width]`, in the order of the steps.
    states: Tensor,
    /// r, z, n and the map h_n: `[directions, words, captions, 4, width]`.
    kept: Tensor,
}

impl Size {
    fn by_step(&self, parts: usize) -> Shape {
        Shape::new(&[self.directions, self.words, self.captions, parts * self.width])
    }

    fn forward(&self, reads: [&Tensor; 3], writes: [&Tensor; 3], step: usize, keep: bool) {
        if let Some(gpu) = reads[0].device().gpu() {
            let constants = [("keep", f64::from(u8::from(keep)))];
            return self.launch(gpu, STEP, &constants, &reads, &writes, step);
        }
        let [gates, maps, lens] = reads.map(|t| t.values().expect(ONE_SIDE));
        let [mut states, mut kept, mut y] = writes.map(|t| t.values_mut().expect(ONE_SIDE));
        self.each(step, &lens, |at| {
            let (x, h) = (|k| gates[at.gate + k * self.width], |k| maps[at.row + k * self.width]);
            let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
            let (reset, update, mapped) = (sigmoid(x(0) + h(0)), sigmoid(x(1) + h(1)), h(2));
            let new = (x(2) + reset * mapped).tanh();
            let after = if at.inside { (1.0 - update) * new + update * states[at.state] } else { 0.0 };
            states[at.state + self.captions * self.width] = after;
            y[at.word] = after;
            if keep {
                for (k, value) in [reset, update, new, mapped].into_iter().enumerate() {
                    kept[at.kept + k * self.width] = value;
                }
            }
        });
    }

    fn backward(&self, reads: [&Tensor; 5], writes: [&Tensor; 3], step: usize) {
        if let Some(gpu) = reads[0].device().gpu() {
            return self.launch(gpu, GRAD, &[], &reads, &writes, step);
        }
        let [kept, states, g, lens, through] = reads.map(|t| t.values().expect(ONE_SIDE));
        let [mut gates, mut maps, mut past] = writes.map(|t| t.values_mut().expect(ONE_SIDE));
        self.each(step, &lens, |at| {
            let [reset, update, new, mapped] = [0, 1, 2, 3].map(|k| kept[at.kept + k * self.width]);
            let later = if at.has_next { through[at.unit] + past[at.unit] } else { 0.0 };
            let d = if at.inside { g[at.word] + later } else { 0.0 };
            let d_update = d * (states[at.state] - new) * update * (1.0 - update);
            let d_new = d * (1.0 - update) * (1.0 - new * new);
            let d_reset = d_new * mapped * reset * (1.0 - reset);
            let row = at.kept / (4 * self.width) * 3 * self.width + at.kept % self.width;
            for (k, (of_word, of_state)) in
                [(d_reset, d_reset), (d_update, d_update), (d_new, d_new * reset)].into_iter().enumerate()
            {
                gates[at.gate + k * self.width] = of_word;
                maps[row + k * self.width] = of_state;
            }
            past[at.unit] = d * update;
        });
    }

    fn launch(
        &self,
        gpu: &Gpu,
        kernel: Kernel,
        constants: &[(&str, f64)],
        reads: &[&Tensor],
        writes: &[&Tensor],
        step: usize,
    ) {
        let bufs =
            |all: &[&Tensor]| -> Vec<Buf> { all.iter().map(|t| t.buf().expect(ONE_SIDE).clone()).collect() };
        let (reads, writes) = (bufs(reads), bufs(writes));
        let vector = if self.width.is_multiple_of(4) { 4 } else { 1 };
        let width = self.width / vector;
        let count = self.directions * self.captions * width;
        gpu.dispatch(&Launch {
            kernel,
            body: Some((vector as u64, &|| fill(kernel.text, &[("type", &pointwise(vector == 4))]))),
            constants,
            reads: &reads.iter().collect::<Vec<_>>(),
            writes: &writes.iter().collect::<Vec<_>>(),
            params: Words::default().sizes(&[count, width, self.captions, self.words, self.directions, step]),
            grid: Grid::Invocations(count),
            loops: 1,
        });
    }

    /// Calls `f` with the places of every unit of a step.
    fn each(&self, step: usize, lens: &[f64], mut f: impl FnMut(&Places)) {
        let Self { captions, words, directions, width } = *self;
        for i in 0..directions * captions * width {
            let (unit, caption, direction) = (i % width, i / width % captions, i / width / captions);
            let len = (lens[caption] as usize).min(words);
            let inside = step < len;
            let word = if inside && direction == 1 { len - 1 - step } else { step };
            let place = (caption * words + word) * directions + direction;
            f(&Places {
                inside,
                has_next: step + 1 < len,
                unit: i,
                word: place * width + unit,
                gate: 3 * place * width + unit,
                row: (direction * captions + caption) * 3 * width + unit,
                state: ((direction * (words + 1) + step) * captions + caption) * width + unit,
                kept: ((direction * words + step) * captions + caption) * 4 * width + unit,
            });
        }
    }
}

/// Where a unit's values of a step are.
struct Places {
    inside: bool,
    has_next: bool,
    /// Among `[directions, captions, width]`.
    unit: usize,
    /// In the result.
    word: usize,
    gate: usize,
    /// In the maps of the state.
    row: usize,
    /// The state before.
    state: usize,
    kept: usize,
}

impl Pullback for Gru {
    fn keep(&self) -> Keep {
        Keep::inputs([2])
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let Size { captions, words, directions, width } = self.size;
        let device = self.states.device();
        let zeros = |shape: Shape| device.full(shape, 0.0);
        let (gates, maps) = (zeros(back.shape(0)), zeros(self.size.by_step(3)));
        let past = zeros(Shape::new(&[directions, captions, width]));
        for step in (0..words).rev() {
            let through = match step + 1 {
                next if next < words => self.maps.back_of_step(&maps, next),
                _ => self.states.clone(),
            };
            let reads = [&self.kept, &self.states, back.g(), back.x(2), &through];
            self.size.backward(reads, [&gates, &maps, &past], step);
        }
        let weights = back.needs(1).then(|| self.maps.weights_grad(&self.states, &maps).into());
        vec![back.needs(0).then(|| gates.into()), weights, None]
    }
}

pub(super) fn cases() -> Vec<Case> {
    fn run(x: &[Tensor]) -> Tensor {
        let (words, maps) = x[2..].split_at((x.len() - 2) / 2);
        let pairs = |of: &[Tensor]| Linears::new(&of.chunks(2).map(|m| [&m[0], &m[1]]).collect::<Vec<_>>());
        let gates = pairs(words).concat(&x[0]);
        gru(&gates, &pairs(maps), &x[1].map(|n| n + 1.0)).map(|h| h * (h + 1.0))
    }
    let of = |about, dims: &[&[usize]], words| {
        case("gru", about, dims, sums(48), run).with(1, Values::Whole(words))
    };
    vec![
        of(
            "both directions",
            &[&[3, 5, 8], &[3], &[192, 8], &[192], &[192, 8], &[192], &[192, 64], &[192], &[192, 64], &[192]],
            5,
        )
        .bench(),
        of(
            "both directions, odd",
            &[&[2, 4, 3], &[2], &[15, 3], &[15], &[15, 3], &[15], &[15, 5], &[15], &[15, 5], &[15]],
            4,
        ),
        of("one direction, single words", &[&[3, 1, 3], &[3], &[12, 3], &[12], &[12, 4], &[12]], 1),
    ]
}
