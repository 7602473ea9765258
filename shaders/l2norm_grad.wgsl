// The gradient of l2norm: with r the norm and d what x is divided by, (g - x (g x) / (r d)) / d; the second
// term is 0 where the norm is below eps (first form) or 0.
//: use row

struct Params {
    count: u32,
    steps: u32, // along the axis, in T
    inner: u32, // apart, in T
    eps: f32,
    plus: u32,
}
@group(0) @binding(0) var<storage, read> x: array<T>; // [outer, n, inner]
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
    var squares = T(0.0);
    var dot = T(0.0);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let at = row.start + n * p.inner;
        squares += x[at] * x[at];
        dot += x[at] * g[at];
    }
    let norm = sqrt(fold_sum(squares));
    let divisor = select(max(norm, T(p.eps)), norm + p.eps, p.plus == 1u);
    let has_grad = norm > select(T(p.eps), T(0.0), p.plus == 1u);
    let inverse = T(1.0) / divisor;
    let share = select(T(0.0), fold_sum(dot) * inverse / select(T(1.0), norm, has_grad), has_grad);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let at = row.start + n * p.inner;
        if row.own {
            y[at] = (g[at] - x[at] * share) * inverse;
        }
    }
}
