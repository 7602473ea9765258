//! Parameters own their memory: maps that one product takes are contiguous wherever they are used, and the optimiser
//! steps them where they are.

mod adapters;

use std::collections::BTreeMap;

use adapters::gpus;
use crossweave::gpu::{Gpu, Options};
use crossweave::host::{Rng, ratios};
use crossweave::nn::bert::{self, Tokens};
use crossweave::nn::optim::{Optimizer, take_buffers};
use crossweave::nn::{Init, Layout, ParamSpec, ParamValues, Params, Role, begin_values, layout};
use crossweave::ops::{AdamStep, lay_out, pack};
use crossweave::systems::{Batch, Form, Items, Pass, Step, System, kind};
use crossweave::tensor::{Device, Tape, Tensor};
use serde_json::json;

/// Images and captions of a batch; training takes one more of the side that does not travel.
fn counts(direction: &str) -> (usize, usize) {
    if direction == "i2t" { (2, 3) } else { (3, 2) }
}

const REGIONS: usize = 3;
const WORDS: usize = 4;

/// DIME of a width.
fn system(width: usize, direction: &str) -> Box<dyn System> {
    let heads = (width / 64).max(1);
    let config = json!({
        "direction": direction, "max_words": WORDS, "img_dim": 8, "embed_size": width, "num_head_IMRC": heads,
        "hid_IMRC": 64, "hid_router": 32, "raw_feature_norm_CMRC": "clipped_l2norm", "lambda_softmax_CMRC": 4.0,
        "use_abs": false, "no_imgnorm": false, "max_violation": false, "batch_size": 2, "path_hid": 16,
        "bert_config": {
            "vocab_size": 20, "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": heads,
            "intermediate_size": 64, "max_position_embeddings": WORDS, "initializer_range": 0.1
        },
    });
    (kind("dime").expect("a system").open)(&config).expect("a configuration")
}

/// A model in training, with what it reads.
struct Training {
    device: Device,
    system: Box<dyn System>,
    direction: &'static str,
    specs: Vec<ParamSpec>,
    params: Params,
    optimizer: Optimizer,
}

impl Training {
    fn new(device: &Device, width: usize, direction: &'static str) -> Self {
        let system = system(width, direction);
        let specs = system.parameters();
        let params = Params::begin(&specs, device, 1);
        Self { device: device.clone(), system, direction, specs, params, optimizer: Optimizer::default() }
    }

    fn tokens(&self) -> Tokens {
        let (_, captions) = counts(self.direction);
        let shape = [captions, WORDS];
        let ids: Vec<f32> = (0..captions * WORDS).map(|i| (1 + 5 * i % 19) as f32).collect();
        Tokens { ids: self.device.tensor(shape, &ids), mask: self.device.full(shape, 1.0), types: None }
    }

    fn encode(&self, pass: &Pass) -> (Items, Items) {
        let (images, captions) = counts(self.direction);
        let features: Vec<f32> =
            (0..images * REGIONS * 8).map(|i| ((7 * i) % 11) as f32 / 11.0 - 0.4).collect();
        let pictures = Items::default().with("images", self.device.tensor([images, REGIONS, 8], &features));
        let Tokens { ids, mask, .. } = self.tokens();
        let texts = Items::default()
            .with("input_ids", ids)
            .with("attention_mask", mask)
            .with("lengths", self.device.full([captions], WORDS as f32));
        (self.system.images(pass, &pictures), self.system.captions(pass, &texts))
    }

    /// A step, the last captions in a tile of their own; the gradients of names that `keep` refuses are left out.
    fn step(&mut self, form: Form, keep: impl Fn(&str) -> bool) {
        let tape = Tape::new();
        let trained = |name: &str| {
            let role = self.specs.iter().find(|s| s.name == name).map(|s| s.role);
            matches!(role, Some(Role::Weight | Role::Encoder))
        };
        let tracked = self.params.tracked(&tape, trained);
        let step = Step { seed: 1, epoch: 0, step: 0, text_dropout: false };
        let pass = Pass::training(tracked.root(), step).computed(form, 2);
        let (images, captions) = self.encode(&pass);
        let batch = Batch { image_ids: &[0, 1], given: None };
        let grads = tape.backward(&self.system.loss(&pass, &images, &captions, &batch).total);
        let grad = |s: &ParamSpec| Some((s.name.clone(), grads.of(tracked.named(&s.name))?.clone()));
        let grads: Vec<_> = self.specs.iter().filter(|s| keep(&s.name)).filter_map(grad).collect();
        let buffers = pass.into_buffers();
        let squares = self.optimizer.step(&mut self.params, &grads, &adam(0.0, 2.0), &|_| Some(1e-4));
        take_buffers(&mut self.params, &buffers, &squares);
    }

