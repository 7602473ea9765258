// One step of Adam or AdamW, in place: the gradient is first clipped by the global norm in `norm`.
struct Params {
    count: u32, // values, in T
    beta1: f32,
    rest1: f32, // 1 - beta1
    beta2: f32,
    rest2: f32, // 1 - beta2
    rate: f32, // learning rate / (1 - beta1^t)
    correct2: f32, // sqrt(1 - beta2^t)
    eps: f32,
    clip: f32, // largest global norm; 0 or less for none
    kept: f32, // 1 - learning rate * weight decay
}
//: type
alias T = vec4<f32>;
//: end
@group(0) @binding(0) var<storage, read> g: array<T>; // [count]
@group(0) @binding(1) var<storage, read> norm: array<f32>; // [1], the sum of all gradients' squares
@group(0) @binding(2) var<storage, read_write> w: array<T>; // [count]
@group(0) @binding(3) var<storage, read_write> m: array<T>; // [count], mean of gradients
@group(0) @binding(4) var<storage, read_write> v: array<T>; // [count], mean of their squares
@group(0) @binding(5) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    // A gradient that is NaN or infinite somewhere changes nothing.
    if (bitcast<u32>(norm[0]) & 0x7f800000u) == 0x7f800000u {
        return;
    }
    var scale = 1.0;
    if p.clip > 0.0 {
        scale = min(p.clip / (sqrt(norm[0]) + 1e-6), 1.0);
    }
    let grad = g[i] * scale;
    let mean = p.beta1 * m[i] + p.rest1 * grad;
    let square = p.beta2 * v[i] + p.rest2 * grad * grad;
    m[i] = mean;
    v[i] = square;
    w[i] = w[i] * p.kept - p.rate * mean / (sqrt(square) / p.correct2 + T(p.eps));
}
