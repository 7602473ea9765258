//! The devices of tests on cooperative matrices.

use std::io::Write;

use crossweave::gpu::{Gpu, Options, Precision, Products};

/// A device that multiplies in f16, where the adapter has cooperative matrices.
pub fn half(options: &Options) -> Option<Gpu> {
    matrices(&Options { precision: Some(Precision::F16), ..options.clone() }, "--precision f32")
}

/// A device whose f32 products are sums of products of halves, where the adapter has cooperative matrices.
pub fn split(options: &Options) -> Option<Gpu> {
    matrices(&Options { products: Some(Products::Split), ..options.clone() }, "CROSSWEAVE_PRODUCTS=fma")
}

/// A device as these options want it. Where the adapter has no cooperative matrices there is none: asking for one has
/// to say so and what to do instead, and the test says that it did not run.
fn matrices(options: &Options, instead: &str) -> Option<Gpu> {
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
