// The gradient of a maximum over the middle axis: g at the first place of the largest value, 0 elsewhere. The text
// between the marks is replaced where a team walks an axis side by side.
struct Params {
    count: u32, // outer * inner
    n: u32,
    inner: u32,
}
@group(0) @binding(0) var<storage, read> x: array<f32>; // [outer, n, inner]
@group(0) @binding(1) var<storage, read> g: array<f32>; // [outer, inner]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [outer, n, inner]
@group(0) @binding(3) var<uniform> p: Params;
//: team
const TEAM = 1u; // invocations that share an axis, of at least as many values
//: end

//: entry
@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let end = p.n;
    let member = 0u;
//: end
    let start = (i / p.inner) * p.n * p.inner + i % p.inner;
    var first = member;
    var largest = x[start + member * p.inner];
    for (var k = member + TEAM; k < p.n; k += TEAM) {
        let value = x[start + k * p.inner];
        if value > largest {
            largest = value;
            first = k;
        }
    }
//: joined
//: end
    for (var k = member; k < end; k += TEAM) {
        y[start + k * p.inner] = select(0.0, g[i], k == first);
    }
}
