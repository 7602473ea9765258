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
/// Epochs among which the one of a second step is sought.
const MOST_EPOCHS: u64 = 1000;

pub(super) fn check(fixture: &Fixture, kind: Kind, device: &Device) -> Result<Vec<Row>> {
    let config = &fixture.spec["config"];
    let system = (kind.open)(config).map_err(|e| e.at(&fixture.place))?;
    let layers = system.text_encoder().map_or(0, |encoder| encoder.config.num_hidden_layers);
    let rules = Rules::new(fixture, device, Some(layers));
    let rules = if system.image_encoder().is_some() { rules.through_pixels() } else { rules };
    let (first, second) = in_steps(fixture);
    let fixture = &first;
    let mut rows = Vec::new();
    let recomputed = fixture.is_train().then_some(("recomputed", Form::Recomputed));
    for (name, form) in [("composed", Form::Composed), ("fast", Form::Fast)].into_iter().chain(recomputed) {
        let mut trial = Trial::begin(fixture, &*system, device, form)?;
        let results = trial.run(fixture, None)?;
        rows.extend(compared(fixture, name, rules, &results));
        rows.extend(unasked(fixture, name, &results.grad));
        if let Some((second, rate)) = &second {
            let results = trial.run(second, Some(epoch_of(second, &*system, *rate)?))?;
            let of_second = compared(second, name, rules, &results).into_iter();
            rows.extend(of_second.map(|row| Row { name: format!("{}, second step", row.name), ..row }));
        }
    }
    Ok(rows)
}

/// The similarities of an evaluation, in the form that users run.
pub(super) fn similarities(fixture: &Fixture, kind: Kind, device: &Device) -> Result<Vec<f64>> {
    let system = (kind.open)(&fixture.spec["config"]).map_err(|e| e.at(&fixture.place))?;
    let results = Trial::begin(fixture, &*system, device, Form::Fast)?.run(fixture, None)?;
    Ok(results.out[SIMS[0]].clone())
}

fn compared(fixture: &Fixture, path: &'static str, rules: Rules, results: &Results) -> Vec<Row> {
    let sims = if rules.half { Rules { out: HALF_SIMS, ..rules } } else { rules };
    let mut rows = family(fixture, "out.", path, sims, &results.out, |n| SIMS.contains(&n));
    // Where the users' form differs inside, only what it gives is compared.
    let wanted = |n: &str| !SIMS.contains(&n) && (path == "composed" || results.given.contains(n));
    rows.extend(family(fixture, "out.", path, rules, &results.out, wanted));
    if fixture.is_train() {
        rows.extend(family(fixture, "grad.", path, rules, &results.grad, |_| true));
        rows.extend(steps(fixture, path, rules, &results.step, &results.rates, results.clip));
    }
    rows
}

/// A fixture without what it says of a second step on the same batch, and that as a fixture of its own, with that step's
/// learning rate.
fn in_steps(fixture: &Fixture) -> (Fixture, Option<(Fixture, f64)>) {
    let is_out = |name: &str| fixture.tensors.contains_key(&format!("out.{name}"));
    let in_second = |full: &str| {
        if let Some(name) = full.strip_prefix("out.") {
            // Of three numbered tensors the last is no second one; its own second is, though a file may lack its first.
            let known = |base: &str| is_out(base) || base.ends_with("_2");
            let base = name.strip_suffix("_2").filter(|base| known(base) && !is_out(&format!("{base}_1")))?;
            return Some(format!("out.{base}"));
        }
        let (family, name) = full.split_once("2.").filter(|(family, _)| !family.contains('.'))?;
        Some(format!("{family}.{name}"))
    };
    let of = |tensors| Fixture {
        place: fixture.place.clone(),
        spec: fixture.spec.clone(),
        tensors,
        half: fixture.half,
    };
    let Some((_, rate)) = fixture.tensors.get("out.lr_2") else {
        return (of(fixture.tensors.clone()), None);
    };
    let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
    for (name, t) in fixture.tensors.iter().filter(|(name, _)| *name != "out.lr_2") {
        match in_second(name) {
            Some(name) => drop(second.insert(name, t.clone())),
            None => {
                if name.starts_with("in.") || name.starts_with("param.") {
                    second.insert(name.clone(), t.clone());
                }
                first.insert(name.clone(), t.clone());
            }
        }
    }
    (of(first), Some((of(second), f64::from(rate[0]))))
}

/// The first epoch at this learning rate in which all is trained that the fixture has gradients of.
fn epoch_of(fixture: &Fixture, system: &dyn System, rate: f64) -> Result<u64> {
    let rates = Rates { learning_rate: fixture.number("learning_rate")?, grad_clip: 0.0 };
    let groups: BTreeSet<&str> = system
        .parameters()
        .iter()
        .filter(|s| fixture.tensors.contains_key(&format!("grad.{}", s.name)))
        .map(|s| s.group)
        .collect();
    let trains = |epoch: &u64| {
        let schedule = system.schedule(&rates, *epoch, 0);
        let close = |r: f64| (r - rate).abs() <= 1e-6 * rate;
        groups.iter().all(|group| schedule.rate(group).is_some_and(close))
    };
    (0..MOST_EPOCHS).find(trains).ok_or_else(|| {
        crate::Error::new("in no epoch is trained what its second step trains").at(&fixture.place).found(rate)
    })
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

/// A fixture's model and what it is run on.
struct Trial<'a> {
    system: &'a dyn System,
    device: &'a Device,
    form: Form,
    specs: Vec<ParamSpec>,
    params: Params,
    optimizer: Optimizer,
}