    fn score(&self) {
        let pass = Pass::evaluation(self.params.root());
        let (images, captions) = self.encode(&pass);
        drop(self.system.score(&pass, &images, &captions));
    }
}

fn adam(decay: f64, clip: f64) -> AdamStep {
    AdamStep { lr: f64::NAN, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay, clip }
}

fn devices() -> Vec<Device> {
    gpus(&Options::default()).into_iter().map(Device::Gpu).collect()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_f64().expect("the device works")
}

/// How often each kernel runs in what `f` records.
fn runs(gpu: &Gpu, f: impl FnOnce()) -> BTreeMap<&'static str, u64> {
    gpu.flush().expect("the device works");
    gpu.profile(true);
    f();
    gpu.flush().expect("the device works");
    let runs = gpu.kernel_times().into_iter().map(|row| (row.name, row.runs)).collect();
    gpu.profile(false);
    runs
}

#[test]
fn nothing_copies_parameters_in_steps_in_scoring_or_in_a_frozen_encoder() {
    for device in devices() {
        let gpu = device.gpu().expect("these are GPUs");
        for (width, direction) in [(256, "i2t"), (256, "t2i"), (768, "t2i"), (1024, "i2t")] {
            let mut model = Training::new(&device, width, direction);
            let slabs = model.params.slabs().iter().filter(|s| s.role != Role::Statistic).count() as u64;
            let forms = [Form::Fast, Form::Recomputed];
            // The wide ones take their time.
            for form in forms.into_iter().take(if width > 256 { 1 } else { 2 }) {
                model.step(form, |_| true);
                let step = runs(gpu, || model.step(form, |_| true));
                assert_eq!(step.get("pack"), None, "{width} {direction} {form:?}: {step:?}");
                // Those of gradients, and one of statistics.
                let copies = step["lay_out"];
                assert!(
                    copies <= slabs + 24,
                    "{width}: {copies} dispatches lay {slabs} slabs' gradients out"
                );
                assert!(
                    step["adam"] <= 2 * slabs + 8,
                    "{width}: {} dispatches step {slabs} slabs",
                    step["adam"]
                );
                println!("{width} {direction}: {slabs} slabs, {copies} lay_out, {} adam", step["adam"]);
            }
            let score = runs(gpu, || model.score());
            assert!(!score.contains_key("pack") && score.contains_key("matmul"), "{width}: {score:?}");
            let encoder = model.system.text_encoder().expect("DIME has one");
            let scope = model.params.below(encoder.prefix);
            let frozen = runs(gpu, || {
                drop(bert::encode(&scope, encoder.config, &model.tokens(), None));
            });
            assert!(!frozen.contains_key("pack") && frozen.contains_key("matmul"), "{width}: {frozen:?}");
        }
    }
}

/// The members' names of each set.
fn sets(specs: &[ParamSpec]) -> BTreeMap<&String, Vec<&String>> {
    let mut sets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for spec in specs {
        if let Some(set) = &spec.together {
            sets.entry(set).or_default().push(&spec.name);
        }
    }
    sets
}

#[test]
fn the_maps_of_one_product_are_contiguous_at_every_width() {
    for device in devices() {
        for width in [20, 768, 1024] {
            let specs = system(width, "t2i").parameters();
            let params = Params::begin(&specs, &device, 1);
            let sets = sets(&specs);
            // BERT's layer, and four sets of each of DIME's three.
            assert_eq!(sets.len(), 1 + 3 * 4);
            for (set, names) in sets {
                let maps: Vec<&Tensor> = names.iter().map(|name| params.named(name)).collect();
                let gpu = device.gpu().expect("these are GPUs");
                let before = gpu.stats();
                let packed = pack(&maps);
                let after = gpu.stats();
                assert_eq!((after.dispatches, after.live), (before.dispatches, before.live), "{width} {set}");
                if width == 20 {
                    let copied =
                        lay_out(&device, &maps.iter().map(|t| (t.len(), Some(*t))).collect::<Vec<_>>());
                    assert_eq!(values(&packed), values(&copied), "{set}");
                }
            }
            for slab in params.slabs() {
                assert!(slab.members.iter().all(|m| m.spec.group == slab.group));
                assert!(
                    slab.members.len() == 1 || slab.values.len() <= 1 << 22,
                    "{} values",
                    slab.values.len()
                );
            }
            let statistics = params.slabs().iter().filter(|s| s.role == Role::Statistic).count();
            assert_eq!(statistics, 1, "running statistics are taken up in one write");
        }
    }
}

