//! Parameters: what a model has, by the names of its original state dict, and how they begin.

use std::collections::HashMap;
use std::rc::Rc;

use super::slab::{ParamValues, Slab, Source};
use crate::error::Result;
use crate::host::Rng;
use crate::shape::Shape;
use crate::tensor::{Device, Tape, Tensor};

/// How a parameter begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// Uniform in plus and minus the bound.
    Uniform(f64),
    /// Uniform between two bounds.
    Between(f64, f64),
    /// Normal with this deviation.
    Normal(f64),
    /// One value.
    Const(f64),
    /// The values another parameter begins with.
    Same(String),
    /// The Euclidean norm of each row of what another parameter begins with.
    RowNorms(String),
}

/// What a parameter is to training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

impl Role {
    /// The role whose slabs hold it: statistics and counters are taken up together.
    pub(super) fn in_memory(self) -> Self {
        if self == Self::Counter { Self::Statistic } else { self }
    }
}

/// One parameter of a model.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Its sub-module's name, a dot, and its name in the original state dict.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// How it begins.
    pub init: Init,
    /// What it is to training.
    pub role: Role,
    /// The optimiser group it belongs to; "" is the default.
    pub group: &'static str,
    /// The set of maps that one product takes, if it is in one: they are contiguous in memory.
    pub together: Option<String>,
}

/// The parameters' names and shapes.
pub fn shapes(specs: &[ParamSpec]) -> Vec<(String, Vec<usize>)> {
    specs.iter().map(|s| (s.name.clone(), s.shape.dims().to_vec())).collect()
}

/// Lists a model's parameters under nested names.
#[derive(Debug, Default)]
pub struct Layout {
    specs: Vec<ParamSpec>,
    group: &'static str,
    together: Option<String>,
}

/// The parameters that `build` lists.
pub fn layout(build: impl FnOnce(&mut Layout)) -> Vec<ParamSpec> {
    let mut layout = Layout::default();
    build(&mut layout);
    layout.specs
}

impl Layout {
    /// One parameter.
    pub fn push(&mut self, name: String, shape: &[usize], init: Init, role: Role) {
        let (shape, group, together) = (Shape::new(shape), self.group, self.together.clone());
        self.specs.push(ParamSpec { name, shape, init, role, group, together });
    }

    /// Parameters of an optimiser group.
    pub fn group(&mut self, name: &'static str, build: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.group, name);
        build(self);
        self.group = outer;
    }

    /// Maps that one product takes, each its weight and its bias, in the product's order. The set's name is its own
    /// within the model.
    pub fn together(&mut self, set: impl Into<String>, build: impl FnOnce(&mut Self)) {
        let outer = self.together.replace(set.into());
        build(self);
        self.together = outer;
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
        if let Some(last) = self.specs.last_mut() {
            last.init = init;
        }
    }

    /// Adds parameters listed elsewhere.
    pub fn extend(&mut self, others: Vec<ParamSpec>) {
        self.specs.extend(others);
    }
}

/// A model's parameters by name, and the slabs that hold them.
#[derive(Clone, Debug, Default)]
pub struct Params {
    names: Rc<Names>,
    tensors: Vec<Tensor>,
    slabs: Vec<Slab>,
}

/// The parameters' names, in their tensors' order, and their places in it: the same for all that share a layout.
#[derive(Debug, Default)]
struct Names {
    all: Vec<String>,
    places: HashMap<String, usize>,
}

/// Tensors by name, in memory of their own: for a part of a model that only reads them.
impl FromIterator<(String, Tensor)> for Params {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        let (all, tensors): (Vec<String>, Vec<Tensor>) = tensors.into_iter().unzip();
        let places = all.iter().enumerate().map(|(i, name)| (name.clone(), i)).collect();
        Self { names: Rc::new(Names { all, places }), tensors, slabs: Vec::new() }
    }
}

impl Params {
    /// Lays all parameters out in slabs, with the values that `values` gives each.
    ///
    /// # Errors
    /// Those of `values`.
    pub fn new(specs: &[ParamSpec], device: &Device, values: Source) -> Result<Self> {
        let slabs = Slab::all(specs, device, values)?;
        let views = |slab: &Slab| {
            let names: Vec<String> = slab.members.iter().map(|m| m.spec.name.clone()).collect();
            names.into_iter().zip(slab.views())
        };
        let params: Self = slabs.iter().flat_map(views).collect();
        Ok(Self { slabs, ..params })
    }

