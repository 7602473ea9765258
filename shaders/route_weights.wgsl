// The gradient of route's weights, up to two mixtures at a time: y[pair, i, j] = sum of g_i x_j over the pair.
// With `shares`, of a single mixture, g_0 (x_j - the mixture) is summed.
override two: bool = true;
override shares: bool = false;
struct Params {
    count: u32, // outer * inner * chunks
    m: u32, // values of a pair, in T
    inner: u32,
    chunks: u32, // parts a pair's values are summed in
    outer_strides: vec4<u32>, // of x0..x3, in pairs
    inner_strides: vec4<u32>,
    mixtures: u32, // of the result
    first: u32, // mixture of g0
}
//: type
alias T = vec4<f32>;
fn fold(x: T) -> f32 { return x.x + x.y + x.z + x.w; }
//: end
@group(0) @binding(0) var<storage, read> g0: array<T>; // [outer, inner, m]
@group(0) @binding(1) var<storage, read> g1: array<T>; // or the mixture
@group(0) @binding(2) var<storage, read> x0: array<T>; // [outer, inner, m] or an item's [side, m]
@group(0) @binding(3) var<storage, read> x1: array<T>;
@group(0) @binding(4) var<storage, read> x2: array<T>;
@group(0) @binding(5) var<storage, read> x3: array<T>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>; // [chunks, outer, inner, mixtures] of four
@group(0) @binding(7) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let pairs = p.count / p.chunks;
    let pair = i % pairs;
    let outer = pair / p.inner;
    let inner = pair % p.inner;
    let at = (outer * p.outer_strides + inner * p.inner_strides) * p.m;
    var a0 = T(0.0);
    var a1 = T(0.0);
    var a2 = T(0.0);
    var a3 = T(0.0);
    var b0 = T(0.0);
    var b1 = T(0.0);
    var b2 = T(0.0);
    var b3 = T(0.0);
    for (var m = i / pairs; m < p.m; m += p.chunks) {
        let a = g0[pair * p.m + m];
        var v0 = x0[at.x + m];
        var v1 = x1[at.y + m];
        var v2 = x2[at.z + m];
        var v3 = x3[at.w + m];
        if shares {
            let whole = g1[pair * p.m + m];
            v0 -= whole;
            v1 -= whole;
            v2 -= whole;
            v3 -= whole;
        }
        a0 += a * v0;
        a1 += a * v1;
        a2 += a * v2;
        a3 += a * v3;
        if two {
            let b = g1[pair * p.m + m];
            b0 += b * v0;
            b1 += b * v1;
            b2 += b * v2;
            b3 += b * v3;
        }
    }
    y[p.mixtures * i + p.first] = vec4<f32>(fold(a0), fold(a1), fold(a2), fold(a3));
    if two {
        y[p.mixtures * i + p.first + 1u] = vec4<f32>(fold(b0), fold(b1), fold(b2), fold(b3));
    }
}
