//! One run of a model: its parameters, and how it is run.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::host::Rng;
use crate::nn::{Dropouts, Scope, batch_norm};
use crate::tensor::Tensor;

/// How a model is computed. All forms give the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As the paper and its code write it: the reference for bisecting.
    Composed,
    /// As users run it: what does not depend on the pair taken out of the pair loop, kernels fused.
    Fast,
    /// As `Fast`, with parts run again on the way back instead of keeping what their gradients read.
    Recomputed,
}

/// The stream of dropout seeds, apart from the sampler's.
const DROPOUT_STREAM: u64 = 0xd0;
/// The stream of what a loss draws.
const LOSS_STREAM: u64 = 0x105;

/// The training step that a pass belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The run's seed.
    pub seed: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Steps done.
    pub step: u64,
    /// Whether a text encoder has its dropouts.
    pub text_dropout: bool,
}

/// One run of a model.
pub struct Pass<'a> {
    /// The parameters.
    pub scope: Scope<'a>,
    /// How it is computed.
    pub form: Form,
    /// The training step; `None` in evaluation.
    pub step: Option<Step>,
    /// Captions that a loss scores at a time.
    pub tile: usize,
    /// The dropouts of the step; they drop nothing in evaluation.
    pub dropouts: Option<Dropouts>,
    taps: Option<&'a Taps>,
    buffers: RefCell<Vec<(String, Tensor)>>,
}

impl<'a> Pass<'a> {
    /// A pass of evaluation.
    pub fn evaluation(scope: Scope<'a>) -> Self {
        let buffers = RefCell::default();
        Self { scope, form: Form::Fast, step: None, tile: usize::MAX, dropouts: None, taps: None, buffers }
    }

    /// A pass of training.
    pub fn training(scope: Scope<'a>, step: Step) -> Self {
        let seed = Rng::of(step.seed, &[DROPOUT_STREAM, step.step]).next_u64();
        let pass = Self::evaluation(scope);
        Self { step: Some(step), dropouts: Some(Dropouts::new(seed)), ..pass }
    }

    /// The same pass in another form, with another tile.
    pub fn computed(self, form: Form, tile: usize) -> Self {
        Self { form, tile, ..self }
    }

    /// The same pass, its intermediate results noted.
    pub fn tapped(self, taps: &'a Taps) -> Self {
        Self { taps: Some(taps), ..self }
    }

    /// Whether it trains.
    pub fn is_train(&self) -> bool {
        self.step.is_some()
    }

    /// The dropouts of a text encoder, where it has them.
    pub fn text_dropouts(&self) -> Option<&Dropouts> {
        self.dropouts.as_ref().filter(|_| self.step.is_some_and(|step| step.text_dropout))
    }

    /// The seed of what a loss draws in this step, one stream for each number.
    pub fn draws(&self, stream: u64) -> u64 {
        let step = self.step.map_or((0, 0), |s| (s.seed, s.step));
        Rng::of(step.0, &[LOSS_STREAM, step.1, stream]).next_u64()
    }

    /// Notes an intermediate result.
    pub fn tap(&self, name: &str, value: &Tensor) {
        if let Some(taps) = self.taps {
            taps.0.borrow_mut().insert(name.to_string(), value.detach());
        }
    }

    /// Where intermediate results are noted, if they are.
    pub fn taps(&self) -> Option<&'a Taps> {
        self.taps
    }

    /// What a buffer (a running statistic, a counter) becomes after the step.
    pub fn update(&self, name: String, value: Tensor) {
        self.buffers.borrow_mut().push((name, value));
    }

    /// Rows in parts, each `[rows, channels]`, normalised by the batch norm called `at`: in training by the statistics of all
    /// parts together, of the rows that `masks`, each `[rows, 1]`, hold 1 for; what its running statistics and its counter
    /// become after the step is noted. In evaluation by the running ones.
    pub fn batch_norm(&self, at: &str, parts: &[Tensor], masks: Option<&[Tensor]>) -> Vec<Tensor> {
        let scope = at.split('.').fold(self.scope.clone(), |scope, name| scope.sub(name));
        let norm = batch_norm(&scope);
        if !self.is_train() {
            return parts.iter().map(|x| norm.by_running(x)).collect();
        }
        let (normalised, [mean, var]) = norm.by_batch(parts, masks);
        let count = scope.at("num_batches_tracked").detach().map(|n| n + 1.0);
        self.update(format!("{at}.running_mean"), mean);
        self.update(format!("{at}.running_var"), var);
        self.update(format!("{at}.num_batches_tracked"), count);
        normalised
    }

    /// The buffers after the step, by name.
    pub fn into_buffers(self) -> Vec<(String, Tensor)> {
        self.buffers.into_inner()
    }
}

/// Intermediate results by name.
#[derive(Default)]
pub struct Taps(RefCell<BTreeMap<String, Tensor>>);

impl Taps {
    /// What was noted.
    pub fn take(self) -> BTreeMap<String, Tensor> {
        self.0.into_inner()
    }

    /// One result.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.0.borrow().get(name).cloned()
    }
}
