//! Every op of the registry: gradients by differences, the GPU against f64, repeatability.

mod adapters;
mod half;

use std::io::Write;

use adapters::gpus;
use crossweave::gpu::{Gpu, Options, Products, Style};
use crossweave::host::{Rng, ratios};
use crossweave::ops::Act;
use crossweave::ops::registry::{Case, cases};
use crossweave::tensor::{Device, Tape};
use half::{half, on_matrices};

/// Past the harness, which keeps what a passing test prints.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

#[test]
fn gradients_agree_with_differences() {
    let (mut failures, mut large, mut without) = (Vec::new(), Vec::new(), 0);
    for case in cases() {
        if case.inputs.iter().any(|x| x.0.len() >= 20_000) {
            large.push(format!("{} ({})", case.op, case.about));
            continue;
        }
        match case.differences(11).expect("the host does not fail") {
            Some(worst) if worst <= 1e-6 => {}
            Some(worst) => failures.push(format!("{} ({}): {worst:.1e}", case.op, case.about)),
            None => without += 1,
        }
    }
    say(&format!(
        "no differences of {without} cases of ties, extremes and work in place; too large: {large:?}"
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn failures_on(gpu: Gpu) -> Vec<String> {
    failures_of(gpu, |_| true)
}

fn failures_of(gpu: Gpu, wanted: impl Fn(&Case) -> bool) -> Vec<String> {
    let name = gpu.facts().name.clone();
    // A driver without the CPU's vector units takes minutes for the large shapes.
    let most = if name.contains("SwiftShader") { 100_000 } else { usize::MAX };
    let device = Device::Gpu(gpu);
    let mut failures = Vec::new();
    for case in cases().iter().filter(|c| wanted(c)) {
        if case.inputs.iter().any(|x| x.0.len() >= most) {
            say(&format!("not run on {name}, which is slow: {} ({})", case.op, case.about));
            continue;
        }
        let outcome = case.check(&device, 5).expect("the device works");
        let bound = case.bound_on(&device);
        if !outcome.passes(bound) {
            failures.push(format!("{name}: {} ({}), bound {bound:.1e}: {outcome:?}", case.op, case.about));
        }
    }
    failures
}

#[test]
fn the_gpu_agrees_with_f64_and_repeats() {
    let failures: Vec<_> = gpus(&Options::default()).into_iter().flat_map(failures_on).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// With wgpu's run-time checks, which the other tests do without as users do.
#[test]
fn every_style_of_kernels_agrees_with_f64() {
    let own = Gpu::open(&Options::default()).expect("the tests need an adapter");
    let mut failures = Vec::new();
    let mut ran = 0;
    for style in [Style::Direct, Style::Subgroup, Style::Workgroup] {
        match Gpu::open(&Options { style: Some(style), checks: true, ..Options::default() }) {
            Ok(gpu) => {
                ran += 1;
                failures.extend(failures_on(gpu).into_iter().map(|f| format!("{style:?}: {f}")));
            }
            Err(e) => {
                assert!(style == Style::Subgroup && own.facts().lanes().is_none(), "{style:?}: {e}");
                say(&format!("{style:?} left out: {e}"));
            }
        }
    }
    assert!(ran >= 2 && failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_default_limits_of_webgpu_are_enough() {
    // Without subgroups, so that a GPU's long rows meet in workgroup memory.
    let failures: Vec<_> = [None, Some(Style::Workgroup)]
        .into_iter()
        .flat_map(|style| gpus(&Options { default_limits: true, style, ..Options::default() }))
        .flat_map(failures_on)
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn products_in_f16_agree_with_f64_and_repeat() {
    let Some(gpu) = half() else { return };
    let failures = failures_of(gpu, |case| case.op == "matmul");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A device whose f32 products are sums of products of halves, where the adapter has cooperative matrices.
fn split() -> Option<Gpu> {
    on_matrices(&Options { products: Some(Products::Split), ..Options::default() })
}

#[test]
fn products_of_split_operands_agree_with_f64_and_repeat() {
    let Some(gpu) = split() else { return };
    let failures = failures_of(gpu, |case| case.op == "matmul");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Gradients are far below what f16 holds, and a loss may be large: no size of either loses what f32 keeps.
#[test]
fn products_on_matrices_are_as_good_for_tiny_and_huge_values() {
    let devices = [(split(), 4e-6), (half(), 1e-3)];
    for (gpu, bound) in devices {
        let Some(gpu) = gpu else { continue };
        let device = Device::Gpu(gpu);
        for scale in [1e-30, 1e-12, 1.0, 1e12] {
            let mut rng = Rng::new(3);
            let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>();
            let [x, w, g] = [draw(40 * 48), draw(24 * 48), draw(40 * 24)];
            let g: Vec<f32> = g.iter().map(|g| g * scale).collect();
            let grads = [&device, &Device::Host].map(|device| {
                let tape = Tape::new();
                let [x, w] = [(&x, [40, 48]), (&w, [24, 48])].map(|(v, s)| tape.leaf(&device.tensor(s, v)));
                let y = x.linear(&w, None, Act::None);
                let grads = tape.backward_from(&y, device.tensor([40, 24], &g));
                [&x, &w].map(|t| grads.of(t).expect("a gradient").to_f64().expect("it runs"))
            });
            for (got, want) in grads[0].iter().zip(&grads[1]) {
                let worst = ratios(got, want).worst();
                assert!(worst <= bound, "{scale:e}: {worst:.1e} > {bound:.0e}");
            }
        }
    }
}

/// Rounding the operands is all that f16 costs: numbers that it holds multiply as in f32.
#[test]
fn products_in_f16_only_round_their_operands() {
    let Some(gpu) = half() else { return };
    let device = Device::Gpu(gpu);
    // Heads and two maps multiply results of the product before, which f16 does not hold.
    let single = |about: &str| !about.contains("head") && !about.contains("two maps");
    let products = |c: &&Case| c.op == "matmul" && single(c.about);
    for case in cases().iter().filter(products) {
        let mut x = case.draw(5);
        let far = |x: &[_]| {
            let [got, want] = [&device, &Device::Host].map(|d| case.evaluate(d, x, 5).expect("it runs"));
            ratios(&got.0, &want.0).worst()
        };
        let rounded = far(&x);
        x.iter_mut().flat_map(|a| &mut a.data).for_each(|v| *v = ::half::f16::from_f64(*v).to_f64());
        let exact = far(&x);
        assert!(exact <= case.bound, "{}: {exact:.1e} > {:.1e}", case.about, case.bound);
        if case.about == "large" {
            assert!(rounded > 1e-4, "{rounded:.1e}: no operand was rounded");
        }
    }
}
