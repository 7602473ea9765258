//! The training loop: the system's schedule, with a true resume.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::checkpoint::{self, State};
use super::checks::{Splits, now, refuse_run, resumed_with};
use super::lock::Lock;
use super::metrics::{self, MetricsLog};
use super::options::{BertDropout, Select, TrainOptions};
use super::recovery::Recovery;
use super::results::{Pending, Read, Results};
use super::tensorboard::EventWriter;
use super::{Ending, Event, begin};
use crate::data::batches::{Batch, Sampler, SamplerOptions};
use crate::data::dataset::Dataset;
use crate::data::prefetch::{Placed, Prefetch};
use crate::data::tokenizer::TokenTable;
use crate::error::{Error, Kind, Result};
use crate::eval::choices::remembering;
use crate::eval::encoded::{Encoded, Scored, check_batch, training_tile};
use crate::eval::model::{Model, is_trained};
use crate::eval::rank::{Metrics, Sims};
use crate::eval::text_cache::{Captions, TextCache};
use crate::gpu::{Gpu, Options};
use crate::nn::ParamSpec;
use crate::nn::optim::{Optimizer, take_buffers};
use crate::systems::{self, Items, Pass, Step};
use crate::tensor::{Device, Tape, Tensor};

/// Ids named of a batch that went wrong.
const NAMED: usize = 16;

/// Trains as the options say, telling what happens; ends after the step during which `stop` is set. When the device
/// is lost it goes on from the last checkpoint.
///
/// # Errors
/// Bad input, a device that fails again and again, a loss that is not finite.
pub fn train(mut options: TrainOptions, stop: &AtomicBool, tell: &mut dyn FnMut(Event)) -> Result<()> {
    let mut recovery = Recovery::default();
    loop {
        match attempt(&options, stop, tell) {
            Err(e) => recovery.after(e, &mut options, tell)?,
            Ok(()) => return Ok(()),
        }
    }
}

/// Trains until the end, or until something fails.
fn attempt(options: &TrainOptions, stop: &AtomicBool, tell: &mut dyn FnMut(Event)) -> Result<()> {
    let run = options.run.resume.as_ref();
    let gpu = Gpu::open(&Options {
        // A run that cannot be gone on with says so below.
        choices: run.and_then(|run| checkpoint::choices(run).ok()).unwrap_or_default(),
        profile: std::env::var_os("CROSSWEAVE_PROFILE").is_some(),
        ..remembering(options.run.device.as_deref(), options.fixed.precision)
    })?;
    let mut session = Session::open(options, Device::Gpu(gpu.clone()), stop, tell)?;
    let ending = session.run(tell)?;
    if options.run.stats {
        tell(Event::notice(session.results.rate()));
        tell(Event::notice(gpu.stats().to_string()));
        gpu.kernel_times().iter().for_each(|row| tell(Event::notice(row.to_string())));
    }
    let (run, state) = (session.folder.clone(), &session.state);
    let best = state.best.map(|(_, step, metrics)| (step, metrics));
    tell(Event::Done { ending, run, step: state.step, seconds: state.seconds, best });
    Ok(())
}

/// A fresh model, or that of the run to go on with, whose weights are to be loaded yet.
fn model_of(options: &TrainOptions, data: &Dataset, device: &Device) -> Result<Model> {
    let folder = options.run_folder();
    let mut model = begin::fresh(options, data, device)?;
    if options.run.resume.is_some() {
        model.resume(&folder)?;
    }
    Ok(model)
}

