// The gradient of softmax from its result s and g: scale * s (g - sum of g s).
//: use row

struct Params {
    count: u32,
    steps: u32, // along the axis, in T
    inner: u32, // apart, in T
    scale: f32,
}
@group(0) @binding(0) var<storage, read> s: array<T>; // [outer, n, inner]
@group(0) @binding(1) var<storage, read> g: array<T>; // [outer, n, inner]
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
    var sum = T(0.0);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let at = row.start + n * p.inner;
        sum += s[at] * g[at];
    }
    sum = fold_sum(sum);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let at = row.start + n * p.inner;
        if row.own {
            y[at] = p.scale * s[at] * (g[at] - sum);
        }
    }
}
