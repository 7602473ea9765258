//! What both benches share: the adapter, what it can do at most, and the median.

use std::time::Instant;

use crossweave::eval::choices::remembering;
use crossweave::gpu::{Class, Gpu, Grid, Kernel, Launch, Options, Precision, Words};
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

/// Eight products of cooperative matrices an iteration, in eight chains, by one subgroup from its registers.
fn matrices_text(side: usize, lanes: u32) -> String {
    let each = |of: &dyn Fn(usize) -> String| (0..8).map(of).collect::<String>();
    let declared = each(&|i| format!("    var s{i}: MatrixC;\n"));
    let multiplied = each(&|i| format!("        s{i} = coopMultiplyAdd(a, b, s{i});\n"));
    let stored = each(&|i| format!("    coopStoreT(s{i}, &tc[{i}u * SIDE * SIDE], SIDE);\n"));
    format!(
        "enable f16;
enable wgpu_cooperative_matrix;
const SIDE = {side}u;
alias MatrixC = coop_mat{side}x{side}<f32, C>;
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<uniform> p: vec4<u32>;
var<workgroup> ta: array<f16, SIDE * SIDE>;
var<workgroup> tc: array<f32, 8u * SIDE * SIDE>;
@compute @workgroup_size({lanes})
fn main(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {{
    for (var i = local; i < SIDE * SIDE; i += {lanes}u) {{
        ta[i] = f16(f32(i & 7u) * 1e-3 + 0.05);
    }}
    workgroupBarrier();
    let a = coopLoad<coop_mat{side}x{side}<f16, A>>(&ta[0], SIDE);
    let b = coopLoad<coop_mat{side}x{side}<f16, B>>(&ta[0], SIDE);
{declared}    for (var n = 0u; n < p.x; n++) {{
{multiplied}    }}
{stored}    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 8u; i++) {{
        sum += tc[i * SIDE * SIDE + local % (SIDE * SIDE)];
    }}
    y[(group.x + group.y * groups.x) * {lanes}u + local] = sum;
}}"
    )
}

/// What the adapter can do at most, in units a second.
pub struct Roofs {
    /// Floating-point operations, from the multiply-add kernel.
    pub flops: f64,
    /// The same from cooperative matrices of f16 that sum in f32, where the adapter has them.
    pub matrices: Option<f64>,
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
    /// Measures all of them now, with work enough for the class of adapter.
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
        Self { flops: flops * runs, matrices: matrices(gpu), bytes: 8.0 * n as f64 * copies }
    }

    /// Others' load only lowers what is measured: the better of two is nearer the truth.
    pub fn better(&self, other: &Self) -> Self {
        Self {
            flops: self.flops.max(other.flops),
            matrices: self.matrices.zip(other.matrices).map(|(a, b)| a.max(b)),
            bytes: self.bytes.max(other.bytes),
        }
    }
}

impl std::fmt::Display for Roofs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "roofs: {:.1} GFLOP/s (fma), {:.1} GB/s (copy)", 1e-9 * self.flops, 1e-9 * self.bytes)?;
        match self.matrices {
            Some(flops) => write!(f, ", {:.1} GFLOP/s (cooperative matrices, f16)", 1e-9 * flops),
            None => Ok(()),
        }
    }
}

/// Floating-point operations of cooperative matrices, on a device of its own: the feature is off in f32.
fn matrices(own: &Gpu) -> Option<f64> {
    let side = own.facts().cooperative_matrix?;
    let (_, lanes) = own.facts().subgroup?;
    let device = std::env::var("CROSSWEAVE_DEVICE").ok();
    let options = Options { device, precision: Some(Precision::F16), ..Options::default() };
    let gpu = Gpu::open(&options).expect("the adapter lists cooperative matrices");
    let (groups, loops) = if gpu.facts().class == Class::Hardware { (1 << 13, 1024) } else { (1 << 6, 64) };
    let y = gpu.alloc(groups * lanes as usize);
    let text = || matrices_text(side, lanes);
    let runs = rate(&gpu, || {
        gpu.dispatch(&Launch {
            kernel: Kernel { name: "cooperative_fma", text: "" },
            body: Some((0, &text)),
            constants: &[],
            reads: &[],
            writes: &[&y],
            params: Words::default().sizes(&[loops, 0, 0, 0]),
            grid: Grid::Groups(groups),
            loops: loops + 16,
        });
    });
    gpu.flush().expect("the kernel is sound");
    Some((2 * side.pow(3) * 8 * loops * groups) as f64 * runs)
}

/// The adapter that `CROSSWEAVE_DEVICE` chooses, as `--device` does.
pub fn open() -> Gpu {
    let device = std::env::var("CROSSWEAVE_DEVICE").ok();
    let options = Options { precision: None, ..remembering(device.as_deref(), Precision::F32) };
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