#[test]
fn a_set_larger_than_a_slab_has_one_of_its_own_and_order_does_not_matter_to_values() {
    for device in devices() {
        let specs = layout(|l| {
            l.linear("first", 8, 8);
            l.together("wide", |l| (0..3).for_each(|i| l.linear(&format!("map.{i}"), 1280, 1280)));
            l.linear("last", 8, 8);
        });
        let params = Params::begin(&specs, &device, 7);
        let names = |slab: &crossweave::nn::Slab| {
            slab.members.iter().map(|m| m.spec.name.clone()).collect::<Vec<_>>()
        };
        let lists: Vec<_> = params.slabs().iter().map(names).collect();
        assert_eq!(lists.iter().map(Vec::len).collect::<Vec<_>>(), [2, 6, 2], "{lists:?}");
        for spec in &specs {
            let ParamValues::Values(want) = begin_values(spec, &specs, 7) else { panic!("not a file's") };
            assert!(params.named(&spec.name).to_vec().expect("the device works") == want, "{}", spec.name);
        }
        let read = params.read(|_| true).expect("the device works");
        assert_eq!(read.len(), specs.len());
        assert!(read["map.2.bias"] == params.named("map.2.bias").to_vec().expect("the device works"));
    }
}

#[test]
fn tensors_are_laid_out_with_zeros_for_those_that_are_missing() {
    let lengths = [5, 64, 1, 128, 63, 300];
    for device in devices().into_iter().chain([Device::Host]) {
        let tensors: Vec<Tensor> = lengths.iter().map(|n| device.full([*n], *n as f32)).collect();
        let whole = lay_out(&device, &lengths.map(|n| (n, None)));
        assert!(values(&whole).iter().all(|v| *v == 0.0));
        // The least length that is laid out is the alignment.
        let align = lay_out(&device, &[(1, None)]).len();
        for missing in [&[0][..], &[0, 1], &[2, 3], &[5], &[], &[0, 1, 2, 4, 5]] {
            let parts: Vec<_> =
                (0..6).map(|i| (lengths[i], (!missing.contains(&i)).then(|| &tensors[i]))).collect();
            let got = values(&lay_out(&device, &parts));
            let mut want = vec![0.0; whole.len()];
            let mut place = 0;
            for (i, n) in lengths.into_iter().enumerate() {
                if !missing.contains(&i) {
                    want[place..place + n].fill(n as f64);
                }
                place += n.next_multiple_of(align);
            }
            assert_eq!(got, want, "without {missing:?}");
        }
    }
}

/// Three groups of small parameters, listed out of order.
fn grouped(l: &mut Layout) {
    l.group("fast", |l| l.push("fast.a".into(), &[5], Init::Normal(1.0), Role::Weight));
    l.push("plain.a".into(), &[3, 4], Init::Normal(1.0), Role::Weight);
    l.push("plain.b".into(), &[7], Init::Normal(1.0), Role::Weight);
    l.group("slow", |l| {
        l.push("slow.a".into(), &[2, 2], Init::Normal(1.0), Role::Weight);
        l.push("slow.b".into(), &[1], Init::Normal(1.0), Role::Weight);
    });
    l.push("plain.c".into(), &[70], Init::Normal(1.0), Role::Weight);
}

/// A parameter as the formula moves it.
#[derive(Clone)]
struct Formula {
    w: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    steps: i32,
}

impl Formula {
    /// AdamW as Loshchilov and Hutter write it.
    fn step(&mut self, g: &[f64], scale: f64, rate: f64, decay: f64) {
        self.steps += 1;
        let (a, b) = (1.0 - 0.9f64.powi(self.steps), 1.0 - 0.999f64.powi(self.steps));
        for i in 0..g.len() {
            let g = g[i] * scale;
            self.m[i] = 0.9 * self.m[i] + 0.1 * g;
            self.v[i] = 0.999 * self.v[i] + 0.001 * g * g;
            self.w[i] -= rate * decay * self.w[i] + rate * (self.m[i] / a) / ((self.v[i] / b).sqrt() + 1e-8);
        }
    }
}

