//! The optimiser: it steps a model's parameters slab by slab.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::{ParamSpec, ParamValues, Params, Slab};
use crate::error::Result;
use crate::ops::{AdamState, AdamStep, adam, lay_out, sum_of_squares, write_if_finite};
use crate::tensor::Tensor;

/// Takes up what a batch makes of the model's buffers (running statistics and counters), in place: one write, as they
/// share a slab. Where the squared gradient norm is NaN or infinite they stay as they were, as the parameters do.
#[track_caller]
pub fn take_buffers(params: &mut Params, buffers: &[(String, Tensor)], squares: &Tensor) {
    let new = by_name(buffers);
    let mut taken = 0;
    for i in 0..params.slabs().len() {
        let slab = &params.slabs()[i];
        let named = |name: &String| new.get(name.as_str()).copied();
        let count = slab.members.iter().filter(|m| named(&m.spec.name).is_some()).count();
        if count == 0 {
            continue;
        }
        taken += count;
        // What the batch has not moved stays.
        let new = laid_out(slab, |name| Some(named(name).unwrap_or_else(|| params.named(name))));
        write_if_finite(&mut slab.values.clone(), &new, squares);
    }
    assert_eq!(taken, buffers.len(), "a buffer that is no parameter");
}

/// Adam's state of every slab that has had a gradient.
#[derive(Debug, Default)]
pub struct Optimizer(Vec<Option<Moments>>);

/// The moments of a slab, laid out like it, and the steps that each member has taken.
#[derive(Debug)]
struct Moments {
    m: Tensor,
    v: Tensor,
    steps: Vec<u32>,
}

/// A parameter's moments, and the steps it has taken: those in which it had a gradient.
#[derive(Clone, Debug)]
pub struct Taken<'a> {
    /// The parameter.
    pub spec: &'a ParamSpec,
    /// The mean of its gradients.
    pub m: Vec<f32>,
    /// The mean of their squares.
    pub v: Vec<f32>,
    /// The steps.
    pub steps: u32,
}

impl Optimizer {
    /// Takes one step: clips the gradients of all groups that move by their global norm, moves the parameters, and
    /// returns the squared norm before clipping, still on the device. `rate` gives a group's learning rate (that of
    /// `step` is not read), or `None` where it is frozen: its gradients are then left out, and its moments wait.
    /// A parameter without a gradient stays as it is, decay included.
    #[track_caller]
    pub fn step(
        &mut self,
        params: &mut Params,
        grads: &[(String, Tensor)],
        step: &AdamStep,
        rate: &dyn Fn(&'static str) -> Option<f64>,
    ) -> Tensor {
        let named = by_name(grads);
        self.0.resize_with(params.slabs().len(), || None);
        let (mut moving, mut found) = (Vec::new(), 0);
        for (i, slab) in params.slabs().iter().enumerate() {
            let has: Vec<bool> =
                slab.members.iter().map(|m| named.contains_key(m.spec.name.as_str())).collect();
            let count = has.iter().filter(|has| **has).count();
            found += count;
            if let Some(lr) = rate(slab.group).filter(|_| count > 0) {
                let g = laid_out(slab, |name| named.get(name.as_str()).copied());
                moving.push((i, has, g, AdamStep { lr, ..*step }));
            }
        }
        assert_eq!(found, grads.len(), "a gradient of no parameter");
        if moving.is_empty() {
            return params.slabs()[0].values.device().scalar(0.0);
        }
        let squares = sum_of_squares(&moving.iter().map(|(_, _, g, _)| g).collect::<Vec<_>>());
        for (i, has, g, step) in &moving {
            let slab = &params.slabs()[*i];
            let moments = self.0[*i].get_or_insert_with(|| Moments::new(slab));
            moments.step(slab, has, g, &squares, step);
        }
        squares
    }

    /// Forgets the moments of a group and the steps it has taken, so that it begins anew.
    pub fn forget(&mut self, params: &Params, group: &str) {
        for (moments, slab) in self.0.iter_mut().zip(params.slabs()) {
            if slab.group == group {
                *moments = None;
            }
        }
    }

    /// The state of every parameter that has taken a step, for a checkpoint: two copies back a slab.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read<'a>(&self, params: &'a Params) -> Result<Vec<Taken<'a>>> {
        let mut all = Vec::new();
        for (moments, slab) in self.0.iter().zip(params.slabs()) {
            let Some(moments) = moments else { continue };
            let (m, v) = (moments.m.to_vec()?, moments.v.to_vec()?);
            for (((spec, m), (_, v)), &steps) in slab.parts(&m).zip(slab.parts(&v)).zip(&moments.steps) {
                if steps > 0 {
                    all.push(Taken { spec, m: m.to_vec(), v: v.to_vec(), steps });
                }
            }
        }
        Ok(all)
    }

