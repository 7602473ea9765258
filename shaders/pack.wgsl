// y[place_k + i] = x_k[i]: tensors at their places in one, each followed by zeros up to the next.
// x_k may be a sum of parts that are so far `apart`. Sizes are in fours but for `lengths`. The text between the marks is replaced: a binding and a case a tensor.
struct Params {
    count: u32, // invocations: the last end
    place: u32, // of the first tensor in y
    unused0: u32,
    unused1: u32,
    lengths: array<vec4<u32>, 8>, // in values
    ends: array<vec4<u32>, 8>, // of each tensor and its zeros, from `place`
    counts: array<vec4<u32>, 8>, // of the parts it is the sum of
    apart: array<vec4<u32>, 8>,
}
//: bindings
@group(0) @binding(0) var<storage, read> x0: array<vec4<f32>>; // [lengths[0]], rounded up to fours
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [total]
@group(0) @binding(2) var<uniform> p: Params;
//: end

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    var tensor = 0u;
    var local = i;
    while i >= p.ends[tensor / 4u][tensor % 4u] {
        local = i - p.ends[tensor / 4u][tensor % 4u];
        tensor++;
    }
    let length = p.lengths[tensor / 4u][tensor % 4u];
    let count = select(0u, p.counts[tensor / 4u][tensor % 4u], 4u * local < length);
    let apart = p.apart[tensor / 4u][tensor % 4u];
    var value = vec4<f32>(0.0);
    for (var part = 0u; part < count; part++) {
        let at = local + part * apart;
        switch tensor {
//: cases
            default: { value += x0[at]; }
//: end
        }
    }
    let inside = vec4<u32>(0u, 1u, 2u, 3u) + 4u * local < vec4<u32>(length);
    y[p.place + i] = select(vec4<f32>(0.0), value, inside);
}
