//! Which adapters there are, and which one is taken.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Invocations below which a GPU takes smaller tiles and splits long sums: measured on an H200, whose training step took
/// 0.8 of the time that it took with a quarter of them. An integrated GPU has about that quarter at once, by its makers'
/// figures.
const ENOUGH: usize = 1 << 16;
const ENOUGH_INTEGRATED: usize = ENOUGH / 4;

/// Whether kernels run on a GPU or on the CPU's cores: the styles that win differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A GPU.
    Hardware,
    /// A software driver such as lavapipe.
    Software,
}

/// How invocations share the work of a kernel that comes in several styles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Each on its own: runs everywhere, and what CPUs without subgroups like best.
    Direct,
    /// The invocations of a subgroup exchange what they load. A software driver loads for each invocation in turn,
    /// so that loads are nearly all of its time.
    Subgroup,
    /// A workgroup shares tiles in its memory, with barriers: what GPUs like best.
    Workgroup,
}

/// What a setting does not know.
pub(super) fn unknown(what: &str, setting: &str, expected: &str, found: &str) -> Error {
    Error::of(Kind::Adapter, what).at(setting).expected(expected).found(found)
}

impl std::str::FromStr for Style {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "direct" => Ok(Self::Direct),
            "subgroup" => Ok(Self::Subgroup),
            "workgroup" => Ok(Self::Workgroup),
            _ => Err(unknown(
                "no such style of kernels",
                "CROSSWEAVE_KERNELS",
                "direct, subgroup or workgroup",
                name,
            )),
        }
    }
}

/// How exactly products are computed. Everything else is f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Operands and sums in f32.
    #[default]
    F32,
    /// Operands rounded to f16 (past 65,504 they are infinite; on the way back they are scaled before, so that nothing
    /// is), sums in f32: on adapters with cooperative matrices.
    F16,
}

impl Precision {
    /// Their names.
    pub const NAMES: [&str; 2] = ["f32", "f16"];
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            _ => Err(unknown("no such precision", "CROSSWEAVE_PRECISION", &Self::NAMES.join(" or "), name)),
        }
    }
}

/// How products of [`Precision::F32`] are computed on adapters with cooperative matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// By fused multiply-adds.
    Fma,
    /// As sums of three products of halves on matrix units, to f32's accuracy.
    Split,
}

impl std::str::FromStr for Products {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "fma" => Ok(Self::Fma),
            "split" => Ok(Self::Split),
            _ => Err(unknown("no such way to compute products", "CROSSWEAVE_PRODUCTS", "fma or split", name)),
        }
    }
}

/// What is known of an adapter.
#[derive(Clone, Debug)]
pub struct AdapterFacts {
    /// The adapter's name.
    pub name: String,
    /// The graphics API: Vulkan, Metal, Dx12 or Gl.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// Discrete, integrated, virtual, CPU or other.
    pub kind: String,
    /// Hardware or software.
    pub class: Class,
    /// Cores that run kernels, where they are the CPU's.
    pub cores: Option<usize>,
    /// Invocations that keep a GPU busy, by its kind: wgpu does not tell of its multiprocessors.
    pub enough: usize,
    /// The largest storage binding in bytes.
    pub max_binding: u64,
    /// The largest buffer in bytes.
    pub max_buffer: u64,
    /// Workgroup memory in bytes.
    pub workgroup_memory: u32,
    /// Invocations per workgroup.
    pub invocations: u32,
    /// Alignment of storage offsets in bytes.
    pub storage_align: u64,
    /// Storage buffers that one kernel can bind.
    pub buffers: usize,
    /// Alignment of uniform offsets in bytes.
    pub uniform_align: u64,
    /// The smallest and largest subgroup, if the adapter has them.
    pub subgroup: Option<(u32, u32)>,
    /// f16 arithmetic.
    pub f16: bool,
    /// Timestamp queries.
    pub timestamps: bool,
    /// Rows and columns of the cooperative matrices of f16 that it multiplies, with f32 sums: 16 or 8, if it can.
    pub cooperative_matrix: Option<usize>,
}

