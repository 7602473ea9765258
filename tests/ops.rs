//! Every op of the registry: gradients by differences, the GPU against f64, repeatability.

mod adapters;
mod half;

use std::io::Write;

use adapters::gpus;
use crossweave::gpu::{Gpu, Options, Style};
use crossweave::host::ratios;
use crossweave::ops::registry::{Case, cases};
use crossweave::tensor::Device;
use half::half;

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

#[test]
fn every_style_of_kernels_agrees_with_f64() {
    let own = Gpu::open(&Options::default()).expect("the tests need an adapter");
    let mut failures = Vec::new();
    let mut ran = 0;
    for style in [Style::Direct, Style::Subgroup, Style::Workgroup] {
        match Gpu::open(&Options { style: Some(style), ..Options::default() }) {
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
    let Some(gpu) = half(&Options::default()) else { return };
    let failures = failures_of(gpu, |case| case.op == "matmul");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Rounding the operands is all that f16 costs: numbers that it holds multiply as in f32.
#[test]
fn products_in_f16_only_round_their_operands() {
    let Some(gpu) = half(&Options::default()) else { return };
    let device = Device::Gpu(gpu);
    // Heads and two maps multiply results of the product before, which f16 does not hold.
    let single = |about: &str| !about.contains("head") && !about.starts_with("two maps");
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
