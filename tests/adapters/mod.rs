//! The adapters a test runs on.

use crossweave::gpu::{Gpu, Options, adapters};

/// One device, or with `CROSSWEAVE_ALL_ADAPTERS=1` one on every adapter found. `CROSSWEAVE_DEVICE` chooses
/// among them as `--device` does. No adapter fails the test.
pub fn gpus(options: &Options) -> Vec<Gpu> {
    let all = std::env::var("CROSSWEAVE_ALL_ADAPTERS").is_ok_and(|v| v == "1");
    let devices: Vec<Option<String>> = match std::env::var("CROSSWEAVE_DEVICE") {
        Ok(device) => vec![Some(device)],
        Err(_) if all => (0..adapters().len()).map(|i| Some(i.to_string())).collect(),
        Err(_) => vec![None],
    };
    assert!(!devices.is_empty(), "the tests need an adapter: apt-get install mesa-vulkan-drivers");
    devices
        .into_iter()
        .map(|device| {
            let gpu = Gpu::open(&Options { device, ..options.clone() }).expect("the tests need an adapter");
            println!("on {}, {}", gpu.facts().name, gpu.facts().driver);
            gpu
        })
        .collect()
}
