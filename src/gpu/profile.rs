//! Counters for `--stats`, and time per kernel when profiling: from the device's own timestamps where it has
//! them, else from waiting after each dispatch.

use std::collections::BTreeMap;
use std::time::Duration;

use super::pool::Pool;

/// Counters since the device was opened; memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memory that tensors hold now.
    pub live: u64,
    /// Memory kept for reuse.
    pub pooled: u64,
    /// The most that was live at once.
    pub peak: u64,
    /// Buffers ever made.
    pub created: u64,
    /// Dispatches recorded.
    pub dispatches: u64,
    /// Submissions to the queue.
    pub submissions: u64,
    /// Copies back to the CPU.
    pub readbacks: u64,
    /// Bytes sent to the device.
    pub uploaded: u64,
    /// Kernels compiled.
    pub pipelines: u64,
    /// Bind groups found in the cache.
    pub bindings_reused: u64,
    /// Bind groups made.
    pub bindings_made: u64,
    /// Floating-point operations that ops declared (a multiply-add is two).
    pub flops: u64,
    /// Bytes that ops declared they must move.
    pub bytes: u64,
    /// How long the thread that records has waited, for the device or for the thread that submits.
    pub waited: Duration,
    /// How long the thread that submits has worked beside the one that records.
    pub submitting: Duration,
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mb = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let bindings = self.bindings_reused + self.bindings_made;
        write!(
            f,
            "memory {:.1} MB live, {:.1} MB pooled, {:.1} MB peak in {} buffers; {} dispatches in {} submissions, \
             {} kernels, {:.2}% of {bindings} bind groups reused ({} made); {:.1} MB uploaded, {} readbacks",
            mb(self.live),
            mb(self.pooled),
            mb(self.peak),
            self.created,
            self.dispatches,
            self.submissions,
            self.pipelines,
            100.0 * self.bindings_reused as f64 / bindings.max(1) as f64,
            self.bindings_made,
            mb(self.uploaded),
            self.readbacks
        )
    }
}

impl std::fmt::Display for KernelTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let total = self.total.as_secs_f64();
        write!(
            f,
            "{:<18} {:>7} runs {:>9.3} s {:>9.1} us each",
            self.name,
            self.runs,
            total,
            1e6 * total / self.runs as f64
        )
    }
}

/// A kernel's share of the time.
#[derive(Clone, Debug)]
pub struct KernelTime {
    /// The kernel.
    pub name: &'static str,
    /// How often it ran.
    pub runs: u64,
    /// How long in all; submission included, but for timestamps.
    pub total: Duration,
    /// Floating-point operations that its ops declared.
    pub flops: f64,
    /// Bytes that its ops declared they must move.
    pub bytes: f64,
    /// The same by floating-point operations of one run, longest first: its shapes, told by their work.
    pub sizes: Vec<SizeTime>,
}

impl KernelTime {
    fn none(name: &'static str) -> Self {
        Self { name, runs: 0, total: Duration::ZERO, flops: 0.0, bytes: 0.0, sizes: Vec::new() }
    }
}

/// A kernel's share of the time at one size.
#[derive(Clone, Copy, Debug)]
pub struct SizeTime {
    /// Floating-point operations that one run declared.
    pub flops: f64,
    /// How often it ran.
    pub runs: u64,
    /// How long in all.
    pub total: Duration,
}

/// The device's clock: two timestamps a dispatch.
#[derive(Clone)]
pub(super) struct Clock {
    queries: wgpu::QuerySet,
    pub(super) resolved: wgpu::Buffer,
    /// Nanoseconds a tick.
    pub(super) period: f64,
}

