// y[o, n, b] = q c / max(|q| |c|, eps) of block b of a node's vector q and of the mean c = sum over k of a[k] x_k of its
// context, from the products d[k] of the node's block with those of the context and their Gram matrix: q c is the sum of
// a[k] d[k], |c|^2 that of a[k] gram[k, l] a[l]. An invocation owns a block of four nodes, element q of their weights in
// registers; those past the context's end are 0.
struct Params {
    count: u32, // outer * blocks * nodes / 4
    fours: u32, // nodes / 4
    blocks: u32,
    quads: u32, // context / 4
    each: u32, // nodes of an item
    of_outer: u32, // where dots are, by their strides over the outer axis,
    of_block: u32, // over blocks,
    of_item: u32, // over items,
    of_node: u32, // over an item's nodes; 1 where neighbours are nodes,
    of_context: u32, // and over the context; 1 where neighbours are in it
    eps: f32,
}
@group(0) @binding(0) var<storage, read> weights: array<vec4<f32>>; // [outer, nodes, context], in fours
@group(0) @binding(1) var<storage, read> dots: array<vec4<f32>>; // as the strides say, in fours
@group(0) @binding(2) var<storage, read> grams: array<vec4<f32>>; // [outer, blocks, context, context], in fours
@group(0) @binding(3) var<storage, read> squares: array<f32>; // [nodes, blocks]: |q|^2
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [outer, nodes, blocks]
@group(0) @binding(5) var<uniform> p: Params;

//: variant
const BY_NODE = false; // whether four neighbours in dots are nodes, not context
const q = 0u; // the four of the context that is repeated
//: end

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let node = i % p.fours * 4u;
    let block = i / p.fours % p.blocks;
    let outer = i / p.fours / p.blocks;
    let first = (outer * p.fours * 4u + node) * p.quads;
    let at = outer * p.of_outer + block * p.of_block + node / p.each * p.of_item + node % p.each * p.of_node;
    var products = vec4<f32>(0.0);
//: each q
    // Four nodes' weights, then turned: each vector is of one place in the context.
    let here_q = q < p.quads;
    let place_q = first + min(q, p.quads - 1u);
    let m_q = transpose(mat4x4<f32>(
        weights[place_q], weights[place_q + p.quads], weights[place_q + 2u * p.quads], weights[place_q + 3u * p.quads]));
    let a_q = select(vec4<f32>(0.0), m_q[0], here_q);
    let b_q = select(vec4<f32>(0.0), m_q[1], here_q);
    let c_q = select(vec4<f32>(0.0), m_q[2], here_q);
    let d_q = select(vec4<f32>(0.0), m_q[3], here_q);
    let from_q = at + 4u * min(q, p.quads - 1u) * p.of_context;
    if BY_NODE {
        products += a_q * dots[from_q / 4u] + b_q * dots[(from_q + p.of_context) / 4u]
            + c_q * dots[(from_q + 2u * p.of_context) / 4u] + d_q * dots[(from_q + 3u * p.of_context) / 4u];
    } else {
        let n_q = transpose(mat4x4<f32>(dots[from_q / 4u], dots[(from_q + p.of_node) / 4u],
            dots[(from_q + 2u * p.of_node) / 4u], dots[(from_q + 3u * p.of_node) / 4u]));
        products += a_q * n_q[0] + b_q * n_q[1] + c_q * n_q[2] + d_q * n_q[3];
    }
//: end
    let gram = (outer * p.blocks + block) * 4u * p.quads * p.quads;
    var square = vec4<f32>(0.0);
    for (var k = 0u; k < 4u * p.quads; k++) {
        var mixed = vec4<f32>(0.0);
//: each q
        let g_q = grams[gram + k * p.quads + min(q, p.quads - 1u)];
        mixed += a_q * g_q.x + b_q * g_q.y + c_q * g_q.z + d_q * g_q.w;
//: end
        let part = k % 4u;
        let own = first + k / 4u;
        square += mixed * vec4<f32>(weights[own][part], weights[own + p.quads][part],
            weights[own + 2u * p.quads][part], weights[own + 3u * p.quads][part]);
    }
    let to = (outer * p.fours * 4u + node) * p.blocks + block;
    for (var n = 0u; n < 4u; n++) {
        let both = square[n] * squares[(node + n) * p.blocks + block];
        let cosine = products[n] / select(p.eps, sqrt(both), both > p.eps * p.eps);
        // Where the mean's terms cancel, rounding may leave less of its square than there is.
        y[to + n * p.blocks] = clamp(cosine, -1.0, 1.0);
    }
}
