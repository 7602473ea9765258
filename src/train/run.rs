//! The training loop: the authors' schedule, with a true resume.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;

use super::checkpoint::{self, State};
use super::encoded::{Encoded, captions_of, training_tile};
use super::events::EventWriter;
use super::metrics::{self, MetricsLog};
use super::model::{Model, read_description};
use super::optim::{Optimizer, take_buffers};
use super::options::{BertDropout, Select, TrainOptions};
use super::rank::{Metrics, Sims};
use super::recovery::Recovery;
use super::textcache::{Captions, TextCache};
use super::{Ending, Event, score};
use crate::data::batches::{Batch, Sampler, SamplerOptions};
use crate::data::dataset::{self, Dataset};
use crate::data::prefetch::{Placed, Prefetch};
use crate::data::tokenizer::TokenTable;
use crate::error::{Error, Kind, Result};
use crate::gpu::{Gpu, Options};
use crate::host::Rng;
use crate::nn::Dropouts;
use crate::ops::{AdamStep, concat, write};
use crate::systems::dime::{self, Path as ModelPath, Run};
use crate::tensor::{Device, Tape, Tensor};

/// The stream of dropout seeds, apart from the sampler's.
const DROPOUT_STREAM: u64 = 0xd0;
/// Values that a step gives.
const RESULTS: usize = 4;
/// Steps whose results the device can hold.
const HISTORY: usize = 1024;
/// Ids named of a batch that went wrong.
const NAMED: usize = 16;

/// Trains as the (resolved) options say, telling what happens; ends after the step during which `stop` is set.
/// When the device is lost it goes on from the last checkpoint.
///
/// # Errors
/// Bad input, a device that fails again and again, a loss that is not finite.
pub fn train(options: &TrainOptions, stop: &AtomicBool, tell: &mut dyn FnMut(Event)) -> Result<()> {
    let mut recovery = Recovery::default();
    let mut options = options.clone();
    loop {
        match attempt(&options, stop, tell) {
            Err(e) => options = recovery.after(e, &options, tell)?,
            Ok(()) => return Ok(()),
        }
    }
}

/// Trains until the end, or until something fails.
fn attempt(options: &TrainOptions, stop: &AtomicBool, tell: &mut dyn FnMut(Event)) -> Result<()> {
    let gpu = Gpu::open(&Options {
        device: options.device.clone(),
        precision: Some(options.precision),
        profile: std::env::var_os("CROSSWEAVE_PROFILE").is_some(),
        ..Options::default()
    })?;
    let mut session = Session::open(options, Device::Gpu(gpu.clone()), stop, tell)?;
    let ending = session.run(tell)?;
    if options.stats {
        tell(Event::Notice(gpu.stats().to_string()));
        gpu.kernel_times().iter().for_each(|row| tell(Event::Notice(row.to_string())));
    }
    let (run, state) = (session.folder.clone(), &session.state);
    let best = state.best.map(|(_, step, metrics)| (step, metrics));
    tell(Event::Done { ending, run, step: state.step, seconds: state.seconds, best });
    Ok(())
}

/// A step whose results are still on the device.
struct Pending {
    step: u64,
    lr: f64,
    ids: String,
}

struct Session<'a> {
    options: &'a TrainOptions,
    stop: &'a AtomicBool,
    device: Device,
    folder: PathBuf,
    model: Model,
    optimizer: Optimizer,
    state: State,
    dev: Dataset,
    dev_tokens: TokenTable,
    /// Kept text states of the train and dev splits.
    states: Option<(TextCache, TextCache)>,
    batches: Prefetch,
    steps_per_epoch: u64,
    pending: VecDeque<Pending>,
    /// `[HISTORY, 4]`: total, rank and path loss, squared gradient norm of the pending steps.
    results: Tensor,
    log: MetricsLog,
    events: EventWriter,
    started: Instant,
    seconds_before: f64,
    /// Steps done before this session.
    begun_at: u64,
    pairs: u64,
    since: Instant,
}

