// y = x / (1 - rate) where the generator's value i is at least rate, else 0. The gradient repeats the mask instead of
// storing it.
//: use generator
alias T = f32;
alias U = u32;
struct Params {
    count: u32,
    low: u32, // the seed
    high: u32,
    rate: f32,
    scale: f32,
}
@group(0) @binding(0) var<storage, read> x: array<f32>; // [count]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [count]
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    y[i] = select(0.0, x[i] * p.scale, uniform_at(i, p.low, p.high) >= p.rate);
}
