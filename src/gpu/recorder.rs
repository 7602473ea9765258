//! The command stream: dispatches are kept as a list, which is encoded into one compute pass and submitted as a whole.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::kernel::{MAX_LOOP, Pipeline, pipeline};
use super::pool::is_void;
use super::profile::{Clock, Timed};
use super::readback::Copy;
use super::{AdapterFacts, Buf, Class, Gpu, Kernel, Style, report};
use crate::error::{Error, Kind, Result};

/// Bytes of parameters a kernel can declare.
const PARAM_BYTES: u64 = 1024;
/// Bytes of parameters one submission can hold.
const ARENA_BYTES: u64 = 1 << 18;
/// Dispatches after which recorded work is submitted, at most, and on GPUs: measured on an H200, where a training step
/// whose device waits less for the CPU took 4% to 6% less time, a small one 30%.
const FLUSH_AFTER: usize = 192;
const FLUSH_AFTER_ON_GPU: usize = 48;
/// Bytes of uploads after which they go to the device, so that copies of a whole model are not held at once.
const STAGED_BYTES: u64 = 64 << 20;
/// Bytes of an upload that are copied once more, so that it can wait its turn.
const SMALL_UPLOAD: usize = 1 << 20;
/// Bind groups kept; past it the cache starts anew.
const MAX_BINDINGS: usize = 1 << 14;
/// Workgroups along one axis.
const MAX_GROUPS: usize = 65_535;

/// Parameters as 32-bit words, in the order of the kernel's `Params`.
#[derive(Clone, Debug)]
pub struct Words(pub Vec<u32>);

/// None yet, with room for those of most kernels.
impl Default for Words {
    fn default() -> Self {
        Self(Vec::with_capacity(32))
    }
}

impl Words {
    /// Appends sizes or strides.
    #[track_caller]
    pub fn sizes(mut self, values: &[usize]) -> Self {
        for v in values {
            self.0.push(u32::try_from(*v).expect("sizes fit u32: bindings are smaller"));
        }
        self
    }

    /// Appends floats.
    pub fn floats(mut self, values: &[f32]) -> Self {
        self.0.extend(values.iter().map(|v| v.to_bits()));
        self
    }
}

/// One dispatch: the kernel, its variant, what it reads and writes, and how many invocations it needs.
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: Kernel,
    /// A generated body that replaces the kernel's text, and its hash.
    pub body: Option<(u64, &'a dyn Fn() -> String)>,
    /// Values of `override` constants.
    pub constants: &'a [(&'a str, f64)],
    /// Buffers only read.
    pub reads: &'a [&'a Buf],
    /// Buffers written (and perhaps read).
    pub writes: &'a [&'a Buf],
    /// The kernel's parameters.
    pub params: Words,
    /// How much of the kernel runs.
    pub grid: Grid,
    /// Loop iterations of the longest invocation, checked against [`MAX_LOOP`].
    pub loops: usize,
}

/// How much of a kernel a dispatch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// So many invocations, 64 a workgroup.
    Invocations(usize),
    /// So many invocations with much to do each: 8 a workgroup where the adapter is the CPU, whose cores take
    /// workgroups in turn and wait for the last.
    Heavy(usize),
    /// So many workgroups of the kernel's own size.
    Groups(usize),
}

impl Grid {
    /// Invocations of a workgroup, where the kernel does not fix them.
    pub(super) fn group(self, style: Style) -> usize {
        if matches!(self, Self::Heavy(_)) && style != Style::Workgroup { 8 } else { 64 }
    }

    /// Workgroups along x and y.
    fn groups(self, style: Style) -> [usize; 2] {
        let groups = match self {
            Self::Invocations(n) | Self::Heavy(n) => n.div_ceil(self.group(style)),
            Self::Groups(n) => n,
        };
        if groups <= MAX_GROUPS { [groups, 1] } else { [MAX_GROUPS, groups.div_ceil(MAX_GROUPS)] }
    }
}

