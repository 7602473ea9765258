//! The margin hinge loss of image-text matching (VSE++, Faghri et al. 2018), item by item: one kernel forward, two back.

use super::codegen::fill;
use super::registry::{Case, Values, case, sums};
use super::rows::fits;
use crate::gpu::{Buf, Gpu, Grid, Kernel, Launch, Words};
use crate::host::{Array, ArrayView};
use crate::shape::Shape;
use crate::tensor::{Back, Cost, Grad, Keep, Op, Pullback, Tensor, apply, compute};

const KERNEL: Kernel = Kernel { name: "hinge", text: include_str!("../../shaders/hinge.wgsl") };
const GRAD: Kernel = Kernel { name: "hinge_grad", text: include_str!("../../shaders/hinge_grad.wgsl") };

impl Tensor {
    /// What each of the first `n` images and captions of these similarities `[images, captions]` costs, `[2, n]`, where `n`
    /// is the smaller number and the leading square's diagonal holds the positives. A negative violates the margin by
    /// `max(s - positive + margin, 0)`; images are compared with every caption, captions with every image. `hardest` keeps
    /// the largest violation of each, else all are summed. The pairs of the square that `without [n, n]` holds 1 for, the
    /// diagonal among them, are no negatives; by default the diagonal. `without` gets no gradient.
    #[track_caller]
    pub fn hinge_costs(&self, without: Option<&Self>, margin: f64, hardest: bool) -> Self {
        let mut x = vec![self];
        x.extend(without);
        apply(Hinge { margin, hardest }, &x)
    }
}

#[derive(Clone, Debug)]
struct Hinge {
    margin: f64,
    hardest: bool,
}

/// An image, or a caption, and another of the other side.
#[derive(Clone, Copy)]
struct Pair {
    side: usize,
    own: usize,
    other: usize,
}

impl Hinge {
    /// Records a kernel with so many invocations; `places` asks for what the gradient needs of each item.
    fn launch(
        &self,
        gpu: &Gpu,
        kernel: Kernel,
        reads: [&Buf; 4],
        y: &Buf,
        [sims, count]: [Shape; 2],
        [listed, places]: [bool; 2],
    ) {
        let (images, captions) = (sims[0], sims[1]);
        let longest = images.max(captions);
        if !fits(gpu, &kernel, longest, longest) {
            return;
        }
        let flag = |on: bool| f64::from(u8::from(on));
        let all = [("hardest", flag(self.hardest)), ("listed", flag(listed)), ("places", flag(places))];
        gpu.dispatch(&Launch {
            kernel,
            body: Some((0, &|| fill(kernel.text, &[]))),
            constants: if kernel == KERNEL { &all } else { &all[..2] },
            reads: &reads,
            writes: &[y],
            params: Words::default()
                .sizes(&[count.len(), images.min(captions), images, captions])
                .floats(&[self.margin as f32]),
            grid: Grid::Invocations(count.len()),
            loops: longest,
        });
    }

    /// Calls `f` with each pair that violates the margin and counts, by how much, and with what weight, in f64.
    fn each(&self, x: &[ArrayView], mut f: impl FnMut(Pair, f64, f64)) {
        let (images, captions) = (x[0].shape[0], x[0].shape[1]);
        let n = images.min(captions);
        for (side, own) in (0..2).flat_map(|side| (0..n).map(move |own| (side, own))) {
            let violation = |other: usize| {
                let (i, j) = if side == 0 { (own, other) } else { (other, own) };
                let weight = match x.get(1) {
                    Some(without) if i.max(j) < n => 1.0 - without.data[i * n + j],
                    Some(_) => 1.0,
                    None => f64::from(u8::from(i != j)),
                };
                let over = x[0].data[i * captions + j] - x[0].data[own * captions + own] + self.margin;
                (other, over.max(0.0) * weight, weight)
            };
            let all: Vec<_> = (0..[captions, images][side]).map(violation).filter(|v| v.1 > 0.0).collect();
            let most = all.iter().map(|v| v.1).fold(0.0, f64::max);
            let kept = all.into_iter().filter(|v| !self.hardest || v.1 == most);
            kept.take(if self.hardest { 1 } else { usize::MAX })
                .for_each(|(other, v, weight)| f(Pair { side, own, other }, v, weight));
        }
    }
}

