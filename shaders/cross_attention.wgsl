// Weights of cross-attention for pairs of an image and a caption: y = softmax over the context of scale u, where u
// are the scores, past a leaky ReLU, divided by their norm over the queries. An invocation owns a pair and keeps the
// norms of its columns in registers; `cross_attention_grad` recomputes y and yields the scores' gradient.
// The text between the marks is replaced: the element, the bindings, what becomes of a score, and the unrolled body.
struct Params {
    count: u32, // pairs
    rows: u32, // queries
    columns: u32, // of the context, in T
    lens: u32, // number of lengths, 0 if nothing is masked
    scale: f32,
    eps: f32,
    leaky: f32, // slope below 0
}
//: type
fn fold_sum(x: T) -> f32 { return x.x + x.y + x.z + x.w; }
fn fold_max(x: T) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
//: end
//: bindings
@group(0) @binding(0) var<storage, read> x: array<T>; // [pairs, rows, columns]
@group(0) @binding(1) var<storage, read> lens: array<f32>; // [lens]: true words of each caption
@group(0) @binding(2) var<storage, read_write> y: array<T>; // [pairs, rows, columns]
@group(0) @binding(3) var<uniform> p: Params;
//: end
//: forms
fn activated(x: T) -> T { return select(x * p.leaky, x, x > T(0.0)); }
fn slope(x: T) -> T { return select(T(p.leaky), T(1.0), x > T(0.0)); }
fn divisor(norm: T) -> T { return max(norm, T(p.eps)); }
//: end

//: entry
@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let pair = linear_id(id, groups);
//: end
    if pair >= p.count {
        return;
    }
    let first = pair * p.rows * p.columns;
//: body
    for (var r = 0u; r < p.rows * p.columns; r++) {
        y[first + r] = activated(x[first + r]);
    }
//: end
}
