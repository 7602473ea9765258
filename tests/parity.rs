//! Every fixture of the folder, on the host twin and on the GPU.

mod half;

use std::path::{Path, PathBuf};

use crossweave::gpu::{Gpu, Options, Products, Style};
use crossweave::parity::check;
use crossweave::tensor::Device;
use half::{half, on_matrices};

/// Families that are parity cases: the rest of the folder serves other tests.
const FAMILIES: [&str; 9] =
    ["dime_", "hrem_", "gsmn_", "hat_", "hat_transform", "bert_", "loss_", "recall_", "adam_"];

/// The repository's fixtures, and those of the folder that `CROSSWEAVE_FIXTURES` names.
fn fixtures() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folders = [Some(own), std::env::var_os("CROSSWEAVE_FIXTURES").map(PathBuf::from)];
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in folders.iter().flatten() {
        let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let before = files.len();
        files.extend(entries.map(|entry| entry.expect("a folder entry").path()).filter(|path| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.ends_with(".safetensors") && FAMILIES.iter().any(|f| name.starts_with(f))
        }));
        assert!(files.len() > before, "no fixture in {}", folder.display());
    }
    files.sort();
    for family in FAMILIES {
        let has =
            files.iter().any(|f| f.file_name().is_some_and(|n| n.to_string_lossy().starts_with(family)));
        assert!(has, "no {family} fixture");
    }
    files
}

fn run(device: &Device) {
    let mut failures = Vec::new();
    let files = fixtures();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rows = check(file, device).unwrap_or_else(|e| panic!("{e}"));
        assert!(!rows.is_empty(), "{name}: nothing was compared");
        for row in rows.iter().filter(|r| !r.passes()) {
            failures.push(format!(
                "{name} {} {}: {:.2e} > {:.1e} {:?}",
                row.path, row.name, row.worst, row.bound, row.problem
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} files' tensors:\n{}",
        failures.len(),
        files.len(),
        failures.join("\n")
    );
}

#[test]
fn the_host_twin_is_the_original() {
    run(&Device::Host);
}

#[test]
fn the_gpu_is_the_original() {
    let gpu = Gpu::open(&Options { device: std::env::var("CROSSWEAVE_DEVICE").ok(), ..Options::default() });
    run(&Device::Gpu(gpu.expect("the tests need an adapter")));
}

#[test]
fn every_style_of_kernels_is_the_original() {
    for style in [Style::Direct, Style::Workgroup] {
        let options = Options { style: Some(style), ..Options::default() };
        run(&Device::Gpu(Gpu::open(&options).expect("both styles run everywhere")));
    }
}

#[test]
fn products_in_f16_stay_near_the_original() {
    if let Some(gpu) = half() {
        run(&Device::Gpu(gpu));
    }
}

#[test]
fn f32_products_on_matrix_units_are_the_original() {
    if let Some(gpu) = on_matrices(&Options { products: Some(Products::Split), ..Options::default() }) {
        run(&Device::Gpu(gpu));
    }
}