impl AdapterFacts {
    fn of(adapter: &wgpu::Adapter, limits: &wgpu::Limits) -> Self {
        let info = adapter.get_info();
        let features = adapter.features();
        let sizes = (info.subgroup_min_size, info.subgroup_max_size);
        let class = match info.device_type {
            wgpu::DeviceType::Cpu => Class::Software,
            _ => Class::Hardware,
        };
        Self {
            name: info.name,
            backend: format!("{:?}", info.backend),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            kind: format!("{:?}", info.device_type),
            class,
            cores: (class == Class::Software)
                .then(|| std::thread::available_parallelism().map_or(1, usize::from)),
            enough: if info.device_type == wgpu::DeviceType::IntegratedGpu {
                ENOUGH_INTEGRATED
            } else {
                ENOUGH
            },
            max_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            invocations: limits.max_compute_invocations_per_workgroup,
            storage_align: u64::from(limits.min_storage_buffer_offset_alignment),
            buffers: limits.max_storage_buffers_per_shader_stage as usize,
            uniform_align: u64::from(limits.min_uniform_buffer_offset_alignment),
            subgroup: features.contains(wgpu::Features::SUBGROUP).then_some(sizes),
            f16: features.contains(wgpu::Features::SHADER_F16),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            cooperative_matrix: cooperative_matrix(adapter, limits, sizes),
        }
    }
}

/// What products on cooperative matrices need.
const COOPERATIVE: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// Subgroups that share a workgroup's square of a product.
pub(crate) const QUARTERS: u32 = 4;

/// Workgroup memory for two tiles in f16 and a matrix of each of eight subgroups, in bytes.
const TILES: u32 = 20 << 10;

/// The edge of the largest square matrices of f16 that sum in f32. Subgroups must be known within a factor of two:
/// a workgroup has enough of the largest, and where they turn out smaller, some repeat the others' work.
fn cooperative_matrix(
    adapter: &wgpu::Adapter,
    limits: &wgpu::Limits,
    (low, high): (u32, u32),
) -> Option<usize> {
    let fits = high <= 2 * low
        && QUARTERS * high <= limits.max_compute_invocations_per_workgroup
        && limits.max_compute_workgroup_storage_size >= TILES;
    if !fits || !adapter.features().contains(COOPERATIVE) {
        return None;
    }
    let listed = adapter.cooperative_matrix_properties();
    let has = |side: &u32| {
        listed.iter().any(|p| {
            [p.m_size, p.n_size, p.k_size] == [*side; 3]
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        })
    };
    [16, 8].into_iter().find(has).map(|side| side as usize)
}

impl AdapterFacts {
    /// Whether f32 products may be three products of halves, of these that were asked for: a software driver's
    /// matrices are no faster than the rest of it.
    pub fn splits(&self, asked: Option<Products>) -> bool {
        let suits = asked.map_or(self.class == Class::Hardware, |products| products == Products::Split);
        suits && self.cooperative_matrix.is_some()
    }

    /// Lanes of every subgroup, where they are the same and few enough to unroll over.
    pub fn lanes(&self) -> Option<usize> {
        self.subgroup.filter(|(low, high)| low == high && [4, 8].contains(low)).map(|(n, _)| n as usize)
    }

    /// The style that suits the adapter, or the one asked for.
    ///
    /// # Errors
    /// A style that the adapter cannot run.
    pub fn style(&self, asked: Option<Style>) -> Result<Style> {
        let fits = |style| style != Style::Subgroup || self.lanes().is_some();
        let own = match self.class {
            Class::Hardware => Style::Workgroup,
            Class::Software if fits(Style::Subgroup) => Style::Subgroup,
            Class::Software => Style::Direct,
        };
        let style = asked.unwrap_or(own);
        if fits(style) {
            return Ok(style);
        }
        Err(Error::of(Kind::Adapter, "this adapter has no subgroups of 4 or 8 invocations")
            .at(&self.name)
            .cure("choose another style of kernels"))
    }
}

fn found_by(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    pollster::block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends))
}

fn all() -> Vec<wgpu::Adapter> {
    // GL drivers are noisy and slow: they are asked only for lack of others, or on demand.
    let gl = std::env::var("CROSSWEAVE_BACKEND").is_ok_and(|b| b.eq_ignore_ascii_case("gl"));
    let mut found = if gl { Vec::new() } else { found_by(wgpu::Backends::PRIMARY) };
    if found.is_empty() {
        found = found_by(wgpu::Backends::GL);
    }
    found.retain(|a| {
        a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
            && a.limits().max_storage_buffers_per_shader_stage >= 8
    });
    found.sort_by_key(|a| {
        let info = a.get_info();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        (info.backend == wgpu::Backend::Gl, kind)
    });
    found
}

