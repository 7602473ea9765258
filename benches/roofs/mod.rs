//! What both benches share: the adapter, what it can do at most, and the median.

use std::time::Instant;

use crossweave::gpu::{Class, Gpu, Grid, Kernel, Launch, Options, Words};
use crossweave::ops::map;
use crossweave::tensor::Device;

/// Thirty-two multiply-adds of four lanes an iteration, in eight chains that hide their latency.
const FMA: Kernel = Kernel {
    name: "fma",
    text: "@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> p: vec4<u32>;
@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    let x = vec4<f32>(f32(i & 7u) * 1e-3 + 0.5);
    var a = x; var b = x + 0.1; var c = x + 0.2; var d = x + 0.3;
    var e = x + 0.4; var f = x + 0.5; var g = x + 0.6; var h = x + 0.7;
    for (var n = 0u; n < p.x; n++) {
        for (var m = 0u; m < 4u; m++) {
            a = fma(a, x, x); b = fma(b, x, x); c = fma(c, x, x); d = fma(d, x, x);
            e = fma(e, x, x); f = fma(f, x, x); g = fma(g, x, x); h = fma(h, x, x);
        }
    }
    y[i] = a + b + c + d + e + f + g + h;
}",
};

/// What the adapter can do at most, in units a second.
pub struct Roofs {
    /// Floating-point operations, from the multiply-add kernel.
    pub flops: f64,
    /// Bytes, from the copy kernel.
    pub bytes: f64,
}

/// How many times a second `f` runs at best: as many between two waits as hide what a wait costs.
fn rate(gpu: &Gpu, f: impl Fn()) -> f64 {
    let time = |n: usize| {
        let started = Instant::now();
        (0..n).for_each(|_| f());
        gpu.wait().expect("the device works");
        started.elapsed().as_secs_f64()
    };
    time(1);
    let mut n = 1;
    while n < 1 << 10 && time(n) < 5e-3 {
        n *= 2;
    }
    n as f64 / (0..12).map(|_| time(n)).fold(f64::INFINITY, f64::min)
}

impl Roofs {
    /// Measures both now, with work enough for the class of adapter.
    pub fn measure(device: &Device, gpu: &Gpu) -> Self {
        let hardware = gpu.facts().class == Class::Hardware;
        let n = if hardware { (gpu.facts().max_binding as usize / 4).min(1 << 26) } else { 1 << 22 };
        let x = device.full([n], 1.0);
        let copies = rate(gpu, || drop(map(vec![x.view()], |x| x[0].clone())));
        let (threads, loops) = (if hardware { 1 << 20 } else { 1 << 14 }, 256);
        let y = gpu.alloc(4 * threads);
        let runs = rate(gpu, || {
            gpu.dispatch(&Launch {
                kernel: FMA,
                body: None,
                constants: &[],
                reads: &[],
                writes: &[&y],
                params: Words::default().sizes(&[loops, 0, 0, 0]),
                grid: Grid::Invocations(threads),
                loops: 5 * loops,
            });
        });
        let flops = 2.0 * 4.0 * 32.0 * (threads * loops) as f64;
        Self { flops: flops * runs, bytes: 8.0 * n as f64 * copies }
    }

    /// Others' load only lowers what is measured: the better of two is nearer the truth.
    pub fn better(&self, other: &Self) -> Self {
        Self { flops: self.flops.max(other.flops), bytes: self.bytes.max(other.bytes) }
    }
}

impl std::fmt::Display for Roofs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "roofs: {:.1} GFLOP/s (fma), {:.1} GB/s (copy)", 1e-9 * self.flops, 1e-9 * self.bytes)
    }
}

/// The adapter that `CROSSWEAVE_DEVICE` chooses, as `--device` does.
pub fn open() -> Gpu {
    let options = Options { device: std::env::var("CROSSWEAVE_DEVICE").ok(), ..Options::default() };
    Gpu::open(&options).expect("the benches need an adapter")
}

/// Whether `CROSSWEAVE_BENCH_FULL=1` asks for the full set.
pub fn full_set() -> bool {
    std::env::var("CROSSWEAVE_BENCH_FULL").is_ok_and(|v| v == "1")
}

/// The middle one.
pub fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
