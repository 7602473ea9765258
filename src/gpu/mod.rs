//! The device: adapter choice, buffer pool, kernels, recorder, submitter and profile. Bytes and kernels, no tensors;
//! the only layer that names `wgpu`.

mod adapter;
mod choices;
mod kernel;
mod pool;
mod profile;
mod readback;
mod recorder;
mod submitter;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

pub(crate) use adapter::QUARTERS;
pub use adapter::{AdapterFacts, Class, Precision, Products, Style, adapters, choice, choose};
pub use choices::{Choices, Store, Ways};
pub use kernel::{Kernel, MAX_LOOP};
pub use pool::{Buf, Memory};
pub use profile::{KernelTime, SizeTime, Stats};
pub use readback::Reading;
pub use recorder::{Grid, Launch, Words};

use crate::error::{Error, Kind, Result};
use adapter::unknown;
use choices::Chooser;
use kernel::Pipelines;
use pool::Pool;
use profile::Profile;
use recorder::Recorder;
use submitter::Submitter;

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Index in [`adapters`], or part of an adapter's name; `None` takes the best.
    pub device: Option<String>,
    /// Ask for WebGPU's default limits and no optional features, even where the adapter offers more.
    pub default_limits: bool,
    /// The style of kernels; `None` takes `CROSSWEAVE_KERNELS` (direct, subgroup or workgroup), or else what suits
    /// the adapter.
    pub style: Option<Style>,
    /// How exactly products are computed; `None` takes `CROSSWEAVE_PRECISION` (f32 or f16), or else f32.
    pub precision: Option<Precision>,
    /// How f32 products are computed where the adapter has cooperative matrices; `None` takes `CROSSWEAVE_PRODUCTS`
    /// (fma or split), or else what is faster there.
    pub products: Option<Products>,
    /// Whether to measure which tiles are fastest; `None` takes `CROSSWEAVE_MEASURE` (0 or 1), or else GPUs do.
    pub measure: Option<bool>,
    /// Where measurements are remembered, such as [`crate::eval::choices::ChoicesFolder`]; `None` for the process alone.
    pub store: Option<Rc<dyn Store>>,
    /// Tiles that a run was begun with: it goes on with the same.
    pub choices: Choices,
    /// Time every kernel from the start (see [`Gpu::profile`]).
    pub profile: bool,
    /// Give every tensor fresh memory with guard words after it, all of them NaN, for
    /// [`Gpu::broken_guard`] (very slow, for tests).
    pub guards: bool,
    /// Compile kernels with wgpu's run-time checks (clamped indices, counted loops, guarded divisions), which they
    /// do without otherwise; `CROSSWEAVE_CHECKS=1` does the same. Slower, for tests.
    pub checks: bool,
}

/// A handle to one device with its queue, pool, kernels and recorder. Cheap to clone.
#[derive(Clone)]
pub struct Gpu(Rc<Shared>);

pub(crate) struct Shared {
    device: wgpu::Device,
    queue: wgpu::Queue,
    facts: AdapterFacts,
    style: Style,
    precision: Precision,
    products: Option<Products>,
    checks: bool,
    choices: RefCell<Chooser>,
    pool: RefCell<Pool>,
    recorder: RefCell<Recorder>,
    submitter: Submitter,
    pipelines: RefCell<Pipelines>,
    profile: RefCell<Profile>,
    /// The number of the next submission.
    epoch: Cell<u64>,
    /// Whether anything is recorded for it.
    recorded: Cell<bool>,
    /// Bytes of uploads since the last one.
    staged: Cell<u64>,
    /// Buffers that the CPU can read, for the next copies back.
    staging: RefCell<Vec<wgpu::Buffer>>,
    fault: Fault,
    /// How often recorded work became void.
    voided: Cell<u64>,
}

/// The first error the device reported and nobody has been told of yet. A lost device stays one.
type Fault = Arc<Mutex<Option<Error>>>;