struct Command {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    params: u32,
    groups: [u32; 2],
}

pub(super) struct Recorder {
    commands: Vec<Command>,
    /// What they are, for who times them.
    timed: Vec<Timed>,
    /// Made when profiling first needs it.
    clock: Option<Clock>,
    /// The dispatches of the last submission, where the clock ran.
    clocked: Vec<Timed>,
    arena: Vec<u8>,
    uniforms: wgpu::Buffer,
    /// By the layout's id, then each buffer's id and offset.
    bindings: HashMap<Box<[u64]>, wgpu::BindGroup>,
    /// The key looked up last; its memory serves the next.
    key: Vec<u64>,
    align: u64,
}

impl Recorder {
    pub(super) fn new(device: &wgpu::Device, facts: &AdapterFacts) -> Self {
        let uniforms = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: ARENA_BYTES + PARAM_BYTES,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Self {
            commands: Vec::new(),
            timed: Vec::new(),
            clock: None,
            clocked: Vec::new(),
            arena: Vec::new(),
            uniforms,
            bindings: HashMap::new(),
            key: Vec::new(),
            align: facts.uniform_align.max(16),
        }
    }
}

pub(super) fn dispatch(gpu: &Gpu, launch: &Launch) {
    let name = launch.kernel.name;
    assert!(launch.loops <= MAX_LOOP, "{name} would loop {} times in one invocation", launch.loops);
    let buffers = launch.reads.len() + launch.writes.len();
    assert!(buffers <= gpu.0.facts.buffers, "{name} binds {buffers} buffers");
    let groups = launch.grid.groups(gpu.0.style);
    if groups.contains(&0) || gpu.faulted() {
        return;
    }
    if launch.reads.iter().chain(launch.writes).any(|buf| is_void(gpu, buf)) {
        return;
    }
    assert!(groups.iter().all(|g| *g <= MAX_GROUPS), "{name}: {groups:?} workgroups");
    launch.reads.iter().chain(launch.writes).for_each(|buf| buf.settle(gpu));
    launch.writes.iter().for_each(|buf| buf.forget_derived());
    let pipeline = pipeline(gpu, launch);

    let mut recorder = gpu.0.recorder.borrow_mut();
    let bindings = bind_group(gpu, &mut recorder, &pipeline, launch);
    let params = recorder.arena.len() as u32;
    recorder.arena.extend_from_slice(bytemuck::cast_slice(&launch.params.0));
    assert!(recorder.arena.len() as u64 - u64::from(params) <= PARAM_BYTES, "{name}: too many parameters");
    let padded = (recorder.arena.len() as u64).next_multiple_of(recorder.align);
    recorder.arena.resize(padded as usize, 0);
    let groups = groups.map(|g| g as u32);
    let timed = gpu.0.profile.borrow_mut().next(name);
    recorder.commands.push(Command { pipeline: pipeline.pipeline.clone(), bindings, params, groups });
    gpu.0.recorded.set(true);
    let most = if gpu.0.facts.class == Class::Hardware { FLUSH_AFTER_ON_GPU } else { FLUSH_AFTER };
    let full = recorder.commands.len() >= most || padded + PARAM_BYTES > ARENA_BYTES;
    let profiling = gpu.0.profile.borrow().on;
    recorder.timed.push(timed);
    if full || (profiling && !has_clock(gpu)) {
        submit(gpu, &mut recorder);
        drop(recorder);
        note_times(gpu);
    }
}

/// Whether profiling reads the device's clock.
fn has_clock(gpu: &Gpu) -> bool {
    gpu.0.facts.timestamps
}

