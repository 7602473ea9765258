//! The thread that encodes recorded work and submits it, in its order, while more is recorded: with the driver's share that
//! is half of a small step's CPU time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::recorder::lost;
use super::{Fault, report};
use crate::error::{Error, Result};

/// Submissions the device may be behind.
const IN_FLIGHT: usize = 3;
/// Orders that wait for the thread.
const WAITING: usize = 2;

/// What the thread works with.
pub(super) struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
    /// How long it has waited for the device.
    waited: Duration,
}

impl Context {
    /// Submits commands. Where the device is too far behind it waits, so that memory does not pile up.
    pub(super) fn submit(&mut self, commands: wgpu::CommandBuffer) {
        self.in_flight.push_back(self.queue.submit([commands]));
        while self.in_flight.len() > IN_FLIGHT {
            let oldest = self.in_flight.pop_front();
            let started = Instant::now();
            // A lost device reports itself.
            let _ = self.device.poll(wgpu::PollType::Wait { submission_index: oldest, timeout: None });
            self.waited += started.elapsed();
        }
    }
}

type Order = Box<dyn FnOnce(&mut Context) + Send>;

/// The thread, and the orders it is sent.
pub(super) struct Submitter {
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
    /// Nanoseconds it has worked.
    busy: Arc<AtomicU64>,
    /// How long it was waited for.
    waited: Cell<Duration>,
    fault: Fault,
}

impl Submitter {
    /// # Errors
    /// A system that gives no thread.
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue, fault: Fault) -> Result<Self> {
        let (orders, received) = mpsc::sync_channel::<Order>(WAITING);
        let busy = Arc::new(AtomicU64::new(0));
        let mut context = Context {
            device: device.clone(),
            queue: queue.clone(),
            in_flight: VecDeque::new(),
            waited: Duration::ZERO,
        };
        let counted = busy.clone();
        let work = move || {
            for order in received {
                let (started, waited) = (Instant::now(), context.waited);
                order(&mut context);
                let worked = started.elapsed() - (context.waited - waited);
                counted.fetch_add(worked.as_nanos() as u64, Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name("submitter".into()).spawn(work).map_err(|e| {
            Error::new(format!("no thread can be started that submits work: {e}"))
                .cure("end other programs, or allow more threads (`ulimit -u`)")
        })?;
        let waited = Cell::new(Duration::ZERO);
        Ok(Self { orders: Some(orders), thread: Some(thread), busy, waited, fault })
    }

    /// Has an order carried out after those before it; waits while others wait. After a panic there the device counts as
    /// lost.
    pub(super) fn send(&self, order: impl FnOnce(&mut Context) + Send + 'static) {
        let started = Instant::now();
        if self.orders.as_ref().is_none_or(|orders| orders.send(Box::new(order)).is_err()) {
            report(&self.fault, lost("the thread that submits has ended"));
        }
        self.waited.set(self.waited.get() + started.elapsed());
    }

    /// As [`Submitter::send`]; what the order gives comes later.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Context) -> T + Send + 'static,
    ) -> Receiver<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.send(move |context| {
            let _ = reply.send(order(context));
        });
        answer
    }

    /// Waits until all orders are carried out: what was sent is then submitted.
    pub(super) fn finish(&self) {
        let answer = self.ask(|_| ());
        let started = Instant::now();
        let _ = answer.recv();
        self.waited.set(self.waited.get() + started.elapsed());
    }

    /// How long it was waited for in all.
    pub(super) fn waited(&self) -> Duration {
        self.waited.get()
    }

    /// How long it has worked in all.
    pub(super) fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy.load(Ordering::Relaxed))
    }
}

impl Drop for Submitter {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
