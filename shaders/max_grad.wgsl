// The gradient of a maximum over the middle axis: g at the first place of the largest value, 0 elsewhere.
struct Params {
    count: u32, // outer * inner
    n: u32,
    inner: u32,
}
@group(0) @binding(0) var<storage, read> x: array<f32>; // [outer, n, inner]
@group(0) @binding(1) var<storage, read> g: array<f32>; // [outer, inner]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [outer, n, inner]
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let start = (i / p.inner) * p.n * p.inner + i % p.inner;
    var first = 0u;
    var largest = x[start];
    for (var k = 1u; k < p.n; k++) {
        let value = x[start + k * p.inner];
        if value > largest {
            largest = value;
            first = k;
        }
    }
    for (var k = 0u; k < p.n; k++) {
        y[start + k * p.inner] = select(0.0, g[i], k == first);
    }
}
