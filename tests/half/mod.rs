//! The device of tests under `--precision f16`.

use std::io::Write;

use crossweave::gpu::{Gpu, Options, Precision};

/// A device that multiplies in f16. Where the adapter has no cooperative matrices there is none: asking for one has
/// to say so, and the test says that it did not run.
pub fn half(options: &Options) -> Option<Gpu> {
    let device = std::env::var("CROSSWEAVE_DEVICE").ok();
    let open = |precision| {
        Gpu::open(&Options { device: device.clone(), precision: Some(precision), ..options.clone() })
    };
    let own = open(Precision::F32).expect("the tests need an adapter");
    let facts = own.facts();
    assert_eq!(own.precision(), Precision::F32);
    match (open(Precision::F16), facts.cooperative_matrix) {
        (Ok(gpu), Some(_)) => {
            assert_eq!(gpu.precision(), Precision::F16);
            Some(gpu)
        }
        (Err(e), None) => {
            let text = e.to_string();
            for part in [facts.name.as_str(), "cooperative matrices", "--precision f32"] {
                assert!(text.contains(part), "no {part:?} in {text}");
            }
            // Past the harness, which keeps what a passing test prints.
            let _ = writeln!(std::io::stderr(), "not run in f16: {} has no cooperative matrices", facts.name);
            None
        }
        (opened, listed) => {
            panic!("{listed:?} is listed: {:?}", opened.map(|_| "opened").map_err(|e| e.to_string()))
        }
    }
}
