// y = softmax(scale * x) along the middle axis, over the first lens[outer / every % len(lens)] places where
// masked; places past them are 0.
//: use row

struct Params {
    count: u32,
    steps: u32, // along the axis, in T
    inner: u32, // apart, in T
    every: u32, // outer rows a length holds for
    lens: u32, // number of lengths, 0 if not masked
    scale: f32,
}
@group(0) @binding(0) var<storage, read> x: array<T>; // [outer, n, inner]
@group(0) @binding(1) var<storage, read> lens: array<f32>; // [lens]
@group(0) @binding(2) var<storage, read_write> y: array<T>; // [outer, n, inner]
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    join(local);
    let row = row_of(linear_id(id, groups) / TEAM, p.count, p.steps, p.inner);
    var len = T(4e9);
    if p.lens > 0u {
        len = T(lens[row.outer / p.every % p.lens]);
    }
    var most = T(-3e38);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let value = p.scale * x[row.start + n * p.inner];
        most = max(most, select(T(-3e38), value, places(n) < len));
    }
    most = fold_max(most);
    var sum = T(0.0);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let at = row.start + n * p.inner;
        let e = select(T(0.0), precise_exp(p.scale * x[at] - most), places(n) < len);
        sum += e;
        if row.own {
            y[at] = e;
        }
    }
    sum = fold_sum(sum);
    // A row of length 0 is all zeros.
    let inverse = T(1.0) / select(T(1.0), sum, sum > T(0.0));
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let at = row.start + n * p.inner;
        if row.own {
            y[at] = y[at] * inverse;
        }
    }
}