impl<'a> Session<'a> {
    fn open(
        options: &'a TrainOptions,
        device: Device,
        stop: &'a AtomicBool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Self> {
        let data_folder = options.data_folder();
        let wanted = dataset::Options {
            captions_per_image: options.captions_per_image,
            strict: options.strict,
            limit: None,
        };
        let data = Dataset::open(&data_folder, "train", &wanted)?;
        let dev =
            Dataset::open(&data_folder, "dev", &dataset::Options { limit: options.dev_limit, ..wanted })?;
        for set in [&data, &dev] {
            tell(Event::Notice(set.describe()));
            set.notices().iter().for_each(|n| tell(Event::Notice(n.clone())));
        }
        if data.dim() != dev.dim() {
            return Err(Error::new("the splits' features have different widths")
                .at(data_folder.display())
                .expected(data.dim())
                .found(dev.dim()));
        }
        if let Some(asked) = options.img_dim.filter(|n| *n != data.dim()) {
            return Err(Error::new("the features have another width than --img_dim says")
                .at(data_folder.display())
                .expected(asked)
                .found(data.dim())
                .cure("leave out --img_dim to take the data's width, or give the data meant"));
        }
        let folder = options.run_folder();
        if options.resume.is_some() {
            options.goes_on(&read_description(&folder)?["options"]).map_err(|e| e.at(folder.display()))?;
        } else {
            refuse_run(&folder)?;
        }
        let mut model = Model::begin(options, data.dim(), data.texts(), &device)?;
        let mut optimizer = Optimizer::default();
        let state = if options.resume.is_some() {
            model.resume(&folder)?;
            checkpoint::load(&folder, &mut model, &mut optimizer, options.trains_bert())?
        } else {
            let extra = if options.extra_stc > 0 { (0, options.extra_stc) } else { (options.extra_img, 0) };
            let images = options.batch_size * (1 + extra.0);
            let captions = options.batch_size * (1 + extra.1);
            let fits = training_tile(&model.config, images, captions, data.regions(), &device);
            State::begin(options.tile.unwrap_or(fits))
        };
        let tokens = TokenTable::new(&model.pieces, data.texts(), options.max_words);
        let dev_tokens = TokenTable::new(&model.pieces, dev.texts(), options.max_words);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("make the run's folder", &folder, &e))?;
        let states = if options.cache_text {
            let mut open = |split, data, tokens| {
                let captions = Captions { split, data, tokens };
                let stop = || stop.load(Ordering::Relaxed);
                TextCache::open(&folder, &options.bert_path, &captions, &model, &device, &stop, tell)
            };
            Some((open("train", &data, &tokens)?, open("dev", &dev, &dev_tokens)?))
        } else {
            None
        };
        let sampler = Sampler::new(
            data.captions_per_image(),
            Arc::new(if model.config.mask_padding { tokens.cut() } else { tokens }),
            SamplerOptions {
                batch_size: options.batch_size,
                extra_stc: options.extra_stc,
                extra_img: options.extra_img,
                seed: options.seed,
                exclude_own: options.exclude_own(),
            },
        )?;
        let steps_per_epoch = sampler.steps_per_epoch();
        let described = data.describe();
        let (epoch, step) = (state.step / steps_per_epoch, state.step % steps_per_epoch);
        let batches = Prefetch::start(Arc::new(data), sampler, epoch, step, options.workers.max(1))?;
        let resumed_at = options.resume.is_some().then_some(state.step);
        if resumed_at.is_none() {
            model.write_config(&folder, options)?;
            // From here on the run can be resumed, whenever it is killed.
            checkpoint::save(&folder, &model, &optimizer, &state, options.trains_bert())?;
        }
        let log = MetricsLog::open(&folder.join("metrics.jsonl"), resumed_at)?;
        if resumed_at.is_some() {
            model.write_config(&folder, options)?;
        }
        tell(Event::Start {
            run: folder.clone(),
            device: device.gpu().map_or_else(|| "host".into(), |g| g.facts().name.clone()),
            data: described,
            parameters: model
                .specs
                .iter()
                .filter(|s| model.is_trained(&s.name, options.trains_bert()))
                .map(|s| s.shape.len())
                .sum(),
            epochs: options.num_epochs as u64,
            steps: steps_per_epoch * options.num_epochs as u64,
            resumed_at,
        });
        Ok(Self {
            options,
            stop,
            log,
            events: EventWriter::create(&folder, resumed_at.map(|s| s + 1))?,
            seconds_before: state.seconds,
            begun_at: state.step,
            results: device.full([HISTORY, RESULTS], 0.0),
            device,
            folder,
            model,
            optimizer,
            state,
            dev,
            dev_tokens,
            states,
            batches,
            steps_per_epoch,
            pending: VecDeque::new(),
            started: Instant::now(),
            pairs: 0,
            since: Instant::now(),
        })
    }

    fn steps(&self) -> u64 {
        self.steps_per_epoch * self.options.num_epochs as u64
    }

    /// Whether a validation belongs after this many steps.
    fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.steps_per_epoch) || step.is_multiple_of(self.options.val_step as u64)
    }

    /// Whether the run was stopped between a step and the validation that belongs after it.
    fn owes_validation(&self) -> Result<bool> {
        let step = self.begun_at;
        let done = |row: &serde_json::Value| row["step"] == step && row.get("val").is_some();
        Ok(step > 0 && self.is_due(step) && !metrics::read(self.log.path())?.iter().any(done))
    }

    fn run(&mut self, tell: &mut dyn FnMut(Event)) -> Result<Ending> {
        if self.owes_validation()? {
            self.validate(tell)?;
        }
        while self.state.step < self.steps() {
            let placed = self.batches.next_batch()?;
            self.step(&placed)?;
            let full = self.pending.len() == HISTORY;
            if full || self.state.step.is_multiple_of(self.options.log_step as u64) {
                self.read_back(tell)?;
            }
            let ending = self.ending();
            if ending == Some(Ending::Interrupted) {
                self.read_back(tell)?;
                self.save(tell)?;
                return Ok(Ending::Interrupted);
            }
            if ending.is_some() || self.is_due(self.state.step) {
                self.read_back(tell)?;
                self.validate(tell)?;
            }
            if let Some(ending) = ending {
                return Ok(ending);
            }
        }
        Ok(Ending::Finished)
    }

    fn ending(&self) -> Option<Ending> {
        let over = |limit: f64| self.seconds() > limit;
        if self.stop.load(Ordering::Relaxed) {
            Some(Ending::Interrupted)
        } else if self.options.max_steps.is_some_and(|n| self.state.step >= n) {
            Some(Ending::StepLimit)
        } else if self.options.time_limit.is_some_and(over) {
            Some(Ending::TimeLimit)
        } else {
            None
        }
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// The learning rate of an epoch: a tenth every `lr_update` epochs.
    fn rate(&self, epoch: u64) -> f64 {
        self.options.learning_rate * 0.1f64.powi((epoch / self.options.lr_update as u64) as i32)
    }

    fn step(&mut self, placed: &Placed) -> Result<()> {
        let batch = &placed.batch;
        let step = self.state.step;
        let tape = Tape::new();
        let with_bert = self.options.trains_bert();
        let params = self.model.params.tracked(&tape, |name| self.model.is_trained(name, with_bert));
        let run = Run {
            scope: params.root(),
            config: &self.model.config,
            path: if self.options.checkpoint_cells { ModelPath::Recomputed } else { ModelPath::Fast },
            train: true,
            taps: None,
        };
        let dropouts = (self.options.bert_dropout == Some(BertDropout::Auto))
            .then(|| Dropouts::new(Rng::of(self.options.seed, &[DROPOUT_STREAM, step]).next_u64()));
        let features = self.device.tensor([batch.n_images, batch.regions, batch.dim], &batch.images);
        let images = dime::encode_images(&run, &features);
        let states = self.states.as_ref().map(|(train, _)| train);
        let captions = captions_of(&run, batch, states, dropouts.as_ref(), &self.device)?;
        let outcome = dime::forward(&run, &images, &captions, self.state.tile);
        let grads = tape.backward(&outcome.losses.total);
        let named: Vec<(String, Tensor)> = self
            .model
            .specs
            .iter()
            .filter_map(|s| Some((s.name.clone(), grads.of(params.named(&s.name))?.clone())))
            .collect();
        let lr = self.rate(placed.epoch);
        let adam =
            AdamStep { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0, clip: self.options.grad_clip };
        let squares = self.optimizer.step(&mut self.model.params, &named, &adam, &|_| Some(lr));
        take_buffers(&mut self.model.params, &outcome.buffers, &squares);
        let losses = outcome.losses;
        let parts = [&losses.total, &losses.rank, &losses.path, &squares].map(|t| t.detach().reshape([1]));
        write(&mut self.results, RESULTS * self.pending.len(), &concat(&parts, 0));
        let ids: Vec<String> = batch.caption_ids.iter().take(NAMED).map(ToString::to_string).collect();
        self.state.step += 1;
        self.pending.push_back(Pending { step: self.state.step, lr, ids: ids.join(" ") });
        self.pairs += (batch.n_images * batch.n_captions) as u64;
        if let Some(gpu) = self.device.gpu() {
            if self.options.lose_device.first() == Some(&self.state.step) {
                gpu.lose();
            }
            gpu.flush().map_err(|e| self.explain(e, batch))?;
        }
        Ok(())
    }

    /// Out of memory: says what would fit.
    fn explain(&self, e: Error, batch: &Batch) -> Error {
        if e.kind() != Kind::OutOfMemory {
            return e;
        }
        e.cure(format!(
            "use --batch_size {} or less (this batch has {} images and {} captions), or --tile below {}",
            (self.options.batch_size / 2).max(1),
            batch.n_images,
            batch.n_captions,
            self.state.tile
        ))
    }

    /// Reads what the last steps gave, in one copy, and writes it down.
    fn read_back(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let values = self.results.to_vec()?;
        let mut last = None;
        for (p, v) in self.pending.drain(..).zip(values.chunks(RESULTS)) {
            let [loss, rank, path, norm] = [v[0], v[1], v[2], v[3].sqrt()];
            if !v.iter().all(|x| x.is_finite()) {
                let error = nonfinite(&p, &self.folder);
                if !self.options.skip_nonfinite {
                    return Err(error);
                }
                tell(Event::Notice(format!("step {} left out: {error}", p.step)));
                self.log.append(&json!({"step": p.step, "skipped": true}))?;
                continue;
            }
            let row = json!({
                "step": p.step, "epoch": (p.step - 1) / self.steps_per_epoch + 1, "lr": p.lr,
                "loss": loss, "loss_rank": rank, "loss_path": path, "grad_norm": norm,
            });
            self.log.append(&row)?;
            let scalars = [
                ("train/loss", loss),
                ("train/loss_rank", rank),
                ("train/loss_path", path),
                ("train/grad_norm", norm),
                ("train/lr", p.lr as f32),
            ];
            self.events.scalars(p.step, &scalars)?;
            last = Some((p.step, p.lr, loss, rank, path, norm));
        }
        let Some((step, lr, loss, rank, path, norm)) = last else { return Ok(()) };
        let elapsed = self.since.elapsed().as_secs_f64().max(1e-9);
        let done = self.started.elapsed().as_secs_f64();
        let left = (self.steps() - step) as f64;
        let trained = step.saturating_sub(self.begun_at).max(1) as f64;
        let mut eta = done / trained * left;
        if let Some(limit) = self.options.time_limit {
            eta = eta.min((limit - self.seconds()).max(0.0));
        }
        tell(Event::Step {
            epoch: (step - 1) / self.steps_per_epoch + 1,
            step,
            steps: self.steps(),
            loss: loss.into(),
            loss_rank: rank.into(),
            loss_path: path.into(),
            grad_norm: norm.into(),
            lr,
            pairs_per_second: self.pairs as f64 / elapsed,
            eta_seconds: eta,
        });
        (self.pairs, self.since) = (0, Instant::now());
        Ok(())
    }

    fn validate(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let stop = || self.stop.load(Ordering::Relaxed);
        let states = self.states.as_ref().map(|(_, dev)| dev);
        let scored = Encoded::new(&self.model, &self.dev, &self.dev_tokens, states, &self.device, &stop)
            .and_then(|e| e.score(&self.model, &self.device, None, &stop, &mut |p| tell(score::event(p))));
        let sims = match scored {
            // The step is done; its checkpoint must not be lost for want of a validation.
            Err(e) if e.kind() == Kind::Interrupted => return self.save(tell),
            other => other?,
        };
        let metrics = Sims::new(&sims, self.dev.images(), self.dev.captions_per_image())?.metrics();
        let value = match self.options.select {
            Some(Select::R1r5) => metrics.r1r5(),
            _ => metrics.rsum(),
        };
        let best = self.state.best.is_none_or(|(before, ..)| value > before);
        let step = self.state.step;
        self.record(step, &metrics)?;
        if best {
            self.state.best = Some((value, step, metrics));
            self.model.write_weights(&self.folder.join("model.safetensors"))?;
        }
        tell(Event::Validation { step, metrics, best });
        self.save(tell)?;
        self.since = Instant::now();
        self.pairs = 0;
        Ok(())
    }

    fn record(&mut self, step: u64, m: &Metrics) -> Result<()> {
        let row = json!({"step": step, "val": {
            "rsum": m.rsum(), "r1r5": m.r1r5(), "i2t": m.i2t, "t2i": m.t2i,
        }});
        self.log.append(&row)?;
        let scalars = [
            ("val/rsum", m.rsum() as f32),
            ("val/i2t_r1", m.i2t.r1 as f32),
            ("val/i2t_r5", m.i2t.r5 as f32),
            ("val/i2t_r10", m.i2t.r10 as f32),
            ("val/t2i_r1", m.t2i.r1 as f32),
            ("val/t2i_r5", m.t2i.r5 as f32),
            ("val/t2i_r10", m.t2i.r10 as f32),
        ];
        self.events.scalars(step, &scalars)
    }

    fn save(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        self.state.seconds = self.seconds();
        checkpoint::save(
            &self.folder,
            &self.model,
            &self.optimizer,
            &self.state,
            self.options.trains_bert(),
        )?;
        tell(Event::Saved { path: self.folder.join(checkpoint::FILE) });
        Ok(())
    }
}

fn nonfinite(p: &Pending, folder: &Path) -> Error {
    let last = folder.join(checkpoint::FILE);
    let cure = if last.exists() {
        format!("lower the learning rate and resume from {}, or pass --skip-nonfinite", last.display())
    } else {
        "lower the learning rate, or pass --skip-nonfinite".into()
    };
    Error::of(Kind::NonFinite, "the loss or its gradient is NaN or infinite")
        .at(format!("step {}", p.step))
        .found(format!("captions {} ..", p.ids))
        .cure(cure)
}

/// One run a folder.
fn refuse_run(folder: &Path) -> Result<()> {
    if !folder.join(checkpoint::FILE).exists() && !folder.join("metrics.jsonl").exists() {
        return Ok(());
    }
    Err(Error::new("this folder holds a run already")
        .at(folder.display())
        .cure(format!("give another --logger_name, or go on with --resume {}", folder.display())))
}