fn bind_group(gpu: &Gpu, rec: &mut Recorder, pipeline: &Pipeline, launch: &Launch) -> wgpu::BindGroup {
    let buffers = launch.reads.iter().chain(launch.writes);
    rec.key.clear();
    rec.key.push(pipeline.id);
    rec.key.extend(buffers.flat_map(|buf| [buf.memory.id, buf.offset]));
    let mut profile = gpu.0.profile.borrow_mut();
    if let Some(found) = rec.bindings.get(rec.key.as_slice()) {
        profile.bindings_reused += 1;
        return found.clone();
    }
    profile.bindings_made += 1;
    let mut entries: Vec<_> = launch
        .reads
        .iter()
        .chain(launch.writes)
        .enumerate()
        .map(|(i, buf)| wgpu::BindGroupEntry {
            binding: i as u32,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: buf.buffer(),
                offset: buf.offset,
                size: None,
            }),
        })
        .collect();
    entries.push(wgpu::BindGroupEntry {
        binding: entries.len() as u32,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &rec.uniforms,
            offset: 0,
            size: wgpu::BufferSize::new(PARAM_BYTES),
        }),
    });
    let made = gpu.0.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.layout,
        entries: &entries,
    });
    if rec.bindings.len() >= MAX_BINDINGS {
        rec.bindings.clear();
    }
    rec.bindings.insert(rec.key.as_slice().into(), made.clone());
    made
}

/// Sends bytes, in parts that follow each other, to a buffer that nothing recorded reads.
pub(super) fn upload(gpu: &Gpu, buffer: &wgpu::Buffer, parts: &[&[u8]], bytes: usize) {
    if bytes <= SMALL_UPLOAD {
        let (data, buffer) = (parts.concat(), buffer.clone());
        gpu.0.submitter.send(move |context| context.queue.write_buffer(&buffer, 0, &data));
    } else {
        // Submitted work may still read the buffer's memory: not what is yet to be submitted.
        gpu.0.submitter.finish();
        let size = wgpu::BufferSize::new(bytes as u64).expect("more than a small upload");
        let Some(mut staging) = gpu.0.queue.write_buffer_with(buffer, 0, size) else { return };
        let mut place = 0;
        for part in parts {
            staging.slice(place..place + part.len()).copy_from_slice(part);
            place += part.len();
        }
    }
    gpu.0.profile.borrow_mut().uploaded += bytes as u64;
    gpu.0.staged.set(gpu.0.staged.get() + bytes as u64);
    if gpu.0.staged.get() > STAGED_BYTES {
        gpu.0.submitter.finish();
        gpu.0.queue.submit([]);
        let _ = poll(gpu, wgpu::PollType::wait_indefinitely());
        gpu.0.staged.set(0);
    }
}

/// Waits for the device, and notes how long that took the CPU.
fn poll(gpu: &Gpu, how: wgpu::PollType) -> std::result::Result<wgpu::PollStatus, wgpu::PollError> {
    let started = Instant::now();
    let polled = gpu.0.device.poll(how);
    gpu.0.profile.borrow_mut().waited += started.elapsed();
    polled
}

fn submit(gpu: &Gpu, rec: &mut Recorder) {
    if rec.commands.is_empty() {
        return;
    }
    let (commands, arena) = (std::mem::take(&mut rec.commands), std::mem::take(&mut rec.arena));
    let (uniforms, profiling) = (rec.uniforms.clone(), gpu.0.profile.borrow().on);
    let clock = || Clock::new(&gpu.0.device, &gpu.0.queue, FLUSH_AFTER);
    let clock = (profiling && has_clock(gpu)).then(|| rec.clock.get_or_insert_with(clock).clone());
    let timed = std::mem::take(&mut rec.timed);
    rec.clocked = if profiling { timed } else { Vec::new() };
    gpu.0.submitter.send(move |context| {
        context.queue.write_buffer(&uniforms, 0, &arena);
        let mut encoder = context.device.create_command_encoder(&Default::default());
        match clock {
            Some(clock) => {
                for (i, command) in commands.iter().enumerate() {
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                        label: None,
                        timestamp_writes: Some(clock.around(i as u32)),
                    });
                    encode(&mut pass, command);
                }
                clock.resolve(&mut encoder, commands.len() as u32);
            }
            None => {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                commands.iter().for_each(|command| encode(&mut pass, command));
            }
        }
        context.submit(encoder.finish());
    });
    gpu.0.epoch.set(gpu.0.epoch.get() + 1);
    gpu.0.recorded.set(false);
    gpu.0.staged.set(0);
    gpu.0.profile.borrow_mut().submissions += 1;
}

