//! Counters for `--stats`, and time per kernel when profiling.

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
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mb = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let bindings = self.bindings_reused + self.bindings_made;
        write!(
            f,
            "memory {:.1} MB live, {:.1} MB pooled, {:.1} MB peak in {} buffers; {} dispatches in {} submissions, \
             {} kernels, {:.2}% of {bindings} bind groups reused; {:.1} MB uploaded, {} readbacks",
            mb(self.live),
            mb(self.pooled),
            mb(self.peak),
            self.created,
            self.dispatches,
            self.submissions,
            self.pipelines,
            100.0 * self.bindings_reused as f64 / bindings.max(1) as f64,
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
    /// How long in all, submission included.
    pub total: Duration,
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
    flops: f64,
    bytes: f64,
    times: BTreeMap<&'static str, (u64, Duration)>,
}

impl Profile {
    pub(super) fn new(on: bool) -> Self {
        Self { on, ..Self::default() }
    }

    pub(super) fn add(&mut self, name: &'static str, time: Duration) {
        let entry = self.times.entry(name).or_default();
        entry.0 += 1;
        entry.1 += time;
    }

    pub(super) fn count(&mut self, flops: f64, bytes: f64) {
        self.flops += flops;
        self.bytes += bytes;
    }

    pub(super) fn kernel_times(&self) -> Vec<KernelTime> {
        let mut rows: Vec<_> = self
            .times
            .iter()
            .map(|(name, (runs, total))| KernelTime { name, runs: *runs, total: *total })
            .collect();
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
        }
    }
}
