//! Buffers in size classes. A dropped buffer returns at once: commands run in the order they are recorded,
//! so a later dispatch may overwrite it. Only the CPU's writes overtake recorded work, and they are kept off
//! memory that such work may read.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};

use super::{Gpu, Shared, report};
use crate::error::{Error, Kind};

/// Device memory of one size class, returned to the pool when the last [`Buf`] of it goes.
pub struct Memory {
    pub(super) buffer: wgpu::Buffer,
    pub(super) id: u64,
    bytes: u64,
    valid: bool,
    /// What was asked for, which a kernel may write; the rest of `bytes` is not its own.
    asked: u64,
    home: Weak<Shared>,
    /// What was computed from parts of it (offset, values) since it was last written.
    derived: RefCell<Vec<Derived>>,
    /// What its values are the sum of, while that is not recorded.
    unsummed: RefCell<Option<Unsummed>>,
}

/// A sum that is not recorded before someone reads it.
struct Unsummed {
    /// `[count, len]`
    parts: Buf,
    count: usize,
    /// Records the sum of so many parts.
    sum: Sum,
}

/// What records the sum of `count` parts, each as long as the result, and its arguments: the parts, the result, `count`.
pub type Sum = fn(&Gpu, &Buf, &Buf, usize);

struct Derived {
    place: (u64, usize),
    values: Buf,
    /// How often recorded work had become void: what computes it may have been among that of a later time.
    voided: u64,
}

/// `len` f32 values at an offset in a piece of [`Memory`]. Cheap to clone.
#[derive(Clone)]
pub struct Buf {
    pub(super) memory: Rc<Memory>,
    pub(super) offset: u64,
    len: usize,
}

impl Buf {
    /// The number of f32 values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.memory.buffer
    }

    /// The device it is on; `None` once that is gone.
    pub fn gpu(&self) -> Option<Gpu> {
        self.memory.home.upgrade().map(Gpu)
    }

    /// Whether both are the same values in memory.
    pub fn same(&self, other: &Self) -> bool {
        self.memory.id == other.memory.id && self.offset == other.offset
    }

    /// This and the values of `next`, if they are contiguous.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let contiguous = self.memory.id == next.memory.id && self.offset + 4 * self.len as u64 == next.offset;
        contiguous.then(|| Self {
            memory: self.memory.clone(),
            offset: self.offset,
            len: self.len + next.len,
        })
    }

    /// `len` values from where this begins, if its memory has so many.
    pub fn extended(&self, len: usize) -> Option<Self> {
        let fits = self.offset + 4 * len as u64 <= self.memory.asked;
        fits.then(|| Self { memory: self.memory.clone(), offset: self.offset, len })
    }

    /// The id of its memory, and its offset there.
    pub fn place(&self) -> (u64, u64) {
        (self.memory.id, self.offset)
    }

    /// What `f` computes from these values, kept until a dispatch writes their memory.
    pub fn derived(&self, gpu: &Gpu, f: impl FnOnce() -> Self) -> Self {
        let (place, voided) = ((self.offset, self.len), gpu.0.voided.get());
        let mut derived = self.memory.derived.borrow_mut();
        derived.retain(|d| d.voided == voided);
        if let Some(kept) = derived.iter().find(|d| d.place == place) {
            return kept.values.clone();
        }
        drop(derived);
        let values = f();
        if !gpu.faulted() {
            self.memory.derived.borrow_mut().push(Derived { place, values: values.clone(), voided });
        }
        values
    }

    /// Forgets what was computed from its memory, as if that was written.
    pub fn forget_derived(&self) {
        self.memory.derived.borrow_mut().clear();
    }

    /// Its values, all of its memory's, are the sum of `count` parts, which `sum` records once someone reads them.
    pub fn sum_later(&self, parts: Self, count: usize, sum: Sum) {
        assert!(
            self.offset == 0 && 4 * self.len as u64 == self.memory.asked,
            "a sum of a part of its memory"
        );
        *self.memory.unsummed.borrow_mut() = Some(Unsummed { parts, count, sum });
    }

    /// Where its values are a sum that is not recorded: the first part's values from this place on, how many parts there
    /// are, and how far apart they are, for who sums them himself.
    pub fn parts(&self) -> Option<(Self, usize, usize)> {
        let unsummed = self.memory.unsummed.borrow();
        let Unsummed { parts, count, .. } = unsummed.as_ref()?;
        let first = Self { memory: parts.memory.clone(), offset: parts.offset + self.offset, len: self.len };
        Some((first, *count, self.memory.asked as usize / 4))
    }

    /// Records its sum, if that is yet to be; not while a fault makes void what is recorded.
    pub fn settle(&self, gpu: &Gpu) {
        if gpu.faulted() {
            return;
        }
        let unsummed = self.memory.unsummed.borrow_mut().take();
        if let Some(Unsummed { parts, count, sum }) = unsummed {
            let len = self.memory.asked as usize / 4;
            sum(gpu, &parts, &Self { memory: self.memory.clone(), offset: 0, len }, count);
        }
    }

    /// `len` values from `start` without a copy, where the adapter can bind at that offset.
    pub fn part(&self, start: usize, len: usize) -> Option<Self> {
        assert!(start + len <= self.len, "part {start}+{len} of a buffer of {}", self.len);
        let offset = self.offset + 4 * start as u64;
        let align = self.memory.home.upgrade()?.facts.storage_align;
        offset.is_multiple_of(align).then(|| Self { memory: self.memory.clone(), offset, len })
    }
}

