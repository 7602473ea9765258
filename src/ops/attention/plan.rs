//! Attention's kernels: their variants and texts.

use super::Bias;
use crate::gpu::{Gpu, Style};
use crate::ops::codegen::{each, fill, pointwise};
#[cfg(test)]
use crate::ops::gates::Variant;

const FORWARD: &str = include_str!("../../../shaders/attention.wgsl");
const QUERIES: &str = include_str!("../../../shaders/attention_queries.wgsl");
const KEYS: &str = include_str!("../../../shaders/attention_keys.wgsl");

/// Passes over the other side in the longest of the three kernels.
pub(super) const PASSES: usize = 3;
/// Scores that an invocation holds in registers, where a subgroup's invocations load for each other: of longer rows it
/// computes them again in each pass. Unrolled, so a text for each two steps.
const HELD: usize = 40;
/// And for heads of so many channels, in fours: wider ones make long texts.
const HELD_QUADS: usize = 4;
/// Rows that an invocation owns on a GPU: each row of the other side that it loads serves all of them.
const SPAN: usize = 2;
/// For heads of at most so many channels, in fours: wider ones would not fit its registers.
const SPAN_QUADS: usize = 4;
/// Fours of channels in a step's rows on a GPU, and rows at most: enough loads at a time to wait for them together.
const STEP_QUADS: usize = 8;
const STEP: usize = 4;
/// Workgroup memory's room for rows comes in this many.
const ROOM: usize = 4;
/// Invocations of a workgroup on a GPU.
const GROUP: usize = 64;
/// A kernel's beginning where a subgroup's invocations load for each other.
const ENTRY: &str = "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
    @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {\n    let local = 0u;";
/// Where they do not.
const LONE_ENTRY: &str = "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
    @builtin(num_workgroups) groups: vec3<u32>) {\n    let lane = 0u;\n    let local = 0u;";
/// And where scores are stored in workgroup memory.
const STORED_ENTRY: &str = "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
    @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {\n    let lane = 0u;";
/// What there is in place of workgroup memory where nothing is stored.
const NO_ROOM: &str = "fn put(place: u32, x: f32) {}\nfn taken(place: u32) -> f32 { return 0.0; }";

/// Which of the three kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Forward,
    Queries,
    Keys,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forward => "attention",
            Self::Queries => "attention_queries",
            Self::Keys => "attention_keys",
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Forward => FORWARD,
            Self::Queries => QUERIES,
            Self::Keys => KEYS,
        }
    }
}

/// Where an invocation has the scores of its rows after the first pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Held {
    /// Nowhere: each pass computes them again.
    Nowhere,
    /// In registers, of so many steps.
    Registers(usize),
    /// In workgroup memory, of so many rows.
    Memory(usize),
}

/// A kernel's variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) part: Part,
    /// Invocations that load for each other.
    pub(super) lanes: usize,
    /// Rows that an invocation owns.
    pub(super) span: usize,
    /// Fours of channels in a head.
    pub(super) quads: usize,
    pub(super) bias: Bias,
    pub(super) stacked: bool,
    pub(super) plus: bool,
    pub(super) windowed: bool,
    pub(super) drops: bool,
    pub(super) held: Held,
}

/// The ways to run a kernel over so many rows of the other side, the one that is planned to be the fastest first.
pub(super) fn ways(plan: Plan, gpu: &Gpu, other: usize) -> Vec<Plan> {
    if gpu.style() != Style::Workgroup {
        let holds = plan.lanes > 1 && plan.part != Part::Keys && other <= HELD && plan.quads <= HELD_QUADS;
        let steps = other.div_ceil(plan.chunk()).next_multiple_of(2);
        return vec![if holds { Plan { held: Held::Registers(steps), ..plan } } else { plan }];
    }
    let held = match plan.part {
        Part::Keys => Held::Nowhere,
        Part::Forward | Part::Queries => Held::Memory(other.max(1).next_multiple_of(ROOM)),
    };
    let fits = |plan: &Plan| {
        (plan.span == 1 || plan.quads <= SPAN_QUADS) && plan.memory() <= gpu.facts().workgroup_memory as usize
    };
    let several = [SPAN, 1].map(|span| Plan { span, held, ..plan }).into_iter().filter(fits);
    let mut all: Vec<Plan> = several.collect();
    if all.last() != Some(&plan) {
        all.push(plan);
    }
    #[cfg(test)]
    if let Some(way) = FORCED.get() {
        return vec![all[way.min(all.len() - 1)]];
    }
    all
}

impl Plan {
    /// The plainest variant of a kernel for heads of four channels.
    pub(super) fn of(part: Part, gpu: &Gpu) -> Self {
        Self {
            part,
            lanes: if gpu.style() == Style::Subgroup { gpu.facts().lanes().unwrap_or(1) } else { 1 },
            span: 1,
            quads: 1,
            bias: Bias::None,
            stacked: false,
            plus: false,
            windowed: false,
            drops: false,
            held: Held::Nowhere,
        }
    }

    /// What tells it from those that other ways are not compared with.
    pub(super) fn class(&self) -> String {
        let Self { part, quads, bias, stacked, plus, windowed, drops, .. } = self;
        format!(
            "{} in heads of {}, bias {bias:?}, stacked {stacked}, plus {plus}, windowed {windowed}, drops {drops}",
            part.name(),
            4 * quads
        )
    }

    /// What tells it from other ways.
    pub(super) fn name(&self) -> String {
        let held = match self.held {
            Held::Nowhere => "streamed",
            Held::Registers(_) => "held",
            Held::Memory(_) => "stored",
        };
        format!("{held} by {}", self.span)
    }

    /// Values stored of each row.
    fn sorts(&self) -> usize {
        if self.part == Part::Queries { 2 } else { 1 }
    }