    /// Takes up the steps that parameters have taken by name, and their moments, the `m` and `v` that `values` gives.
    ///
    /// # Errors
    /// Those of `values`.
    pub fn resume<'a>(
        params: &Params,
        steps: &BTreeMap<String, u32>,
        values: &mut dyn FnMut(&str, &ParamSpec) -> Result<ParamValues<'a>>,
    ) -> Result<Self> {
        let slab = |slab: &Slab| {
            let own = |spec: &ParamSpec| steps.get(&spec.name).copied().unwrap_or(0);
            let steps: Vec<u32> = slab.members.iter().map(|m| own(&m.spec)).collect();
            if steps.iter().all(|n| *n == 0) {
                return Ok(None);
            }
            let mut moment = |which: &str| {
                slab.upload(&mut |spec| match own(spec) {
                    0 => Ok(ParamValues::Values(vec![0.0; spec.shape.len()])),
                    _ => values(which, spec),
                })
            };
            Ok(Some(Moments { m: moment("m")?, v: moment("v")?, steps }))
        };
        Ok(Self(params.slabs().iter().map(slab).collect::<Result<_>>()?))
    }
}

impl Moments {
    fn new(slab: &Slab) -> Self {
        let zeros = || slab.values.device().full(slab.values.shape(), 0.0);
        Self { m: zeros(), v: zeros(), steps: vec![0; slab.members.len()] }
    }

    /// Steps the members that have a gradient, in place: those as one that are contiguous and have taken as many steps.
    fn step(&mut self, slab: &Slab, has: &[bool], g: &Tensor, squares: &Tensor, step: &AdamStep) {
        for run in runs(has, &self.steps) {
            let end = slab.members.get(run.end).map_or(slab.values.len(), |m| m.start);
            let start = slab.members[run.start].start;
            let part = |t: &Tensor| t.section(start, [end - start].into());
            let (w, m, v) = (part(&slab.values), part(&self.m), part(&self.v));
            let mut state = AdamState { w, m, v, steps: self.steps[run.start] };
            adam(&mut state, &part(g), squares, step);
            self.steps[run].fill(state.steps);
        }
    }
}

/// The longest ranges of members that have a gradient and one number of steps.
fn runs(has: &[bool], steps: &[u32]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for i in (0..has.len()).filter(|i| has[*i]) {
        match runs.last_mut() {
            Some(last) if last.end == i && steps[last.start] == steps[i] => last.end += 1,
            _ => runs.push(i..i + 1),
        }
    }
    runs
}

fn by_name(tensors: &[(String, Tensor)]) -> HashMap<&str, &Tensor> {
    tensors.iter().map(|(name, t)| (name.as_str(), t)).collect()
}

/// Tensors of a slab's members in one that is laid out like it.
fn laid_out<'a>(slab: &Slab, of: impl Fn(&String) -> Option<&'a Tensor>) -> Tensor {
    let parts: Vec<_> = slab.members.iter().map(|m| (m.spec.shape.len(), of(&m.spec.name))).collect();
    lay_out(&slab.values.device(), &parts)
}
