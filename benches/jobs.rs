//! `cargo bench --bench jobs`: whole jobs (a training step, a scoring tile, BERT), each checked before it is
//! timed, with where its time goes, what it records, moves and holds. Sizes are reduced so that it ends within
//! four minutes on two cores; `CROSSWEAVE_BENCH_FULL=1` runs the paper's. `CROSSWEAVE_DEVICE` chooses the
//! adapter as `--device` does, `CROSSWEAVE_JOBS` other jobs (names as in `cases`, with semicolons between; `growing`
//! compares the pairs a second of growing tiles and sets).
//!
//! `cargo bench --bench jobs -- --serve` answers for `tools/bench-table`: a job's name a line in, a line of JSON
//! out (see `benches/peers/README.md`).

mod cases;
mod roofs;

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use cases::Job;
use criterion::{Criterion, SamplingMode};
use crossweave::Result;
use crossweave::gpu::{Gpu, KernelTime, Stats};
use crossweave::tensor::Device;
use roofs::{Roofs, full_set, median};
use serde_json::{Value, json};

const REDUCED: &[&str] = &[
    "dime_step i2t 8 8 demo",
    "dime_step t2i 8 8 demo",
    "dime_tile t2i 24 24 demo",
    "dime_step i2t 4 4",
    "dime_step i2t 4 4 recomputed",
    "dime_step t2i 4 4",
    "dime_tile i2t 8 8",
    "dime_tile t2i 8 8",
    "dime_tile i2t 8 8 composed",
    "gsmn_step 16 demo",
    "gsmn_tile 16 16 demo",
    "gsmn_tile 8 8",
    "swin 2",
    "hat_step 16 demo",
    "hat_tile i2t 16 16 demo",
    "hat_tile i2t 4 4",
    "bert_layer 8 32 forward",
    "bert_layer 8 32 both",
    "growing",
];

const FULL: &[&str] = &[
    "dime_step i2t 8 8 demo",
    "dime_step t2i 8 8 demo",
    "dime_tile t2i 24 24 demo",
    "dime_step i2t 32 32",
    "dime_step t2i 32 32",
    "dime_step i2t 32 32 recomputed",
    "dime_step t2i 32 32 recomputed",
    "dime_tile i2t 16 16",
    "dime_tile t2i 16 16",
    "gsmn_step 16 demo",
    "gsmn_tile 16 16 demo",
    "gsmn_step 16",
    "gsmn_tile 16 16",
    "swin 8",
    "hat_step 16 demo",
    "hat_tile i2t 16 16 demo",
    "hat_step 4",
    "hat_step 4 frozen",
    "hat_tile i2t 16 16",
    "hat_tile t2i 16 16",
    "bert_layer 8 32 forward",
    "bert_layer 8 32 both",
    "bert 32 32",
    "growing",
];

/// Tiles, and sets scored in tiles, of growing size: what `growing` runs.
const GROWING: &[&[&str]] = &[
    &[
        "dime_tile t2i 8 8 demo",
        "dime_tile t2i 16 16 demo",
        "dime_tile t2i 32 32 demo",
        "dime_tile t2i 48 48 demo",
    ],
    &["dime_set t2i 16 16 demo", "dime_set t2i 32 32 demo", "dime_set t2i 64 64 demo"],
    &["gsmn_tile 8 8 demo", "gsmn_tile 16 16 demo", "gsmn_tile 32 32 demo", "gsmn_tile 48 48 demo"],
    &["gsmn_set 16 16 demo", "gsmn_set 32 32 demo", "gsmn_set 64 64 demo"],
    &["hat_tile i2t 8 8 demo", "hat_tile i2t 16 16 demo", "hat_tile i2t 32 32 demo"],
];

