enable f16;
enable wgpu_cooperative_matrix;
// c[m, n] = act(scale * (bias[n] + sum over k of a[m, k] b[k, n])) + residual[m, n], for every batch, as matmul
// computes it, on cooperative matrices: a workgroup owns a square of c and shares the tiles of a and b it needs, as
// they lie in memory, in halves; a subgroup owns a quarter of the square, in matrices that its invocations multiply
// together and sum in f32. While they multiply one pair of tiles, they hold the next pair in registers.
// The text between the marks is replaced: bindings by element type, sizes, how a value becomes halves, what an
// invocation fetches and puts into the tiles, the matrices of a subgroup, sums of a's rows, the epilogue.
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
const DEPTH = 16u; // k of a step
const ROW_A = 24u; // values between lines of a's tile, padded: the lines of a matrix fall on different banks
const ROW_B = 24u;
const STAGED = 1u; // matrices beside each other that a subgroup stores at a time
alias MatrixA = coop_mat8x8<f16, A>;
alias MatrixB = coop_mat8x8<f16, B>;
alias MatrixC = coop_mat8x8<f32, C>;
var<workgroup> tc: array<f32, 256>; // [subgroups, SIDE, STAGED * SIDE]
//: end
const QUARTER = EACH * SIDE; // rows and columns of a quarter
const EDGE = 2u * QUARTER; // of the square
//: halves
var<workgroup> ta: array<f16, 384>;
var<workgroup> tb: array<f16, 384>;
fn put_a(at: u32, v: vec4<f32>) { ta[at] = f16(v.x); }
fn put_b(at: u32, v: vec4<f32>) { tb[at] = f16(v.x); }
fn whole(sum: vec4<f32>) -> vec4<f32> { return sum; }
fn measure(lane: u32, lanes: u32) {}
//: end

//: fetch
fn fetch_a(item: u32, a1: u32, m0: u32, k0: u32, end: u32) -> vec4<f32> { return vec4<f32>(); }
fn fetch_b(item: u32, b1: u32, n0: u32, k0: u32, end: u32) -> vec4<f32> { return vec4<f32>(); }
//: end

// Stores the staged matrices of each quarter; the first one's corner is (m0, n0).
fn store(c0: u32, biases: u32, m0: u32, n0: u32, local: u32, first: bool, last: bool) {
    const QUADS = STAGED * SIDE / 4u;
    for (var i = local; i < 4u * SIDE * QUADS; i += SIZE) {
        let quarter = i / (SIDE * QUADS);
        let m = m0 + quarter / 2u * QUARTER + i / QUADS % SIDE;
        let n = n0 + quarter % 2u * QUARTER + i % QUADS * 4u;
        var sum = vec4<f32>(tc[4u * i], tc[4u * i + 1u], tc[4u * i + 2u], tc[4u * i + 3u]);
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
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
) {
    let tile = group.x + group.y * groups.x;
    if tile >= p.count {
        return;
    }
    let across = (p.n + EDGE - 1u) / EDGE;
    let down = (p.m + EDGE - 1u) / EDGE;
    let n0 = tile % across * EDGE;
    let m0 = tile / across % down * EDGE;
    let batch = tile / (across * down);
    let inner = batch % p.batch.x;
    let outer = batch / p.batch.x % p.outer;
    let split = batch / (p.batch.x * p.outer);
    let k0 = split * p.batch.z;
    let k1 = min(k0 + p.batch.z, p.k);
    // The quarter's rows and columns in the square, and the subgroup's place in tc.
    let y = subgroup % 4u / 2u * QUARTER;
    let x = subgroup % 2u * QUARTER;
    let own = subgroup % 4u * SIDE * STAGED * SIDE;
    let c0 = outer * p.c.x + inner * p.c.y + split * p.c.z;
    let biases = outer * p.b.x + inner * p.b.y + p.offset;
    measure(lane, lanes);
//: start
    var s0_0: MatrixC;
//: end
    for (var batch_sum = 0u; batch_sum < p.batch.y; batch_sum++) {
        let a1 = outer * p.a.x + inner * p.a.y + batch_sum * p.a.z;
        let b1 = outer * p.b.x + inner * p.b.y + batch_sum * p.b.z;
//: first
        var na0 = fetch_a(local, a1, m0, k0, k1);
        var nb0 = fetch_b(local, b1, n0, k0, k1);
//: end
        for (var k = k0; k < k1; k += DEPTH) {
//: put
            put_a(local, na0);
            put_b(local, nb0);
//: end
            workgroupBarrier();
            if k + DEPTH < k1 {
//: next
                na0 = fetch_a(local, a1, m0, k + DEPTH, k1);
                nb0 = fetch_b(local, b1, n0, k + DEPTH, k1);
//: end
            }
            for (var kk = 0u; kk < DEPTH; kk += SIDE) {
//: products
                let oa0 = y * ROW_A + kk;
                let a0 = coopLoadT<MatrixA>(&ta[oa0], ROW_A);
                let ob0 = kk * ROW_B + x;
                let b0 = coopLoadT<MatrixB>(&tb[ob0], ROW_B);
                s0_0 = coopMultiplyAdd(a0, b0, s0_0);
//: end
            }
            workgroupBarrier();
//: promote
//: end
        }
    }
//: store
    coopStoreT(s0_0, &tc[own], SIDE);
    workgroupBarrier();
    store(c0, biases, m0, n0, local, true, true);
    workgroupBarrier();
//: end
//: sums
//: end
}
