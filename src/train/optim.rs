//! The optimiser over a model's parameters by name.

use std::collections::BTreeMap;

use crate::nn::Params;
use crate::ops::{AdamState, AdamStep, adam, sum_of_squares};
use crate::tensor::{Device, Tensor};

/// Adam's state of every parameter that has had a gradient, in the names' order.
#[derive(Default)]
pub struct Optimizer {
    states: BTreeMap<String, AdamState>,
}

impl Optimizer {
    /// Takes one step: clips all gradients by their global norm, moves the parameters in `params`, and
    /// returns the squared norm before clipping, still on the device.
    pub fn step(&mut self, params: &mut Params, grads: &BTreeMap<String, Tensor>, step: &AdamStep) -> Tensor {
        let squares = sum_of_squares(&grads.values().collect::<Vec<_>>());
        for (name, g) in grads {
            let state = self.states.entry(name.clone()).or_insert_with(|| AdamState::new(params.named(name)));
            adam(state, g, &squares, step);
            params.insert(name, state.w.clone());
        }
        squares
    }

    /// The state of each parameter, for a checkpoint.
    pub fn states(&self) -> impl Iterator<Item = (&String, &AdamState)> {
        self.states.iter()
    }

    /// Takes up a parameter's state from a checkpoint.
    pub fn resume(
        &mut self,
        params: &mut Params,
        name: &str,
        m: &[f32],
        v: &[f32],
        steps: u32,
        device: &Device,
    ) {
        let mut state = AdamState::new(params.named(name));
        state.m = device.tensor(state.w.shape(), m);
        state.v = device.tensor(state.w.shape(), v);
        state.steps = steps;
        params.insert(name, state.w.clone());
        self.states.insert(name.to_string(), state);
    }
}