const GROWING_FULL: &[&[&str]] = &[
    &["dime_tile i2t 4 4", "dime_tile i2t 8 8", "dime_tile i2t 16 16", "dime_tile i2t 24 24"],
    &["dime_tile t2i 4 4", "dime_tile t2i 8 8", "dime_tile t2i 16 16", "dime_tile t2i 24 24"],
    &["dime_set i2t 16 16", "dime_set i2t 32 32", "dime_set i2t 64 64"],
    &["dime_set t2i 16 16", "dime_set t2i 32 32", "dime_set t2i 64 64"],
    &["gsmn_tile 4 4", "gsmn_tile 8 8", "gsmn_tile 16 16", "gsmn_tile 24 24"],
    &["gsmn_set 16 16", "gsmn_set 32 32", "gsmn_set 64 64"],
];
/// Runs before the timed rounds, and these.
const WARM: usize = 2;
const ROUNDS: usize = 5;

/// A job longer than this is timed three times only: criterion takes ten samples at least.
const LONG: f64 = 6.0;

/// What one run of a job does, from its third on.
struct Facts {
    first: f64,
    once: Stats,
    /// The CPU's time until all was recorded.
    recording: f64,
    peak: u64,
    kernels: Vec<KernelTime>,
}

struct Row {
    name: String,
    seconds: f64,
    facts: Facts,
}

/// Seconds this thread has had a core to itself, where the system tells.
fn on_core() -> Option<f64> {
    // The system counts a thread's time when it takes turns with others.
    std::thread::yield_now();
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(1e-9 * told.split_whitespace().next()?.parse::<f64>().ok()?)
}

/// Runs a job and waits: the seconds of the whole, and the CPU's until all was recorded. A software driver
/// makes the recording thread wait in places that no count of ours sees; the system's count does.
///
/// # Errors
/// What the device reports, such as a tensor too large for it.
fn run(gpu: &Gpu, job: &mut Job) -> Result<(f64, f64)> {
    let (started, waited, core) = (Instant::now(), gpu.stats().waited, on_core());
    job();
    gpu.flush()?;
    let busy = (started.elapsed() - (gpu.stats().waited - waited)).as_secs_f64();
    let core = core.and_then(|before| Some(on_core()? - before)).unwrap_or(busy);
    gpu.wait()?;
    Ok((started.elapsed().as_secs_f64(), busy.min(core)))
}

impl Facts {
    fn gather(gpu: &Gpu, job: &mut Job) -> Result<Self> {
        let first = run(gpu, job)?.0;
        let mut warm = first;
        for _ in 0..2 {
            warm = run(gpu, job)?.0;
        }
        gpu.reset_peak();
        let before = gpu.stats();
        let mut recording = run(gpu, job)?.1;
        let after = gpu.stats();
        // The system counts in ticks of some milliseconds: a short recording is told by many.
        let more = ((1.0 / warm) as u32).min(19);
        for _ in 0..more {
            recording += run(gpu, job)?.1;
        }
        recording /= f64::from(1 + more);
        gpu.profile(true);
        run(gpu, job)?;
        let kernels = gpu.kernel_times();
        gpu.profile(false);
        let once = Stats {
            created: after.created - before.created,
            dispatches: after.dispatches - before.dispatches,
            submissions: after.submissions - before.submissions,
            uploaded: after.uploaded - before.uploaded,
            bindings_reused: after.bindings_reused - before.bindings_reused,
            bindings_made: after.bindings_made - before.bindings_made,
            flops: after.flops - before.flops,
            bytes: after.bytes - before.bytes,
            submitting: after.submitting - before.submitting,
            ..after
        };
        Ok(Self { first, once, recording, peak: after.peak, kernels })
    }
}

impl Row {
    fn flops(&self) -> f64 {
        self.facts.once.flops as f64 / self.seconds
    }

