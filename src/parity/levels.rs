//! Fixtures of alignment at several levels: the alignment by itself, the backbone, training, and evaluation in both
//! directions with its ranks.

use std::collections::BTreeMap;

use super::compare::{Row, Rules, family};
use super::{Fixture, system};
use crate::error::{Error, Result};
use crate::eval::rank::{Ranks, Sims};
use crate::nn::{Params, Role, swin};
use crate::ops::WordAxis;
use crate::systems::contexts::{aligned, attention};
use crate::systems::{Form, Kind};
use crate::tensor::{Device, Tape, Tensor};

const DIRECTIONS: [(&str, WordAxis); 2] = [("i2t", WordAxis::Context), ("t2i", WordAxis::Queries)];
/// What is compared under another name than a system gives it: of training, and of an evaluation's direction.
const RENAMED: [(&str, &str); 2] = [("scores", "scores_0"), ("scores_all", "sims")];
const SCORES: [(&str, &str); 4] =
    [("sims", "scores_0"), ("sims_1", "scores_1"), ("sims_2", "scores_2"), ("sims_all", "sims")];
/// The ranks of the recalls.
const AT: [u32; 7] = [1, 5, 10, 20, 50, 70, 100];

/// Runs a fixture that is of this family; `None` for another.
pub(super) fn check(fixture: &Fixture, kind: Kind, device: &Device) -> Option<Result<Vec<Row>>> {
    let has = |name: &str| fixture.tensors.contains_key(name);
    if has("out.stage0") {
        Some(backbone(fixture, device))
    } else if has("in.edge.images") {
        Some(alone(fixture, device))
    } else if has("out.scores_all") {
        Some(training(fixture, kind, device))
    } else if has("out.i2t.sims_all") {
        Some(evaluation(fixture, kind, device))
    } else {
        None
    }
}

fn backbone(fixture: &Fixture, device: &Device) -> Result<Vec<Row>> {
    let config: swin::Config = fixture.config()?;
    config.check().map_err(|e| e.at(&fixture.place))?;
    let params = Params::new(&config.parameters("vit_model."), device, &mut |spec| fixture.stored(spec))?;
    let scope = params.root().sub("vit_model");
    let run = swin::Run { scope, config: &config, dropouts: None, recomputed: false };
    let mut noted: Vec<(String, Tensor)> = Vec::new();
    let image = fixture.upload(device, "in.image")?;
    let stages = run.stages(&image, &mut |name, x| noted.push((name.to_string(), x.clone())));
    noted.extend((0..stages.len()).map(|s| (format!("stage{s}"), run.normed(&stages, s))));
    if let Some((_, last)) = noted.iter().rfind(|(name, _)| name.contains("blocks")).cloned() {
        noted.push((format!("layers.{}.last_block", stages.len() - 1), last));
    }
    let out = values(&noted)?;
    Ok(family(
        fixture,
        "out.",
        "fast",
        Rules::new(fixture, device, Some(config.depths.iter().sum())),
        &out,
        |_| true,
    ))
}

fn values(tensors: &[(String, Tensor)]) -> Result<BTreeMap<String, Vec<f64>>> {
    tensors.iter().map(|(name, x)| Ok((name.clone(), x.to_f64()?))).collect()
}

