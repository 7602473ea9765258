// c[m, n] = act(scale * (bias[n] + sum over k of a[m, k] b[k, n])) + residual[m, n], for every batch, as matmul
// computes it, for GPUs: a workgroup owns a square of c and shares the tiles of a and b it needs. While it
// multiplies one pair of tiles, its invocations hold the next pair in registers.
// The text between the marks is replaced: bindings by element type, sizes, how four k of four rows or columns are
// fetched, and the unrolled registers.
//: use matmul_params
//: bindings
@group(0) @binding(0) var<storage, read> a: array<f32>; // [outer, inner, m, k], by strides
@group(0) @binding(1) var<storage, read> b: array<f32>; // [outer, inner, k, n], by strides
@group(0) @binding(2) var<storage, read_write> c: array<f32>; // [splits, outer, inner, m, n], by strides
@group(0) @binding(3) var<uniform> p: Params;
//: end
//: sizes
const SIDE = 8u; // invocations along an edge of the workgroup
const QUADS = 8u; // fours of rows, and of columns, in the square
//: end
const DEPTH = 16u; // k of a step
var<workgroup> ta: array<vec4<f32>, DEPTH * QUADS>; // [DEPTH, rows in fours]
var<workgroup> tb: array<vec4<f32>, DEPTH * QUADS>; // [DEPTH, columns in fours]

alias Four = array<vec4<f32>, 4>; // four rows (or columns) at each of four k

// Which four an invocation fetches of the `4 * QUADS` of a tile: (its rows or columns, its k).
//: fetch
fn place_a(item: u32) -> vec2<u32> { return vec2<u32>(item / 4u, item % 4u); }
fn place_b(item: u32) -> vec2<u32> { return vec2<u32>(item % QUADS, item / QUADS); }
fn fetch_a(origin: u32, m: u32, k: u32, end: u32) -> Four { return Four(); }
fn fetch_b(origin: u32, n: u32, k: u32, end: u32) -> Four { return Four(); }
//: end

@compute @workgroup_size(SIDE * SIDE)
fn main(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let tile = group.x + group.y * groups.x;
    if tile >= p.count {
        return;
    }
    let edge = 4u * QUADS;
    let across = (p.n + edge - 1u) / edge;
    let down = (p.m + edge - 1u) / edge;
    let n0 = tile % across * edge;
    let m0 = tile / across % down * edge;
    let batch = tile / (across * down);
    let inner = batch % p.batch.x;
    let outer = batch / p.batch.x % p.outer;
    let split = batch / (p.batch.x * p.outer);
    let k0 = split * p.batch.z;
    let k1 = min(k0 + p.batch.z, p.k);
    // The first invocations fetch from a, the next from b.
    let fetches_a = local < 4u * QUADS;
    let fetches_b = !fetches_a && local < 8u * QUADS;
    let item = local % (4u * QUADS);
    let place = select(place_b(item), place_a(item), fetches_a);
    let biases = outer * p.b.x + inner * p.b.y + p.offset;
    let x = local % SIDE;
    let y = local / SIDE;
//: start
    var s0 = vec4<f32>(0.0);
//: end
    for (var batch_sum = 0u; batch_sum < p.batch.y; batch_sum++) {
        let a1 = outer * p.a.x + inner * p.a.y + batch_sum * p.a.z;
        let b1 = outer * p.b.x + inner * p.b.y + batch_sum * p.b.z;
        var next = Four();
        if fetches_a {
            next = fetch_a(a1, m0 + 4u * place.x, k0 + 4u * place.y, k1);
        } else if fetches_b {
            next = fetch_b(b1, n0 + 4u * place.x, k0 + 4u * place.y, k1);
        }
        for (var k = k0; k < k1; k += DEPTH) {
            let at = 4u * place.y * QUADS + place.x;
            if fetches_a {
                ta[at] = next[0];
                ta[at + QUADS] = next[1];
                ta[at + 2u * QUADS] = next[2];
                ta[at + 3u * QUADS] = next[3];
            } else if fetches_b {
                tb[at] = next[0];
                tb[at + QUADS] = next[1];
                tb[at + 2u * QUADS] = next[2];
                tb[at + 3u * QUADS] = next[3];
            }
            workgroupBarrier();
            if fetches_a {
                next = fetch_a(a1, m0 + 4u * place.x, k + DEPTH + 4u * place.y, k1);
            } else if fetches_b {
                next = fetch_b(b1, n0 + 4u * place.x, k + DEPTH + 4u * place.y, k1);
            }
            for (var kk = 0u; kk < DEPTH; kk++) {
//: products
                s0 += ta[kk * QUADS + y].x * tb[kk * QUADS + x];
//: end
            }
            workgroupBarrier();
        }
    }
    let c0 = outer * p.c.x + inner * p.c.y + split * p.c.z;
//: store
    let row = c0 + (m0 + 4u * y) * p.c.w;
    if m0 + 4u * y < p.m && n0 + 4u * x < p.n {
        c[row + n0 + 4u * x] = s0.x * p.scale;
    }
//: end
}