    fn print(&self, roofs: &Roofs) {
        let once = &self.facts.once;
        println!(
            "{:<32} {:>10.1} {:>9.2} {:>6.0}%",
            self.name,
            1e3 * self.seconds,
            1e-9 * self.flops(),
            100.0 * self.flops() / roofs.flops
        );
        let mb = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "  {} dispatches in {} submissions, recorded in {:.1} ms of CPU time ({:.0}% of the job), submitted in {:.1} ms beside \
             it; {:.2} GFLOP, {:.1} MB moved, {:.1} MB uploaded",
            once.dispatches,
            once.submissions,
            1e3 * self.facts.recording,
            100.0 * self.facts.recording / self.seconds,
            1e3 * once.submitting.as_secs_f64(),
            1e-9 * once.flops as f64,
            mb(once.bytes),
            mb(once.uploaded)
        );
        let bindings = (once.bindings_reused + once.bindings_made).max(1);
        println!(
            "  peak {:.1} MB live; from the fourth run on {:.2}% of bind groups reused, {} buffers made; first run \
             {:.1} ms",
            mb(self.facts.peak),
            100.0 * once.bindings_reused as f64 / bindings as f64,
            once.created,
            1e3 * self.facts.first
        );
        let total: f64 = self.facts.kernels.iter().map(|k| k.total.as_secs_f64()).sum();
        for k in self.facts.kernels.iter().take(10) {
            let time = k.total.as_secs_f64();
            println!(
                "  {:>5.1}% {:<18} {:>10.2} ms {:>6} runs {:>9.2} GFLOP/s {:>8.2} GB/s",
                100.0 * time / total,
                k.name,
                1e3 * time,
                k.runs,
                1e-9 * k.flops / time,
                1e-9 * k.bytes / time
            );
            // Only what takes much of the job has sizes worth telling apart.
            let sizes = if time > 0.2 * total { k.sizes.as_slice() } else { &[] };
            for size in sizes.iter().take(8) {
                let time = size.total.as_secs_f64();
                let (work, runs) = (1e-6 * size.flops, size.runs);
                println!(
                    "    {:>5.1}% {work:>10.3} MFLOP    {:>10.2} ms {runs:>6} runs {:>9.2} GFLOP/s",
                    100.0 * time / total,
                    1e3 * time,
                    1e-9 * size.flops * runs as f64 / time
                );
            }
        }
    }
}

/// Prints the pairs a second of tiles and sets as these grow, beside the smallest's, which runs before the others in
/// each round: by medians a machine that slows down meanwhile changes no ratio.
fn print_growth(device: &Device, gpu: &Gpu, sizes: &[&str]) {
    let pairs = |name| cases::pairs(name).expect("a tile or a set") as f64;
    cases::check(sizes[0], device).unwrap_or_else(|e| panic!("{e}"));
    let mut jobs: Vec<(Job, Vec<f64>)> = sizes
        .iter()
        .map(|name| (cases::prepare(name, device).unwrap_or_else(|e| panic!("{e}")), Vec::new()))
        .collect();
    for round in 0..WARM + ROUNDS {
        for (name, (job, rates)) in sizes.iter().zip(&mut jobs) {
            let seconds = run(gpu, job).unwrap_or_else(|e| panic!("{name}: {e}")).0;
            if round >= WARM {
                rates.push(pairs(name) / seconds);
            }
        }
    }
    let first = jobs[0].1.clone();
    for (name, (_, rates)) in sizes.iter().zip(&mut jobs) {
        let mut ratios: Vec<f64> = rates.iter().zip(&first).map(|(rate, first)| rate / first).collect();
        let (ratio, rate) = (median(&mut ratios), median(rates));
        println!("{name:<32} {:>10} {rate:>9.0} {ratio:>8.2}x", pairs(name));
    }
}

