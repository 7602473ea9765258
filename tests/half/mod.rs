//! The devices of tests on cooperative matrices.

use std::io::Write;

use crossweave::gpu::{Gpu, Options, Precision};

/// A device that multiplies in f16, where the adapter has cooperative matrices.
pub fn half() -> Option<Gpu> {
    on_matrices(&Options { precision: Some(Precision::F16), ..Options::default() })
}

/// A device as these options want it. Where the adapter has no cooperative matrices there is none: asking for one has
/// to say so and what to do instead, and the test says that it did not run.
pub fn on_matrices(options: &Options) -> Option<Gpu> {
    let instead = if options.products.is_some() { "CROSSWEAVE_PRODUCTS=fma" } else { "--precision f32" };
    let device = std::env::var("CROSSWEAVE_DEVICE").ok();
    let own = Gpu::open(&Options { device: device.clone(), ..Options::default() })
        .expect("the tests need an adapter");
    let facts = own.facts();
    match (Gpu::open(&Options { device, ..options.clone() }), facts.cooperative_matrix) {
        (Ok(gpu), Some(_)) => {
            assert_eq!(
                (Some(gpu.precision()), gpu.products()),
                (options.precision.or(Some(Precision::F32)), options.products)
            );
            Some(gpu)
        }
        (Err(e), None) => {
            let text = e.to_string();
            for part in [facts.name.as_str(), "cooperative matrices", instead] {
                assert!(text.contains(part), "no {part:?} in {text}");
            }
            // Past the harness, which keeps what a passing test prints.
            let _ = writeln!(std::io::stderr(), "not run: {} has no cooperative matrices", facts.name);
            None
        }
        (opened, listed) => {
            panic!("{listed:?} is listed: {:?}", opened.map(|_| "opened").map_err(|e| e.to_string()))
        }
    }
}
