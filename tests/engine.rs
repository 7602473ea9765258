//! The engine's rules on a real adapter: memory, ordering, limits, loss, and the traps of software drivers.

mod adapters;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use adapters::gpus;
use crossweave::eval::choices::ChoicesFolder;
use crossweave::gpu::{Choices, Class, Gpu, Grid, Kernel, Launch, MAX_LOOP, Options, Store, Style, Words};
use crossweave::host::Rng;
use crossweave::ops::registry::cases;
use crossweave::ops::{
    Act, AdamState, AdamStep, CrossAttention, Expr, QueryNorm, WordAxis, adam, lay_out, map, materialize,
    sum_of_squares, write,
};
use crossweave::tensor::{Device, Tape, Tensor};
use crossweave::{Error, Kind};

fn devices() -> Vec<Device> {
    gpus(&Options::default()).into_iter().map(Device::Gpu).collect()
}

fn gpu_of(device: &Device) -> &Gpu {
    device.gpu().expect("these are GPUs")
}

fn values(t: &Tensor) -> Vec<f32> {
    t.to_vec().expect("the device works")
}

#[test]
fn uploads_never_overtake_recorded_work() {
    for device in devices() {
        let mut rng = Rng::new(1);
        let mut sums = Vec::new();
        for round in 0..600 {
            let n = 64 << (round % 4);
            let first = round as f32 + rng.unit() as f32;
            let x = device.full([n], first);
            // The recorded map still reads x when its memory is free for the next upload of this size.
            let y = x.map(|x| x + 1.0);
            drop(x);
            let second = -first;
            let z = device.full([n], second).map(|z| z * 2.0);
            sums.push((first + 1.0, y, second * 2.0, z));
        }
        for (round, (want_y, y, want_z, z)) in sums.iter().enumerate() {
            assert!(values(y).iter().all(|v| v == want_y), "round {round}: an upload overtook a read");
            assert!(values(z).iter().all(|v| v == want_z), "round {round}: an upload was lost");
        }
    }
}

/// A small network whose training uses uploads, a gather-free forward, backward and Adam, and keeps a statistic
/// and its losses over steps.
struct Training {
    device: Device,
    states: [AdamState; 3],
    mean: Tensor,
    losses: Tensor,
    steps: usize,
    rng: Rng,
}

impl Training {
    fn new(device: &Device, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut state = |dims: &[usize]| {
            let data: Vec<f32> = (0..dims.iter().product()).map(|_| 0.2 * rng.normal() as f32).collect();
            AdamState::new(&device.tensor(dims, &data))
        };
        let states = [state(&[24, 20]), state(&[24]), state(&[12, 24])];
        let (mean, losses) = (device.full([20], 0.0), device.full([4], 0.0));
        Self { device: device.clone(), states, mean, losses, steps: 0, rng }
    }

    /// The loss of a batch of `n`.
    fn step(&mut self, n: usize) -> Tensor {
        let data: Vec<f32> = (0..n * 20).map(|_| self.rng.normal() as f32).collect();
        let x = self.device.tensor([n, 20], &data);
        let target: Vec<f32> = (0..n).map(|i| (i % 12) as f32).collect();
        let target = self.device.tensor([n, 1], &target);
        let places: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let places = self.device.tensor([1, 12], &places);
        let tape = Tape::new();
        let [w, b, v] = [0, 1, 2].map(|i| tape.leaf(&self.states[i].w));
        let hidden = x.linear(&w, Some(&b), Act::Tanh).l2norm(-1, 1e-12).dropout(0.1, 5);
        let p = hidden.linear(&v, None, Act::None).softmax(-1, 4.0);
        let hit = |t: &Expr, c: &Expr| 1.0 - (t - c).abs().min(1.0);
        let loss = map(vec![p.view(), target.view(), places.view()], |x| {
            (&x[0] + 1e-6).log() * hit(&x[1], &x[2]) * -1.0 / n as f64
        })
        .sum_all();
        let grads = tape.backward(&loss);
        let g = [&w, &b, &v].map(|leaf| grads.of(leaf).expect("each leaf has a gradient").clone());
        let squares = sum_of_squares(&g.each_ref());
        let step = AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.01, clip: 2.0 };
        for (state, g) in self.states.iter_mut().zip(&g) {
            adam(state, g, &squares, &step);
        }
        let moved = self.mean.map2(&x.mean(0), |old, new| old * 0.9 + new * 0.1);
        write(&mut self.mean, 0, &moved);
        write(&mut self.losses, self.steps % 4, &loss.detach());
        self.steps += 1;
        loss.detach()
    }
}

