// The gradient of route's shares: y[pair, i, j] = sum over the pair of g_i (x_j - m_i), where m_i, the sum over k of
// shares[i, k] x_k, is the mixture's mean of the cells; x_0 is taken through a ReLU. The text between the marks is
// replaced: how many mixtures a dispatch has, how a mean is known, and who adds a pair's values: one invocation a chunk of
// them, or a workgroup.
struct Params {
    count: u32, // outer * inner * chunks
    m: u32, // values of a pair, in T
    inner: u32,
    chunks: u32, // parts a pair's values are summed in
    outer_strides: vec4<u32>, // of x0..x3, in pairs
    inner_strides: vec4<u32>,
    mixtures: u32, // of the result
    first: u32, // mixture of g_0
    shares: vec2<u32>, // the shares' strides, in pairs
}
//: variant
alias T = vec4<f32>;
fn fold(x: T) -> f32 { return x.x + x.y + x.z + x.w; }
const GRADS = 1u; // bindings of g, and of m where it is read
const TEAM = 1u; // invocations that share a pair
fn join(local: u32) {}
fn fold_sum(x: vec4<f32>) -> vec4<f32> { return x; }
const i = 0u; // the mixture that is repeated
//: end
@group(0) @binding(0) var<storage, read> shares: array<vec4<f32>>; // [outer, inner, mixtures] of four, or an item's
@group(0) @binding(1) var<storage, read> x0: array<T>; // [outer, inner, m] or an item's [side, m]
@group(0) @binding(2) var<storage, read> x1: array<T>;
@group(0) @binding(3) var<storage, read> x2: array<T>;
@group(0) @binding(4) var<storage, read> x3: array<T>;
//: each i
@group(0) @binding(5u + i) var<storage, read> g_i: array<T>; // [outer, inner, m]
//: end
@group(0) @binding(5u + GRADS) var<storage, read_write> y: array<vec4<f32>>; // [chunks, outer, inner, mixtures] of four
@group(0) @binding(6u + GRADS) var<uniform> p: Params;

// The mean of a mixture at a place of its gradient.
//: mean
fn mean(x: array<T, 4>, w: vec4<f32>, at: u32) -> T {
    return fma(x[3], T(w.w), fma(x[2], T(w.z), fma(x[1], T(w.y), x[0] * w.x)));
}
//: end

@compute @workgroup_size(GROUP)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    join(local);
    let unit = linear_id(id, groups) / TEAM;
    let part = min(unit, p.count - 1u);
    let pairs = p.count / p.chunks;
    let pair = part % pairs;
    let outer = pair / p.inner;
    let inner = pair % p.inner;
    let at = (outer * p.outer_strides + inner * p.inner_strides) * p.m;
    let row = (outer * p.shares.x + inner * p.shares.y) * p.mixtures + p.first;
//: each i
    let w_i = shares[row + i];
    var a_i = T(0.0);
    var b_i = T(0.0);
    var c_i = T(0.0);
    var d_i = T(0.0);
//: end
    for (var m = part / pairs * TEAM + local % TEAM; m < p.m; m += p.chunks * TEAM) {
        let x = array<T, 4>(max(x0[at.x + m], T(0.0)), x1[at.y + m], x2[at.z + m], x3[at.w + m]);
//: each i
        let now_i = g_i[pair * p.m + m];
        let mean_i = mean(x, w_i, pair * p.m + m);
        a_i += now_i * (x[0] - mean_i);
        b_i += now_i * (x[1] - mean_i);
        c_i += now_i * (x[2] - mean_i);
        d_i += now_i * (x[3] - mean_i);
//: end
    }
    let to = p.mixtures * part + p.first;
    let stores = unit == part && local % TEAM == 0u;
//: each i
    let sum_i = fold_sum(vec4<f32>(fold(a_i), fold(b_i), fold(c_i), fold(d_i)));
    if stores {
        y[to + i] = sum_i;
    }
//: end
}
