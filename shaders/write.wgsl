// y[place + i] = x[i]
struct Params {
    count: u32,
    place: u32,
}
@group(0) @binding(0) var<storage, read> x: array<f32>; // [count]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // at least [place + count]
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i < p.count {
        y[p.place + i] = x[i];
    }
}
