//! A Swin as its authors and timm release it.

use super::{Imported, Layout, Plan, Source, StateDicts};
use crate::{Error, Result};
use serde_json::Value as Json;
use std::collections::{BTreeSet, HashMap};

/// A backbone. Its first task's head is left out; the norms between its stages are of whoever trained it on, and may be
/// missing.
const SWIN: StateDicts<'static> = StateDicts {
    modules: &["patch_embed", "layers", "norm", "norm_0", "norm_1", "norm_2"],
    ignored: &[("head", "a head that the backbone does not have")],
    optional: &["norm_0", "norm_1", "norm_2"],
};

/// A Swin's weights, under the names of its first release: newer versions of timm merge patches at the beginning of a stage
/// instead of the end of the one before, and number the merging so.
///
/// `config` makes the configuration of the weights' shapes, by those names; `layout` says what weights it asks for.
///
/// # Errors
/// Another model's file, one with position embeddings, weights that do not fit each other.
pub fn swin<'a>(
    source: &'a Source,
    config: impl FnOnce(&dyn Fn(&str) -> Option<Vec<usize>>) -> Result<Json>,
    layout: impl FnOnce(&Json) -> Result<Layout>,
) -> Result<Imported<'a>> {
    let another = |error: Error| {
        let cure = "give a Swin of its first version: swin_base_patch4_window7_224_22k.pth, say";
        error.at(source.path().display()).cure(cure)
    };
    let mut embeddings = source.shapes().filter(|(name, _)| name.ends_with("absolute_pos_embed"));
    if let Some((name, _)) = embeddings.next() {
        let error = Error::new("this Swin has position embeddings, which are not supported");
        return Err(another(error.expected("biases of relative positions only").found(name)));
    }
    let mut plan = Plan::found(source, &SWIN).map_err(another)?;
    plan.rename_merging(source);
    let config = plan.fit(source, &SWIN, |_, shape| config(shape), layout).map_err(another)?;
    plan.run(source, config)
}

impl Plan<'_> {
    /// Counts the mergings as the first release does, if none follows the first stage.
    fn rename_merging(&mut self, source: &Source) {
        let merging = |name: &str| {
            let (stage, rest) = name.strip_prefix("layers.")?.split_once('.')?;
            rest.starts_with("downsample.").then_some((stage.parse::<usize>().ok()?, rest.len()))
        };
        let shapes: HashMap<&str, &[usize]> = source.shapes().collect();
        let shape = |wanted: String| {
            self.kept.iter().find(|(_, new)| *new == wanted).and_then(|(old, _)| shapes.get(old).copied())
        };
        // Four rows of the stage before are merged: twice the width of the stage itself.
        let precedes = |stage: usize| {
            let reads = shape(format!("layers.{stage}.downsample.reduction.weight"))?.get(1)?;
            let width = shape(format!("layers.{stage}.blocks.0.norm1.weight"))?.first()?;
            Some(width.checked_mul(2) == Some(*reads))
        };
        let found = self.kept.iter().filter_map(|(_, new)| merging(new)).map(|(stage, _)| stage);
        let stages: BTreeSet<usize> = found.collect();
        if stages.is_empty() || !stages.iter().all(|stage| *stage > 0 && precedes(*stage) == Some(true)) {
            return;
        }
        for (_, new) in &mut self.kept {
            if let Some((stage, rest)) = merging(new) {
                *new = format!("layers.{}.{}", stage - 1, &new[new.len() - rest..]);
            }
        }
    }
}