#[test]
fn groups_have_rates_freeze_and_go_on_as_the_formula_says() {
    let specs = layout(grouped);
    let (decay, clip) = (0.1, 1.5);
    for device in devices().into_iter().chain([Device::Host]) {
        for forget in [false, true] {
            let mut params = Params::begin(&specs, &device, 3);
            let mut optimizer = Optimizer::default();
            let begin = |s: &ParamSpec| {
                let w = values(params.named(&s.name));
                let zeros = vec![0.0; w.len()];
                (s.name.clone(), Formula { w, m: zeros.clone(), v: zeros, steps: 0 })
            };
            let mut formula: BTreeMap<String, Formula> = specs.iter().map(begin).collect();
            for t in 0..8 {
                let rate = |group: &'static str| match group {
                    "fast" => Some(0.05),
                    // Frozen at first, and in between.
                    "slow" => (t != 0 && t != 4 && t != 5).then_some(0.001),
                    _ => Some(if t < 3 { 0.01 } else { 0.002 }),
                };
                // One parameter sits out two steps, and then lags behind its neighbours.
                let grads: Vec<(&ParamSpec, Tensor)> = specs
                    .iter()
                    .filter(|s| !(s.name == "plain.b" && (t == 2 || t == 3)))
                    .map(|s| {
                        let mut rng = Rng::of(t, &[s.shape.len() as u64]);
                        let g: Vec<f32> = (0..s.shape.len()).map(|_| rng.normal() as f32).collect();
                        (s, device.tensor(s.shape, &g))
                    })
                    .collect();
                if forget && t == 6 {
                    optimizer.forget(&params, "slow");
                    for f in ["slow.a", "slow.b"].map(|name| formula[name].clone()).iter_mut() {
                        (f.m, f.v, f.steps) = (vec![0.0; f.w.len()], vec![0.0; f.w.len()], 0);
                        let name = if f.w.len() == 4 { "slow.a" } else { "slow.b" };
                        formula.insert(name.into(), f.clone());
                    }
                }
                let named: Vec<_> = grads.iter().map(|(s, g)| (s.name.clone(), g.clone())).collect();
                let squares = optimizer.step(&mut params, &named, &adam(decay, clip), &rate);
                let moving: Vec<_> =
                    grads.iter().filter_map(|(s, g)| Some((s, values(g), rate(s.group)?))).collect();
                let norm = moving.iter().flat_map(|(_, g, _)| g).map(|g| g * g).sum::<f64>();
                assert!((values(&squares)[0] - norm).abs() < 1e-5 * norm, "step {t}");
                let scale = (clip / (norm.sqrt() + 1e-6)).min(1.0);
                for (s, g, rate) in moving {
                    formula.get_mut(&s.name).expect("listed").step(&g, scale, rate, decay);
                }
                let bound = if device.gpu().is_some() { 1e-5 } else { 1e-12 };
                for (name, f) in &formula {
                    let worst = ratios(&values(params.named(name)), &f.w).worst();
                    assert!(worst < bound, "step {t}, {name}: {worst:e}");
                }
            }
            let taken = optimizer.read(&params).expect("the device works");
            let steps = |name: &str| taken.iter().find(|t| t.spec.name == name).map(|t| t.steps);
            assert_eq!(steps("fast.a"), Some(8));
            assert_eq!(steps("plain.b"), Some(6));
            assert_eq!(steps("slow.a"), Some(if forget { 2 } else { 5 }));
        }
    }
}

