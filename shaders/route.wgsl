// y[i] = sum over j of w[i, j] x_j for every pair of an image and a caption: four mixtures of four cells. An
// input or the weights may belong to an item of one side and repeat over the other (stride 0). With
// `transposed` the weights are read as w[j, i]: the gradient of the cells from that of the mixtures.
override transposed: bool = false;
struct Params {
    count: u32, // outer * inner * m
    m: u32, // values of a pair, in T
    inner: u32, // length of the inner side
    plane: u32, // values of one mixture, in T
    outer_strides: vec4<u32>, // of x0..x3, in pairs
    inner_strides: vec4<u32>,
    weights: vec2<u32>, // the weights' strides, in pairs
}
//: type
alias T = vec4<f32>;
//: end
@group(0) @binding(0) var<storage, read> x0: array<T>; // [outer, inner, m] or an item's [side, m]
@group(0) @binding(1) var<storage, read> x1: array<T>;
@group(0) @binding(2) var<storage, read> x2: array<T>;
@group(0) @binding(3) var<storage, read> x3: array<T>;
@group(0) @binding(4) var<storage, read> w: array<f32>; // [outer, inner, 4, 4] or an item's
@group(0) @binding(5) var<storage, read_write> y: array<T>; // [4, outer, inner, m]
@group(0) @binding(6) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let pair = i / p.m;
    let outer = pair / p.inner;
    let inner = pair % p.inner;
    let at = (outer * p.outer_strides + inner * p.inner_strides) * p.m + i % p.m;
    let a = x0[at.x];
    let b = x1[at.y];
    let c = x2[at.z];
    let d = x3[at.w];
    let first = (outer * p.weights.x + inner * p.weights.y) * 16u;
    let across = select(1u, 4u, transposed);
    let down = select(4u, 1u, transposed);
    for (var k = 0u; k < 4u; k++) {
        let row = first + k * down;
        var sum = a * w[row];
        sum = fma(b, T(w[row + across]), sum);
        sum = fma(c, T(w[row + 2u * across]), sum);
        y[k * p.plane + i] = fma(d, T(w[row + 3u * across]), sum);
    }
}