impl Clock {
    /// Room for `dispatches` of one submission.
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue, dispatches: usize) -> Self {
        let count = 2 * dispatches as u32;
        Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("dispatch times"),
                ty: wgpu::QueryType::Timestamp,
                count,
            }),
            resolved: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("dispatch times"),
                size: 8 * u64::from(count),
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            period: f64::from(queue.get_timestamp_period()),
        }
    }

    /// The timestamps of the `i`th dispatch of a submission.
    pub(super) fn around(&self, i: u32) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(2 * i),
            end_of_pass_write_index: Some(2 * i + 1),
        }
    }

    /// Makes the timestamps of `dispatches` readable, as u64 each.
    pub(super) fn resolve(&self, encoder: &mut wgpu::CommandEncoder, dispatches: u32) {
        encoder.resolve_query_set(&self.queries, 0..2 * dispatches, &self.resolved, 0);
    }
}

/// What one kernel has taken at one size.
#[derive(Default)]
struct Total {
    runs: u64,
    time: Duration,
    flops: f64,
    bytes: f64,
}

/// A dispatch's kernel, and the costs its op declared.
pub(super) struct Timed {
    pub(super) name: &'static str,
    flops: f64,
    bytes: f64,
}

#[derive(Default)]
pub(super) struct Profile {
    pub(super) on: bool,
    pub(super) dispatches: u64,
    pub(super) submissions: u64,
    pub(super) readbacks: u64,
    pub(super) uploaded: u64,
    pub(super) bindings_reused: u64,
    pub(super) bindings_made: u64,
    pub(super) waited: Duration,
    flops: f64,
    bytes: f64,
    /// Declared since the last dispatch: what the next one costs.
    due: (f64, f64),
    /// By kernel and by the operations of one run.
    times: BTreeMap<(&'static str, u64), Total>,
}

impl Profile {
    pub(super) fn new(on: bool) -> Self {
        Self { on, ..Self::default() }
    }

    /// Switches timing on or off, from nothing.
    pub(super) fn switch(&mut self, on: bool) {
        self.on = on;
        self.times.clear();
    }

    /// The next dispatch, with the costs declared for it.
    pub(super) fn next(&mut self, name: &'static str) -> Timed {
        self.dispatches += 1;
        let (flops, bytes) = std::mem::take(&mut self.due);
        Timed { name, flops, bytes }
    }

    pub(super) fn add(&mut self, dispatch: &Timed, time: Duration) {
        let total = self.times.entry((dispatch.name, dispatch.flops as u64)).or_default();
        total.runs += 1;
        total.time += time;
        total.flops += dispatch.flops;
        total.bytes += dispatch.bytes;
    }

    pub(super) fn count(&mut self, flops: f64, bytes: f64) {
        self.flops += flops;
        self.bytes += bytes;
        self.due = (self.due.0 + flops, self.due.1 + bytes);
    }

    pub(super) fn kernel_times(&self) -> Vec<KernelTime> {
        let mut rows: BTreeMap<&'static str, KernelTime> = BTreeMap::new();
        for ((name, flops), t) in &self.times {
            let row = rows.entry(name).or_insert_with(|| KernelTime::none(name));
            row.runs += t.runs;
            row.total += t.time;
            row.flops += t.flops;
            row.bytes += t.bytes;
            row.sizes.push(SizeTime { flops: *flops as f64, runs: t.runs, total: t.time });
        }
        let mut rows: Vec<_> = rows.into_values().collect();
        for row in &mut rows {
            row.sizes.sort_by_key(|size| std::cmp::Reverse(size.total));
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.total));
        rows
    }

    pub(super) fn stats(&self, pool: &Pool, pipelines: usize) -> Stats {
        Stats {
            live: pool.live,
            pooled: pool.pooled,
            peak: pool.peak,
            created: pool.created,
            dispatches: self.dispatches,
            submissions: self.submissions,
            readbacks: self.readbacks,
            uploaded: self.uploaded,
            pipelines: pipelines as u64,
            bindings_reused: self.bindings_reused,
            bindings_made: self.bindings_made,
            flops: self.flops as u64,
            bytes: self.bytes as u64,
            waited: self.waited,
            submitting: Duration::ZERO,
        }
    }
}