#[test]
fn one_dispatch_steps_a_slab_whose_members_agree() {
    for device in devices() {
        let gpu = device.gpu().expect("these are GPUs");
        let specs = layout(|l| (0..6).for_each(|i| l.linear(&format!("map.{i}"), 8, 8)));
        let mut params = Params::begin(&specs, &device, 1);
        let mut optimizer = Optimizer::default();
        let mut step = |skipped: &[&str]| {
            let there = |s: &&ParamSpec| !skipped.contains(&s.name.as_str());
            let grads: Vec<_> =
                specs.iter().filter(there).map(|s| (s.name.clone(), device.full(s.shape, 0.5))).collect();
            let step = || drop(optimizer.step(&mut params, &grads, &adam(0.0, 1.0), &|_| Some(0.1)));
            runs(gpu, step)["adam"]
        };
        assert_eq!(step(&[]), 1);
        // Around the one that is missing, and later around the one that lags.
        assert_eq!(step(&["map.2.weight"]), 2);
        assert_eq!(step(&[]), 3);
        // The others wait for it: the slab is stepped as one again.
        let others: Vec<&str> =
            specs.iter().map(|s| s.name.as_str()).filter(|name| *name != "map.2.weight").collect();
        assert_eq!(step(&others), 1);
        assert_eq!(step(&[]), 1);
    }
}

#[test]
fn a_state_read_and_taken_up_goes_on_bit_for_bit() {
    for device in devices().into_iter().chain([Device::Host]) {
        let specs = layout(grouped);
        let grads = |t: u64| -> Vec<(String, Tensor)> {
            let skip = |s: &&ParamSpec| !(s.name == "plain.a" && t == 1);
            let grad = |s: &ParamSpec| {
                let mut rng = Rng::of(t, &[9]);
                let g: Vec<f32> = (0..s.shape.len()).map(|_| rng.normal() as f32).collect();
                (s.name.clone(), device.tensor(s.shape, &g))
            };
            specs.iter().filter(skip).map(grad).collect()
        };
        let go = |params: &mut Params, optimizer: &mut Optimizer, steps: std::ops::Range<u64>| {
            for t in steps {
                optimizer.step(params, &grads(t), &adam(0.1, 1.0), &|_| Some(0.01));
            }
        };
        let (mut params, mut optimizer) = (Params::begin(&specs, &device, 3), Optimizer::default());
        go(&mut params, &mut optimizer, 0..3);
        let read = params.read(|_| true).expect("the device works");
        let read: BTreeMap<String, Vec<f32>> = read.into_iter().map(|(n, v)| (n.to_string(), v)).collect();
        let (mut steps, mut moments) = (BTreeMap::new(), BTreeMap::new());
        for taken in optimizer.read(&params).expect("the device works") {
            steps.insert(taken.spec.name.clone(), taken.steps);
            moments.insert(("m".to_string(), taken.spec.name.clone()), taken.m);
            moments.insert(("v".to_string(), taken.spec.name.clone()), taken.v);
        }
        let mut resumed = Params::begin(&specs, &device, 4);
        resumed.reload(|_| true, &mut |s| Ok(ParamValues::Values(read[&s.name].clone()))).expect("in memory");
        let mut values = |moment: &str, s: &ParamSpec| {
            Ok(ParamValues::Values(moments[&(moment.to_string(), s.name.clone())].clone()))
        };
        let mut again = Optimizer::resume(&resumed, &steps, &mut values).expect("in memory");
        go(&mut params, &mut optimizer, 3..6);
        go(&mut resumed, &mut again, 3..6);
        for spec in &specs {
            // The host keeps f64, of which f32 was read.
            let [a, b] = [&params, &resumed].map(|p| p.named(&spec.name).to_f64().expect("read"));
            if device.gpu().is_some() {
                assert_eq!(a, b, "{}", spec.name);
            } else {
                assert!(ratios(&a, &b).worst() < 1e-6, "{}", spec.name);
            }
        }
    }
}

#[test]
fn a_step_makes_nothing_from_its_third_occurrence_on() {
    for device in devices() {
        let gpu = device.gpu().expect("these are GPUs");
        let mut model = Training::new(&device, 64, "t2i");
        let missing = "itr_module.dynamic_itr_l1.cmrc.refine.fc_1.weight";
        for round in 0..6 {
            let before = gpu.stats();
            model.step(Form::Fast, |_| true);
            model.step(Form::Fast, |name| name != missing);
            gpu.flush().expect("the device works");
            let after = gpu.stats();
            if round >= 2 {
                assert_eq!(after.created, before.created, "round {round} made buffers");
                assert_eq!(after.pipelines, before.pipelines, "round {round} compiled");
                assert_eq!(after.live, before.live, "round {round} kept memory");
                assert_eq!(after.bindings_made, before.bindings_made, "round {round} made bind groups");
            }
        }
    }
}