#[test]
fn a_batch_shape_makes_no_buffer_or_bind_group_from_its_third_occurrence_on() {
    for device in devices() {
        let gpu = gpu_of(&device);
        let mut training = Training::new(&device, 3);
        let rows = [36, 36, 28, 36, 52, 28, 52, 28, 36, 52, 36, 36, 28, 52, 52, 36];
        let mut seen: HashMap<usize, usize> = HashMap::new();
        for (step, n) in rows.into_iter().enumerate() {
            let before = gpu.stats();
            training.step(n);
            gpu.flush().expect("the device works");
            let after = gpu.stats();
            let occurrence = seen.entry(n).or_default();
            *occurrence += 1;
            if *occurrence >= 3 {
                assert_eq!(after.created, before.created, "step {step} made buffers");
                assert_eq!(after.pipelines, before.pipelines, "step {step} compiled");
                assert_eq!(after.live, before.live, "step {step} kept memory");
                assert_eq!(after.bindings_made, before.bindings_made, "step {step} made bind groups");
            }
            if step % 4 == 3 {
                // As a training loop reads what its last steps gave.
                assert!(values(&training.losses).iter().all(|l| l.is_finite()));
            }
        }
    }
}

#[test]
fn bytes_of_any_alignment_and_in_parts_become_the_values_they_hold() {
    let want: Vec<f32> = (0..51).map(|i| i as f32 * 0.37 - 9.0).collect();
    let mut bytes = vec![7];
    bytes.extend(want.iter().flat_map(|v| v.to_le_bytes()));
    for device in devices().into_iter().chain([Device::Host]) {
        assert_eq!(values(&device.tensor_of_bytes([3, 17], &[&bytes[1..]])), want);
        let parts = [&bytes[1..9], &[], &bytes[9..]];
        assert_eq!(values(&device.tensor_of_bytes([3, 17], &parts)), want);
        assert!(values(&device.tensor_of_bytes([0, 4], &[])).is_empty());
    }
}

#[test]
fn large_uploads_reach_the_device_before_they_come_together_and_overtake_nothing() {
    for device in devices() {
        let n = 5 << 20;
        let x = device.full([n], 1.0);
        let y = x.sum(0);
        drop(x);
        // 100 MB, past which the device is given what has come together; `y` is still only recorded.
        let uploads: Vec<Tensor> = (0..5).map(|i| device.full([n], i as f32 + 2.0)).collect();
        assert_eq!(values(&y), [n as f32]);
        for (i, upload) in uploads.iter().enumerate() {
            assert_eq!(values(&upload.max(0)), [i as f32 + 2.0]);
        }
    }
}

