// y = sum or max over one axis of formula(x0, x1, ..). An invocation owns an output element (or four beside
// each other, or four interleaved parts of a row) and one chunk of the axis; on a GPU a team of them does, side by side.
//: bindings
@group(0) @binding(0) var<storage, read> x0: array<vec4<f32>>; // any shape, read through its view
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [chunks, outer, inner]
@group(0) @binding(2) var<uniform> p: array<vec4<u32>, 64>; // count, axis, chunk, factor, dims, ..
//: end

//: entry
@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p[0].x {
        return;
    }
//: end
//: body
    var acc = T(0.0);
    for (var n = 0u; n < p[0].y; n++) {
        acc += x0[i * p[0].y + n];
    }
    y[i] = acc * bitcast<f32>(p[0].w);
//: end
}
