//! After the device was lost: going on from the last checkpoint on a device opened anew.

use super::options::TrainOptions;
use super::{Event, checkpoint};
use crate::error::{Error, Kind, Result};

/// Losses in a row, with no new checkpoint between them, that end training.
const LOSSES: u32 = 3;

/// What was lost so far.
#[derive(Default)]
pub(super) struct Recovery {
    /// Losses since the checkpoint was written.
    losses: u32,
    /// The step of the checkpoint that was last gone on from.
    checkpoint: Option<u64>,
}

impl Recovery {
    /// Makes the options go on with the run after this error.
    ///
    /// # Errors
    /// The error itself, if it is no lost device, if there is no checkpoint, or if this leads nowhere.
    pub(super) fn after(
        &mut self,
        e: Error,
        options: &mut TrainOptions,
        tell: &mut dyn FnMut(Event),
    ) -> Result<()> {
        if e.kind() != Kind::DeviceLost {
            return Err(e);
        }
        let folder = options.run_folder();
        let Ok(step) = checkpoint::step(&folder) else { return Err(e) };
        self.losses = if self.checkpoint == Some(step) { self.losses + 1 } else { 1 };
        self.checkpoint = Some(step);
        if self.losses == LOSSES {
            return Err(e.found(format!("{LOSSES} losses since the checkpoint of step {step}")).cure(
                format!(
                    "free the GPU of other work or choose another --device, then go on with --resume {}",
                    folder.display()
                ),
            ));
        }
        let what = e.to_string();
        let what = what.lines().next().unwrap_or_default();
        tell(Event::notice(format!("{what}; it is opened anew and training goes on from step {step}")));
        options.run.lose_device = options.run.lose_device.iter().skip(1).copied().collect();
        options.run.resume = Some(folder);
        Ok(())
    }
}