/// One level, forward and backward, and where rows are zero, forward.
fn alone(fixture: &Fixture, device: &Device) -> Result<Vec<Row>> {
    let scale = fixture.number("lambda_softmax")?;
    let [images, captions, lengths, weight] = ["images", "captions", "cap_lens", "grad_weight"]
        .map(|name| fixture.upload(device, &format!("in.{name}")));
    let (images, captions, lengths, weight) = (images?, captions?, lengths?, weight?);
    let edge = ["images", "captions"].map(|name| fixture.upload(device, &format!("in.edge.{name}")));
    let [edge_images, edge_captions] = edge;
    let (edge_images, edge_captions) = (edge_images?, edge_captions?);
    let rules = Rules::new(fixture, device, Some(0));
    let mut rows = Vec::new();
    for (path, form) in [("composed", Form::Composed), ("fast", Form::Fast), ("recomputed", Form::Recomputed)]
    {
        let (mut out, mut grad) = (BTreeMap::new(), BTreeMap::new());
        for (direction, words) in DIRECTIONS {
            let attention = attention(scale, words);
            let tape = Tape::new();
            let (rows_of, words_of) = (tape.leaf(&images), tape.leaf(&captions));
            let mut noted = BTreeMap::new();
            let mut note = |name: &str, x: &Tensor| drop(noted.insert(name.to_string(), x.detach()));
            let sims = aligned(&attention, &rows_of, &words_of, &lengths, form, &mut note);
            out.insert(format!("{direction}.sims"), sims.to_f64()?);
            for (name, x) in &noted {
                out.extend(second_caption(direction, name, x, &lengths)?);
            }
            let grads = tape.backward(&sims.map2(&weight, |x, w| x * w).sum_all());
            for (name, leaf) in [("images", &rows_of), ("captions", &words_of)] {
                let g = grads.of(leaf).map_or_else(|| Ok(vec![0.0; leaf.len()]), Tensor::to_f64)?;
                grad.insert(format!("{direction}.{name}"), g);
            }
            let edge = aligned(&attention, &edge_images, &edge_captions, &lengths, form, &mut |_, _| ());
            out.insert(format!("edge.{direction}.sims"), edge.to_f64()?);
        }
        let wanted = |n: &str| form == Form::Composed || !n.contains("cap1");
        rows.extend(family(fixture, "out.", path, rules, &out, wanted));
        rows.extend(family(fixture, "grad.", path, rules.through_pixels(), &grad, |_| true));
    }
    Ok(rows)
}

/// What the reference keeps of the second caption: its true words of `x [images, captions, nodes, ..]`.
fn second_caption(
    direction: &str,
    name: &str,
    x: &Tensor,
    lengths: &Tensor,
) -> Result<Option<(String, Vec<f64>)>> {
    let length = lengths.to_vec()?.get(1).map_or(0, |n| *n as usize);
    let own = x.view().slice(1, 1, 1).squeeze(1);
    let by_words = direction == "t2i";
    let cut = |x: crate::tensor::Viewed, axis| x.slice(axis, 0, length);
    let own = match name {
        // The reference keeps [images, context, nodes].
        "weights" => cut(own, if by_words { 1 } else { 2 }).permute(&[0, 2, 1]),
        _ if by_words => cut(own, 1),
        _ => own,
    };
    let theirs = match name {
        "weights" => "attnT",
        "contexts" => "weightedContext",
        "cosines" => "row_sim",
        _ => return Ok(None),
    };
    let values = crate::ops::materialize(own).to_f64()?;
    Ok(Some((format!("{direction}.cap1.{theirs}"), values)))
}

/// The fixture with its outputs under our names, and with what an encoder's gradients say of the frozen epochs.
fn training(fixture: &Fixture, kind: Kind, device: &Device) -> Result<Vec<Row>> {
    let theirs = |ours: &str| {
        RENAMED.iter().find(|(_, own)| *own == ours).map_or(ours, |(theirs, _)| theirs).to_string()
    };
    let ours = |name: &str| {
        RENAMED.iter().find(|(theirs, _)| *theirs == name).map_or(name, |(_, own)| own).to_string()
    };
    let two_steps = fixture.tensors.contains_key("out.lr_2");
    let renamed = |full: &String| match full.strip_prefix("out.") {
        Some(name) => {
            let (name, step) = match name.strip_suffix("_2") {
                Some("scores_all") => ("scores_all", "_2"),
                // Of two steps, what bears this name is the second's main level, not the first's level 2.
                Some("scores") if two_steps => ("scores", "_2"),
                _ => (name, ""),
            };
            format!("out.{}{step}", ours(name))
        }
        None => full.clone(),
    };
    let tensors = fixture.tensors.iter().map(|(name, t)| (renamed(name), t.clone())).collect();
    let mut one =
        Fixture { place: fixture.place.clone(), spec: fixture.spec.clone(), tensors, half: fixture.half };
    let system = (kind.open)(&one.spec["config"]).map_err(|e| e.at(&fixture.place))?;
    let of_encoder = |s: &crate::nn::ParamSpec| {
        s.role == Role::Encoder && one.tensors.contains_key(&format!("grad.{}", s.name))
    };
    if system.parameters().iter().any(of_encoder) {
        one.spec["config"]["frozen-epochs"] = 0.into();
    }
    let named = |row: Row| match row.name.strip_prefix("out.") {
        Some(name) => Row { name: format!("out.{}", theirs(name)), ..row },
        None => row,
    };
    Ok(system::check(&one, kind, device)?.into_iter().map(named).collect())
}

