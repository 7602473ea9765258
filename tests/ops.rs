//! Every op of the registry: gradients by differences, the GPU against f64, repeatability.

use crossweave::gpu::{Gpu, Options};
use crossweave::ops::registry::cases;
use crossweave::tensor::Device;

#[test]
fn gradients_agree_with_differences() {
    let mut failures = Vec::new();
    for case in cases().iter().filter(|c| c.inputs.iter().all(|x| x.0.len() < 20_000)) {
        if let Some(worst) = case.differences(11).expect("the host does not fail") {
            if worst.is_nan() || worst > 1e-6 {
                failures.push(format!("{} ({}): {worst:.1e}", case.op, case.about));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_gpu_agrees_with_f64_and_repeats() {
    let gpu = Gpu::open(&Options { device: std::env::var("CROSSWEAVE_DEVICE").ok(), ..Options::default() });
    let device = Device::Gpu(gpu.expect("the tests need an adapter"));
    let mut failures = Vec::new();
    for case in cases() {
        let outcome = case.check(&device, 5).expect("the device works");
        if !outcome.passes(case.bound) {
            failures.push(format!("{} ({}), bound {:.1e}: {outcome:?}", case.op, case.about, case.bound));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
