// y = x / (1 - rate) where the generator's value i is at least rate, else 0; and a residual, if there is one. The gradient
// repeats the mask instead of storing it.
//: use generator
override plus: bool = false;
struct Params {
    count: u32,
    low: u32, // the seed
    high: u32,
    rate: f32,
    scale: f32,
}
@group(0) @binding(0) var<storage, read> x: array<f32>; // [count]
@group(0) @binding(1) var<storage, read> residual: array<f32>; // [count]; x if none
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [count]
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let kept = select(0.0, x[i] * p.scale, uniform_at(i, p.low, p.high) >= p.rate);
    if plus {
        y[i] = kept + residual[i];
    } else {
        y[i] = kept;
    }
}