struct Free {
    buffer: wgpu::Buffer,
    /// The last submission that may read it.
    read: u64,
}

/// Free memory by size class, with counters.
#[derive(Default)]
pub(super) struct Pool {
    /// By size class, then by id: taking the lowest repeats a step's choices in the next, so that its bind
    /// groups are found again.
    free: HashMap<u64, BTreeMap<u64, Free>>,
    next: u64,
    pub(super) live: u64,
    pub(super) pooled: u64,
    pub(super) peak: u64,
    pub(super) created: u64,
    /// Where [`super::Options::guards`] is on: every buffer dropped since the last check, and its own bytes.
    guarded: Option<Vec<(wgpu::Buffer, u64)>>,
}

/// What a guarded buffer holds until a kernel writes it: a NaN, so that reading it shows.
const GUARD: u32 = 0x7fc0_5eed;
/// Guarded bytes after every buffer.
const GUARD_BYTES: u64 = 256;

impl Pool {
    pub(super) fn new(guards: bool) -> Self {
        Self { guarded: guards.then(Vec::new), ..Self::default() }
    }

    pub(super) fn trim(&mut self) {
        self.free.clear();
        self.pooled = 0;
    }
}

/// Powers of two with one step between, seven where memory counts: at most a third is wasted, an eighth from
/// [`LARGE`] on.
fn class_of(bytes: u64) -> u64 {
    let bytes = bytes.max(256);
    let power = bytes.next_power_of_two();
    let step = if bytes > LARGE { power / 16 } else { power / 4 };
    bytes.next_multiple_of(step)
}

/// Bytes from which size classes are closer.
const LARGE: u64 = 1 << 20;

/// The largest buffer this adapter can make and bind.
fn largest(gpu: &Gpu) -> u64 {
    gpu.0.facts.max_binding.min(gpu.0.facts.max_buffer)
}

fn too_large(gpu: &Gpu, bytes: u64) -> Error {
    Error::of(Kind::OutOfMemory, "a tensor is larger than this adapter can bind")
        .expected(format!("at most {} bytes (max_storage_buffer_binding_size)", largest(gpu)))
        .found(format!("{bytes} bytes"))
        .cure("use a smaller batch or tile")
}

