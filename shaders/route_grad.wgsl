// The gradient of route's shares, of two mixtures: y[pair, i, j] = sum over the pair of g_i (x_j - m_i), where m_i, the
// sum over k of shares[i, k] x_k, is their mean of the cells. With `whole` there is a single mixture, and m_0 is read.
override whole: bool = false;
struct Params {
    count: u32, // outer * inner * chunks
    m: u32, // values of a pair, in T
    inner: u32,
    chunks: u32, // parts a pair's values are summed in
    outer_strides: vec4<u32>, // of x0..x3, in pairs
    inner_strides: vec4<u32>,
    mixtures: u32, // of the result
    first: u32, // mixture of g0
    shares: vec2<u32>, // the shares' strides, in pairs
}
//: type
alias T = vec4<f32>;
fn fold(x: T) -> f32 { return x.x + x.y + x.z + x.w; }
//: end
@group(0) @binding(0) var<storage, read> g0: array<T>; // [outer, inner, m]
@group(0) @binding(1) var<storage, read> g1: array<T>; // or m_0
@group(0) @binding(2) var<storage, read> shares: array<vec4<f32>>; // [outer, inner, mixtures] of four, or an item's
@group(0) @binding(3) var<storage, read> x0: array<T>; // [outer, inner, m] or an item's [side, m]
@group(0) @binding(4) var<storage, read> x1: array<T>;
@group(0) @binding(5) var<storage, read> x2: array<T>;
@group(0) @binding(6) var<storage, read> x3: array<T>;
@group(0) @binding(7) var<storage, read_write> y: array<vec4<f32>>; // [chunks, outer, inner, mixtures] of four
@group(0) @binding(8) var<uniform> p: Params;

fn mix4(x: array<T, 4>, w: vec4<f32>) -> T {
    return fma(x[3], T(w.w), fma(x[2], T(w.z), fma(x[1], T(w.y), x[0] * w.x)));
}

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
    let row = (outer * p.shares.x + inner * p.shares.y) * p.mixtures + p.first;
    let shares_a = shares[row];
    var shares_b = shares_a;
    if !whole {
        shares_b = shares[row + 1u];
    }
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
        let b = g1[pair * p.m + m];
        let x = array<T, 4>(x0[at.x + m], x1[at.y + m], x2[at.z + m], x3[at.w + m]);
        var mean = b;
        if !whole {
            mean = mix4(x, shares_a);
        }
        a0 += a * (x[0] - mean);
        a1 += a * (x[1] - mean);
        a2 += a * (x[2] - mean);
        a3 += a * (x[3] - mean);
        if !whole {
            mean = mix4(x, shares_b);
            b0 += b * (x[0] - mean);
            b1 += b * (x[1] - mean);
            b2 += b * (x[2] - mean);
            b3 += b * (x[3] - mean);
        }
    }
    y[p.mixtures * i + p.first] = vec4<f32>(fold(a0), fold(a1), fold(a2), fold(a3));
    if !whole {
        y[p.mixtures * i + p.first + 1u] = vec4<f32>(fold(b0), fold(b1), fold(b2), fold(b3));
    }
}
