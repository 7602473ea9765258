//! Attention's kernels: their variants and texts.

use super::Bias;
use crate::ops::codegen::{each, fill, pointwise};
#[cfg(test)]
use crate::{
    gpu::{Gpu, Style},
    ops::gates::Variant,
};

const FORWARD: &str = include_str!("../../../shaders/attention.wgsl");
const QUERIES: &str = include_str!("../../../shaders/attention_queries.wgsl");
const KEYS: &str = include_str!("../../../shaders/attention_keys.wgsl");

/// Passes over the other side in the longest of the three kernels.
pub(super) const PASSES: usize = 3;
/// Scores that an invocation holds in registers, where a subgroup's invocations load for each other: of longer rows it
/// computes them again in each pass. Unrolled, so a text for each two steps.
pub(super) const HELD: usize = 40;
/// And for heads of so many channels, in fours: wider ones make long texts.
pub(super) const HELD_QUADS: usize = 4;
/// A kernel's beginning where a subgroup's invocations load for each other.
const ENTRY: &str = "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
    @builtin(num_workgroups) groups: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {";
/// And where they do not.
const LONE_ENTRY: &str = "@compute @workgroup_size(GROUP)\nfn main(@builtin(global_invocation_id) id: vec3<u32>, \
    @builtin(num_workgroups) groups: vec3<u32>) {\n    let lane = 0u;";

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

/// A kernel's variant.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Plan {
    pub(super) part: Part,
    /// Invocations that load for each other.
    pub(super) lanes: usize,
    /// Fours of channels in a head.
    pub(super) quads: usize,
    pub(super) bias: Bias,
    pub(super) stacked: bool,
    pub(super) plus: bool,
    pub(super) windowed: bool,
    pub(super) drops: bool,
    /// Steps whose scores are held.
    pub(super) held: Option<usize>,
}

impl Plan {
    /// Rows of the other side in a step: enough that each invocation loads something.
    pub(super) fn chunk(&self) -> usize {
        (self.lanes / self.quads).max(1)
    }

    pub(super) fn source(&self) -> String {
        let (lanes, quads, chunk, steps) = (self.lanes, self.quads, self.chunk(), self.held.unwrap_or(1));
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
             const QUADS = {quads}u;\nconst CHUNK = {chunk}u;\nconst SHARES = {shares}u;\nconst HELD = {};\n\
             const MASKED = {};\nconst BIASED = {pairs};\nconst WINDOWED = {};\nconst DROPS = {};\nconst PLUS = {};\nconst PARTS = {parts}u;\nconst K = {k}u;\nconst V = {v}u;",
            self.held.is_some(),
            self.bias == Bias::Keys,
            self.windowed,
            self.drops,
            self.plus,
        );
        let [entry, gather, spread] = if lanes > 1 {
            [ENTRY, "subgroupBroadcast(own[e / LANES], e % LANES)", "subgroupBroadcast(own, c)"]
        } else {
            [LONE_ENTRY, "own[e]", "own"]
        };
        let gather = format!("    rows[e / QUADS][e % QUADS] = {gather};");
        let spread = format!("    b[c] = {spread};");
        let mut all =
            vec![("variant", &*variant), ("entry", entry), ("gather", &gather), ("spread", &spread)];
        all.extend(values.map(|text| ("values", text)));
        if !pairs {
            all.push(("bias", "fn store_bias(place: u32, x: f32) {}"));
        }
        let counts = [("c", chunk), ("e", vectors), ("h", steps), ("j", quads), ("t", shares)];
        let text = fill(self.part.text(), &all);
        let text = counts.iter().fold(text, |text, (name, count)| each(&text, name, *count));
        format!("{}{text}", pointwise(false))
    }
}

/// Kernels of narrow heads, and of BERT's.
#[cfg(test)]
pub(in crate::ops) fn variants(gpu: &Gpu) -> Vec<Variant> {
    let lanes = if gpu.style() == Style::Subgroup { gpu.facts().lanes().unwrap_or(1) } else { 1 };
    let mut all = Vec::new();
    for part in [Part::Forward, Part::Queries, Part::Keys] {
        for (quads, n) in [1, 2, 3, 4, 16].into_iter().flat_map(|quads| (0..8).map(move |n| (quads, n))) {
            let [masked, stacked, plus] = [0, 1, 2].map(|i| n >> i & 1 == 1);
            let bias = if masked { Bias::Keys } else { Bias::None };
            let holds = lanes > 1 && part != Part::Keys && quads <= HELD_QUADS;
            for held in [None, Some(2), Some(6)].into_iter().filter(|held| held.is_none() || holds) {
                let plus = plus && part == Part::Forward;
                let plan =
                    Plan { part, lanes, quads, bias, stacked, plus, windowed: false, drops: n == 7, held };
                all.push(Variant::new("attention", &plan, plan.source()));
                if n == 2 {
                    let plan = Plan { bias: Bias::Pairs, windowed: true, ..plan };
                    all.push(Variant::new("attention", &plan, plan.source()));
                }
            }
        }
    }
    all
}
