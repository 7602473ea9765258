// y[i] = sum over j of w[i, j] x_j for every pair of an image and a caption: mixtures of four cells. An input or the
// weights may belong to an item of one side and repeat over the other (stride 0). With `transposed` the four mixtures'
// weights are read as w[j, i]: the gradient of the cells from that of the mixtures. The text between the marks is
// replaced; a single mixture may be added to a rest.
override mixtures: u32 = 4u;
override transposed: bool = false;
override rectified: bool = false; // whether x0 is taken through a ReLU
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
@group(0) @binding(4) var<storage, read> w: array<vec4<f32>>; // [outer, inner, mixtures] of four, or an item's
//: rest
@group(0) @binding(5) var<storage, read_write> y: array<T>; // [mixtures, outer, inner, m]
@group(0) @binding(6) var<uniform> p: Params;
fn rest(i: u32) -> T { return T(0.0); }
//: end

fn mix4(x: array<T, 4>, w: vec4<f32>) -> T {
    return fma(x[3], T(w.w), fma(x[2], T(w.z), fma(x[1], T(w.y), x[0] * w.x)));
}

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
    var x = array<T, 4>(x0[at.x], x1[at.y], x2[at.z], x3[at.w]);
    if rectified {
        x[0] = max(x[0], T(0.0));
    }
    let first = (outer * p.weights.x + inner * p.weights.y) * mixtures;
    if mixtures == 1u {
        y[i] = mix4(x, w[first]) + rest(i);
        return;
    }
    var rows = mat4x4<f32>(w[first], w[first + 1u], w[first + 2u], w[first + 3u]);
    if transposed {
        rows = transpose(rows);
    }
    y[i] = mix4(x, rows[0]);
    y[p.plane + i] = mix4(x, rows[1]);
    y[2u * p.plane + i] = mix4(x, rows[2]);
    y[3u * p.plane + i] = mix4(x, rows[3]);
}