/// Reports a buffer that got no memory because it was too large; whether it is one.
pub(super) fn is_void(gpu: &Gpu, buf: &Buf) -> bool {
    let void = buf.memory.asked > buf.memory.bytes;
    if void {
        report(&gpu.0.fault, too_large(gpu, buf.memory.asked));
    }
    void
}

pub(super) fn alloc(gpu: &Gpu, len: usize, upload: bool) -> Buf {
    let wanted = 4 * len as u64;
    let limit = largest(gpu);
    let over = wanted > limit;
    if over {
        report(&gpu.0.fault, too_large(gpu, wanted));
    }
    let epoch = gpu.0.epoch.get();
    let mut pool = gpu.0.pool.borrow_mut();
    let guards = pool.guarded.is_some();
    let bytes = match (over, guards) {
        (true, _) => 256,
        (false, true) => wanted + GUARD_BYTES,
        (false, false) => class_of(wanted).min(limit / 4 * 4),
    };
    let slots = pool.free.entry(bytes).or_default();
    let id = slots.iter().find(|(_, f)| !upload || f.read < epoch).map(|(id, _)| *id);
    let found = id.and_then(|id| Some((id, slots.remove(&id)?)));
    if found.is_some() {
        pool.pooled -= bytes;
    }
    pool.live += bytes;
    pool.peak = pool.peak.max(pool.live);
    let (buffer, id, valid) = match found {
        Some((id, free)) => (free.buffer, id, true),
        None => {
            pool.created += 1;
            pool.next += 1;
            let id = pool.next;
            drop(pool);
            let buffer = gpu.0.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: bytes,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_DST
                    | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            if guards {
                let fill = vec![GUARD; (bytes / 4) as usize];
                gpu.0.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&fill));
            }
            (buffer, id, !gpu.faulted())
        }
    };
    let memory = Memory {
        buffer,
        id,
        bytes,
        valid,
        asked: wanted,
        home: Rc::downgrade(&gpu.0),
        derived: RefCell::default(),
        unsummed: RefCell::default(),
    };
    Buf { memory: Rc::new(memory), offset: 0, len }
}

/// The first buffer dropped since the last check whose guard a kernel overwrote, as a text.
pub(super) fn broken_guard(gpu: &Gpu) -> crate::error::Result<Option<String>> {
    let guarded = gpu.0.pool.borrow_mut().guarded.as_mut().map(std::mem::take).unwrap_or_default();
    for (buffer, asked) in guarded {
        let tail = super::readback::Copy::begin(gpu, &buffer, asked, buffer.size() - asked).finish()?;
        if let Some(at) = tail.iter().position(|word| *word != GUARD) {
            return Ok(Some(format!("word {at} past a buffer of {asked} bytes holds {:#x}", tail[at])));
        }
    }
    Ok(None)
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Some(home) = self.home.upgrade() else { return };
        let mut pool = home.pool.borrow_mut();
        pool.live -= self.bytes;
        if let Some(guarded) = &mut pool.guarded {
            guarded.push((self.buffer.clone(), self.asked));
        } else if self.valid {
            pool.pooled += self.bytes;
            let read = home.epoch.get() - u64::from(!home.recorded.get());
            let free = Free { buffer: self.buffer.clone(), read };
            pool.free.entry(self.bytes).or_default().insert(self.id, free);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::class_of;

    #[test]
    fn a_class_wastes_at_most_a_third_and_little_where_it_is_large() {
        for bytes in [1, 256, 257, 385, 1000, 1 << 20, (1 << 20) + 4, 3 << 19, 75_497_472, 1 << 27] {
            let class = class_of(bytes);
            assert!(class >= bytes && class.is_multiple_of(4));
            assert!(bytes < 256 || class * 2 <= bytes * 3, "{bytes} takes {class}");
            assert!(bytes <= 1 << 20 || class * 8 <= bytes * 9, "{bytes} takes {class}");
        }
    }
}