impl Gpu {
    /// Opens the chosen adapter.
    ///
    /// # Errors
    /// No adapter, an unknown `device`, a style or precision that the adapter lacks, or a driver that refuses.
    pub fn open(options: &Options) -> Result<Self> {
        let adapter = choose(options.device.as_deref())?;
        let precision = match (options.precision, std::env::var("CROSSWEAVE_PRECISION")) {
            (None, Ok(name)) => name.parse()?,
            (precision, _) => precision.unwrap_or_default(),
        };
        let products = match (options.products, std::env::var("CROSSWEAVE_PRODUCTS")) {
            (None, Ok(name)) => Some(name.parse()?),
            (products, _) => products,
        };
        let (device, queue, facts) = adapter::open(&adapter, options.default_limits, precision, products)?;
        let asked = match (options.style, std::env::var("CROSSWEAVE_KERNELS")) {
            (None, Ok(name)) => Some(name.parse()?),
            (style, _) => style,
        };
        let style = facts.style(asked)?;
        let fault: Fault = Arc::default();
        let seen = fault.clone();
        device.on_uncaptured_error(Arc::new(move |e| report(&seen, device_error(e))));
        let seen = fault.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                report(
                    &seen,
                    Error::of(Kind::DeviceLost, format!("the device was lost: {message}"))
                        .cure("run again; `train --resume` goes on from the last checkpoint"),
                );
            }
        });
        let recorder = Recorder::new(&device, &facts);
        let asked = match std::env::var("CROSSWEAVE_MEASURE").as_deref() {
            Err(_) => None,
            Ok("1") => Some(true),
            Ok("0") => Some(false),
            Ok(other) => {
                return Err(unknown("tiles are measured or not", "CROSSWEAVE_MEASURE", "0 or 1", other));
            }
        };
        let choices = RefCell::new(Chooser::new(&facts, options.measure.or(asked), options));
        Ok(Self(Rc::new(Shared {
            pool: RefCell::new(Pool::new(options.guards)),
            recorder: RefCell::new(recorder),
            submitter: Submitter::new(&device, &queue, fault.clone())?,
            pipelines: RefCell::default(),
            profile: RefCell::new(Profile::new(options.profile)),
            epoch: Cell::new(1),
            recorded: Cell::new(false),
            staged: Cell::new(0),
            staging: RefCell::default(),
            device,
            queue,
            facts,
            style,
            precision,
            products,
            choices,
            checks: options.checks || std::env::var("CROSSWEAVE_CHECKS").is_ok_and(|v| v == "1"),
            fault,
            voided: Cell::new(0),
        })))
    }

    /// What is known of the adapter.
    pub fn facts(&self) -> &AdapterFacts {
        &self.0.facts
    }

    /// How kernels that come in several styles share their work.
    pub fn style(&self) -> Style {
        self.0.style
    }

    /// How exactly products are computed.
    pub fn precision(&self) -> Precision {
        self.0.precision
    }

    /// How f32 products are to be computed, where that was asked for.
    pub fn products(&self) -> Option<Products> {
        self.0.products
    }

    /// A buffer for `len` f32 values that a dispatch will fill. Past the adapter's binding limit the
    /// error is kept, dispatches do nothing, and the next [`Gpu::flush`] or [`Gpu::read`] returns it.
    pub fn alloc(&self, len: usize) -> Buf {
        pool::alloc(self, len, false)
    }

    /// A buffer holding `data`. It never overwrites memory that recorded, unsubmitted work still reads.
    pub fn upload(&self, data: &[f32]) -> Buf {
        self.upload_bytes(&[bytemuck::cast_slice(data)])
    }

    /// As [`Gpu::upload`], from the bytes of f32 values in this machine's order, in parts that follow each other
    /// and need no alignment: a mebibyte and more is copied once, into memory that the
    /// device reads.
    pub fn upload_bytes(&self, parts: &[&[u8]]) -> Buf {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        assert!(bytes.is_multiple_of(4), "{bytes} bytes of f32 values");
        let buf = pool::alloc(self, bytes / 4, true);
        if !self.faulted() && bytes > 0 {
            recorder::upload(self, buf.buffer(), parts, bytes);
        }
        buf
    }

    /// Records one dispatch.
    pub fn dispatch(&self, launch: &Launch) {
        recorder::dispatch(self, launch);
    }

    /// The way to run a kernel that is fastest for a class of sizes: as measured once for this adapter, where it
    /// measures. `run` records a way, by its place, and may be called several times.
    pub fn choose(&self, ways: &Ways, run: &mut dyn FnMut(usize)) -> usize {
        choices::choose(self, ways, run)
    }

    /// The tiles measured so far, or taken over.
    pub fn choices(&self) -> Choices {
        self.0.choices.borrow().known()
    }

    /// Keeps an error for the next [`Gpu::flush`] or [`Gpu::read`]; dispatches until then do nothing.
    pub fn refuse(&self, error: Error) {
        report(&self.0.fault, error);
    }

    /// Submits what is recorded.
    ///
    /// # Errors
    /// The first thing that went wrong on the device since the last call; the work recorded since is void.
    pub fn flush(&self) -> Result<()> {
        recorder::flush(self)
    }

    /// Waits until the device is idle.
    ///
    /// # Errors
    /// As [`Gpu::flush`].
    pub fn wait(&self) -> Result<()> {
        self.flush()?;
        recorder::wait(self)
    }

    /// Submits what is recorded and a copy of a buffer, and does not wait for it.
    ///
    /// # Errors
    /// As [`Gpu::flush`].
    pub fn begin_read(&self, buf: &Buf) -> Result<Reading> {
        buf.settle(self);
        readback::begin(self, buf)
    }

    /// Copies a buffer back.
    ///
    /// # Errors
    /// As [`Gpu::flush`].
    pub fn read(&self, buf: &Buf) -> Result<Vec<f32>> {
        self.begin_read(buf)?.finish()
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        let pool = self.0.pool.borrow();
        let pipelines = self.0.pipelines.borrow().len();
        let stats = self.0.profile.borrow().stats(&pool, pipelines);
        Stats {
            waited: stats.waited + self.0.submitter.waited(),
            submitting: self.0.submitter.busy(),
            ..stats
        }
    }

    /// Begins to time every kernel, or ends it. The adapter's own timestamps are read where it has them; else
    /// each dispatch is submitted and waited for, which is slow.
    pub fn profile(&self, on: bool) {
        self.0.profile.borrow_mut().switch(on);
    }

    /// Counts the peak of live memory from now on.
    pub fn reset_peak(&self) {
        let mut pool = self.0.pool.borrow_mut();
        pool.peak = pool.live;
    }

    /// Time per kernel, where [`Gpu::profile`] is on.
    pub fn kernel_times(&self) -> Vec<KernelTime> {
        self.0.profile.borrow().kernel_times()
    }

    /// Gives pooled, unused memory back to the driver.
    pub fn trim(&self) {
        recorder::forget_bindings(self);
        self.0.staging.borrow_mut().clear();
        self.0.pool.borrow_mut().trim();
    }

    /// Where [`Options::guards`] is on: what a kernel wrote past the end of a buffer dropped since the last
    /// call, if any did.
    ///
    /// # Errors
    /// As [`Gpu::flush`].
    pub fn broken_guard(&self) -> Result<Option<String>> {
        self.flush()?;
        pool::broken_guard(self)
    }

    /// Adds to the counters of work done, for the roofline.
    pub fn count(&self, flops: f64, bytes: f64) {
        self.0.profile.borrow_mut().count(flops, bytes);
    }

    /// Marks the device as lost, as a driver reset would (for tests of recovery).
    #[doc(hidden)]
    pub fn lose(&self) {
        report(&self.0.fault, Error::of(Kind::DeviceLost, "the device was lost: simulated"));
    }

    fn faulted(&self) -> bool {
        self.0.fault.lock().is_ok_and(|f| f.is_some())
    }

    fn take_fault(&self) -> Option<Error> {
        let mut fault = self.0.fault.lock().ok()?;
        if fault.as_ref().is_some_and(|e| e.kind() == Kind::DeviceLost) {
            fault.clone()
        } else {
            fault.take()
        }
    }
}

fn report(fault: &Fault, error: Error) {
    if let Ok(mut first) = fault.lock() {
        // What a lost device reports after its loss explains nothing.
        if error.kind() == Kind::DeviceLost && first.as_ref().is_none_or(|e| e.kind() != Kind::DeviceLost) {
            *first = Some(error);
        } else {
            first.get_or_insert(error);
        }
    }
}

fn device_error(e: wgpu::Error) -> Error {
    match e {
        wgpu::Error::OutOfMemory { .. } => {
            Error::of(Kind::OutOfMemory, "the device is out of memory").cure("use a smaller batch")
        }
        other => Error::of(Kind::Adapter, format!("the driver refused a command: {other}"))
            .cure("run `crossweave selftest` to see which op this driver gets wrong"),
    }
}
