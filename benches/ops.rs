//! `cargo bench --bench ops`: every op that the registry marks, and the systems' own shapes, against the
//! roofs of the same adapter in the same run. Each op is checked against f64 before it is timed. Ends within
//! four minutes on two cores; `CROSSWEAVE_BENCH_FULL=1` adds gradients and the paper's pair shapes.
//! `CROSSWEAVE_DEVICE` chooses the adapter as `--device` does, `CROSSWEAVE_PRECISION` how products are computed; those
//! in f16 stand against the roof of cooperative matrices.

mod roofs;

use std::time::{Duration, Instant};

use criterion::Criterion;
use crossweave::gpu::{Gpu, Precision};
use crossweave::host::ratios;
use crossweave::ops::Act;
use crossweave::ops::registry::{Case, case, cases};
use crossweave::tensor::{Device, Tape, Tensor};
use roofs::{Roofs, full_set, median};

struct Row {
    name: String,
    seconds: f64,
    flops: f64,
    bytes: f64,
    /// Whether its products are in f16.
    half: bool,
}

impl Row {
    fn print(&self, roofs: &Roofs) {
        let flops = roofs.matrices.filter(|_| self.half).unwrap_or(roofs.flops);
        let ideal = (self.flops / flops).max(self.bytes / roofs.bytes);
        println!(
            "{:<52} {:>10.3} {:>9.2} {:>8.2} {:>6.0}%",
            self.name,
            1e3 * self.seconds,
            1e-9 * self.flops / self.seconds,
            1e-9 * self.bytes / self.seconds,
            100.0 * ideal / self.seconds
        );
    }
}

fn on(op: &'static str, about: &'static str, dims: &[&[usize]], run: fn(&[Tensor]) -> Tensor) -> Case {
    case(op, about, dims, 1e-4, run)
}

/// The systems' shapes; the large ones only in the full set.
fn shapes(full: bool) -> Vec<Case> {
    let linear: fn(&[Tensor]) -> Tensor = |x| x[0].linear(&x[1], None, Act::None);
    let mut all = vec![
        on("matmul", "projection of regions", &[&[9216, 256], &[256, 256]], linear),
        on("matmul", "BERT's attention", &[&[1024, 768], &[768, 768]], linear),
        on("matmul", "BERT's feed-forward", &[&[1024, 768], &[3072, 768]], linear),
        on("matmul", "square", &[&[1024, 1024], &[1024, 1024]], |x| x[0].matmul(&x[1], false, false)),
        on("matmul", "pair scores, batched", &[&[64, 36, 256], &[64, 32, 256]], |x| {
            x[0].matmul(&x[1], false, true)
        }),
        on("matmul", "weight gradient, thin", &[&[9216, 256], &[9216, 256]], |x| {
            x[0].matmul(&x[1], true, false)
        }),
        on("softmax", "pairs", &[&[8192, 32]], |x| x[0].softmax(-1, 1.0)),
        on("softmax", "long rows", &[&[4096, 512]], |x| x[0].softmax(-1, 1.0)),
        on("layer_norm", "BERT's", &[&[1024, 768], &[768], &[768]], |x| x[0].layer_norm(&x[1], &x[2], 1e-12)),
        on("l2norm", "regions", &[&[9216, 256]], |x| x[0].l2norm(-1, 1e-12)),
        on("reduce", "columns of regions", &[&[73_728, 256]], |x| x[0].sum(0)),
        on("map", "scale and shift, then tanh", &[&[9216, 256], &[256], &[256]], |x| {
            x[0].map3(&x[1], &x[2], |x, a, b| (x * a + b).tanh())
        }),
        on("map", "gelu", &[&[1024, 3072]], |x| x[0].map(|x| x.gelu())),
    ];
    if full {
        all.push(on("matmul", "pair scores of a tile", &[&[1024, 36, 256], &[1024, 32, 256]], |x| {
            x[0].matmul(&x[1], false, true)
        }));
        all.push(on("matmul", "heads of a tile", &[&[256, 36, 256], &[256, 32, 256]], |x| {
            x[0].head_scores(&x[1], 16, 0.25).head_mix(&x[1])
        }));
        all.push(on("softmax", "columns of a tile", &[&[1024, 36, 32]], |x| x[0].softmax(1, 9.0)));
    }
    all
}