/// The optimiser and where the run is: those of its last checkpoint, with the model's weights, or fresh ones for
/// captions of so many words at most.
fn state_of(
    options: &TrainOptions,
    model: &mut Model,
    (regions, words): (usize, usize),
    device: &Device,
) -> Result<(Optimizer, State)> {
    let (inputs, batch) = (model.system.inputs(), options.fixed.batch_size);
    let captions = batch * (1 + inputs.extra_captions);
    check_batch(&*model.system, captions, words, device)?;
    let mut optimizer = Optimizer::default();
    if options.run.resume.is_some() {
        let folder = options.run_folder();
        let state = checkpoint::load(&folder, model, &mut optimizer, options.trains_text())?;
        return Ok((optimizer, state));
    }
    let images = batch * (1 + inputs.extra_images);
    let fits = training_tile(&*model.system, images, captions, regions, words, device);
    Ok((optimizer, State::begin(options.fixed.tile.unwrap_or(fits))))
}

struct Session<'a> {
    options: &'a TrainOptions,
    stop: &'a AtomicBool,
    /// Held as long as the run is written.
    _lock: Option<Lock>,
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
    results: Results,
    log: MetricsLog,
    events: EventWriter,
    started: Instant,
    seconds_before: f64,
    /// Steps done before this session.
    begun_at: u64,
}

impl<'a> Session<'a> {
    fn open(
        options: &'a TrainOptions,
        device: Device,
        stop: &'a AtomicBool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Self> {
        let folder = options.run_folder();
        let resumes = options.run.resume.is_some();
        let mut lock = if resumes { Lock::take(&folder)? } else { None };
        let mut splits = Splits::open(options, tell)?;
        let begun = if resumes { Some(resumed_with(options)?) } else { None };
        if !resumes {
            refuse_run(options)?;
        }
        let mut model = model_of(options, &splits.train, &device)?;
        let [tokens, dev_tokens] = splits.prepare(&model, tell)?;
        let begun = match begun {
            Some(begun) => begun,
            None => now(options, &*model.system, &model.tokenizer)?,
        };
        let sizes = (splits.train.regions(), tokens.words());
        let (optimizer, state) = state_of(options, &mut model, sizes, &device)?;
        let inputs = model.system.inputs();
        let sampling = SamplerOptions {
            boxes_again: inputs.boxes_again.map(|_| splits.train.captions_per_row()),
            ..SamplerOptions::new(&inputs, options.fixed.batch_size, options.fixed.seed)
        };
        let tokens = Arc::new(tokens);
        let sampler = Sampler::new(splits.train.captions_per_image(), tokens.clone(), sampling)?;
        // All that is read is sound. Everything that is written comes next, before any long work.
        if !resumes {
            std::fs::create_dir_all(&folder).map_err(|e| Error::io("make the run's folder", &folder, &e))?;
            lock = Lock::take(&folder)?;
            refuse_run(options)?;
        }
        let logs = options.log_folder();
        std::fs::create_dir_all(&logs).map_err(|e| Error::io("make the folder of the logs", &logs, &e))?;
        let resumed_at = resumes.then_some(state.step);
        let log = MetricsLog::open(&logs.join(metrics::FILE), resumed_at)?;
        model.write_config(&folder, &options.stored(), &begun)?;
        if !resumes {
            // From here on the run can be resumed, whenever it is killed.
            checkpoint::save(&folder, &model, &optimizer, &state, options.trains_text())?;
        }
        let events = EventWriter::create(&logs, resumed_at.map(|s| s + 1))?;
        splits.keep_pictures(&folder, &model, &|| stop.load(Ordering::Relaxed), tell)?;
        let Splits { train, dev } = splits;
        let states = if options.fixed.cache_text {
            let mut open = |split, data, tokens| {
                let captions = Captions { split, data, tokens };
                let stop = || stop.load(Ordering::Relaxed);
                let tell = &mut |p| tell(Event::Progress(p));
                TextCache::open(&folder, &options.run.bert_path, &captions, &model, &device, &stop, tell)
            };
            Some((open("train", &train, &tokens)?, open(&options.fixed.dev_split, &dev, &dev_tokens)?))
        } else {
            None
        };
        let steps_per_epoch = sampler.steps_per_epoch();
        let described = train.describe();
        let (epoch, step) = (state.step / steps_per_epoch, state.step % steps_per_epoch);
        let ahead = options.run.workers.max(1);
        let batches = Prefetch::start(Arc::new(train), inputs, sampler, epoch, step, ahead)?;
        let trained = model.specs.iter().filter(|s| is_trained(s, options.trains_text()));
        tell(Event::Start {
            run: folder.clone(),
            logs,
            device: device.gpu().map_or_else(|| "host".into(), |g| g.facts().name.clone()),
            data: described,
            parameters: trained.map(|s| s.shape.len()).sum(),
            epochs: options.run.num_epochs as u64,
            steps: steps_per_epoch * options.run.num_epochs as u64,
            resumed_at,
        });
        Ok(Self {
            options,
            stop,
            _lock: lock,
            log,
            events,
            seconds_before: state.seconds,
            begun_at: state.step,
            results: Results::new(state.step, &device),
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
            started: Instant::now(),
        })
    }

