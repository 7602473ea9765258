//! What the registry's cases have to cover: every op and kernel that models run, and every choice that a planner of
//! kernels can make. What a planner can choose is validated whether an adapter here chooses it or not.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::Write;
use std::path::{Path, PathBuf};

use naga::valid::{Capabilities, ValidationFlags, Validator};

use super::registry::cases;
use super::{attention, batch_norm, cosines, cross_attention, matmul, reduce, route, rows};
use crate::gpu::{Gpu, Options, Style};
use crate::tensor::{Device, seen};

thread_local! {
    static PLANNED: RefCell<BTreeSet<String>> = RefCell::default();
}

/// Notes the choices in a variant that a planner chose.
pub(super) fn planned(kernel: &str, variant: &dyn Debug) {
    PLANNED.with_borrow_mut(|all| all.extend(choices(kernel, variant)));
}

/// A variant's fields, each a choice; of those that are sizes, only whether there is one.
fn choices(kernel: &str, variant: &dyn Debug) -> Vec<String> {
    let text = format!("{variant:?}");
    let fields = text.split_once(" { ").map_or("", |(_, rest)| rest.trim_end_matches(" }"));
    let (mut depth, mut all) = (0, vec![String::new()]);
    for c in fields.chars() {
        depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
        match c {
            ',' if depth == 0 => all.push(String::new()),
            _ => all.last_mut().expect("it has a first").push(c),
        }
    }
    let choice = |field: &String| {
        let (name, value) = field.trim().split_once(": ")?;
        let value = if name == "held" { value.split('(').next()? } else { value };
        (!["unrolled", "cells", "side"].contains(&name)).then(|| format!("{kernel} with {name}: {value}"))
    };
    all.iter().filter_map(choice).collect()
}

/// A variant that a planner can choose: its kernel, its choices and its text.
pub(super) struct Variant {
    kernel: &'static str,
    choices: Vec<String>,
    text: String,
}

impl Variant {
    pub(super) fn new(kernel: &'static str, variant: &dyn Debug, text: String) -> Self {
        Self { kernel, choices: choices(kernel, variant), text }
    }
}

/// Runs every case, forward and backward.
fn run_cases(gpu: &Gpu) {
    let device = Device::Gpu(gpu.clone());
    for case in cases() {
        case.evaluate(&device, &case.draw(5), 5).expect("the device works");
    }
}

/// Past the harness, which keeps what a passing test prints.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

#[test]
fn every_choice_of_a_planner_is_valid_and_has_a_case() {
    let mut wrong = Vec::new();
    for style in [Style::Direct, Style::Subgroup, Style::Workgroup] {
        let open =
            |default_limits| Gpu::open(&Options { style: Some(style), default_limits, ..Options::default() });
        let gpu = match open(false) {
            Ok(gpu) => gpu,
            Err(e) => {
                say(&format!("the kernels of style {style:?} are not run: {e}"));
                continue;
            }
        };
        PLANNED.take();
        run_cases(&gpu);
        // Without subgroups a GPU's long rows meet in workgroup memory.
        if style == Style::Workgroup {
            run_cases(&open(true).expect("it runs everywhere"));
        }
        let device = Device::Gpu(gpu.clone());
        matmul::with_each_form(&gpu, |form| {
            for case in cases().iter().filter(|case| case.about.starts_with("several tiles")) {
                let outcome = case.check(&device, 5).expect("the device works");
                if !outcome.passes(case.bound) {
                    wrong.push(format!("{style:?}: {form}, {}: {outcome:?}", case.about));
                }
            }
        });
        attention::with_each_way(&gpu, |way| {
            for case in cases().iter().filter(|case| case.op == "attention") {
                let outcome = case.check(&device, 5).expect("the device works");
                if !outcome.passes(case.bound) {
                    wrong.push(format!("{style:?}: {way}, {}: {outcome:?}", case.about));
                }
            }
        });
        let ran = PLANNED.take();
        let can = [
            matmul::variants(&gpu),
            attention::variants(&gpu),
            cross_attention::variants(&gpu),
            cross_attention::modulate_variants(&gpu),
            cosines::variants(&gpu),
            batch_norm::variants(&gpu),
            reduce::variants(&gpu),
            route::variants(&gpu),
            rows::variants(&gpu),
        ];
        let can: Vec<Variant> = can.into_iter().flatten().collect();
        assert!(can.len() > 100, "{} variants", can.len());
        let choices: BTreeSet<&String> = can.iter().flat_map(|v| &v.choices).collect();
        let missing = choices.into_iter().filter(|choice| !ran.contains(*choice));
        wrong.extend(missing.map(|choice| format!("{style:?}: no case runs {choice}")));
        let texts: BTreeSet<(&str, &str)> = can.iter().map(|v| (v.kernel, v.text.as_str())).collect();
        say(&format!("{style:?}: {} choices run, {} texts validated", ran.len(), texts.len()));
        for (kernel, text) in texts {
            if let Err(e) = valid(text) {
                wrong.push(format!("{style:?}: a text of {kernel}: {e}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn valid(text: &str) -> Result<(), String> {
    let mut can = Capabilities::SUBGROUP;
    if text.contains("enable wgpu_cooperative_matrix;") {
        can |= Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16;
    }
    let text = format!("{text}\n{}", include_str!("../../shaders/prelude.wgsl"));
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
    let valid = Validator::new(ValidationFlags::all(), can).validate(&module);
    valid.map(|_| ()).map_err(|e| e.emit_to_string(&text))
}

/// The fixtures that run ops.
fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let entries = std::fs::read_dir(folder).expect("the fixtures").map(|e| e.expect("an entry").path());
    let systems = crate::systems::kinds().into_iter().map(|kind| kind.name);
    let families: Vec<&str> = systems.chain(["bert", "loss", "adam"]).collect();
    let runs = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.ends_with(".safetensors") && families.iter().any(|f| name.starts_with(&format!("{f}_")))
    };
    let mut all: Vec<PathBuf> = entries.filter(runs).collect();
    all.sort();
    all
}

#[test]
fn every_op_and_kernel_of_the_fixtures_has_cases() {
    let gpu =
        || Gpu::open(&Options { profile: true, ..Options::default() }).expect("the tests need an adapter");
    let kernels = |gpu: &Gpu| gpu.kernel_times().iter().map(|k| k.name).collect::<BTreeSet<_>>();
    let (own, models) = (gpu(), gpu());
    run_cases(&own);
    let known: BTreeSet<&str> = cases().iter().map(|case| case.op).collect();
    let (tested, _) = (kernels(&own), seen::take());
    let files = fixtures();
    assert!(files.len() > 5);
    for file in &files {
        crate::parity::check(file, &Device::Gpu(models.clone())).expect("a fixture");
    }
    // What only serves a gradient is run by the cases of what it serves.
    let ops = seen::take();
    let untested = ops.iter().filter(|op| !known.contains(*op)).map(|op| format!("no case of {op}"));
    let unrun =
        kernels(&models).into_iter().filter(|k| !tested.contains(k)).map(|k| format!("no case runs {k}"));
    let wrong: Vec<String> = untested.chain(unrun).collect();
    assert!(ops.len() > 5 && wrong.is_empty(), "{}", wrong.join("\n"));
}
