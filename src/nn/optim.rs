//! The optimiser over a model's parameters by name.

use std::collections::BTreeMap;

use super::Params;
use crate::ops::{AdamState, AdamStep, adam, pack, pack_with_zeros, sum_of_squares, unpack, write};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Takes up what a batch makes of the model's buffers (running statistics and counters), in place. Where the
/// squared gradient norm is NaN or infinite they stay as they were, as the parameters do.
///
/// On a GPU they come to lie behind each other, so that this takes a few dispatches for all.
pub fn take_buffers(params: &mut Params, buffers: &[(String, Tensor)], squares: &Tensor) {
    if buffers.is_empty() {
        return;
    }
    let old: Vec<Tensor> = buffers.iter().map(|(name, _)| params.named(name).clone()).collect();
    let new: Vec<&Tensor> = buffers.iter().map(|(_, value)| value).collect();
    let mut kept = pack(&old.iter().collect::<Vec<_>>());
    let taken = kept.map3(&pack(&new), squares, |old, new, s| s.is_finite().select(new, old));
    write(&mut kept, 0, &taken);
    let shapes: Vec<Shape> = new.iter().map(|t| t.shape()).collect();
    for ((name, _), value) in buffers.iter().zip(unpack(&kept, &shapes)) {
        params.insert(name, value);
    }
}

/// Values of a group of parameters that are stepped together.
const GROUP: usize = 1 << 20;

/// Adam's state of every parameter that has had a gradient.
///
/// On a GPU small parameters lie behind each other in groups, so that a step takes a few dispatches instead of
/// several a parameter.
#[derive(Default)]
pub struct Optimizer {
    states: BTreeMap<String, AdamState>,
    groups: Vec<Group>,
}

/// Parameters whose values and moments lie in one tensor each; their own states are parts of these.
struct Group {
    names: Vec<String>,
    state: AdamState,
}

impl Optimizer {
    /// Takes one step: clips all gradients by their global norm, moves the parameters in `params`, and
    /// returns the squared norm before clipping, still on the device. Parameters come to lie in memory in the order of
    /// `grads`: what a kernel takes or yields in one piece then is one.
    pub fn step(&mut self, params: &mut Params, grads: &[(String, Tensor)], step: &AdamStep) -> Tensor {
        for (name, _) in grads {
            if !self.states.contains_key(name) {
                self.states.insert(name.clone(), AdamState::new(params.named(name)));
                self.groups.clear();
            }
        }
        let mut steps = self.states.values().map(|s| s.steps);
        let first = steps.next();
        let together = grads.len() == self.states.len() && steps.all(|s| Some(s) == first);
        if together && self.groups.is_empty() {
            self.gather(grads);
        }
        let squares = match together.then(|| self.step_groups(grads, step)).flatten() {
            Some(squares) => squares,
            None => self.step_each(grads, step),
        };
        for (name, state) in &self.states {
            params.insert(name, state.w.clone());
        }
        squares
    }

    fn step_each(&mut self, grads: &[(String, Tensor)], step: &AdamStep) -> Tensor {
        let squares = sum_of_squares(&grads.iter().map(|(_, g)| g).collect::<Vec<_>>());
        for (name, g) in grads {
            let state = self.states.get_mut(name).expect("a state for every gradient");
            adam(state, g, &squares, step);
        }
        // The groups count one number of steps for all of theirs.
        self.groups.clear();
        squares
    }

    /// A step by groups; `None` where there are none.
    fn step_groups(&mut self, grads: &[(String, Tensor)], step: &AdamStep) -> Option<Tensor> {
        if self.groups.is_empty() {
            return None;
        }
        let named: BTreeMap<&String, &Tensor> = grads.iter().map(|(name, g)| (name, g)).collect();
        let of =
            |group: &Group| pack_with_zeros(&group.names.iter().map(|name| named[name]).collect::<Vec<_>>());
        let packed: Vec<Tensor> = self.groups.iter().map(of).collect();
        let squares = sum_of_squares(&packed.iter().collect::<Vec<_>>());
        for (group, g) in self.groups.iter_mut().zip(&packed) {
            adam(&mut group.state, g, &squares, step);
            for name in &group.names {
                self.states.get_mut(name).expect("a group's parameter has a state").steps = group.state.steps;
            }
        }
        Some(squares)
    }

    /// Lays the states out in groups, in the order of the gradients; leaves them as they are on the host.
    fn gather(&mut self, grads: &[(String, Tensor)]) {
        if grads.iter().any(|(_, g)| g.buf().is_none()) {
            return;
        }
        let mut runs: Vec<Vec<String>> = Vec::new();
        let mut room = 0;
        for (name, g) in grads {
            let len = g.len();
            if runs.is_empty() || len > room {
                runs.push(Vec::new());
                room = GROUP.max(len);
            }
            room -= len;
            runs.last_mut().expect("just pushed").push(name.clone());
        }
        let mut groups = Vec::new();
        for names in runs {
            let states: Vec<&AdamState> = names.iter().map(|name| &self.states[name]).collect();
            let shapes: Vec<Shape> = states.iter().map(|s| s.w.shape()).collect();
            let steps = states[0].steps;
            let all = |part: fn(&AdamState) -> &Tensor| {
                let packed = pack_with_zeros(&states.iter().map(|s| part(s)).collect::<Vec<_>>());
                (unpack(&packed, &shapes), packed)
            };
            let ((w, flat_w), (m, flat_m), (v, flat_v)) = (all(|s| &s.w), all(|s| &s.m), all(|s| &s.v));
            for (name, ((w, m), v)) in names.iter().zip(w.into_iter().zip(m).zip(v)) {
                self.states.insert(name.clone(), AdamState { w, m, v, steps });
            }
            groups.push(Group { names, state: AdamState { w: flat_w, m: flat_m, v: flat_v, steps } });
        }
        self.groups = groups;
    }

    /// The state of each parameter, for a checkpoint.
    pub fn states(&self) -> impl Iterator<Item = (&String, &AdamState)> {
        self.states.iter()
    }

    /// Takes up a parameter's state from a checkpoint; its steps will move `state.w` in place.
    pub fn resume(&mut self, name: &str, state: AdamState) {
        self.states.insert(name.to_string(), state);
        self.groups.clear();
    }
}