impl Op for Hinge {
    fn name(&self) -> &'static str {
        "hinge"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        assert!(x[0].rank() == 2, "hinge: {x:?}");
        let n = x[0][0].min(x[0][1]);
        assert!(x.get(1).is_none_or(|without| without.dims() == [n, n]), "hinge: {x:?}");
        Shape::new(&[2, n])
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let reads = [x[0], x[x.len() - 1], x[0], x[0]];
        self.launch(gpu, KERNEL, reads, y, [shapes[0], self.shape(shapes)], [x.len() > 1, false]);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let mut y = Array::zeros(self.shape(&x.iter().map(|x| x.shape).collect::<Vec<_>>()));
        let n = y.shape[1];
        self.each(x, |Pair { side, own, .. }, v, _| y.data[side * n + own] += v);
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: 8.0 * n, bytes: 8.0 * n }
    }
}

impl Pullback for Hinge {
    fn keep(&self) -> Keep {
        Keep::inputs(0..2)
    }

    fn grad(&self, back: &Back) -> Vec<Option<Grad>> {
        let mut x = vec![back.x(0)];
        x.extend((back.inputs() > 1).then(|| back.x(1)));
        x.push(back.g());
        let mut grads = vec![Some(compute(HingeGrad(self.clone()), &x).into())];
        grads.resize(back.inputs(), None);
        grads
    }
}

/// The gradient of the similarities from them, the pairs left out and the costs' gradient.
#[derive(Clone, Debug)]
struct HingeGrad(Hinge);

impl Op for HingeGrad {
    fn name(&self) -> &'static str {
        "hinge_grad"
    }

    fn shape(&self, x: &[Shape]) -> Shape {
        x[0]
    }

    fn gpu(&self, gpu: &Gpu, x: &[&Buf], y: &Buf, shapes: &[Shape]) {
        let (listed, last) = (x.len() > 2, x.len() - 1);
        let (without, g, items) = (x[last - 1], x[last], shapes[last]);
        let about = gpu.alloc(2 * items.len());
        let asked = [x[0], without, x[0], x[0]];
        self.0.launch(gpu, KERNEL, asked, &about, [shapes[0], items], [listed, true]);
        let reads = [x[0], without, g, &about];
        self.0.launch(gpu, GRAD, reads, y, [shapes[0], shapes[0]], [listed, false]);
    }

    fn host(&self, x: &[ArrayView]) -> Array {
        let (g, inputs) = x.split_last().expect("the gradient comes last");
        let (mut y, captions) = (Array::zeros(x[0].shape), x[0].shape[1]);
        let n = g.shape[1];
        self.0.each(inputs, |Pair { side, own, other }, _, weight| {
            let (i, j) = if side == 0 { (own, other) } else { (other, own) };
            let share = weight * g.data[side * n + own];
            y.data[i * captions + j] += share;
            y.data[own * captions + own] -= share;
        });
        y
    }

    fn cost(&self, x: &[Shape]) -> Cost {
        let n = x[0].len() as f64;
        Cost { flops: 24.0 * n, bytes: 16.0 * n }
    }
}

pub(super) fn cases() -> Vec<Case> {
    let hardest: fn(&[Tensor]) -> Tensor = |x| x[0].hinge_costs(None, 0.2, true);
    let all: fn(&[Tensor]) -> Tensor = |x| x[0].hinge_costs(None, 0.2, false);
    let listed: fn(&[Tensor]) -> Tensor = |x| {
        // The diagonal, one pair of three besides, and one of five in part.
        let out = |i: usize| match i {
            _ if i.is_multiple_of(8) || i.is_multiple_of(3) => 1.0,
            _ if i.is_multiple_of(5) => 0.25,
            _ => 0.0,
        };
        let own: Vec<f32> = (0..49).map(out).collect();
        let without = x[0].device().tensor([7, 7], &own);
        super::add(
            &x[0].hinge_costs(Some(&without), 0.5, true),
            &x[0].hinge_costs(Some(&without), 0.5, false),
        )
    };
    vec![
        case("hinge", "hardest", &[&[16, 16]], sums(16), hardest).bench(),
        case("hinge", "hardest of ties", &[&[12, 9]], sums(12), hardest).all(Values::Grid),
        case("hinge", "all, extra captions", &[&[9, 70]], sums(70), all),
        case("hinge", "all, extra images", &[&[70, 9]], sums(70), all),
        case("hinge", "some left out", &[&[7, 9]], sums(9), listed),
        case("hinge", "some left out, extra images", &[&[9, 7]], sums(9), listed),
        case("hinge", "without violations", &[&[5, 5]], sums(5), |x| x[0].hinge_costs(None, -1e3, true)),
        case("hinge", "of one pair", &[&[1, 1]], sums(1), all),
    ]
}
