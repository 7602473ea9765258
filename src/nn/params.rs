//! Parameters: what a model has, by the names of its original state dict, and how they begin.

use std::collections::HashMap;

use crate::host::Rng;
use crate::shape::Shape;
use crate::tensor::{Device, Tape, Tensor};

/// How a parameter begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// Uniform in plus and minus the bound.
    Uniform(f64),
    /// Normal with this deviation.
    Normal(f64),
    /// One value.
    Const(f64),
    /// The values another parameter begins with.
    Same(String),
}

/// What a parameter is to training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Trained.
    Weight,
    /// Part of a frozen or trained text encoder.
    Encoder,
    /// Trained, but read by the loss alone: no part of a saved model.
    Criterion,
    /// A running statistic.
    Statistic,
    /// A whole number that counts batches.
    Counter,
}

/// One parameter of a model.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Its name in the original state dict, behind its sub-module's.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// How it begins.
    pub init: Init,
    /// What it is to training.
    pub role: Role,
}

/// The parameters' names and shapes.
pub fn shapes(specs: &[ParamSpec]) -> Vec<(String, Vec<usize>)> {
    specs.iter().map(|s| (s.name.clone(), s.shape.dims().to_vec())).collect()
}

/// Lists a model's parameters under nested names.
#[derive(Debug, Default)]
pub struct Layout(Vec<ParamSpec>);

/// The parameters that `build` lists.
pub fn layout(build: impl FnOnce(&mut Layout)) -> Vec<ParamSpec> {
    let mut layout = Layout::default();
    build(&mut layout);
    layout.0
}

impl Layout {
    /// One parameter.
    pub fn push(&mut self, name: String, shape: &[usize], init: Init, role: Role) {
        self.0.push(ParamSpec { name, shape: Shape::new(shape), init, role });
    }

    /// A linear map's `weight [to, from]` and `bias [to]`, begun as PyTorch does: uniform within the inverse
    /// root of the inputs.
    pub fn linear(&mut self, at: &str, from: usize, to: usize) {
        let bound = Init::Uniform(1.0 / (from as f64).sqrt());
        self.push(format!("{at}.weight"), &[to, from], bound.clone(), Role::Weight);
        self.push(format!("{at}.bias"), &[to], bound, Role::Weight);
    }

    /// Batch norm's weight, bias and running statistics.
    pub fn batch_norm(&mut self, at: &str, width: usize) {
        self.push(format!("{at}.weight"), &[width], Init::Const(1.0), Role::Weight);
        self.push(format!("{at}.bias"), &[width], Init::Const(0.0), Role::Weight);
        self.push(format!("{at}.running_mean"), &[width], Init::Const(0.0), Role::Statistic);
        self.push(format!("{at}.running_var"), &[width], Init::Const(1.0), Role::Statistic);
        self.push(format!("{at}.num_batches_tracked"), &[], Init::Const(0.0), Role::Counter);
    }

    /// Changes how the last parameter begins.
    pub fn begin_last(&mut self, init: Init) {
        if let Some(last) = self.0.last_mut() {
            last.init = init;
        }
    }

    /// Adds parameters listed elsewhere.
    pub fn extend(&mut self, others: Vec<ParamSpec>) {
        self.0.extend(others);
    }
}

/// A model's parameters by name.
#[derive(Clone, Debug, Default)]
pub struct Params(HashMap<String, Tensor>);

impl Params {
    /// Begins every parameter from a seed: the values depend on the names alone, not on their order.
    pub fn begin(specs: &[ParamSpec], device: &Device, seed: u64) -> Self {
        let mut params = Self::default();
        for spec in specs {
            let values = begin_values(spec, specs, seed);
            params.insert(&spec.name, device.tensor(spec.shape, &values));
        }
        params
    }

    /// Sets one.
    pub fn insert(&mut self, name: &str, value: Tensor) {
        self.0.insert(name.to_string(), value);
    }

    /// One by its full name.
    #[track_caller]
    pub fn named(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("the model has no parameter {name}"))
    }

    /// Whether there is one of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The whole model as a scope.
    pub fn root(&self) -> Scope<'_> {
        Scope { params: self, prefix: String::new() }
    }

    /// The parameters whose names begin with a prefix, its dot included.
    pub fn below(&self, prefix: &str) -> Scope<'_> {
        Scope { params: self, prefix: prefix.to_string() }
    }

    /// The same parameters with those that `trained` picks tracked on a tape.
    pub fn tracked(&self, tape: &Tape, trained: impl Fn(&str) -> bool) -> Self {
        let leaf = |(name, t): (&String, &Tensor)| {
            (name.clone(), if trained(name) { tape.leaf(t) } else { t.clone() })
        };
        Self(self.0.iter().map(leaf).collect())
    }
}

fn begin_values(spec: &ParamSpec, specs: &[ParamSpec], seed: u64) -> Vec<f32> {
    if let Init::Same(other) = &spec.init {
        let other = specs.iter().find(|s| s.name == *other).expect("a layout names its own parameters");
        return begin_values(other, specs, seed);
    }
    let path: Vec<u64> = spec.name.bytes().map(u64::from).collect();
    let mut rng = Rng::of(seed, &path);
    let mut draw = || match spec.init {
        Init::Uniform(bound) => rng.range(-bound, bound),
        Init::Normal(deviation) => deviation * rng.normal(),
        Init::Const(value) => value,
        Init::Same(_) => unreachable!("handled above"),
    };
    (0..spec.shape.len()).map(|_| draw() as f32).collect()
}

/// The parameters below a prefix.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    params: &'a Params,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// Those of a sub-module.
    pub fn sub(&self, name: &str) -> Self {
        Self { params: self.params, prefix: format!("{}{name}.", self.prefix) }
    }

    /// All of them by their names below the prefix, in the names' order.
    pub fn all(&self) -> Vec<(String, &'a Tensor)> {
        let below =
            |(name, t): (&'a String, &'a Tensor)| Some((name.strip_prefix(&self.prefix)?.to_string(), t));
        let mut all: Vec<_> = self.params.0.iter().filter_map(below).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// One parameter.
    #[track_caller]
    pub fn at(&self, name: &str) -> &'a Tensor {
        self.params.named(&format!("{}{name}", self.prefix))
    }
}
