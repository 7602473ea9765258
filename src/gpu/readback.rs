//! Copies back to the CPU: begun, and finished later, so that the device has other work meanwhile.

use std::sync::mpsc::{self, Receiver};

use super::pool::is_void;
use super::recorder::{self, lost};
use super::{Buf, Gpu};
use crate::error::Result;

/// Staging buffers kept for the next copies, and the bytes of the largest that is kept.
const KEPT: usize = 4;
const KEPT_BYTES: u64 = 16 << 20;

/// A buffer's values on their way back, as they were when the reading was begun.
pub struct Reading(Way);

enum Way {
    Here(Vec<f32>),
    Coming(Copy),
}

impl Reading {
    /// Values that are here already.
    pub fn of(values: Vec<f32>) -> Self {
        Self(Way::Here(values))
    }

    /// Waits for this copy, not for what was submitted after it, and gives the values.
    ///
    /// # Errors
    /// As [`Gpu::flush`], whichever work it was that went wrong: what was recorded since is void.
    pub fn finish(self) -> Result<Vec<f32>> {
        match self.0 {
            Way::Here(values) => Ok(values),
            Way::Coming(copy) => Ok(copy.finish()?.into_iter().map(f32::from_bits).collect()),
        }
    }
}

/// Words of a buffer on their way.
pub(super) struct Copy {
    gpu: Gpu,
    staging: wgpu::Buffer,
    bytes: u64,
    submission: Receiver<wgpu::SubmissionIndex>,
    mapped: Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
}

impl Copy {
    /// Submits a copy of a buffer's words, as they are after everything submitted.
    pub(super) fn begin(gpu: &Gpu, buffer: &wgpu::Buffer, offset: u64, bytes: u64) -> Self {
        let staging = staging(gpu, bytes);
        let (sender, mapped) = mpsc::channel();
        let (from, to) = (buffer.clone(), staging.clone());
        let submission = gpu.0.submitter.ask(move |context| {
            let mut encoder = context.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&from, offset, &to, 0, bytes);
            let submission = context.queue.submit([encoder.finish()]);
            to.map_async(wgpu::MapMode::Read, ..bytes, move |r| {
                let _ = sender.send(r);
            });
            submission
        });
        Self { gpu: gpu.clone(), staging, bytes, submission, mapped }
    }

    pub(super) fn finish(self) -> Result<Vec<u32>> {
        let gpu = &self.gpu;
        let submission = self.submission.recv().map_err(|_| lost("nothing is submitted any more"))?;
        recorder::wait_for(gpu, submission)?;
        // The other thread may have come first to telling that it is mapped, and may not be done with it.
        if !matches!(self.mapped.recv(), Ok(Ok(()))) {
            return Err(lost("a readback failed"));
        }
        let view = self.staging.get_mapped_range(..self.bytes).map_err(|e| lost(&e.to_string()))?;
        let words = bytemuck::pod_collect_to_vec(&view[..]);
        drop(view);
        self.staging.unmap();
        let mut kept = gpu.0.staging.borrow_mut();
        if self.staging.size() <= KEPT_BYTES {
            kept.push(self.staging);
        }
        if kept.len() > KEPT {
            kept.remove(0);
        }
        Ok(words)
    }
}

/// A buffer to map, kept or new: of a size that repeats.
fn staging(gpu: &Gpu, bytes: u64) -> wgpu::Buffer {
    let size = if bytes > KEPT_BYTES { bytes } else { bytes.next_power_of_two() };
    let mut kept = gpu.0.staging.borrow_mut();
    if let Some(found) = kept.iter().position(|buffer| buffer.size() == size) {
        return kept.remove(found);
    }
    gpu.0.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("readback"),
        size,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

pub(super) fn begin(gpu: &Gpu, buf: &Buf) -> Result<Reading> {
    is_void(gpu, buf);
    recorder::flush(gpu)?;
    if buf.is_empty() {
        return Ok(Reading::of(Vec::new()));
    }
    gpu.0.profile.borrow_mut().readbacks += 1;
    let copy = Copy::begin(gpu, buf.buffer(), buf.offset, 4 * buf.len() as u64);
    recorder::sound(gpu)?;
    Ok(Reading(Way::Coming(copy)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::gpu::{Gpu, Options};

    #[test]
    fn a_reading_is_whole_whichever_thread_hears_of_it() {
        let gpu = Gpu::open(&Options::default()).expect("the tests need an adapter");
        let over = Arc::new(AtomicBool::new(false));
        let (device, done) = (gpu.0.device.clone(), over.clone());
        // As the thread that submits does while it waits for older work.
        let other = std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let _ = device.poll(wgpu::PollType::Poll);
            }
        });
        let values: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let buf = gpu.upload(&values);
        let read: Vec<_> = (0..2_000).map(|_| gpu.read(&buf)).collect();
        over.store(true, Ordering::Relaxed);
        other.join().expect("it only polls");
        assert!(read.into_iter().all(|read| read.is_ok_and(|read| read == values)));
    }
}