    fn steps(&self) -> u64 {
        self.steps_per_epoch * self.options.run.num_epochs as u64
    }

    /// Whether a validation belongs after this many steps.
    fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.steps_per_epoch) || step.is_multiple_of(self.options.run.val_step as u64)
    }

    /// Validations that belong after earlier steps than this one.
    fn validations_before(&self, step: u64) -> u64 {
        let (epoch, often) = (self.steps_per_epoch, self.options.run.val_step as u64);
        let before = step.saturating_sub(1);
        let both = (1..=before / epoch).filter(|n| (n * epoch).is_multiple_of(often)).count() as u64;
        before / epoch + before / often - both
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
            // A run that was killed between its last checkpoint and its end has nothing left to do.
            if self.is_at_step_limit() {
                return Ok(Ending::StepLimit);
            }
            let placed = self.batches.next_batch()?;
            self.step(&placed)?;
            // What was read after an earlier step: the device has this one to do meanwhile.
            self.finish_reading(tell)?;
            if self.results.is_full() || self.state.step.is_multiple_of(self.options.run.log_step as u64) {
                self.results.begin()?;
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
        } else if self.is_at_step_limit() {
            Some(Ending::StepLimit)
        } else if self.options.run.time_limit.is_some_and(over) {
            Some(Ending::TimeLimit)
        } else {
            None
        }
    }

    fn is_at_step_limit(&self) -> bool {
        self.options.run.max_steps.is_some_and(|n| self.state.step >= n)
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    fn step(&mut self, placed: &Placed) -> Result<()> {
        let (batch, step) = (&placed.batch, self.state.step);
        let (options, system) = (self.options, &*self.model.system);
        let tape = Tape::new();
        let with_text = options.trains_text();
        let schedule = system.schedule(&options.rates(), placed.epoch, step);
        // What is frozen in this epoch needs no gradient.
        let moves = |s: &ParamSpec| is_trained(s, with_text) && schedule.rate(s.group).is_some();
        let moving: HashSet<&str> =
            self.model.specs.iter().filter(|s| moves(s)).map(|s| s.name.as_str()).collect();
        let params = self.model.params.tracked(&tape, |name| moving.contains(name));
        let text_dropout = options.fixed.bert_dropout == BertDropout::Auto;
        let at = Step { seed: options.fixed.seed, epoch: placed.epoch, step, text_dropout };
        let pass = Pass::training(params.root(), at).computed(system.form(), self.state.tile);
        let images = system.images(&pass, &Items::upload(&batch.images, &self.device));
        let captions = system.captions(&pass, &self.captions(batch)?);
        let about = systems::Batch { image_ids: &batch.image_ids, given: None };
        let loss = system.loss(&pass, &images, &captions, &about);
        let buffers = pass.into_buffers();
        let grads = tape.backward(&loss.total);
        let named: Vec<(String, Tensor)> = self
            .model
            .specs
            .iter()
            .filter_map(|s| Some((s.name.clone(), grads.of(params.named(&s.name))?.clone())))
            .collect();
        let lr = schedule.rates.first().map_or(0.0, |(_, rate)| *rate);
        let squares =
            self.optimizer.step(&mut self.model.params, &named, &schedule.adam(), &|g| schedule.rate(g));
        take_buffers(&mut self.model.params, &buffers, &squares);
        let ids: Vec<String> = batch.caption_ids.iter().take(NAMED).map(ToString::to_string).collect();
        let terms = loss.terms.iter().map(|(name, _)| *name).collect();
        let pairs = (batch.images.len() * batch.captions.len()) as u64;
        self.state.step += 1;
        let pending = Pending { step: self.state.step, lr, terms, ids: ids.join(" "), pairs };
        self.results.note(pending, &loss, &squares);
        if let Some(gpu) = self.device.gpu() {
            if options.run.lose_device.first() == Some(&self.state.step) {
                gpu.lose();
            }
            gpu.flush().map_err(|e| self.explain(e, batch))?;
        }
        Ok(())
    }

    /// A batch's captions on the device, with the text states that are kept of them.
    fn captions(&self, batch: &Batch) -> Result<Items> {
        let items = Items::upload(&batch.captions, &self.device);
        Ok(match &self.states {
            Some((states, _)) => {
                items.with("states", states.upload(&batch.caption_ids, batch.words, &self.device)?)
            }
            None => items,
        })
    }

    /// Out of memory: says what would fit.
    fn explain(&self, e: Error, batch: &Batch) -> Error {
        if e.kind() != Kind::OutOfMemory {
            return e;
        }
        let fewer = (self.options.fixed.batch_size / 2).max(1);
        let (images, captions) = (batch.images.len(), batch.captions.len());
        let cure = format!(
            "use --batch_size {fewer} or less (this batch has {images} images and {captions} captions)"
        );
        // Where one product scores all pairs there is no tile to make smaller.
        match self.model.system.pair_values(1, 1) {
            0 => e.cure(cure),
            _ => e.cure(format!("{cure}, or --tile below {}", self.state.tile)),
        }
    }

    /// Reads what all steps so far gave, and writes it down.
    fn read_back(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        self.finish_reading(tell)?;
        self.results.begin()?;
        self.finish_reading(tell)
    }

    /// Writes down what was begun to be read, if anything was.
    fn finish_reading(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let Some(Read { steps, pairs_per_second }) = self.results.finish()? else { return Ok(()) };
        let mut last = None;
        for (p, values) in steps {
            let (loss, norm, terms) = p.split(&values);
            if ![&[loss, norm], terms].concat().iter().all(|x| x.is_finite()) {
                let error = nonfinite(&p, &self.folder);
                if !self.options.run.skip_nonfinite {
                    return Err(error);
                }
                tell(Event::notice(format!("step {} left out: {error}", p.step)));
                self.log.append(&json!({"step": p.step, "skipped": true}))?;
                continue;
            }
            let terms: Vec<(&'static str, f32)> =
                p.terms.iter().copied().zip(terms.iter().copied()).collect();
            self.write_down(&p, loss, norm, &terms)?;
            last = Some((p.step, p.lr, loss, norm, terms));
        }
        let Some((step, lr, loss, norm, terms)) = last else { return Ok(()) };
        let done = self.started.elapsed().as_secs_f64();
        let left = (self.steps() - step) as f64;
        let trained = step.saturating_sub(self.begun_at).max(1) as f64;
        let mut eta = done / trained * left;
        if let Some(limit) = self.options.run.time_limit {
            eta = eta.min((limit - self.seconds()).max(0.0));
        }
        tell(Event::Step {
            epoch: (step - 1) / self.steps_per_epoch + 1,
            step,
            steps: self.steps(),
            loss: loss.into(),
            terms: terms.iter().map(|(name, value)| (*name, (*value).into())).collect(),
            grad_norm: norm.into(),
            lr,
            pairs_per_second,
            eta_seconds: eta,
        });
        Ok(())
    }

    fn write_down(&mut self, p: &Pending, loss: f32, norm: f32, terms: &[(&'static str, f32)]) -> Result<()> {
        let epoch = (p.step - 1) / self.steps_per_epoch + 1;
        let mut row = json!({"step": p.step, "epoch": epoch, "lr": p.lr, "loss": loss, "grad_norm": norm});
        let mut scalars = vec![
            ("train/loss".into(), loss),
            ("train/grad_norm".into(), norm),
            ("train/lr".into(), p.lr as f32),
        ];
        for (name, value) in terms {
            row[format!("loss_{name}")] = Value::from(*value);
            scalars.push((format!("train/loss_{name}"), *value));
        }
        self.log.append(&row)?;
        self.events.scalars(p.step, &scalars)
    }

    fn validate(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let stop = || self.stop.load(Ordering::Relaxed);
        let states = self.states.as_ref().map(|(_, dev)| dev);
        let how = Scored { folds: false, before: self.validations_before(self.state.step) };
        let scored = Encoded::new(&self.model, &self.dev, &self.dev_tokens, states, how, &self.device, &stop)
            .and_then(|e| e.score(&self.model, &self.device, None, &stop, &mut |p| tell(Event::Progress(p))));
        let sims = match scored {
            // The step is done; its checkpoint must not be lost for want of a validation.
            Err(e) if e.kind() == Kind::Interrupted => return self.save(tell),
            other => other?,
        };
        if let Some(gpu) = self.device.gpu() {
            // Tiles take large buffers that no step will.
            gpu.trim();
        }
        let metrics = Sims::new(&sims, self.dev.images(), self.dev.captions_per_image())?.metrics();
        let value = match self.options.fixed.select {
            Select::R1 => metrics.r1(),
            Select::R1r5 => metrics.r1r5(),
            Select::Rsum => metrics.rsum(),
        };
        let best = self.state.best.is_none_or(|(before, ..)| value > before);
        let step = self.state.step;
        self.record(step, &metrics)?;
        if best {
            self.state.best = Some((value, step, metrics));
            self.model.write_weights(&self.folder.join("model.safetensors"))?;
        }
        let split = self.options.fixed.dev_split.clone();
        tell(Event::Validation { split, step, metrics, best });
        self.save(tell)?;
        self.results.rested();
        Ok(())
    }

    fn record(&mut self, step: u64, m: &Metrics) -> Result<()> {
        let row = json!({"step": step, "val": {
            "rsum": m.rsum(), "r1r5": m.r1r5(), "i2t": m.i2t, "t2i": m.t2i,
        }});
        self.log.append(&row)?;
        let scalars = [
            ("val/rsum", m.rsum()),
            ("val/i2t_r1", m.i2t.r1),
            ("val/i2t_r5", m.i2t.r5),
            ("val/i2t_r10", m.i2t.r10),
            ("val/t2i_r1", m.t2i.r1),
            ("val/t2i_r5", m.t2i.r5),
            ("val/t2i_r10", m.t2i.r10),
        ]
        .map(|(tag, value)| (tag.to_string(), value as f32));
        self.events.scalars(step, &scalars)
    }

    /// Writes the state, the last of what a moment leaves on the disk: the rows of metrics are forced there first, and so
    /// are, by their own replacement, better weights. Power may fail anywhere between. Rows past the state that is then
    /// the last are cut when the run goes on and written again, bit for bit; weights that are newer than the state are
    /// those that the same steps and the same validation write again. A state never refers to what is not there yet.
    fn save(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        self.log.sync()?;
        self.state.seconds = self.seconds();
        self.state.choices = self.device.gpu().map(Gpu::choices).unwrap_or_default();
        checkpoint::save(
            &self.folder,
            &self.model,
            &self.optimizer,
            &self.state,
            self.options.trains_text(),
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