    /// Bytes of workgroup memory.
    fn memory(&self) -> usize {
        match self.held {
            Held::Memory(rows) => 4 * self.sorts() * rows * self.span * GROUP,
            Held::Nowhere | Held::Registers(_) => 0,
        }
    }

    /// Rows of the other side in a step: enough that each invocation loads something, or a few at a time.
    pub(super) fn chunk(&self) -> usize {
        match self.held {
            Held::Memory(_) => (STEP_QUADS / self.quads).clamp(1, STEP),
            Held::Nowhere | Held::Registers(_) => (self.lanes / self.quads).max(1),
        }
    }

    pub(super) fn source(&self) -> String {
        let (lanes, quads, chunk, span) = (self.lanes, self.quads, self.chunk(), self.span);
        let (steps, room) = match self.held {
            Held::Nowhere => (1, 1),
            Held::Registers(steps) => (steps, 1),
            Held::Memory(rows) => (1, rows),
        };
        let is_stored = matches!(self.held, Held::Memory(_));
        let (vectors, shares) = (chunk * quads, (chunk * quads).div_ceil(lanes));
        // In one array the gradients of keys and values are bound once, after what is read.
        let pairs = self.bias == Bias::Pairs;
        let (values, params) = match self.part {
            Part::Forward => (None, 6),
            Part::Queries => (None, if pairs { 8 } else { 7 }),
            Part::Keys if self.stacked => {
                (Some("fn store_value(place: u32, x: vec4<f32>) { gk[place] = x; }"), 7)
            }
            Part::Keys => (None, 8),
        };
        let [parts, k, v] = if self.stacked { [3, 1, 2] } else { [1, 0, 0] };
        let variant = format!(
            "@group(0) @binding({params}) var<uniform> p: Params;\nconst LANES = {lanes}u;\n\
             const QUADS = {quads}u;\nconst CHUNK = {chunk}u;\nconst SHARES = {shares}u;\nconst SPAN = {span}u;\nconst HELD = {};\n\
             const STORED = {is_stored};\nconst ROOM = {room}u;\nconst SORTS = {}u;\n\
             const MASKED = {};\nconst BIASED = {pairs};\nconst WINDOWED = {};\nconst DROPS = {};\n\
             const PLUS = {};\nconst PARTS = {parts}u;\nconst K = {k}u;\nconst V = {v}u;",
            matches!(self.held, Held::Registers(_)),
            self.sorts(),
            self.bias == Bias::Keys,
            self.windowed,
            self.drops,
            self.plus,
        );
        let [entry, gather, spread, masks] = if lanes > 1 {
            let spread = "subgroupBroadcast(own, c)";
            [ENTRY, "subgroupBroadcast(own[e / LANES], e % LANES)", spread, spread]
        } else {
            let entry = if is_stored { STORED_ENTRY } else { LONE_ENTRY };
            [entry, "own[e]", "own", "bias[from_mask + other_row(first, c)]"]
        };
        let gather = format!("    rows[e / QUADS][e % QUADS] = {gather};");
        let [spread, masks] = [spread, masks].map(|value| format!("    b[c] = {value};"));
        let mut all = vec![("variant", &*variant), ("entry", entry), ("gather", &gather)];
        all.extend([("spread", &*spread), ("spread_masks", &*masks)]);
        all.extend(values.map(|text| ("values", text)));
        if !is_stored {
            all.push(("room", NO_ROOM));
        }
        if !pairs {
            all.push(("bias", "fn store_bias(place: u32, x: f32) {}"));
        }
        // What repeats others comes last.
        let counts = [("c", chunk), ("e", vectors), ("h", steps), ("j", quads), ("t", shares), ("o", span)];
        let text = fill(self.part.text(), &all);
        let text = counts.iter().fold(text, |text, (name, count)| each(&text, name, *count));
        format!("{}{text}", pointwise(false))
    }
}

/// Kernels of narrow heads, and of BERT's.
#[cfg(test)]
pub(in crate::ops) fn variants(gpu: &Gpu) -> Vec<Variant> {
    let mut all = Vec::new();
    for part in [Part::Forward, Part::Queries, Part::Keys] {
        for (quads, n) in [1, 2, 3, 4, 16].into_iter().flat_map(|quads| (0..8).map(move |n| (quads, n))) {
            let [masked, stacked, plus] = [0, 1, 2].map(|i| n >> i & 1 == 1);
            let bias = if masked { Bias::Keys } else { Bias::None };
            let plus = plus && part == Part::Forward;
            let plan = Plan { quads, bias, stacked, plus, drops: n == 7, ..Plan::of(part, gpu) };
            let windowed = (n == 2).then_some(Plan { bias: Bias::Pairs, windowed: true, ..plan });
            for plan in [plan].into_iter().chain(windowed) {
                // Rows that fit everywhere, few and more of them, and rows that fit nowhere.
                let plans = [5, 12, 20, 1 << 20].into_iter().flat_map(|other| ways(plan, gpu, other));
                all.extend(plans.map(|plan| Variant::new("attention", &plan, plan.source())));
            }
        }
    }
    all
}

#[cfg(test)]
thread_local! {
    /// The number of the way that is taken, or the last.
    static FORCED: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
}

/// Calls `f` while each kernel is run in one of its ways: measurements decide elsewhere.
#[cfg(test)]
pub(in crate::ops) fn with_each_way(gpu: &Gpu, mut f: impl FnMut(&str)) {
    let ways = if gpu.style() == Style::Workgroup { 3 } else { 0 };
    for way in 0..ways {
        FORCED.set(Some(way));
        f(&format!("way {way} of attention"));
    }
    FORCED.set(None);
}