impl<'a> Trial<'a> {
    fn begin(fixture: &Fixture, system: &'a dyn System, device: &'a Device, form: Form) -> Result<Self> {
        let train = fixture.is_train();
        let held = |s: &ParamSpec| train || fixture.tensors.contains_key(&format!("param.{}", s.name));
        let specs: Vec<ParamSpec> = system.parameters().into_iter().filter(held).collect();
        let params = Params::new(&specs, device, &mut |spec| fixture.stored(spec))?;
        Ok(Self { system, device, form, specs, params, optimizer: Optimizer::default() })
    }

    /// One evaluation or step. In an epoch that is given all that its schedule lists is trained; else what the reference
    /// gives a gradient.
    fn run(&mut self, fixture: &Fixture, epoch: Option<u64>) -> Result<Results> {
        let Self { system, device, form, .. } = *self;
        let train = fixture.is_train();
        let (images, captions) = inputs(fixture, system, device)?;
        let reference = |s: &ParamSpec| fixture.tensors.contains_key(&format!("grad.{}", s.name));
        let trained = |s: &&ParamSpec| is_trained(s, epoch.is_some() || reference(s));
        let epoch = epoch.unwrap_or(0);
        let tape = Tape::new();
        let tracked =
            self.params.tracked(&tape, |name| self.specs.iter().filter(trained).any(|s| s.name == name));
        let taps = Taps::default();
        // The form that users run is tiled: at least two tiles, the last one short.
        let n = captions.at(system.inputs().captions[0]).shape()[0];
        let tile = if form == Form::Composed { n } else { (n / 2 + 1).min(n.max(2) - 1) };
        let config = &fixture.spec["config"];
        let done = config["iter_count_before"].as_u64().unwrap_or(0);
        let step = Step { seed: 1, epoch, step: done, text_dropout: false };
        let pass = match train {
            true => Pass::training(tracked.root(), step),
            false => Pass::evaluation(tracked.root()),
        };
        let pass = pass.computed(form, tile).tapped(&taps);
        let (encoded_images, encoded) = (system.images(&pass, &images), system.captions(&pass, &captions));
        let mut results = Results::default();
        let mut out = BTreeMap::new();
        if train {
            let ids = captions
                .get("img_ids")
                .map_or_else(|| Ok((0..n).map(|i| i as f32).collect()), Tensor::to_vec)?;
            let ids: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
            let batch = Batch { image_ids: &ids, given: Some(&captions) };
            let loss = system.loss(&pass, &encoded_images, &encoded, &batch);
            let grads = tape.backward(&loss.total);
            let mut named = Vec::new();
            for spec in self.specs.iter().filter(trained) {
                let grad = grads.of(tracked.named(&spec.name)).cloned();
                // A parameter that the reference gives a gradient of zero may have none here.
                let zero = || reference(spec).then(|| device.full(spec.shape, 0.0));
                named.extend(grad.or_else(zero).map(|g| (spec.name.clone(), g)));
            }
            let rates = Rates {
                learning_rate: fixture.number("learning_rate")?,
                grad_clip: config["grad_clip"].as_f64().unwrap_or(0.0),
            };
            let schedule = system.schedule(&rates, epoch, done);
            results.grad = values(named.iter().map(|(name, g)| (name.as_str(), g)))?;
            let squares =
                self.optimizer.step(&mut self.params, &named, &schedule.adam(), &|g| schedule.rate(g));
            out.insert("grad_norm".to_string(), squares.map(Expr::sqrt));
            results.clip = schedule.clip;
            results.rates =
                self.specs.iter().map(|s| (s.name.clone(), schedule.rate(s.group).unwrap_or(0.0))).collect();
            let terms = loss.terms.iter().map(|(name, _)| *name);
            results.given = terms
                .chain(["total"])
                .flat_map(|name| [format!("loss_{name}"), format!("loss.{name}")])
                .collect();
            take_buffers(&mut self.params, &pass.into_buffers(), &squares);
            let known = |n: &&str| self.specs.iter().any(|s| s.name == **n);
            results.step = values(fixture.family("step.").filter(known).map(|n| (n, self.params.named(n))))?;
            // What follows from the configuration is kept by the reference alone.
            let constant = |n: &&str| !known(n);
            for name in fixture.family("step.").filter(constant) {
                let (_, before) = fixture.tensor(&format!("param.{name}"))?;
                results.step.insert(name.into(), before.iter().map(|v| f64::from(*v)).collect());
            }
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
}

fn values<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<BTreeMap<String, Vec<f64>>> {
    tensors.map(|(name, t)| Ok((name.to_string(), t.to_f64()?))).collect()
}