#[test]
fn writing_is_seen_by_clones_and_not_by_what_was_recorded_before() {
    for device in devices().into_iter().chain([Device::Host]) {
        let mut y = device.tensor([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let (clone, before) = (y.clone(), y.map(|y| y * 1.0));
        let reshaped = y.reshape([3, 2]);
        write(&mut y, 2, &device.tensor([3], &[7.0, 8.0, 9.0]));
        for t in [&y, &clone, &reshaped] {
            assert_eq!(values(t), [1.0, 2.0, 7.0, 8.0, 9.0, 6.0]);
        }
        assert_eq!(values(&before), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }
}

#[test]
fn sums_that_wait_are_taken_once_and_outlive_a_fault() {
    // How many cores there are decides nothing in this style.
    for gpu in gpus(&Options { style: Some(Style::Workgroup), ..Options::default() }) {
        let device = Device::Gpu(gpu.clone());
        let [a, b] = [32, 32].map(|n| device.full([16_000, n], 0.5));
        // So long a product of so few values is computed in parts.
        let product = a.matmul(&b, true, false);
        gpu.flush().expect("the device works");
        gpu.refuse(Error::of(Kind::OutOfMemory, "between"));
        assert_eq!(product.to_vec().expect_err("between").kind(), Kind::OutOfMemory);
        assert_eq!(values(&product), [4000.0; 32 * 32]);

        let other = a.matmul(&b, true, false);
        let waiting = a.matmul(&b, true, false);
        let before = gpu.stats().dispatches;
        assert_eq!(values(&waiting), [4000.0; 32 * 32]);
        assert_eq!(gpu.stats().dispatches, before + 1, "it is in parts");
        let before = gpu.stats().dispatches;
        let laid_out = lay_out(&device, &[(32 * 32, Some(&other)), (8, None), (32 * 32, Some(&product))]);
        assert_eq!(gpu.stats().dispatches, before + 1);
        let laid_out = values(&laid_out);
        assert_eq!(laid_out.iter().filter(|v| **v == 4000.0).count(), 2 * 32 * 32);
        assert_eq!(values(&other), [4000.0; 32 * 32]);
    }
}

#[test]
fn a_reading_has_the_values_of_its_beginning_whatever_comes_after() {
    for device in devices().into_iter().chain([Device::Host]) {
        let mut y = device.tensor([3], &[1.0, 2.0, 3.0]);
        let readings: Vec<_> = (0..12)
            .map(|round| {
                // Of several sizes, more than are kept for reuse, some of them dropped.
                let all = materialize(y.view().repeat(0, 1 + 40 * (round % 3)));
                let reading = (all.begin_read().expect("begun"), y.begin_read().expect("begun"));
                write(&mut y, 1, &device.tensor([1], &[round as f32]));
                reading
            })
            .collect();
        for (round, (all, own)) in readings.into_iter().enumerate().rev().filter(|(round, _)| round % 4 != 1)
        {
            let want = [1.0, if round == 0 { 2.0 } else { round as f32 - 1.0 }, 3.0];
            assert_eq!(own.finish().expect("read"), want, "round {round}");
            assert_eq!(all.finish().expect("read"), want.repeat(1 + 40 * (round % 3)), "round {round}");
        }
        assert_eq!(values(&y), [1.0, 11.0, 3.0]);
        assert!(device.full([0], 1.0).begin_read().expect("begun").finish().expect("nothing").is_empty());
    }
}

#[test]
fn an_error_between_a_readings_two_ends_is_told_once() {
    for device in devices() {
        let gpu = gpu_of(&device);
        let x = device.full([4], 1.0);
        let reading = x.begin_read().expect("begun");
        gpu.refuse(Error::of(Kind::OutOfMemory, "between"));
        let void = x.map(|x| x + 1.0);
        assert_eq!(reading.finish().expect_err("between").kind(), Kind::OutOfMemory);
        drop(void);
        assert_eq!(values(&x.map(|x| x + 2.0)), [3.0; 4]);
        let reading = x.begin_read().expect("begun");
        gpu.lose();
        assert_eq!(reading.finish().expect_err("lost").kind(), Kind::DeviceLost);
    }
}

#[test]
fn a_step_of_adam_is_seen_by_clones() {
    for device in devices().into_iter().chain([Device::Host]) {
        let mut state = AdamState::new(&device.tensor([2], &[1.0, -1.0]));
        let (clone, g) = (state.w.clone(), device.tensor([2], &[2.0, 3.0]));
        let step = AdamStep { lr: 0.5, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0, clip: 0.0 };
        adam(&mut state, &g, &sum_of_squares(&[&g]), &step);
        assert_eq!(values(&clone), values(&state.w));
        assert!((values(&clone)[0] - 0.5).abs() < 1e-5, "{:?}", values(&clone));
    }
}

#[test]
fn no_kernel_writes_past_its_buffers_or_reads_what_nobody_wrote() {
    for gpu in gpus(&Options { guards: true, ..Options::default() }) {
        let device = Device::Gpu(gpu.clone());
        let mut failures = Vec::new();
        for case in cases().iter().filter(|c| c.inputs.iter().all(|x| x.0.len() < 100_000)) {
            let name = format!("{} ({})", case.op, case.about);
            let (y, grads) = case.evaluate(&device, &case.draw(5), 5).expect("the device works");
            if let Some(broken) = gpu.broken_guard().expect("the device works") {
                failures.push(format!("{name}: {broken}"));
            }
            // Unwritten memory is NaN here; no case has one of its own.
            if y.iter().chain(grads.iter().flatten()).any(|v| v.is_nan()) {
                failures.push(format!("{name}: reads memory that nobody wrote"));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}

/// Writes one word past its output.
const TRESPASS: Kernel = Kernel {
    name: "trespass",
    text: "@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<uniform> p: vec4<u32>;
@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i <= p.x { y[i] = 1.0; }
}",
};

fn trespass(gpu: &Gpu, loops: usize, n: usize) {
    let y = gpu.alloc(n);
    gpu.dispatch(&Launch {
        kernel: TRESPASS,
        body: None,
        constants: &[],
        reads: &[],
        writes: &[&y],
        params: Words::default().sizes(&[n, 0, 0, 0]),
        grid: Grid::Invocations(n + 1),
        loops,
    });
}

#[test]
fn guards_see_a_trespass() {
    for gpu in gpus(&Options { guards: true, ..Options::default() }) {
        trespass(&gpu, 1, 10);
        let broken = gpu.broken_guard().expect("the device works");
        assert!(broken.is_some_and(|b| b.contains("word 0 past a buffer of 40 bytes")));
        assert_eq!(gpu.broken_guard().expect("the device works"), None);
    }
}

#[test]
fn tiles_are_measured_once_and_remembered() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |measure, choices: &Choices| {
        let store: Rc<dyn Store> = Rc::new(ChoicesFolder::new(folder.path().into()));
        let (style, store, choices) = (Some(Style::Workgroup), Some(store), choices.clone());
        gpus(&Options { style, measure, store, choices, ..Options::default() }).remove(0)
    };
    let none = Choices::default();
    let product = |gpu: &Gpu| {
        let device = Device::Gpu(gpu.clone());
        let mut rng = Rng::new(7);
        let mut draw = || (0..96 * 96).map(|_| rng.normal() as f32).collect::<Vec<_>>();
        let [x, y] = [device.tensor([96, 96], &draw()), device.tensor([96, 96], &draw())];
        values(&x.matmul(&y, false, false))
    };
    let first = open(Some(true), &none);
    assert!(first.choices().of.is_empty());
    let result = product(&first);
    let measured = first.choices();
    let tiles = &measured.of;
    assert!(tiles.len() == 1 && tiles.values().all(|tile| tile.starts_with("block ")), "{measured:?}");
    // The next process knows, and so does a run that was begun otherwise.
    assert_eq!(open(Some(true), &none).choices(), measured);
    let names = ["block 128", "block 64", "block 32"].map(String::from);
    for other in names.iter().filter(|name| !tiles.values().any(|tile| tile == *name)) {
        let of = tiles.keys().map(|class| (class.clone(), other.clone())).collect();
        let run = Choices { of, ..measured.clone() };
        let resumed = open(Some(true), &run);
        let far = product(&resumed).iter().zip(&result).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(resumed.choices() == run && far < 1e-4, "{far}");
    }
    // A run of another adapter has other tiles.
    let foreign = Choices { about: "another card".into(), of: [("a".into(), "b".into())].into() };
    assert_eq!(open(Some(true), &foreign).choices(), measured);
    // Software drivers measure nothing by themselves.
    let own = open(None, &none);
    product(&own);
    assert!(own.facts().class == Class::Hardware || own.choices().of.is_empty());
    let file =
        std::fs::read_dir(folder.path()).expect("it reads").next().expect("a file").expect("it lists").path();
    let text = std::fs::read_to_string(&file).expect("it reads");
    for broken in ["", "{", "[1]", &text.replace("crossweave ", "crossweave 999.")] {
        std::fs::write(&file, broken).expect("it writes");
        assert!(open(Some(true), &none).choices().of.is_empty(), "{broken}");
    }
    product(&open(Some(true), &none));
    assert_eq!(open(Some(true), &none).choices().of.len(), 1);
}

#[test]
fn an_axis_past_the_loop_budget_is_refused_by_name() {
    let refused = |y: Tensor, parts: [&str; 3]| {
        let error = y.to_vec().expect_err("too long").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    for device in devices() {
        let x = device.full([2, 50_000], 1.0);
        refused(x.softmax(-1, 1.0), ["softmax", "at most 43690", "found: 50000"]);
        refused(x.reshape([50_000, 2]).l2norm(0, 1e-12), ["l2norm", "at most 10922", "found: 50000"]);
        let tape = Tape::new();
        let leaf = tape.leaf(&x);
        let grads = tape.backward(&leaf.max(-1).sum(0));
        let g = grads.of(&leaf).expect("the maximum depends on it").clone();
        refused(g, ["max_grad", "at most 16384", "found: 50000"]);
        // What follows works again.
        assert_eq!(values(&x.sum(-1)), [50_000.0; 2]);
    }
}

#[test]
fn a_launch_past_the_loop_budget_panics() {
    for device in devices() {
        let gpu = gpu_of(&device);
        trespass(gpu, MAX_LOOP, 10);
        let panic = catch_unwind(AssertUnwindSafe(|| trespass(gpu, MAX_LOOP + 1, 10)));
        let text = panic.expect_err("the budget holds").downcast::<String>().expect("a message");
        assert!(text.contains("trespass would loop 32769 times"), "{text}");
    }
}

#[test]
fn long_axes_are_summed_whole() {
    for device in devices() {
        // Each term counts: an invocation cut short by its driver loses thousands.
        for n in [65_535, 65_537, 131_072, 1 << 20, (1 << 20) + 3] {
            let sum = device.full([n], 1.0).sum(0).item().expect("the device works");
            assert_eq!(sum, n as f64, "a row of {n}");
            let most = {
                let mut x = vec![-1.0; n];
                x[n - 1] = 7.0;
                device.tensor([n], &x).max(0).item().expect("the device works")
            };
            assert_eq!(most, 7.0, "the last of {n}");
        }
        let columns = device.full([70_001, 5], 1.0).sum(0);
        assert_eq!(values(&columns), [70_001.0; 5]);
        let ones = |dims: &[usize]| device.full(dims, 1.0);
        let product = ones(&[150_001, 3]).matmul(&ones(&[150_001, 5]), true, false);
        assert_eq!(values(&product), [150_001.0; 15]);
    }
}

#[test]
fn grids_of_more_than_65535_groups_are_folded() {
    for device in devices() {
        let n = 65_536 * 64 + 67;
        let x: Vec<f32> = (0..n).map(|i| (i % 1021) as f32).collect();
        let y = device.tensor([n], &x).map(|x| x * 2.0);
        assert!(values(&y).iter().zip(&x).all(|(y, x)| *y == x * 2.0));
        let rows = device.full([65_536 * 64 + 1, 1], 3.0).softmax(-1, 1.0);
        assert!(values(&rows).iter().all(|v| *v == 1.0));
    }
}

#[test]
fn nothing_goes_through_every_family() {
    for device in devices() {
        let empty = |dims: &[usize]| device.tensor(dims, &[]);
        let full = |dims: &[usize]| device.full(dims, 1.0);
        let none = |t: Tensor, dims: &[usize]| {
            assert_eq!(t.dims(), dims);
            assert_eq!(values(&t), Vec::<f32>::new());
        };
        let zero = |t: Tensor, dims: &[usize]| {
            assert_eq!(t.dims(), dims);
            assert!(values(&t).iter().all(|v| *v == 0.0), "{t:?}");
        };
        none(empty(&[0, 4]).map(|x| x.exp()), &[0, 4]);
        none(empty(&[3, 0]).map2(&full(&[1]), |a, b| a * b), &[3, 0]);
        none(empty(&[0, 4]).dropout(0.5, 1), &[0, 4]);
        none(materialize(full(&[3, 2]).view().slice(0, 1, 0)), &[0, 2]);
        none(full(&[5, 4]).gather(&empty(&[0])), &[0, 4]);
        none(empty(&[0, 4]).sum(-1), &[0]);
        none(empty(&[0, 4]).max(-1), &[0]);
        none(empty(&[4, 0]).sum(0), &[0]);
        zero(empty(&[4, 0]).sum(-1), &[4]);
        zero(empty(&[0]).sum_all(), &[]);
        for axis in [0, 1] {
            none(empty(&[0, 6]).softmax(axis, 1.0), &[0, 6]);
            none(empty(&[0, 6]).l2norm(axis, 1e-12), &[0, 6]);
        }
        none(empty(&[0, 6]).layer_norm(&full(&[6]), &full(&[6]), 1e-5), &[0, 6]);
        none(empty(&[100, 0]).layer_norm(&empty(&[0]), &empty(&[0]), 1e-5), &[100, 0]);
        zero(
            full(&[2, 5, 32]).attention(&empty(&[2, 0, 32]), &empty(&[2, 0, 32]), 4, 1.0, None),
            &[2, 5, 32],
        );
        for dims in [[2, 2, 0, 5], [2, 2, 5, 0]] {
            let over = QueryNorm::Max(1e-8);
            let how = CrossAttention { leaky: None, over, scale: 4.0, words: WordAxis::Context };
            none(how.weights(&empty(&dims), None), &dims);
        }
        none(empty(&[0, 5]).linear(&full(&[7, 5]), Some(&full(&[7])), Act::Relu), &[0, 7]);
        none(full(&[2, 5]).linear(&empty(&[0, 5]), None, Act::None), &[2, 0]);
        zero(empty(&[2, 3, 0]).linear(&empty(&[7, 0]), None, Act::None), &[2, 3, 7]);
        none(empty(&[0, 2, 3]).matmul(&empty(&[0, 3, 4]), false, false), &[0, 2, 4]);
        zero(empty(&[5, 0]).matmul(&empty(&[0, 3]), false, false), &[5, 3]);
        none(empty(&[0, 5, 8]).head_scores(&empty(&[0, 3, 8]), 2, 1.0), &[0, 2, 5, 3]);
    }
}

#[test]
fn gradients_pass_through_nothing() {
    for device in devices() {
        let tape = Tape::new();
        let x = tape.leaf(&device.tensor([0, 5], &[]));
        let (w, b) = (tape.leaf(&device.full([4, 5], 1.0)), tape.leaf(&device.full([4], 1.0)));
        let normed = x.linear(&w, None, Act::Tanh).l2norm(-1, 1e-12).layer_norm(&b, &b, 1e-5);
        let y = normed.softmax(-1, 1.0).sum_all();
        let grads = tape.backward(&y);
        assert_eq!(values(grads.of(&b).expect("b has a gradient")), [0.0; 4]);
        assert_eq!(grads.of(&x).map(|g| g.dims().to_vec()), Some(vec![0, 5]));
        assert!(values(grads.of(&w).expect("w has a gradient")).iter().all(|v| *v == 0.0));
    }
}

#[test]
fn softmax_of_no_place_is_zero_and_of_one_place_is_one() {
    for device in devices() {
        for (n, inner) in [(12, 1), (7, 1), (7, 8), (5, 3)] {
            let x: Vec<f32> = (0..4 * n * inner).map(|i| (i as f32 * 0.7).sin() * 50.0).collect();
            let lens = device.tensor([4], &[0.0, 1.0, 2.0, n as f32]);
            let tape = Tape::new();
            let leaf = tape.leaf(&device.tensor([4, n, inner], &x));
            let y = leaf.softmax_to(1, 9.0, &lens, 1);
            let got = values(&y);
            for (row, len) in [0, 1, 2, n].into_iter().enumerate() {
                for i in 0..inner {
                    let column: Vec<f32> = (0..n).map(|k| got[(row * n + k) * inner + i]).collect();
                    let sum: f32 = column.iter().sum();
                    assert!((sum - f32::from(u8::from(len > 0))).abs() < 1e-6, "length {len}: {column:?}");
                    assert!(column[len..].iter().all(|v| *v == 0.0), "length {len}: {column:?}");
                }
            }
            let g = values(tape.backward(&y.map(|y| y * y).sum_all()).of(&leaf).expect("a gradient"));
            assert!(g.iter().all(|v| v.is_finite()));
            assert!(g[..2 * n * inner].iter().all(|v| *v == 0.0), "lengths 0 and 1 do not depend on x");
        }
    }
}

#[test]
fn the_host_sees_nan_and_infinity_made_on_the_device() {
    for device in devices() {
        let x = device.tensor([5], &[0.0, f32::NAN, f32::INFINITY, 3.0, f32::NEG_INFINITY]);
        let y = values(&x.map(|x| x + 1.0));
        assert_eq!(y[1].to_bits() & 0x7f80_0000, 0x7f80_0000);
        assert!(y[1].is_nan() && y[2] == f32::INFINITY && y[4] == f32::NEG_INFINITY, "{y:?}");
        assert_eq!((y[0], y[3]), (1.0, 4.0));
        let big = device.full([2], 3e38);
        assert!(values(&big.map2(&big, |a, b| a + b)).iter().all(|v| v.is_infinite()));
        // A loss that sums one bad value must not look like a number.
        assert!(!values(&x.sum(0))[0].is_finite());
        let row = device.tensor([1, 5], &[0.0, f32::NAN, 1.0, 2.0, 3.0]);
        assert!(values(&row.l2norm(-1, 1e-12)).iter().any(|v| !v.is_finite()));
        assert!(values(&row.matmul(&row, false, true)).iter().all(|v| !v.is_finite()));
    }
}

/// The largest error of a formula over `x`, absolute below 1 and relative above.
fn error_of(device: &Device, x: &[f32], f: impl Fn(&Expr) -> Expr, want: impl Fn(f64) -> f64) -> (f64, f32) {
    let y = values(&device.tensor([x.len()], x).map(|x| f(x)));
    let errors = y.iter().zip(x).map(|(y, x)| {
        let want = want(f64::from(*x));
        let error = (f64::from(*y) - want).abs() / want.abs().max(1.0);
        (if y.is_finite() { error } else { f64::INFINITY }, *x)
    });
    errors.fold((0.0, 0.0), |worst, e| if e.0 > worst.0 { e } else { worst })
}

#[test]
fn functions_hold_at_their_ends() {
    let ends = [0.0f32, 1e-30, 1e-8, 1e-4, 0.04, 0.5, 3.0, 9.0, 12.0, 20.0, 80.0, 89.0, 1e4, 1e20, 3e38];
    let both: Vec<f32> = ends.iter().flat_map(|v| [*v, -*v]).collect();
    for device in devices() {
        let check = |name: &str, x: &[f32], f: fn(&Expr) -> Expr, want: fn(f64) -> f64, bound: f64| {
            let (worst, at) = error_of(&device, x, f, want);
            assert!(worst <= bound, "{name}({at}) is off by {worst:.1e}");
        };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        check("tanh", &both, Expr::tanh, f64::tanh, 3e-7);
        check("sigmoid", &both, Expr::sigmoid, sigmoid, 3e-7);
        check("softplus", &both, Expr::softplus, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), 3e-7);
        check("erf", &both, Expr::erf, libm::erf, 1e-7);
        let down: Vec<f32> = both.iter().copied().filter(|x| *x <= 80.0).collect();
        check("exp", &down, Expr::exp, f64::exp, 1e-5);
        let positive = [1e-37f32, 1e-30, 1e-8, 0.5, 0.999_999, 1.0, 1.000_001, 2.0, 1e20, 3e38];
        check("log", &positive, Expr::log, f64::ln, 3e-7);
        check("sqrt", &positive, Expr::sqrt, f64::sqrt, 3e-7);
        // Zero has no logarithm: whatever the driver makes of it is very small, never NaN or a good value.
        let log = values(&device.full([4], 0.0).map(Expr::log));
        assert!(log.iter().all(|v| *v < -80.0), "{log:?}");
        assert!(values(&device.full([4], -200.0).map(Expr::exp)).iter().all(|v| *v == 0.0));
    }
}

#[test]
fn erf_is_within_1e_7_everywhere() {
    let n = 1 << 20;
    let x: Vec<f32> = (0..=n).map(|i| -6.0 + 12.0 * i as f32 / n as f32).collect();
    for device in devices() {
        let y = values(&device.tensor([x.len()], &x).map(Expr::erf));
        let worst = y
            .iter()
            .zip(&x)
            .map(|(y, x)| ((f64::from(*y) - libm::erf(f64::from(*x))).abs(), *x))
            .fold((0.0, 0.0), |worst, e| if e.0 > worst.0 { e } else { worst });
        assert!(worst.0 <= 1e-7, "erf({}) is off by {:.2e}", worst.1, worst.0);
    }
}

#[test]
fn a_tensor_past_the_limit_is_an_error_and_the_device_goes_on() {
    for default_limits in [false, true] {
        for gpu in gpus(&Options { default_limits, ..Options::default() }) {
            let device = Device::Gpu(gpu.clone());
            let limit = gpu.facts().max_binding.min(gpu.facts().max_buffer);
            assert!(!default_limits || limit <= 128 << 20);
            let side = ((limit / 4) as f64).sqrt() as usize + 1;
            let before = gpu.stats();
            let (row, column) = (device.full([1, side], 1.0), device.full([side, 1], 2.0));
            let large = row.map2(&column, |a, b| a * b);
            let error = large.to_vec().expect_err("it is too large");
            assert_eq!(error.kind(), Kind::OutOfMemory);
            let text = error.to_string();
            for part in [&limit.to_string(), "max_storage_buffer_binding_size", "smaller batch"] {
                assert!(text.contains(part), "{text}");
            }
            assert!(text.contains(&(4 * side * side).to_string()), "{text}");
            assert!(gpu.stats().live < before.live + (1 << 20), "the memory was not taken");
            // The tensor stays void, and says so again rather than giving numbers.
            assert_eq!(large.to_vec().expect_err("still").kind(), Kind::OutOfMemory);
            assert_eq!(large.sum(0).to_vec().expect_err("nor what comes of it").kind(), Kind::OutOfMemory);
            assert_eq!(values(&row.map(|x| x + 1.0)), vec![2.0; side]);
        }
    }
}

#[test]
fn the_largest_tensor_that_fits_works() {
    for gpu in gpus(&Options { default_limits: true, ..Options::default() }) {
        let n = gpu.facts().max_binding as usize / 4;
        let x = Device::Gpu(gpu.clone()).full([1, 8], 1.0);
        let y = materialize(x.view().squeeze(0).repeat(0, n / 8));
        assert_eq!(y.len(), n);
        let sums = values(&y.sum(0));
        assert_eq!(sums, [(n / 8) as f32; 8]);
        drop(y);
        gpu.trim();
        assert_eq!(gpu.stats().pooled, 0);
    }
}

/// What a GELU is taken of shares a tensor with it, unless that is more than the device binds.
#[test]
fn hidden_values_of_half_a_binding_and_more_have_gradients() {
    for gpu in gpus(&Options { default_limits: true, style: Some(Style::Workgroup), ..Options::default() }) {
        let (device, tape) = (Device::Gpu(gpu.clone()), Tape::new());
        let (width, rows) = (1024, gpu.facts().max_binding as usize / 8192 + 1);
        let [x, first, second] =
            [(rows, 4), (width, 4), (4, width)].map(|(m, n)| tape.leaf(&device.full([m, n], 0.25)));
        let [b1, b2] = [width, 4].map(|n| device.full([n], 0.0));
        let y = x.mlp([&first, &b1], Act::Gelu, [&second, &b2], Act::None, None);
        let grads = tape.backward(&y.sum_all());
        let g = values(grads.of(&second).expect("it has a gradient"));
        // Each weight's is the sum over the rows of gelu(4 / 16).
        let want = 0.149_677 * rows as f32;
        assert!(g.iter().all(|g| (g / want - 1.0).abs() < 1e-4), "{} for {want}", g[0]);
    }
}

#[test]
fn a_lost_device_is_an_error_at_every_flush() {
    for gpu in gpus(&Options::default()) {
        let device = Device::Gpu(gpu.clone());
        let x = device.full([8], 1.0);
        gpu.lose();
        let y = x.map(|x| x + 1.0);
        assert_eq!(gpu.flush().expect_err("it is lost").kind(), Kind::DeviceLost);
        assert_eq!(y.to_vec().expect_err("it stays lost").kind(), Kind::DeviceLost);
        assert_eq!(gpu.wait().expect_err("it stays lost").kind(), Kind::DeviceLost);
        // A new device on the same adapter works.
        let again = Device::Gpu(gpus(&Options::default()).remove(0));
        assert_eq!(values(&again.full([2], 1.0).map(|x| x + 1.0)), [2.0, 2.0]);
    }
}

#[test]
fn training_repeats_bitwise() {
    for device in devices() {
        let run = |seed: u64| {
            let mut training = Training::new(&device, seed);
            let losses: Vec<u32> = (0..8).map(|_| values(&training.step(36))[0].to_bits()).collect();
            let weights: Vec<u32> =
                training.states.iter().flat_map(|s| values(&s.w)).map(f32::to_bits).collect();
            (losses, weights)
        };
        let first = run(7);
        assert_eq!(first, run(7), "the same seed");
        assert_ne!(first, run(8), "another seed");
        let host = {
            let mut training = Training::new(&Device::Host, 7);
            (0..8).map(|_| training.step(36).item().expect("the host works")).collect::<Vec<_>>()
        };
        for (bits, want) in first.0.iter().zip(&host) {
            let loss = f64::from(f32::from_bits(*bits));
            assert!((loss - want).abs() < 1e-4 * want.abs(), "{loss} on the device, {want} on the host");
        }
    }
}
