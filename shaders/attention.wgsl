// Multi-head attention without its weights in memory. Of every sequence and head, with s = scale q k + bias and
// p = softmax over keys of s, an invocation owns
// attention: a query's y = sum of p v;
// attention_queries: a query's gradient and what the next needs of it: (largest s, 1 / sum of e^(s - largest),
// sum of p (g v), 0);
// attention_keys: a key's gradients of k and v, p recomputed.
// It streams over the other side, in chunks that a subgroup's invocations load for each other where there are
// subgroups. The text between the marks is replaced: bindings, the entry's arguments, the unrolled body.
struct Params {
    count: u32, // invocations: sequences * heads * own rows, whole subgroups a head
    heads: u32,
    own: u32, // rows of the side an invocation owns
    padded: u32, // the same, up to whole subgroups
    other: u32, // rows of the other side
    masks: u32, // rows of bias; sequence n reads row n % masks
    keys: u32,
    scale: f32,
}
//: bindings
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [sequences, queries, heads * width]
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>; // [sequences, keys, heads * width]
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>; // [sequences, keys, heads * width]
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [masks, keys]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>; // [sequences, queries, heads * width]
@group(0) @binding(5) var<uniform> p: Params;
//: end

//: entry
@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let lane = 0u;
//: end
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let head = i / p.padded % p.heads;
    let n = i / (p.padded * p.heads);
    let owned = i % p.padded;
    let row = min(owned, p.own - 1u); // of the owner's side
//: body
    // Of a single key, heads four channels wide.
    y[(n * p.own + row) * p.heads + head] = v[n * p.heads + head];
//: end
}
