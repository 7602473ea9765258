//! Compiled kernels, by name and variant.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use super::{Gpu, Launch};

/// The most loop iterations one invocation may run: lavapipe ends it silently at 65,535.
pub const MAX_LOOP: usize = 32_768;

/// Stands behind every shader: a shader's directives come first.
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
    made: HashMap<(&'static str, u64), Rc<Pipeline>>,
    layouts: HashMap<(usize, usize), (Rc<wgpu::BindGroupLayout>, wgpu::PipelineLayout, u64)>,
}

impl Pipelines {
    pub(super) fn len(&self) -> usize {
        self.made.len()
    }
}

/// The pipeline of a launch's variant of its kernel, compiled at its first use.
pub(super) fn pipeline(gpu: &Gpu, launch: &Launch) -> Rc<Pipeline> {
    let Launch { kernel: Kernel { name, text }, body, constants, .. } = *launch;
    let (reads, writes) = (launch.reads.len(), launch.writes.len());
    let group = launch.grid.group(gpu.0.style);
    let mut hash = DefaultHasher::new();
    for (key, value) in constants {
        (key, value.to_bits()).hash(&mut hash);
    }
    (body.map(|b| b.0), group).hash(&mut hash);
    let variant = hash.finish();
    let mut pipelines = gpu.0.pipelines.borrow_mut();
    if let Some(found) = pipelines.made.get(&(name, variant)) {
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
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(name),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
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
    pipelines.made.insert((name, variant), made.clone());
    made
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