/// Times the named job; nothing if the command line's filter leaves it out.
fn time(criterion: &mut Criterion, device: &Device, gpu: &Gpu, name: &str) -> Option<Row> {
    let (mut prepared, mut samples) = (None::<(Job, Facts)>, Vec::new());
    let mut group = criterion.benchmark_group("jobs");
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function(name, |b| {
        let (job, facts) = prepared.get_or_insert_with(|| {
            cases::check(name, device).unwrap_or_else(|e| panic!("{e}"));
            let mut job = cases::prepare(name, device).unwrap_or_else(|e| panic!("{e}"));
            let facts = Facts::gather(gpu, &mut job).unwrap_or_else(|e| panic!("{name}: {e}"));
            (job, facts)
        });
        b.iter_custom(|iterations| {
            if facts.first > LONG && samples.len() >= 3 {
                // Criterion's further samples repeat the last.
                return Duration::from_secs_f64(samples[samples.len() - 1] * iterations as f64);
            }
            let seconds: f64 = (0..iterations).map(|_| run(gpu, job).expect("it ran before").0).sum();
            samples.push(seconds / iterations as f64);
            Duration::from_secs_f64(seconds)
        });
    });
    group.finish();
    let (_, facts) = prepared?;
    // The first samples warm up.
    let from = samples.len().saturating_sub(10);
    let seconds = median(&mut samples[from..]);
    Some(Row { name: name.into(), seconds, facts })
}

/// Runs the job of a name, prepared at its first use.
fn answer(gpu: &Gpu, device: &Device, jobs: &mut HashMap<String, (Job, Option<f64>)>, name: &str) -> Value {
    if name == "hello" {
        let facts = gpu.facts();
        return json!({
            "name": "crossweave", "version": env!("CARGO_PKG_VERSION"),
            "adapter": facts.name, "driver": format!("{} {}", facts.backend, facts.driver),
        });
    }
    if !jobs.contains_key(name) {
        let job = match cases::prepare(name, device) {
            Ok(job) => job,
            Err(e) => return json!({"unsupported": e}),
        };
        gpu.wait().expect("the device works");
        jobs.insert(name.into(), (job, None));
    }
    let (job, first) = jobs.get_mut(name).expect("just prepared");
    gpu.reset_peak();
    let ms = match run(gpu, job) {
        Ok((seconds, _)) => 1e3 * seconds,
        Err(e) => return json!({"unsupported": e.to_string()}),
    };
    json!({"ms": ms, "first_ms": *first.get_or_insert(ms), "peak_mb": gpu.stats().peak as f64 / 1e6})
}

fn serve(gpu: &Gpu, device: &Device) {
    let mut jobs = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        println!("{}", answer(gpu, device, &mut jobs, line.trim()));
        std::io::stdout().flush().expect("whoever asks reads the answer");
    }
}

fn main() {
    let gpu = roofs::open();
    let device = Device::Gpu(gpu.clone());
    if std::env::args().any(|a| a == "--serve") {
        return serve(&gpu, &device);
    }
    let full = full_set();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(if full { 5000 } else { 1000 }))
        .without_plots()
        .configure_from_args();
    let before = Roofs::measure(&device, &gpu);
    let asked = std::env::var("CROSSWEAVE_JOBS").ok();
    let names: Vec<&str> = match &asked {
        Some(names) => names.split(';').map(str::trim).collect(),
        None => if full { FULL } else { REDUCED }.to_vec(),
    };
    let growing = names.contains(&"growing");
    let mut rows = Vec::new();
    for name in names.into_iter().filter(|name| *name != "growing") {
        rows.extend(time(&mut criterion, &device, &gpu, name));
        gpu.trim();
    }
    let roofs = before.better(&Roofs::measure(&device, &gpu));
    let facts = gpu.facts();
    println!("\n{}, {}, {}\n{roofs}\n", facts.name, facts.backend, facts.driver);
    println!("{:<32} {:>10} {:>9} {:>7}", "job", "median ms", "GFLOP/s", "roof");
    rows.iter().for_each(|row| row.print(&roofs));
    if growing {
        println!("\n{:<32} {:>10} {:>9} {:>9}", "growing", "pairs", "pairs/s", "smallest");
        for sizes in if full { GROWING_FULL } else { GROWING } {
            print_growth(&device, &gpu, sizes);
            gpu.trim();
        }
    }
}
