//! Which of several ways to run a kernel is fastest on an adapter: measured at their first use, remembered on disk.
//!
//! One fixed tile costs some GPUs half of what they can do, so a kernel's planner names a few, and each is timed once
//! for an adapter, a driver and a class of sizes. A software driver's are planned only.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{AdapterFacts, Class, Gpu, Options};

/// The choice of each class of sizes.
pub type Choices = BTreeMap<String, String>;

/// What one way is timed for, about; a call and its wait may take a large part of a millisecond.
const LONG: Duration = Duration::from_millis(5);
/// Runs of one timing, at most.
const RUNS: u32 = 64;
/// Timings of each, in turns: the shortest counts.
const ROUNDS: usize = 3;
/// What another must save to be taken instead of the first, which the planner holds for the fastest.
const GAIN: f64 = 0.95;

/// What is known, and where it is kept.
pub(super) struct Chooser {
    on: bool,
    file: Option<PathBuf>,
    known: Choices,
    /// The way taken by each class's key.
    taken: HashMap<u64, usize>,
}

/// The ways to run a kernel for a class of sizes.
pub struct Ways<'a> {
    /// Tells the class from all others of all kernels.
    pub key: u64,
    /// Its name and those of all ways, in an order that is always the same.
    pub names: &'a dyn Fn() -> (String, Vec<String>),
    /// The ways worth timing, by their places; the first is planned to be the fastest.
    pub planned: &'a [usize],
}

/// The file's form; one of another adapter, driver or version is not read.
#[derive(Serialize, Deserialize)]
struct Kept {
    about: String,
    choices: Choices,
}

fn about(facts: &AdapterFacts) -> String {
    format!("crossweave {}, {}, {}", env!("CARGO_PKG_VERSION"), facts.name, facts.driver)
}

/// The folder of what is remembered, if there is one: `CROSSWEAVE_CACHE`, or where the system has users' caches.
pub fn cache() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    of("CROSSWEAVE_CACHE").or_else(|| {
        let all = of("XDG_CACHE_HOME").or_else(|| of("LOCALAPPDATA"));
        Some(all.or_else(|| of("HOME").map(|home| home.join(".cache")))?.join("crossweave"))
    })
}

impl Chooser {
    /// With what a run used, then what the disk remembers; `asked` turns measuring on or off, else hardware measures.
    pub(super) fn new(facts: &AdapterFacts, asked: Option<bool>, options: &Options) -> Self {
        let on = asked.unwrap_or(facts.class == Class::Hardware);
        let hash = xxhash_rust::xxh3::xxh3_64(about(facts).as_bytes());
        let file = options
            .cache
            .clone()
            .or_else(cache)
            .filter(|_| on)
            .map(|folder| folder.join(format!("choices-{hash:016x}.json")));
        let kept = file.as_ref().and_then(|file| {
            let kept: Kept = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
            (kept.about == about(facts)).then_some(kept.choices)
        });
        let mut known = kept.unwrap_or_default();
        known.extend(options.choices.clone());
        Self { on, file, known, taken: HashMap::new() }
    }

    /// What is known.
    pub(super) fn known(&self) -> &Choices {
        &self.known
    }

    /// Remembers a choice; a disk that cannot be written is no reason to stop.
    fn learn(&mut self, facts: &AdapterFacts, class: String, choice: String) {
        self.known.insert(class, choice);
        let Some(file) = &self.file else { return };
        let kept = Kept { about: about(facts), choices: self.known.clone() };
        let text = serde_json::to_string_pretty(&kept).expect("it is plain data");
        // Whole or not at all: another process may read it now.
        let new = file.with_extension(std::process::id().to_string());
        let _ = file.parent().map(std::fs::create_dir_all);
        let _ = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, file));
    }
}

/// The way that is known or measured to be fastest, or planned to be where nothing is measured. `run` records one way;
/// each may be recorded several times.
pub(super) fn choose(gpu: &Gpu, ways: &Ways, run: &mut dyn FnMut(usize)) -> usize {
    let first = ways.planned[0];
    let (taken, on) = {
        let chooser = gpu.0.choices.borrow();
        (chooser.taken.get(&ways.key).copied(), chooser.on || !chooser.known.is_empty())
    };
    if let Some(way) = taken {
        return way;
    }
    if !on {
        return first;
    }
    let (class, names) = (ways.names)();
    let known =
        gpu.0.choices.borrow().known.get(&class).and_then(|known| names.iter().position(|n| n == known));
    let way = match known {
        Some(way) => way,
        None if !gpu.0.choices.borrow().on || ways.planned.len() < 2 => first,
        None => {
            let Some(way) = fastest(gpu, ways.planned, run) else { return first };
            gpu.0.choices.borrow_mut().learn(&gpu.0.facts, class, names[way].clone());
            way
        }
    };
    gpu.0.choices.borrow_mut().taken.insert(ways.key, way);
    way
}

/// Times ways in turns; `None` where the device fails for another reason.
fn fastest(gpu: &Gpu, ways: &[usize], run: &mut dyn FnMut(usize)) -> Option<usize> {
    // What was recorded before is not theirs.
    gpu.wait().ok()?;
    let mut time = |way: usize, runs: u32| -> Option<f64> {
        let started = Instant::now();
        (0..runs).for_each(|_| run(way));
        // A way that this driver refuses is no candidate.
        gpu.wait().ok()?;
        Some(started.elapsed().as_secs_f64() / f64::from(runs))
    };
    let mut runs_of = |way: usize| {
        // The first run compiles.
        time(way, 1)?;
        let runs = LONG.as_secs_f64() / time(way, 1)?.max(1e-6);
        Some((way, (runs as u32).clamp(1, RUNS), f64::MAX))
    };
    let mut timed: Vec<(usize, u32, f64)> = ways.iter().filter_map(|way| runs_of(*way)).collect();
    for _ in 0..ROUNDS {
        for (way, runs, best) in &mut timed {
            *best = best.min(time(*way, *runs)?);
        }
    }
    let planned = *timed.first()?;
    let best = timed.into_iter().min_by(|a, b| a.2.total_cmp(&b.2))?;
    Some(if best.2 < GAIN * planned.2 { best.0 } else { planned.0 })
}
