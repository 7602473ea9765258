//! A system's fixtures: the plain composition with every intermediate, and the forms that users run.

use std::collections::{BTreeMap, BTreeSet};

use super::Fixture;
use super::compare::{HALF_SIMS, Row, Rules, family, steps};
use crate::error::Result;
use crate::eval::model::is_trained;
use crate::nn::optim::{Optimizer, take_buffers};
use crate::nn::{ParamSpec, Params};
use crate::ops::Expr;
use crate::systems::{Batch, Form, Items, Kind, Pass, Rates, Step, System, Taps};
use crate::tensor::{Device, Tape, Tensor};

/// The similarities under either of their names; they have a bound of their own in f16.
const SIMS: [&str; 2] = ["sims", "scores"];

pub(super) fn check(fixture: &Fixture, kind: Kind, device: &Device) -> Result<Vec<Row>> {
    let config = &fixture.spec["config"];
    let system = (kind.open)(config).map_err(|e| e.at(&fixture.place))?;
    let layers = system.text_encoder().map_or(0, |encoder| encoder.config.num_hidden_layers);
    let rules = Rules::new(device, Some(layers));
    let mut rows = Vec::new();
    let recomputed = fixture.is_train().then_some(("recomputed", Form::Recomputed));
    for (name, form) in [("composed", Form::Composed), ("fast", Form::Fast)].into_iter().chain(recomputed) {
        let composed = form == Form::Composed;
        let results = run(fixture, &*system, device, form)?;
        let sims = if rules.half { Rules { out: HALF_SIMS, ..rules } } else { rules };
        rows.extend(family(fixture, "out.", name, sims, &results.out, |n| SIMS.contains(&n)));
        // Where the users' form differs inside, only what it gives is compared.
        let wanted = |n: &str| !SIMS.contains(&n) && (composed || results.given.contains(n));
        rows.extend(family(fixture, "out.", name, rules, &results.out, wanted));
        if fixture.is_train() {
            rows.extend(family(fixture, "grad.", name, rules, &results.grad, |_| true));
            rows.extend(unasked(fixture, name, &results.grad));
            rows.extend(steps(fixture, name, rules, &results.step, &results.rates, results.clip));
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
    /// The names in `out` that every form gives: the similarities, the loss and its terms, the gradient's norm.
    given: BTreeSet<String>,
    grad: BTreeMap<String, Vec<f64>>,
    step: BTreeMap<String, Vec<f64>>,
    /// The learning rate of each parameter.
    rates: BTreeMap<String, f64>,
    clip: f64,
}

/// The inputs of a fixture: those that the system reads of an image, and all others.
fn inputs(fixture: &Fixture, system: &dyn System, device: &Device) -> Result<(Items, Items)> {
    let of_images = system.inputs().images;
    let (mut images, mut captions) = (Items::default(), Items::default());
    for name in fixture.family("in.") {
        let tensor = fixture.upload(device, &format!("in.{name}"))?;
        if of_images.contains(&name) {
            images = images.with(name, tensor);
        } else {
            captions = captions.with(name, tensor);
        }
    }
    for name in of_images.iter().filter(|name| images.get(name).is_none()) {
        fixture.tensor(&format!("in.{name}"))?;
    }
    for name in system.inputs().captions.iter().filter(|name| captions.get(name).is_none()) {
        fixture.tensor(&format!("in.{name}"))?;
    }
    Ok((images, captions))
}

fn run(fixture: &Fixture, system: &dyn System, device: &Device, form: Form) -> Result<Results> {
    let train = fixture.is_train();
    let (images, captions) = inputs(fixture, system, device)?;
    let held = |s: &ParamSpec| train || fixture.tensors.contains_key(&format!("param.{}", s.name));
    let specs: Vec<ParamSpec> = system.parameters().into_iter().filter(held).collect();
    let mut params = Params::new(&specs, device, &mut |spec| fixture.stored(spec))?;
    // What the reference gave no gradient, such as a frozen encoder, is not trained.
    let reference =
        |prefix: &str, s: &ParamSpec| fixture.tensors.contains_key(&format!("{prefix}{}", s.name));
    let trained = |s: &&ParamSpec| is_trained(s, reference("grad.", s));
    let tape = Tape::new();
    let tracked = params.tracked(&tape, |name| specs.iter().filter(trained).any(|s| s.name == name));
    let taps = Taps::default();
    // The form that users run is tiled: at least two tiles, the last one short.
    let n = captions.at(system.inputs().captions[0]).shape()[0];
    let tile = if form == Form::Composed { n } else { (n / 2 + 1).min(n.max(2) - 1) };
    let config = &fixture.spec["config"];
    let done = config["iter_count_before"].as_u64().unwrap_or(0);
    let step = Step { seed: 1, epoch: 0, step: done, text_dropout: false };
    let pass = match train {
        true => Pass::training(tracked.root(), step),
        false => Pass::evaluation(tracked.root()),
    };
    let pass = pass.computed(form, tile).tapped(&taps);
    let (encoded_images, encoded) = (system.images(&pass, &images), system.captions(&pass, &captions));
    let mut results = Results::default();
    let mut out = BTreeMap::new();
    if train {
        let ids =
            captions.get("img_ids").map_or_else(|| Ok((0..n).map(|i| i as f32).collect()), Tensor::to_vec)?;
        let ids: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
        let batch = Batch { image_ids: &ids, given: Some(&captions) };
        let loss = system.loss(&pass, &encoded_images, &encoded, &batch);
        let grads = tape.backward(&loss.total);
        let mut named = Vec::new();
        for spec in specs.iter().filter(trained) {
            let grad = grads.of(tracked.named(&spec.name)).cloned();
            // A parameter that the reference gives a gradient of zero may have none here.
            let zero = || reference("grad.", spec).then(|| device.full(spec.shape, 0.0));
            named.extend(grad.or_else(zero).map(|g| (spec.name.clone(), g)));
        }
        let rates = Rates {
            learning_rate: fixture.number("learning_rate")?,
            grad_clip: fixture.number("grad_clip")?,
        };
        let schedule = system.schedule(&rates, 0, done);
        results.grad = values(named.iter().map(|(name, g)| (name.as_str(), g)))?;
        let squares = Optimizer::default().step(&mut params, &named, &schedule.adam(), &|g| schedule.rate(g));
        out.insert("grad_norm".to_string(), squares.map(Expr::sqrt));
        results.clip = schedule.clip;
        results.rates =
            specs.iter().map(|s| (s.name.clone(), schedule.rate(s.group).unwrap_or(0.0))).collect();
        let terms = loss.terms.iter().map(|(name, _)| *name);
        results.given = terms
            .chain(["total"])
            .flat_map(|name| [format!("loss_{name}"), format!("loss.{name}")])
            .collect();
        take_buffers(&mut params, &pass.into_buffers(), &squares);
        results.step = values(fixture.family("step.").map(|n| (n, params.named(n))))?;
    } else {
        let tiles = (0..n).step_by(tile).map(|start| encoded.part(start, tile.min(n - start)));
        let sims: Vec<Tensor> = tiles.map(|part| system.score(&pass, &encoded_images, &part)).collect();
        let sims = crate::ops::concat(&sims, 1);
        out.extend(SIMS.map(|name| (name.to_string(), sims.clone())));
        drop(pass);
    }
    results.given.extend(["grad_norm", "loss"].map(String::from));
    drop(tracked);
    let mut all = taps.take();
    all.extend(out);
    results.out = values(all.iter().map(|(name, t)| (name.as_str(), t)))?;
    Ok(results)
}

fn values<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<BTreeMap<String, Vec<f64>>> {
    tensors.map(|(name, t)| Ok((name.to_string(), t.to_f64()?))).collect()
}
