// y = (x - mean) / sqrt(variance + eps) * w + b along rows, the variance biased.
//: use row

struct Params {
    count: u32, // rows
    steps: u32, // along a row, in T
    inner: u32, // 1
    n: f32,
    eps: f32,
}
@group(0) @binding(0) var<storage, read> x: array<T>; // [rows, n]
@group(0) @binding(1) var<storage, read> w: array<T>; // [n]
@group(0) @binding(2) var<storage, read> b: array<T>; // [n]
@group(0) @binding(3) var<storage, read_write> y: array<T>; // [rows, n]
@group(0) @binding(4) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    join(local);
    let row = row_of(linear_id(id, groups) / TEAM, p.count, p.steps, p.inner);
    var sum = T(0.0);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        sum += x[row.start + n];
    }
    let mean = fold_sum(sum) / p.n;
    var squares = T(0.0);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let centred = x[row.start + n] - mean;
        squares += centred * centred;
    }
    let inverse = T(1.0) / sqrt(fold_sum(squares) / p.n + p.eps);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let at = row.start + n;
        if row.own {
            y[at] = (x[at] - mean) * inverse * w[n] + b[n];
        }
    }
}
