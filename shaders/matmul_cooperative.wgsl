enable f16;
enable wgpu_cooperative_matrix;
// c[m, n] = act(scale * (bias[n] + sum over k of a[m, k] b[k, n])) + residual[m, n], for every batch, as matmul
// computes it, on cooperative matrices: a workgroup owns a square of c and shares the tiles of a and b it needs,
// rounded to f16; a subgroup owns a quarter of the square, in matrices that its invocations multiply together and
// sum in f32. While they multiply one pair of tiles, they hold the next pair in registers.
// The text between the marks is replaced: bindings by element type, sizes, how four k of four rows or columns are
// fetched, the matrices of a subgroup, the epilogue.
//: use matmul_params
//: bindings
@group(0) @binding(0) var<storage, read> a: array<f32>; // [outer, inner, m, k], by strides
@group(0) @binding(1) var<storage, read> b: array<f32>; // [outer, inner, k, n], by strides
@group(0) @binding(2) var<storage, read_write> c: array<f32>; // [splits, outer, inner, m, n], by strides
@group(0) @binding(3) var<uniform> p: Params;
//: end
//: sizes
const SIDE = 8u; // rows and columns of a matrix
const EACH = 1u; // matrices along an edge of a quarter
const SIZE = 32u; // invocations of the workgroup
const SUBGROUPS = 4u; // in it, at most; past four they repeat the quarters
alias MatrixA = coop_mat8x8<f16, A>;
alias MatrixB = coop_mat8x8<f16, B>;
alias MatrixC = coop_mat8x8<f32, C>;
//: end
const QUARTER = EACH * SIDE; // rows and columns of a quarter
const QUADS = QUARTER / 2u; // fours of rows, and of columns, in the square
const DEPTH = 16u; // k of a step
const ROW = 4u * QUADS + 8u; // a row of the tiles, padded: the rows of a matrix fall on different banks
const FETCHES = (8u * QUADS + SIZE - 1u) / SIZE; // of an invocation in a step
var<workgroup> ta: array<f16, DEPTH * ROW>; // [DEPTH, rows]
var<workgroup> tb: array<f16, DEPTH * ROW>; // [DEPTH, columns]
var<workgroup> tc: array<f32, SUBGROUPS * SIDE * SIDE>; // a matrix of each subgroup

alias Four = array<vec4<f32>, 4>; // four rows (or columns) at each of four k

// Which four an invocation fetches of the `4 * QUADS` of a tile: (its rows or columns, its k).
//: fetch
fn place_a(item: u32) -> vec2<u32> { return vec2<u32>(item / 4u, item % 4u); }
fn place_b(item: u32) -> vec2<u32> { return vec2<u32>(item % QUADS, item / QUADS); }
fn fetch_a(origin: u32, m: u32, k: u32, end: u32) -> Four { return Four(); }
fn fetch_b(origin: u32, n: u32, k: u32, end: u32) -> Four { return Four(); }
//: end

// The first items are a's, the next b's.
fn fetch(item: u32, a1: u32, b1: u32, m0: u32, n0: u32, k: u32, end: u32) -> Four {
    if item < 4u * QUADS {
        let place = place_a(item);
        return fetch_a(a1, m0 + 4u * place.x, k + 4u * place.y, end);
    }
    if item < 8u * QUADS {
        let place = place_b(item - 4u * QUADS);
        return fetch_b(b1, n0 + 4u * place.x, k + 4u * place.y, end);
    }
    return Four();
}

fn put(item: u32, four: Four) {
    if item < 8u * QUADS {
        let of_a = item < 4u * QUADS;
        let place = select(place_b(item - 4u * QUADS), place_a(item), of_a);
        let at = 4u * place.y * ROW + 4u * place.x;
        put_four(of_a, at, vec4<f16>(four[0]));
        put_four(of_a, at + ROW, vec4<f16>(four[1]));
        put_four(of_a, at + 2u * ROW, vec4<f16>(four[2]));
        put_four(of_a, at + 3u * ROW, vec4<f16>(four[3]));
    }
}

fn put_four(of_a: bool, at: u32, v: vec4<f16>) {
    if of_a {
        ta[at] = v.x;
        ta[at + 1u] = v.y;
        ta[at + 2u] = v.z;
        ta[at + 3u] = v.w;
    } else {
        tb[at] = v.x;
        tb[at + 1u] = v.y;
        tb[at + 2u] = v.z;
        tb[at + 3u] = v.w;
    }
}

// Stores the four matrices in tc, one of each quarter; the first one's corner is (m0, n0).
fn store(c0: u32, biases: u32, m0: u32, n0: u32, local: u32) {
    for (var i = local; i < SIDE * SIDE; i += SIZE) {
        let quarter = i / (SIDE * SIDE / 4u);
        let m = m0 + quarter / 2u * QUARTER + i / (SIDE / 4u) % SIDE;
        let n = n0 + quarter % 2u * QUARTER + i % (SIDE / 4u) * 4u;
        let sum = vec4<f32>(tc[4u * i], tc[4u * i + 1u], tc[4u * i + 2u], tc[4u * i + 3u]);
        if m < p.m {
            let row = c0 + m * p.c.w;
//: epilogue
            if n < p.n {
                c[row + n] = sum.x * p.scale;
            }
//: end
        }
    }
}

@compute @workgroup_size(SIZE)
fn main(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
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
    // The quarter's rows and columns in the square, and the subgroup's place in tc.
    let y = subgroup % 4u / 2u * QUARTER;
    let x = subgroup % 2u * QUARTER;
    let own = subgroup * SIDE * SIDE;
//: start
    var s0_0: MatrixC;
//: end
    for (var batch_sum = 0u; batch_sum < p.batch.y; batch_sum++) {
        let a1 = outer * p.a.x + inner * p.a.y + batch_sum * p.a.z;
        let b1 = outer * p.b.x + inner * p.b.y + batch_sum * p.b.z;
        var next: array<Four, FETCHES>;
        for (var i = 0u; i < FETCHES; i++) {
            next[i] = fetch(local + i * SIZE, a1, b1, m0, n0, k0, k1);
        }
        for (var k = k0; k < k1; k += DEPTH) {
            for (var i = 0u; i < FETCHES; i++) {
                put(local + i * SIZE, next[i]);
            }
            workgroupBarrier();
            for (var i = 0u; i < FETCHES; i++) {
                next[i] = fetch(local + i * SIZE, a1, b1, m0, n0, k + DEPTH, k1);
            }
            for (var kk = 0u; kk < DEPTH; kk += SIDE) {
//: products
                let a0 = coopLoad<MatrixA>(&ta[kk * ROW + y], ROW);
                let b0 = coopLoadT<MatrixB>(&tb[kk * ROW + x], ROW);
                s0_0 = coopMultiplyAdd(a0, b0, s0_0);
//: end
            }
            workgroupBarrier();
        }
    }
    let c0 = outer * p.c.x + inner * p.c.y + split * p.c.z;
    let biases = outer * p.b.x + inner * p.b.y + p.offset;
//: store
    coopStoreT(s0_0, &tc[own], SIDE);
    workgroupBarrier();
    store(c0, biases, m0, n0, local);
    workgroupBarrier();
//: end
}