/// Compares the result with f64, and the gradients too where they are few enough.
fn check(case: &Case, device: &Device) {
    let name = format!("{} ({})", case.op, case.about);
    let x = case.draw(5);
    if x.iter().all(|a| a.data.len() < 400_000) {
        let outcome = case.check(device, 5).expect("the device works");
        assert!(outcome.passes(case.bound_on(device)), "{name}: {outcome:?}");
        return;
    }
    let run = |device: &Device| {
        let x: Vec<Tensor> = x.iter().map(|a| device.tensor(a.shape, &a.to_f32())).collect();
        (case.run)(&x).to_f64().expect("the device works")
    };
    let far = ratios(&run(device), &run(&Device::Host)).worst();
    assert!(far <= case.bound_on(device), "{name}: {far:.1e} from f64");
}

struct Bench {
    criterion: Criterion,
    device: Device,
    gpu: Gpu,
    rows: Vec<Row>,
}

impl Bench {
    /// Times `run` under `name`; nothing if the command line's filter leaves it out.
    fn time(&mut self, name: String, mut first: impl FnMut(), mut run: impl FnMut()) {
        let gpu = self.gpu.clone();
        let (mut samples, mut started, mut cost) = (Vec::new(), false, (0.0, 0.0));
        self.criterion.bench_function(&name, |b| {
            if !started {
                first();
                let before = gpu.stats();
                run();
                gpu.wait().expect("the device works");
                let after = gpu.stats();
                cost = ((after.flops - before.flops) as f64, (after.bytes - before.bytes) as f64);
                started = true;
            }
            b.iter_custom(|iterations| {
                let clock = Instant::now();
                for _ in 0..iterations {
                    run();
                }
                gpu.wait().expect("the device works");
                let time = clock.elapsed();
                samples.push(time.as_secs_f64() / iterations as f64);
                time
            });
        });
        if !samples.is_empty() {
            // The first samples warm up.
            let from = samples.len().saturating_sub(10);
            let seconds = median(&mut samples[from..]);
            let half = self.gpu.precision() == Precision::F16
                && name.starts_with("matmul")
                && !name.ends_with("back");
            self.rows.push(Row { name, seconds, flops: cost.0, bytes: cost.1, half });
        }
    }

    fn case(&mut self, case: &Case, gradients: bool) {
        let dims: Vec<String> = case.inputs.iter().map(|x| format!("{}", x.0).replace(", ", "x")).collect();
        let name = format!("{} {} {}", case.op, case.about, dims.join(""));
        let device = self.device.clone();
        let x: Vec<Tensor> = case.draw(5).iter().map(|a| device.tensor(a.shape, &a.to_f32())).collect();
        self.time(name.clone(), || check(case, &device), || drop((case.run)(&x)));
        if gradients {
            let g = device.full((case.run)(&x).shape(), 1.0);
            let both = || {
                let tape = Tape::new();
                let leaves: Vec<Tensor> = x.iter().map(|x| tape.leaf(x)).collect();
                let y = (case.run)(&leaves);
                drop(tape.backward_from(&y, g.clone()));
            };
            self.time(format!("{name} and back"), || (), both);
        }
    }
}

fn main() {
    let full = full_set();
    let gpu = roofs::open();
    let device = Device::Gpu(gpu.clone());
    let criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(if full { 3000 } else { 800 }))
        .without_plots()
        .configure_from_args();
    let mut bench = Bench { criterion, device: device.clone(), gpu: gpu.clone(), rows: Vec::new() };
    let before = Roofs::measure(&device, &gpu);
    for case in cases().iter().filter(|c| c.bench) {
        bench.case(case, true);
        gpu.trim();
    }
    for case in &shapes(full) {
        bench.case(case, full);
        gpu.trim();
    }
    let roofs = before.better(&Roofs::measure(&device, &gpu));
    let facts = gpu.facts();
    println!("\n{}, {}, {}, products in {:?}", facts.name, facts.backend, facts.driver, gpu.precision());
    println!("{roofs}\n");
    println!("{:<52} {:>10} {:>9} {:>8} {:>7}", "op", "median ms", "GFLOP/s", "GB/s", "roof");
    bench.rows.iter().for_each(|row| row.print(&roofs));
}
