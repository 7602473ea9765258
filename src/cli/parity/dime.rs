//! DIME's fixtures: the plain composition with every intermediate, and the path users run.

use std::collections::BTreeMap;

use super::Fixture;
use super::compare::{HALF_SIMS, Row, Rules, family, steps};
use crate::error::Result;
use crate::nn::bert::Tokens;
use crate::nn::{ParamSpec, Params, Role};
use crate::ops::AdamStep;
use crate::systems::dime::{self, Config, Path, Run, Taps};
use crate::tensor::{Device, Tape, Tensor};
use crate::train::optim::{Optimizer, take_buffers};

/// What the user's path shares with the composition: where it differs inside, only results are compared.
const RESULTS: [&str; 5] = ["sims", "loss_rank", "loss_path", "loss_total", "grad_norm"];

pub(super) fn check(fixture: &Fixture, device: &Device) -> Result<Vec<Row>> {
    let config: Config = fixture.config()?;
    config.check().map_err(|e| e.at(&fixture.place))?;
    let rules = Rules::new(device, Some(config.bert_config.num_hidden_layers));
    let mut rows = Vec::new();
    let recomputed = fixture.is_train().then_some(("recomputed", Path::Recomputed));
    for (name, path) in [("composed", Path::Composed), ("fast", Path::Fast)].into_iter().chain(recomputed) {
        let composed = path == Path::Composed;
        let results = run(fixture, &config, device, path)?;
        let sims = if rules.half { Rules { out: HALF_SIMS, ..rules } } else { rules };
        rows.extend(family(fixture, "out.", name, sims, &results.out, |n| n == "sims"));
        let wanted = |n: &str| n != "sims" && (composed || RESULTS.contains(&n));
        rows.extend(family(fixture, "out.", name, rules, &results.out, wanted));
        if fixture.is_train() {
            rows.extend(family(fixture, "grad.", name, rules, &results.grad, |_| true));
            rows.extend(unasked(fixture, name, &results.grad));
            let (rate, clip) = (fixture.number("learning_rate")?, fixture.number("grad_clip")?);
            rows.extend(steps(fixture, name, rules, &results.step, rate, clip));
        }
    }
    Ok(rows)
}

/// Gradients that the reference does not have and that are not zero.
fn unasked(fixture: &Fixture, path: &'static str, grads: &BTreeMap<String, Vec<f64>>) -> Vec<Row> {
    let moved = |(name, g): (&String, &Vec<f64>)| {
        let known = fixture.tensors.contains_key(&format!("grad.{name}"));
        let zero = g.iter().all(|v| *v == 0.0);
        (!known && !zero)
            .then(|| Row::missing(path, format!("grad.{name}"), "a gradient the reference lacks"))
    };
    grads.iter().filter_map(moved).collect()
}

#[derive(Default)]
struct Results {
    out: BTreeMap<String, Vec<f64>>,
    grad: BTreeMap<String, Vec<f64>>,
    step: BTreeMap<String, Vec<f64>>,
}

fn run(fixture: &Fixture, config: &Config, device: &Device, path: Path) -> Result<Results> {
    let specs = config.parameters();
    let mut params = Params::new(&specs, device, &mut |spec| fixture.stored(spec))?;
    let tokens = Tokens {
        ids: fixture.upload(device, "in.input_ids")?,
        mask: fixture.upload(device, "in.attention_mask")?,
        types: Some(fixture.upload(device, "in.token_type_ids")?),
    };
    let lengths = fixture.upload(device, "in.lengths")?;
    let features = fixture.upload(device, "in.images")?;
    let taps = Taps::default();
    let tape = Tape::new();
    let trained = |s: &&ParamSpec| s.role == Role::Weight;
    let tracked = params.tracked(&tape, |name| specs.iter().filter(trained).any(|s| s.name == name));
    let captions = lengths.len();
    let model = Run { scope: tracked.root(), config, path, train: fixture.is_train(), taps: Some(&taps) };
    let images = dime::encode_images(&model, &features);
    let encoded = dime::encode_captions(&model, &tokens, &lengths, None);
    // The path users run is tiled: at least two tiles, the last one short.
    let tile = if path == Path::Composed { captions } else { (captions / 2 + 1).min(captions.max(2) - 1) };
    let mut results = Results::default();
    let mut out = BTreeMap::new();
    if fixture.is_train() {
        let outcome = dime::forward(&model, &images, &encoded, tile);
        let grads = tape.backward(&outcome.losses.total);
        let mut named = BTreeMap::new();
        for spec in specs.iter().filter(trained) {
            if let Some(g) = grads.of(tracked.named(&spec.name)) {
                named.insert(spec.name.clone(), g.clone());
            }
        }
        // A parameter that the reference gives a gradient of zero may have none here.
        for name in fixture.family("grad.") {
            if !named.contains_key(name) && params.has(name) {
                let shape = params.named(name).shape();
                named.insert(name.to_string(), device.full(shape, 0.0));
            }
        }
        let step = AdamStep {
            lr: fixture.number("learning_rate")?,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            decay: 0.0,
            clip: fixture.number("grad_clip")?,
        };
        let ordered: Vec<(String, Tensor)> = named.clone().into_iter().collect();
        let squares = Optimizer::default().step(&mut params, &ordered, &step, &|_| Some(step.lr));
        out.insert("grad_norm".to_string(), squares.map(crate::ops::Expr::sqrt));
        take_buffers(&mut params, &outcome.buffers, &squares);
        results.grad = values(&named)?;
        results.step =
            values(&fixture.family("step.").map(|n| (n.to_string(), params.named(n).clone())).collect())?;
    } else {
        dime::score_tiles(&model, &images, &encoded, tile);
    }
    drop(tracked);
    out.extend(taps.take());
    results.out = values(&out)?;
    Ok(results)
}

fn values(tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Vec<f64>>> {
    tensors.iter().map(|(name, t)| Ok((name.clone(), t.to_f64()?))).collect()
}
