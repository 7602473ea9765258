// c[m, n] = act(scale * (bias[n] + sum over k of a[m, k] b[k, n])) + residual[m, n], for every batch. An
// invocation owns a tile of c in registers and reads a and b straight from memory: no barrier, which software
// adapters like best. Where there are subgroups, one shares the loads of b.
// The text between the marks is replaced: bindings by element type, the entry's arguments, the body by an unrolled
// tile.
//: use matmul_params
//: bindings
@group(0) @binding(0) var<storage, read> a: array<f32>; // [outer, inner, m, k], by strides
@group(0) @binding(1) var<storage, read> b: array<f32>; // [outer, inner, k, n], by strides
@group(0) @binding(2) var<storage, read_write> c: array<f32>; // [splits, outer, inner, m, n], by strides
@group(0) @binding(3) var<uniform> p: Params;
//: end

//: entry
@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
//: end
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
//: body
    let at = vec2<u32>(i / p.n, i % p.n);
    var sum = 0.0;
    for (var k = 0u; k < p.k; k++) {
        sum += a[at.x * p.a.w + k * p.a_col] * b[k * p.b.w + at.y * p.b_col];
    }
    c[at.x * p.c.w + at.y] = sum * p.scale;
//: end
}
