// The k largest values along the middle axis, descending, among the first lens[outer / every % len(lens)] places where
// masked. Equal ones follow by place; where fewer are left there is 0.
struct Params {
    count: u32, // outer * inner
    n: u32,
    inner: u32,
    k: u32,
    every: u32, // outer rows a length holds for
    lens: u32, // number of lengths, 0 if not masked
}
@group(0) @binding(0) var<storage, read> x: array<f32>; // [outer, n, inner]
@group(0) @binding(1) var<storage, read> lens: array<f32>; // [lens]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [outer, k, inner]
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let outer = i / p.inner;
    let start = outer * p.n * p.inner + i % p.inner;
    let to = outer * p.k * p.inner + i % p.inner;
    var len = p.n;
    if p.lens > 0u {
        len = min(u32(lens[outer / p.every % p.lens]), p.n);
    }
    // The value before, and where its equals go on.
    var last = 0x1.fffffep+127;
    var since = 0u;
    for (var rank = 0u; rank < p.k; rank++) {
        var found = p.n;
        var best = 0.0;
        for (var place = 0u; place < len; place++) {
            let value = x[start + place * p.inner];
            let after = value < last || (value == last && place >= since);
            if after && (found == p.n || value > best) {
                found = place;
                best = value;
            }
        }
        y[to + rank * p.inner] = best;
        last = best;
        since = found + 1u;
        len = select(len, 0u, found == p.n);
    }
}
