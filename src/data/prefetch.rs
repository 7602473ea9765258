//! Batches made ahead on another thread, so that reading features overlaps with the device's work.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use super::batches::{Batch, Sampler, Varied, assemble};
use super::dataset::Dataset;
use crate::host::Inputs;
use crate::{Error, Result};

/// A batch and its place in the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Step in the epoch, from 0.
    pub step: u64,
    /// The batch.
    pub batch: Batch,
}

/// A thread that assembles the batches of step after step, epoch after epoch, without end. Dropping it ends the
/// thread.
#[derive(Debug)]
pub struct Prefetch {
    batches: Option<Receiver<Result<Placed>>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Makes batches as `inputs` says. Starts at a step of an epoch (one past the epoch's last is the first of the next) and stays at most
    /// `ahead` finished batches in front, at least one.
    ///
    /// # Errors
    /// A sampler over other captions than the data's; a thread that cannot be started.
    pub fn start(
        data: Arc<Dataset>,
        inputs: Inputs,
        mut sampler: Sampler,
        epoch: u64,
        step: u64,
        ahead: usize,
    ) -> Result<Self> {
        if data.captions() != sampler.tokens().len() {
            let found = format!("{} captions, {} tokenized", data.captions(), sampler.tokens().len());
            return Err(Error::new("the tokens belong to another data set").found(found));
        }
        let (ready, batches) = sync_channel(ahead.max(1));
        let work = move || {
            let (mut epoch, mut step) = (epoch, step);
            loop {
                if step >= sampler.steps_per_epoch() {
                    (epoch, step) = (epoch + 1, 0);
                }
                let plan = sampler.plan(epoch, step);
                let varied = Varied { seed: sampler.seed(), epoch };
                let made = assemble(&data, sampler.tokens(), &inputs, &plan, Some(varied));
                let made = made.map(|batch| Placed { epoch, step, batch });
                let failed = made.is_err();
                // A closed channel is the owner's way to end this thread.
                if ready.send(made).is_err() || failed {
                    return;
                }
                step += 1;
            }
        };
        let thread = std::thread::Builder::new().name("batches".into()).spawn(work).map_err(|e| {
            Error::of(crate::Kind::Io, format!("could not start the thread that makes batches: {e}"))
        })?;
        Ok(Self { batches: Some(batches), thread: Some(thread) })
    }

    /// The next batch, waiting for it if need be.
    ///
    /// # Errors
    /// Whatever went wrong while it was made; every later call fails too.
    pub fn next_batch(&mut self) -> Result<Placed> {
        let next = self.batches.as_ref().and_then(|batches| batches.recv().ok());
        next.unwrap_or_else(|| Err(Error::new("no more batches: an earlier one could not be made")))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // The thread may be waiting to send: close the channel before waiting for it.
        drop(self.batches.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it has shown itself on stderr and as an error from `next_batch`.
            let _ = thread.join();
        }
    }
}