/// Every adapter that can run the kernels, best first: discrete, integrated, virtual, software; GL last.
pub fn adapters() -> Vec<AdapterFacts> {
    all().iter().map(|a| AdapterFacts::of(a, &a.limits())).collect()
}

/// Which of these adapters, in the order of [`adapters`], is meant: an index, part of a name, or the first.
///
/// # Errors
/// None there, or none that fits.
pub fn choice<'a>(names: impl Iterator<Item = &'a str>, device: Option<&str>) -> Result<usize> {
    let names: Vec<_> = names.map(str::to_lowercase).collect();
    if names.is_empty() {
        return Err(Error::of(Kind::Adapter, "no GPU adapter that can run compute shaders")
            .cure("install a Vulkan driver; Debian and Ubuntu have a software one: apt-get install mesa-vulkan-drivers"));
    }
    let Some(wanted) = device else { return Ok(0) };
    let at = match wanted.parse::<usize>() {
        Ok(i) => Some(i).filter(|i| *i < names.len()),
        Err(_) => {
            let wanted = wanted.to_lowercase();
            names.iter().position(|name| name.contains(&wanted))
        }
    };
    at.ok_or_else(|| {
        Error::of(Kind::Adapter, "no such adapter")
            .at("--device")
            .expected(format!("an index below {} or part of a name", names.len()))
            .found(wanted)
            .cure("`crossweave devices` lists them")
    })
}

/// The adapter that [`choice`] names.
///
/// # Errors
/// As [`choice`].
pub fn choose(device: Option<&str>) -> Result<wgpu::Adapter> {
    let mut found = all();
    let names: Vec<_> = found.iter().map(|a| a.get_info().name).collect();
    let at = choice(names.iter().map(String::as_str), device)?;
    Ok(found.swap_remove(at))
}

/// Cooperative matrices are experimental in wgpu 30: it does not check that every invocation takes part.
#[allow(
    unsafe_code,
    reason = "asked for by f16, and by f32 where it is faster; our one kernel multiplies in uniform control flow"
)]
fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: wgpu asks to accept that the feature may have faults. The matrices are loaded from and stored to
    // workgroup memory alone, in whole workgroups, which naga's validation of uniformity checks.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

pub(super) fn open(
    adapter: &wgpu::Adapter,
    default_limits: bool,
    precision: Precision,
    products: Option<Products>,
) -> Result<(wgpu::Device, wgpu::Queue, AdapterFacts)> {
    let limits = if default_limits { wgpu::Limits::default() } else { adapter.limits() };
    // Where a driver has it, profiling reads the device's own clock.
    let mut features = wgpu::Features::TIMESTAMP_QUERY;
    features.set(wgpu::Features::SUBGROUP, !default_limits);
    let facts = AdapterFacts::of(adapter, &limits);
    let facts = if default_limits {
        AdapterFacts { subgroup: None, cooperative_matrix: None, ..facts }
    } else {
        facts
    };
    let lacking = facts.cooperative_matrix.is_none();
    let needed = match (precision, products) {
        (Precision::F16, _) => Some("--precision f32"),
        (_, Some(Products::Split)) => Some("CROSSWEAVE_PRODUCTS=fma"),
        _ => None,
    };
    if let (Some(instead), true) = (needed, lacking) {
        return Err(Error::of(
            Kind::Adapter,
            "this adapter has no cooperative matrices of f16 with f32 sums",
        )
        .at(facts.name)
        .cure(format!(
            "use {instead}, or another adapter or driver (`crossweave devices` shows who has them)"
        )));
    }
    let matrices = needed.is_some() || (!lacking && facts.splits(products));
    let request = |matrices: bool| {
        let (more, experimental) = if matrices {
            (COOPERATIVE, experimental())
        } else {
            (wgpu::Features::empty(), wgpu::ExperimentalFeatures::disabled())
        };
        pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("crossweave"),
            required_features: adapter.features() & (features | more),
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            experimental_features: experimental,
            ..Default::default()
        }))
    };
    let (opened, facts) = match request(matrices) {
        // Nobody asked for matrices: f32 does without what a driver lists and does not give.
        Err(_) if matrices && needed.is_none() => {
            (request(false), AdapterFacts { cooperative_matrix: None, ..facts })
        }
        opened => (opened, facts),
    };
    let (device, queue) = opened.map_err(|e| {
        Error::of(Kind::Adapter, format!("the driver gave no device: {e}"))
            .at(&facts.name)
            .cure("choose another adapter with --device")
    })?;
    Ok((device, queue, facts))
}
