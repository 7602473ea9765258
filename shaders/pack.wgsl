// y[to_k + i] = x_k[i]: up to seven tensors into their places in one, each followed by zeros up to a whole
// number of 64 values.
struct Params {
    count: u32, // invocations: the padded lengths' sum
    parts: u32,
    place: u32, // of the first part in y; the others follow
    sizes: array<vec4<u32>, 2>,
}
@group(0) @binding(0) var<storage, read> x0: array<f32>; // [sizes[0]]
@group(0) @binding(1) var<storage, read> x1: array<f32>;
@group(0) @binding(2) var<storage, read> x2: array<f32>;
@group(0) @binding(3) var<storage, read> x3: array<f32>;
@group(0) @binding(4) var<storage, read> x4: array<f32>;
@group(0) @binding(5) var<storage, read> x5: array<f32>;
@group(0) @binding(6) var<storage, read> x6: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>; // [total]
@group(0) @binding(8) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    var part = 0u;
    var local = i;
    var size = p.sizes[0].x;
    loop {
        let padded = (size + 63u) / 64u * 64u;
        if local < padded || part + 1u >= p.parts {
            break;
        }
        local -= padded;
        part++;
        size = p.sizes[part / 4u][part % 4u];
    }
    var value = 0.0;
    if local < size {
        switch part {
            case 0u: { value = x0[local]; }
            case 1u: { value = x1[local]; }
            case 2u: { value = x2[local]; }
            case 3u: { value = x3[local]; }
            case 4u: { value = x4[local]; }
            case 5u: { value = x5[local]; }
            default: { value = x6[local]; }
        }
    }
    y[p.place + i] = value;
}
