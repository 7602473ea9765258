//! Compiled kernels, by name and variant.

use std::collections::HashMap;
use std::rc::Rc;

use super::{Gpu, Launch};

/// The most loop iterations one invocation may run: lavapipe ends it silently at 65,535.
pub const MAX_LOOP: usize = 32_768;

/// Appended to every shader: a shader's directives come first.
const PRELUDE: &str = include_str!("../../shaders/prelude.wgsl");

/// A WGSL file with its bindings: `reads` then `writes` storage buffers, then the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The file's name, without its ending.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: Rc<wgpu::BindGroupLayout>,
    pub(super) id: u64,
}

#[derive(Default)]
pub(super) struct Pipelines {
    made: HashMap<Box<[u8]>, Rc<Pipeline>>,
    /// The key looked up last; its memory serves the next.
    key: Vec<u8>,
    layouts: HashMap<(usize, usize), (Rc<wgpu::BindGroupLayout>, wgpu::PipelineLayout, u64)>,
}

impl Pipelines {
    pub(super) fn len(&self) -> usize {
        self.made.len()
    }
}

/// Writes what tells a launch's pipeline from all others: the kernel, its generated body, the size of a
/// workgroup, the number of bindings, the constants. Names end in a byte that no text contains.
fn write_key(key: &mut Vec<u8>, launch: &Launch, group: usize) {
    const END: &[u8] = &[0xff];
    key.clear();
    key.extend_from_slice(launch.kernel.name.as_bytes());
    key.extend_from_slice(END);
    key.push(launch.body.is_some().into());
    key.extend_from_slice(&launch.body.map_or(0, |(body, _)| body).to_le_bytes());
    for count in [group, launch.reads.len(), launch.writes.len()] {
        key.extend_from_slice(&(count as u32).to_le_bytes());
    }
    for (name, value) in launch.constants {
        key.extend_from_slice(name.as_bytes());
        key.extend_from_slice(END);
        key.extend_from_slice(&value.to_bits().to_le_bytes());
    }
}

/// The pipeline of a launch's variant of its kernel, compiled at its first use.
pub(super) fn pipeline(gpu: &Gpu, launch: &Launch) -> Rc<Pipeline> {
    let Launch { kernel: Kernel { name, text }, body, constants, .. } = *launch;
    let (reads, writes) = (launch.reads.len(), launch.writes.len());
    let group = launch.grid.group(gpu.0.style);
    let mut pipelines = gpu.0.pipelines.borrow_mut();
    write_key(&mut pipelines.key, launch, group);
    if let Some(found) = pipelines.made.get(pipelines.key.as_slice()) {
        return found.clone();
    }
    let device = &gpu.0.device;
    let next = pipelines.layouts.len() as u64;
    let (layout, pipeline_layout, id) = pipelines
        .layouts
        .entry((reads, writes))
        .or_insert_with(|| {
            let layout = bind_layout(device, reads, writes);
            let whole = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            (Rc::new(layout), whole, next)
        })
        .clone();
    let text = body.map_or_else(|| text.to_string(), |b| b.1());
    let source = format!("{text}\n{}", PRELUDE.replace("GROUP = 64u", &format!("GROUP = {group}u")));
    let module = module(
        gpu,
        wgpu::ShaderModuleDescriptor { label: Some(name), source: wgpu::ShaderSource::Wgsl(source.into()) },
    );
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(name),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants,
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    });
    let made = Rc::new(Pipeline { pipeline, layout, id });
    let key = pipelines.key.as_slice().into();
    pipelines.made.insert(key, made.clone());
    made
}

/// Compiles without wgpu's guarded divisions and counted loops, and where the API keeps reads and writes inside buffers
/// itself also without clamped indices, unless the checks are asked for.
#[allow(unsafe_code, reason = "the checks cost a tenth of a training step on a GPU, a third of a small one")]
fn module(gpu: &Gpu, of: wgpu::ShaderModuleDescriptor) -> wgpu::ShaderModule {
    if gpu.0.checks {
        return gpu.0.device.create_shader_module(of);
    }
    let inside = ["Vulkan", "Dx12"].contains(&gpu.0.facts.backend.as_str());
    let checks =
        wgpu::ShaderRuntimeChecks { bounds_checks: !inside, ..wgpu::ShaderRuntimeChecks::unchecked() };
    // SAFETY: the texts are ours, never a user's. Their loops count to bounds that `dispatch` has seen, they divide by
    // sizes of what is not empty, and they index workgroup memory and registers by constants and what is below them;
    // past a buffer they read only what they throw away, which the API catches. The tests run every kernel with the
    // checks on as well, and beside guard words.
    unsafe { gpu.0.device.create_shader_module_trusted(of, checks) }
}

fn bind_layout(device: &wgpu::Device, reads: usize, writes: usize) -> wgpu::BindGroupLayout {
    let entry = |binding: usize, ty, dynamic| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: dynamic, min_binding_size: None },
        count: None,
    };
    let mut entries: Vec<_> = (0..reads + writes)
        .map(|i| entry(i, wgpu::BufferBindingType::Storage { read_only: i < reads }, false))
        .collect();
    entries.push(entry(reads + writes, wgpu::BufferBindingType::Uniform, true));
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Grid, Words};
    use std::collections::HashSet;

    #[test]
    fn every_part_of_a_launch_tells_its_pipeline() {
        let text = || String::new();
        let launch = |name, body: Option<u64>, constants| Launch {
            kernel: Kernel { name, text: "" },
            body: body.map(|body| (body, &text as _)),
            constants,
            reads: &[],
            writes: &[],
            params: Words::default(),
            grid: Grid::Groups(1),
            loops: 0,
        };
        let none: &[(&str, f64)] = &[];
        let launches = [
            (launch("a", None, none), 64),
            (launch("a", None, none), 8),
            (launch("b", None, none), 64),
            (launch("a", Some(0), none), 64),
            (launch("a", Some(255), none), 64),
            (launch("a", None, &[("X", 1.0)]), 64),
            (launch("a", None, &[("X", 2.0)]), 64),
            (launch("a", None, &[("Y", 1.0)]), 64),
            (launch("a", None, &[("X", 1.0), ("Y", 1.0)]), 64),
        ];
        let mut key = Vec::new();
        let keys = launches.iter().map(|(launch, group)| {
            write_key(&mut key, launch, *group);
            key.clone()
        });
        assert_eq!(keys.collect::<HashSet<_>>().len(), launches.len());
    }
}
