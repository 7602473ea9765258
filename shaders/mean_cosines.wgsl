// y[o, n, b] = q c / max(|q| |c|, eps) of block b of a node's vector q and of the mean c = sum over k of a[k] x_k of its
// context, from the products d[k] of the node's block with those of the context and their Gram matrix: q c is the sum of
// a[k] d[k], |c|^2 that of a[k] gram[k, l] a[l]. An invocation owns a block of four nodes, the fours q of their weights in
// registers; where there are subgroups, one owns nodes of one block and its invocations load the Gram matrix for each
// other.
struct Params {
    count: u32, // invocations: outer * blocks * padded
    fours: u32, // nodes / 4
    padded: u32, // the same, up to whole subgroups
    blocks: u32,
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
const QUADS = 1u; // context / 4
const LANES = 1u; // invocations that load for each other
const SHARES = 4u; // fours that each loads, of four rows of a Gram matrix
const q = 0u; // the four of the context that is repeated
const j = 0u; // the share that is repeated
//: end

// Four of a Gram matrix, from the invocation that loaded them.
//: share
fn share(x: vec4<f32>, lane: u32) -> vec4<f32> { return x; }
//: end

// Weights of four nodes at four places in the context, a vector a place.
fn turned(at: u32) -> mat4x4<f32> {
    return transpose(
        mat4x4<f32>(weights[at], weights[at + QUADS], weights[at + 2u * QUADS], weights[at + 3u * QUADS]));
}

// Products of four nodes' block with four of the context, a vector a place.
fn products(at: u32) -> mat4x4<f32> {
    let step = select(p.of_node, p.of_context, BY_NODE);
    let x = mat4x4<f32>(
        dots[at / 4u], dots[(at + step) / 4u], dots[(at + 2u * step) / 4u], dots[(at + 3u * step) / 4u]);
    if BY_NODE {
        return x;
    }
    return transpose(x);
}

fn weighted(a: mat4x4<f32>, x: mat4x4<f32>) -> vec4<f32> {
    return a[0] * x[0] + a[1] * x[1] + a[2] * x[2] + a[3] * x[3];
}

//: entry
@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let lane = 0u;
//: end
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let node = 4u * min(i % p.padded, p.fours - 1u);
    let block = i / p.padded % p.blocks;
    let outer = i / p.padded / p.blocks;
    let first = (outer * p.fours * 4u + node) * QUADS;
    let at = outer * p.of_outer + block * p.of_block + node / p.each * p.of_item + node % p.each * p.of_node;
    var product = vec4<f32>(0.0);
//: each q
    let a_q = turned(first + q);
    product += weighted(a_q, products(at + 4u * q * p.of_context));
//: end
    let gram = (outer * p.blocks + block) * 4u * QUADS * QUADS;
    var square = vec4<f32>(0.0);
    for (var k = 0u; k < QUADS; k++) {
        // Four rows of the Gram matrix.
        var rows: array<vec4<f32>, SHARES>;
//: each j
        rows[j] = grams[gram + 4u * k * QUADS + min(j * LANES + lane, 4u * QUADS - 1u)];
//: end
        var mixed: mat4x4<f32>;
//: each q
        let r_q = share(rows[q / LANES], q % LANES);
        let s_q = share(rows[(QUADS + q) / LANES], (QUADS + q) % LANES);
        let t_q = share(rows[(2u * QUADS + q) / LANES], (2u * QUADS + q) % LANES);
        let u_q = share(rows[(3u * QUADS + q) / LANES], (3u * QUADS + q) % LANES);
        mixed[0] += a_q[0] * r_q.x + a_q[1] * r_q.y + a_q[2] * r_q.z + a_q[3] * r_q.w;
        mixed[1] += a_q[0] * s_q.x + a_q[1] * s_q.y + a_q[2] * s_q.z + a_q[3] * s_q.w;
        mixed[2] += a_q[0] * t_q.x + a_q[1] * t_q.y + a_q[2] * t_q.z + a_q[3] * t_q.w;
        mixed[3] += a_q[0] * u_q.x + a_q[1] * u_q.y + a_q[2] * u_q.z + a_q[3] * u_q.w;
//: end
        square += weighted(turned(first + k), mixed);
    }
    if i % p.padded >= p.fours {
        return;
    }
    let to = (outer * p.fours * 4u + node) * p.blocks + block;
    for (var n = 0u; n < 4u; n++) {
        let both = square[n] * squares[(node + n) * p.blocks + block];
        let cosine = product[n] / select(p.eps, sqrt(both), both > p.eps * p.eps);
        // Where the mean's terms cancel, rounding may leave less of its square than there is.
        y[to + n * p.blocks] = clamp(cosine, -1.0, 1.0);
    }
}
