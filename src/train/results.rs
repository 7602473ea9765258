//! What steps give: kept on the device, copied back in one piece, and waited for when the device has the next step to do.

use std::time::Instant;

use crate::error::Result;
use crate::gpu::Reading;
use crate::ops::{concat, write};
use crate::systems::Loss;
use crate::tensor::{Device, Tensor};

/// Values that a step gives at most: the loss, the squared norm of its gradient, its terms.
const VALUES: usize = 2 + Loss::TERMS;
/// Steps whose results the device can hold.
const HISTORY: usize = 1024;
/// Steps of a session that compile kernels and make buffers.
const FIRST: u64 = 3;

/// A step whose results are on the device or on their way.
pub(super) struct Pending {
    pub(super) step: u64,
    pub(super) lr: f64,
    /// The loss's terms, in the order of their values.
    pub(super) terms: Vec<&'static str>,
    /// Captions of the batch.
    pub(super) ids: String,
    /// Pairs that it scored.
    pub(super) pairs: u64,
}

impl Pending {
    /// The loss, the gradient's norm and the loss's terms.
    pub(super) fn split<'v>(&self, values: &'v [f32]) -> (f32, f32, &'v [f32]) {
        (values[0], values[1].sqrt(), &values[2..2 + self.terms.len()])
    }
}

/// The results of some steps in turn.
pub(super) struct Read {
    pub(super) steps: Vec<(Pending, Vec<f32>)>,
    pub(super) pairs_per_second: f64,
}

pub(super) struct Results {
    /// `[HISTORY, VALUES]`, of the pending steps.
    values: Tensor,
    pending: Vec<Pending>,
    /// Of earlier steps than the pending ones.
    reading: Option<(Vec<Pending>, Reading)>,
    /// The first step whose time is counted.
    steady_from: u64,
    since: Instant,
    steps: u64,
    seconds: f64,
}

impl Results {
    /// For a session that begins after so many steps.
    pub(super) fn new(begun_at: u64, device: &Device) -> Self {
        Self {
            values: device.full([HISTORY, VALUES], 0.0),
            pending: Vec::new(),
            reading: None,
            steady_from: begun_at + FIRST + 1,
            since: Instant::now(),
            steps: 0,
            seconds: 0.0,
        }
    }

    /// Keeps what a step gave on the device.
    pub(super) fn note(&mut self, step: Pending, loss: &Loss, squares: &Tensor) {
        assert!(loss.terms.len() <= Loss::TERMS, "a loss of {} terms", loss.terms.len());
        let terms = loss.terms.iter().map(|(_, term)| term);
        let parts: Vec<Tensor> =
            [&loss.total, squares].into_iter().chain(terms).map(|t| t.detach().reshape([1])).collect();
        write(&mut self.values, VALUES * self.pending.len(), &concat(&parts, 0));
        self.pending.push(step);
    }

    /// Whether the next step has no room.
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() == HISTORY
    }

    /// Begins to copy back what the pending steps gave.
    pub(super) fn begin(&mut self) -> Result<()> {
        if !self.pending.is_empty() {
            self.reading = Some((std::mem::take(&mut self.pending), self.values.begin_read()?));
        }
        Ok(())
    }

    /// Waits for what was begun, if anything was.
    pub(super) fn finish(&mut self) -> Result<Option<Read>> {
        let Some((steps, reading)) = self.reading.take() else { return Ok(None) };
        let values = reading.finish()?;
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        self.since = Instant::now();
        if steps.iter().all(|p| p.step >= self.steady_from) {
            self.steps += steps.len() as u64;
            self.seconds += seconds;
        }
        let pairs: u64 = steps.iter().map(|p| p.pairs).sum();
        let steps = steps.into_iter().zip(values.chunks(VALUES).map(<[f32]>::to_vec)).collect();
        Ok(Some(Read { steps, pairs_per_second: pairs as f64 / seconds }))
    }

    /// What came since the last reading is no time of steps.
    pub(super) fn rested(&mut self) {
        self.since = Instant::now();
    }

    /// Steps a second without the session's first, validations and checkpoints, as text.
    pub(super) fn rate(&self) -> String {
        match self.steps {
            0 => "too few steps for a rate of steps".into(),
            n => format!("{:.2} steps/s after the first", n as f64 / self.seconds),
        }
    }
}
