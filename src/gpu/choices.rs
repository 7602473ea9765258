//! Which of several ways to run a kernel is fastest on an adapter: measured at their first use, and remembered.
//!
//! One fixed tile costs some GPUs half of what they can do, so a kernel's planner names a few, and each is timed once
//! for an adapter, a driver and a class of sizes. A software driver's are planned only.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{AdapterFacts, Class, Gpu, Options};

/// The way chosen for each class of sizes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Choices {
    /// The version, adapter and driver for which they hold.
    pub about: String,
    /// By the classes' names.
    pub of: BTreeMap<String, String>,
}

/// Where choices are remembered from one process to the next.
pub trait Store: std::fmt::Debug {
    /// What was measured for a version, adapter and driver.
    fn load(&self, about: &str) -> Option<Choices>;
    /// Replaces it.
    fn save(&self, choices: &Choices);
}

/// What one way is timed for, about, and in how many runs at most: a call and its wait may take a large part of a
/// millisecond.
const LONG: Duration = Duration::from_millis(5);
const RUNS: u32 = 256;
/// Runs whose time beyond that of one tells how long a run takes.
const FEW: u32 = 9;
/// Timings of each, in turns: the shortest counts.
const ROUNDS: usize = 3;
/// What another must save to be taken instead of the first, which the planner holds for the fastest.
const GAIN: f64 = 0.95;

/// What is known, and where it is kept.
pub(super) struct Chooser {
    on: bool,
    store: Option<Rc<dyn Store>>,
    /// What is remembered and was measured here.
    measured: Choices,
    /// What a run was begun with, which comes first.
    of_run: BTreeMap<String, String>,
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

fn about(facts: &AdapterFacts) -> String {
    format!("crossweave {}, {}, {}", env!("CARGO_PKG_VERSION"), facts.name, facts.driver)
}

impl Chooser {
    /// With what a run was begun with, then what is remembered; `asked` turns measuring on or off, else hardware
    /// measures.
    pub(super) fn new(facts: &AdapterFacts, asked: Option<bool>, options: &Options) -> Self {
        let on = asked.unwrap_or(facts.class == Class::Hardware);
        let about = about(facts);
        let store = options.store.clone().filter(|_| on);
        let run = &options.choices;
        let of_run = if run.about == about { run.of.clone() } else { BTreeMap::new() };
        let mut chooser = Self {
            on,
            store,
            measured: Choices { about, of: BTreeMap::new() },
            of_run,
            taken: HashMap::new(),
        };
        chooser.measured.of = chooser.remembered();
        chooser
    }

    fn remembered(&self) -> BTreeMap<String, String> {
        let kept = self.store.as_ref().and_then(|store| store.load(&self.measured.about));
        kept.unwrap_or_default().of
    }

    /// What is known.
    pub(super) fn known(&self) -> Choices {
        let mut known = self.measured.clone();
        known.of.extend(self.of_run.clone());
        known
    }

    fn of_class(&self, class: &str) -> Option<&String> {
        self.of_run.get(class).or_else(|| self.measured.of.get(class))
    }

    /// Remembers a choice, beside those of other processes.
    fn learn(&mut self, class: String, choice: String) {
        let mut of = self.remembered();
        of.extend(std::mem::take(&mut self.measured.of));
        of.insert(class, choice);
        self.measured.of = of;
        if let Some(store) = &self.store {
            store.save(&self.measured);
        }
    }
}

/// The way that is known or measured to be fastest, or planned to be where nothing is measured. `run` records one way;
/// each may be recorded several times.
pub(super) fn choose(gpu: &Gpu, ways: &Ways, run: &mut dyn FnMut(usize)) -> usize {
    let first = ways.planned[0];
    let (taken, on) = {
        let chooser = gpu.0.choices.borrow();
        (chooser.taken.get(&ways.key).copied(), chooser.on || !chooser.of_run.is_empty())
    };
    if let Some(way) = taken {
        return way;
    }
    if !on {
        return first;
    }
    let (class, names) = (ways.names)();
    let known = |chooser: &Chooser| names.iter().position(|name| Some(name) == chooser.of_class(&class));
    let known = known(&gpu.0.choices.borrow());
    let way = match known {
        Some(way) => way,
        None if !gpu.0.choices.borrow().on || ways.planned.len() < 2 => first,
        None => {
            let Some(way) = fastest(gpu, ways.planned, run) else { return first };
            gpu.0.choices.borrow_mut().learn(class, names[way].clone());
            way
        }
    };
    gpu.0.choices.borrow_mut().taken.insert(ways.key, way);
    way
}

/// Times ways in turns; `None` where none runs, or where something had gone wrong before, which stays to be told.
fn fastest(gpu: &Gpu, ways: &[usize], run: &mut dyn FnMut(usize)) -> Option<usize> {
    if gpu.faulted() {
        return None;
    }
    // What was recorded before is not theirs.
    if let Err(e) = gpu.wait() {
        gpu.refuse(e);
        return None;
    }
    let mut time = |way: usize, runs: u32| -> Option<f64> {
        let started = Instant::now();
        (0..runs).for_each(|_| run(way));
        // A way that this driver refuses is no candidate.
        gpu.wait().ok()?;
        Some(started.elapsed().as_secs_f64())
    };
    let mut runs_of = |way: usize| {
        // The first run compiles.
        time(way, 1)?;
        let one = time(way, 1)?;
        let run = if one > LONG.as_secs_f64() { one } else { (time(way, FEW)? - one) / f64::from(FEW - 1) };
        Some(((LONG.as_secs_f64() / run.max(1e-6)) as u32).clamp(1, RUNS))
    };
    let mut timed: Vec<(usize, u32, f64)> =
        ways.iter().filter_map(|way| Some((*way, runs_of(*way)?, f64::MAX))).collect();
    for _ in 0..ROUNDS {
        timed.retain_mut(|(way, runs, best)| {
            let seconds = time(*way, *runs).map(|seconds| seconds / f64::from(*runs));
            *best = best.min(seconds.unwrap_or(f64::MAX));
            seconds.is_some()
        });
    }
    let planned = *timed.first()?;
    let best = timed.into_iter().min_by(|a, b| a.2.total_cmp(&b.2))?;
    Some(if best.2 < GAIN * planned.2 { best.0 } else { planned.0 })
}
