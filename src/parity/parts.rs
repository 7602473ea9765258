//! Fixtures of single parts: BERT, the hinge loss, Adam with clipping, ranking.

use std::collections::BTreeMap;

use super::Fixture;
use super::compare::{HALF_TEXT, Row, Rules, family};
use crate::error::{Error, Result};
use crate::eval::rank;
use crate::host::ratios;
use crate::nn::bert::{self, Config, Tokens};
use crate::nn::optim::Optimizer;
use crate::nn::{Init, Params, Role, layout};
use crate::ops::AdamStep;
use crate::systems::hinge::hinge;
use crate::tensor::{Device, Tape};

const PATH: &str = "fast";

pub(super) fn bert(fixture: &Fixture, device: &Device) -> Result<Vec<Row>> {
    let config: Config = fixture.config()?;
    config.check().map_err(|e| e.at(&fixture.place))?;
    let prefix = if fixture.tensors.contains_key("param.embeddings.LayerNorm.weight") { "" } else { "bert." };
    let params = Params::new(&config.parameters(prefix), device, &mut |spec| fixture.stored(spec))?;
    let scope = if prefix.is_empty() { params.root() } else { params.root().sub("bert") };
    let tokens = Tokens {
        ids: fixture.upload(device, "in.input_ids")?,
        mask: fixture.upload(device, "in.attention_mask")?,
        types: Some(fixture.upload(device, "in.token_type_ids")?),
    };
    let states = bert::encode(&scope, &config, &tokens, None);
    let mut out = BTreeMap::from([
        ("embeddings".to_string(), states.embeddings.to_f64()?),
        ("pooled".to_string(), states.pooled(&scope).to_f64()?),
    ]);
    for (i, layer) in states.layers.iter().enumerate() {
        out.insert(format!("layer.{i}"), layer.to_f64()?);
    }
    let mut rules = Rules::new(fixture, device, Some(config.num_hidden_layers));
    if rules.half {
        rules.out = HALF_TEXT;
    }
    Ok(family(fixture, "out.", PATH, rules, &out, |_| true))
}

pub(super) fn loss(fixture: &Fixture, device: &Device) -> Result<Vec<Row>> {
    let tape = Tape::new();
    let scores = tape.leaf(&fixture.upload(device, "in.scores")?);
    if scores.shape().rank() != 2 {
        return Err(Error::new("in.scores is no matrix").at(&fixture.place).found(scores.shape()));
    }
    let hardest = fixture.spec["config"]["max_violation"].as_bool().unwrap_or(true);
    let value = hinge(&scores, fixture.number("margin")?, hardest);
    let out = BTreeMap::from([("loss".to_string(), value.to_f64()?)]);
    let grads = tape.backward(&value);
    let g = grads.of(&scores).map_or(Ok(vec![0.0; scores.len()]), |g| g.to_f64())?;
    let rules = Rules::new(fixture, device, None);
    let mut rows = family(fixture, "out.", PATH, rules, &out, |_| true);
    rows.extend(family(fixture, "grad.", PATH, rules, &BTreeMap::from([("scores".to_string(), g)]), |_| {
        true
    }));
    Ok(rows)
}

/// The last step at the first learning rate.
const FIRST_RATE_STEPS: usize = 4;

pub(super) fn adam(fixture: &Fixture, device: &Device) -> Result<Vec<Row>> {
    let names: Vec<String> = fixture.family("param.").map(String::from).collect();
    let specs = layout(|l| {
        for name in &names {
            let (shape, _) = &fixture.tensors[&format!("param.{name}")];
            l.push(name.clone(), shape.dims(), Init::Const(0.0), Role::Weight);
        }
    });
    let mut params = Params::new(&specs, device, &mut |spec| fixture.stored(spec))?;
    let host = device.gpu().is_none();
    let mut optimizer = Optimizer::default();
    let (mut rows, mut norms) = (Vec::new(), Vec::new());
    for t in 0..fixture.number("steps")? as usize {
        let rate = fixture.number(if t < FIRST_RATE_STEPS { "learning_rate" } else { "lr_from_step_4" })?;
        let mut grads = Vec::new();
        for name in &names {
            if fixture.tensors.contains_key(&format!("in.grad.{t}.{name}")) {
                grads.push((name.clone(), fixture.upload(device, &format!("in.grad.{t}.{name}"))?));
            }
        }
        let clip = fixture.number("grad_clip")?;
        let step = AdamStep { lr: rate, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0, clip };
        norms.push(optimizer.step(&mut params, &grads, &step, &|_| Some(rate)).item()?.sqrt());
        for name in &names {
            let full = format!("step.{t}.{name}");
            let reference: Vec<f64> = fixture.tensor(&full)?.1.iter().map(|v| f64::from(*v)).collect();
            let values = params.named(name).to_f64()?;
            rows.push(if host {
                Row::new(PATH, full, ratios(&values, &reference).worst(), 1e-5)
            } else {
                let off = values.iter().zip(&reference).map(|(a, b)| (a - b).abs() / rate);
                Row::new(PATH, full, off.fold(0.0, f64::max), 1e-2 * (t + 1) as f64)
            });
        }
    }
    let out = BTreeMap::from([("grad_norms".to_string(), norms)]);
    rows.extend(family(fixture, "out.", PATH, Rules::new(fixture, device, None), &out, |_| true));
    Ok(rows)
}

pub(super) fn recall(fixture: &Fixture) -> Result<Vec<Row>> {
    let each = fixture.number("captions_per_image")? as usize;
    let folds = fixture.spec["config"]["fold5"].as_bool().unwrap_or(false).then_some(5);
    let tensors = fixture
        .tensors
        .iter()
        .map(|(name, (_, values))| (name.clone(), values.iter().map(|v| f64::from(*v)).collect()))
        .collect();
    let compared = rank::parity(&tensors, each, folds).map_err(|e| e.at(&fixture.place))?;
    Ok(compared.into_iter().map(|c| Row::new(PATH, c.name, c.worst, c.bound)).collect())
}