fn encode(pass: &mut wgpu::ComputePass, command: &Command) {
    pass.set_pipeline(&command.pipeline);
    pass.set_bind_group(0, &command.bindings, &[command.params]);
    pass.dispatch_workgroups(command.groups[0], command.groups[1], 1);
}

/// When profiling: what each dispatch of the last submission took.
fn note_times(gpu: &Gpu) {
    let clocked = std::mem::take(&mut gpu.0.recorder.borrow_mut().clocked);
    if clocked.is_empty() {
        return;
    }
    if !has_clock(gpu) {
        gpu.0.submitter.finish();
        let started = Instant::now();
        let _ = poll(gpu, wgpu::PollType::wait_indefinitely());
        let share = started.elapsed() / clocked.len() as u32;
        clocked.iter().for_each(|timed| gpu.0.profile.borrow_mut().add(timed, share));
        return;
    }
    let Some((resolved, period)) =
        gpu.0.recorder.borrow().clock.as_ref().map(|c| (c.resolved.clone(), c.period))
    else {
        return;
    };
    match Copy::begin(gpu, &resolved, 0, 16 * clocked.len() as u64).finish() {
        Ok(words) => {
            let ticks = |low: usize| u64::from(words[low]) | u64::from(words[low + 1]) << 32;
            for (i, timed) in clocked.iter().enumerate() {
                let taken = ticks(4 * i + 2).saturating_sub(ticks(4 * i));
                let time = Duration::from_nanos((taken as f64 * period) as u64);
                gpu.0.profile.borrow_mut().add(timed, time);
            }
        }
        // The work's own error, not the clock's: whoever flushes next is told.
        Err(e) => report(&gpu.0.fault, e),
    }
}

pub(super) fn flush(gpu: &Gpu) -> Result<()> {
    sound(gpu)?;
    submit(gpu, &mut gpu.0.recorder.borrow_mut());
    note_times(gpu);
    sound(gpu)
}

/// What went wrong since the last call, if anything did: what is recorded is then void.
pub(super) fn sound(gpu: &Gpu) -> Result<()> {
    let Some(fault) = gpu.take_fault() else { return Ok(()) };
    gpu.0.voided.set(gpu.0.voided.get() + 1);
    let mut recorder = gpu.0.recorder.borrow_mut();
    recorder.commands.clear();
    recorder.timed.clear();
    recorder.arena.clear();
    gpu.0.recorded.set(false);
    Err(fault)
}

pub(super) fn wait(gpu: &Gpu) -> Result<()> {
    gpu.0.submitter.finish();
    poll(gpu, wgpu::PollType::wait_indefinitely()).map_err(|e| lost(&e.to_string()))?;
    sound(gpu)
}

/// Waits for a submission and those before it.
pub(super) fn wait_for(gpu: &Gpu, submission: wgpu::SubmissionIndex) -> Result<()> {
    poll(gpu, wgpu::PollType::Wait { submission_index: Some(submission), timeout: None })
        .map_err(|e| lost(&e.to_string()))?;
    sound(gpu)
}

pub(super) fn forget_bindings(gpu: &Gpu) {
    gpu.0.recorder.borrow_mut().bindings.clear();
}

pub(super) fn lost(message: &str) -> Error {
    Error::of(Kind::DeviceLost, format!("the device stopped answering: {message}"))
        .cure("run again; `train --resume` goes on from the last checkpoint")
}
