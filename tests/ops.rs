//! Every op of the registry: gradients by differences, the GPU against f64, repeatability.

mod adapters;

use adapters::gpus;
use crossweave::gpu::{Gpu, Options, Style};
use crossweave::ops::registry::cases;
use crossweave::tensor::Device;

#[test]
fn gradients_agree_with_differences() {
    let mut failures = Vec::new();
    for case in cases().iter().filter(|c| c.inputs.iter().all(|x| x.0.len() < 20_000)) {
        if let Some(worst) = case.differences(11).expect("the host does not fail")
            && (worst.is_nan() || worst > 1e-6)
        {
            failures.push(format!("{} ({}): {worst:.1e}", case.op, case.about));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn failures_on(gpu: Gpu) -> Vec<String> {
    let name = gpu.facts().name.clone();
    // A driver without the CPU's vector units takes minutes for the large shapes.
    let most = if name.contains("SwiftShader") { 100_000 } else { usize::MAX };
    let device = Device::Gpu(gpu);
    let mut failures = Vec::new();
    for case in cases().iter().filter(|c| c.inputs.iter().all(|x| x.0.len() < most)) {
        let outcome = case.check(&device, 5).expect("the device works");
        if !outcome.passes(case.bound) {
            let bound = case.bound;
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
                println!("{style:?} left out: {e}");
            }
        }
    }
    assert!(ran >= 2 && failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_default_limits_of_webgpu_are_enough() {
    let options = Options { default_limits: true, ..Options::default() };
    let failures: Vec<_> = gpus(&options).into_iter().flat_map(failures_on).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