    /// Begins every parameter from a seed: the values depend on the names alone, not on their order.
    pub fn begin(specs: &[ParamSpec], device: &Device, seed: u64) -> Self {
        Self::new(specs, device, &mut |spec| Ok(begin_values(spec, specs, seed)))
            .expect("beginning reads nothing that could fail")
    }

    /// Gives the parameters of some roles other values.
    ///
    /// # Errors
    /// Those of `values`; parameters of earlier slabs have been changed.
    pub fn reload(&mut self, wanted: impl Fn(Role) -> bool, values: Source) -> Result<()> {
        for i in 0..self.slabs.len() {
            if wanted(self.slabs[i].role) {
                self.slabs[i].values = self.slabs[i].upload(values)?;
                self.view(i);
            }
        }
        Ok(())
    }

    /// The values of the parameters of some roles, by name: one copy back a slab.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self, wanted: impl Fn(Role) -> bool) -> Result<HashMap<&str, Vec<f32>>> {
        let mut read = HashMap::new();
        for slab in self.slabs.iter().filter(|s| wanted(s.role)) {
            let all = slab.values.to_vec()?;
            read.extend(slab.parts(&all).map(|(spec, part)| (spec.name.as_str(), part.to_vec())));
        }
        Ok(read)
    }

    /// The slabs. Their order, and that of their members, is the same whenever a model is laid out on an adapter.
    pub fn slabs(&self) -> &[Slab] {
        &self.slabs
    }

    fn view(&mut self, i: usize) {
        let slab = &self.slabs[i];
        for (member, view) in slab.members.iter().zip(slab.views()) {
            self.tensors[self.names.places[&member.spec.name]] = view;
        }
    }

    /// One by its full name.
    #[track_caller]
    pub fn named(&self, name: &str) -> &Tensor {
        let place =
            self.names.places.get(name).unwrap_or_else(|| panic!("the model has no parameter {name}"));
        &self.tensors[*place]
    }

    /// Whether there is one of this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.places.contains_key(name)
    }

    /// The whole model as a scope.
    pub fn root(&self) -> Scope<'_> {
        Scope { params: self, prefix: String::new() }
    }

    /// The parameters whose names begin with a prefix, its dot included.
    pub fn below(&self, prefix: &str) -> Scope<'_> {
        Scope { params: self, prefix: prefix.to_string() }
    }

    /// The same tensors, those that `trained` picks tracked on a tape. They come without slabs: the optimiser steps
    /// `self`, whose memory they share on a GPU.
    pub fn tracked(&self, tape: &Tape, trained: impl Fn(&str) -> bool) -> Self {
        let leaf = |(name, t): (&String, &Tensor)| if trained(name) { tape.leaf(t) } else { t.clone() };
        let tensors = self.names.all.iter().zip(&self.tensors).map(leaf).collect();
        Self { names: self.names.clone(), tensors, slabs: Vec::new() }
    }
}

/// What a parameter of a layout begins with.
#[track_caller]
pub fn begin_values(spec: &ParamSpec, specs: &[ParamSpec], seed: u64) -> ParamValues<'static> {
    if let Init::Same(other) | Init::RowNorms(other) = &spec.init {
        let other = specs.iter().find(|s| s.name == *other).expect("a layout names its own parameters");
        let values = begin_values(other, specs, seed);
        return match (&spec.init, values) {
            (Init::RowNorms(_), ParamValues::Values(values)) => {
                let norm = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
                ParamValues::Values(values.chunks(other.shape.last()).map(norm).collect())
            }
            (_, values) => values,
        };
    }
    let path: Vec<u64> = spec.name.bytes().map(u64::from).collect();
    let mut rng = Rng::of(seed, &path);
    let mut draw = || match spec.init {
        Init::Uniform(bound) => rng.range(-bound, bound),
        Init::Normal(deviation) => deviation * rng.normal(),
        Init::Const(value) => value,
        Init::Between(low, high) => rng.range(low, high),
        Init::Same(_) | Init::RowNorms(_) => unreachable!("handled above"),
    };
    ParamValues::Values((0..spec.shape.len()).map(|_| draw() as f32).collect())
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
        let Params { names, tensors, .. } = self.params;
        let mut all: Vec<_> = names.all.iter().zip(tensors).filter_map(below).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// One parameter.
    #[track_caller]
    pub fn at(&self, name: &str) -> &'a Tensor {
        self.params.named(&format!("{}{name}", self.prefix))
    }
}