fn evaluation(fixture: &Fixture, kind: Kind, device: &Device) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (direction, _) in DIRECTIONS {
        let mut one =
            Fixture { place: fixture.place.clone(), spec: fixture.spec.clone(), ..Fixture::default() };
        one.spec["config"]["direction"] = direction.into();
        let prefix = format!("out.{direction}.");
        for (name, t) in &fixture.tensors {
            let of_direction = DIRECTIONS.iter().any(|(d, _)| name.starts_with(&format!("out.{d}.")));
            match name.strip_prefix(&prefix) {
                Some(own) => {
                    if let Some((_, ours)) = SCORES.iter().find(|(theirs, _)| *theirs == own) {
                        one.tensors.insert(format!("out.{ours}"), t.clone());
                    }
                }
                None if of_direction => {}
                None => drop(one.tensors.insert(name.clone(), t.clone())),
            }
        }
        let named = |row: Row| {
            let own = row.name.trim_start_matches("out.");
            match SCORES.iter().find(|(_, ours)| *ours == own) {
                Some((theirs, _)) => Row { name: format!("{prefix}{theirs}"), ..row },
                None => row,
            }
        };
        rows.extend(system::check(&one, kind, device)?.into_iter().map(named));
        let sims = system::similarities(&one, kind, device)?;
        rows.extend(ranks(fixture, direction, &sims)?);
    }
    Ok(rows)
}

/// Ranks and recalls, which the reference states of its own similarities: no rounding is allowed to change them.
fn ranks(fixture: &Fixture, direction: &str, sims: &[f64]) -> Result<Vec<Row>> {
    let (shape, _) = fixture.tensor(&format!("out.{direction}.sims_all"))?;
    let (images, captions) = (shape[0], shape[1]);
    if images == 0 || captions % images != 0 {
        return Err(Error::new("captions do not divide among images").at(&fixture.place).found(shape));
    }
    let Ranks { i2t, t2i, .. } = Sims::new(sims, images, captions / images)?.ranks();
    let recalls = |ranks: &[u32]| {
        AT.map(|k| 100.0 * ranks.iter().filter(|r| **r < k).count() as f64 / ranks.len() as f64)
    };
    let middle = |ranks: &[u32]| {
        let mut sorted: Vec<f64> = ranks.iter().map(|r| f64::from(*r)).collect();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        [median.floor() + 1.0, sorted.iter().sum::<f64>() / n as f64 + 1.0]
    };
    let whole = |ranks: &[u32]| ranks.iter().map(|r| f64::from(*r)).collect::<Vec<f64>>();
    let both = [recalls(&i2t), recalls(&t2i)].concat();
    let results = [
        ("i2t_ranks", whole(&i2t)),
        ("t2i_ranks", whole(&t2i)),
        ("best_irtr", vec![both[0] + both[AT.len()]]),
        ("recalls", both),
        ("i2t_medr_meanr", middle(&i2t).to_vec()),
        ("t2i_medr_meanr", middle(&t2i).to_vec()),
    ];
    let rows = results.into_iter().map(|(name, values)| {
        let full = format!("out.{direction}.{name}");
        let Ok((_, reference)) = fixture.tensor(&full) else {
            return Row::missing("fast", full, "not in the fixture");
        };
        let furthest =
            values.iter().zip(reference).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
        // Percentages and means are kept in f32.
        Row::new("fast", full, furthest, if name.ends_with("ranks") { 0.0 } else { 1e-4 })
    });
    Ok(rows.collect())
}
