// The gradient of layer_norm's rows x, with s a row before w and b, and h = g w: (h - mean(h) - s mean(h s)) / sqrt(variance +
// eps); where rows are sums, that is the residual's, and from it that of what was dropped out; and what layer_norm_sums
// needs of each row.
//: use layer_norm_params
@group(0) @binding(0) var<storage, read> x: array<T>; // [rows, n]
@group(0) @binding(1) var<storage, read> w: array<T>; // [n]
@group(0) @binding(2) var<storage, read> g: array<T>; // [rows, n]: y's gradient
@group(0) @binding(3) var<storage, read_write> gx: array<T>; // [rows, n], and at `second` that of what was dropped out
@group(0) @binding(4) var<storage, read_write> about: array<vec2<f32>>; // [rows]: mean, 1 / sqrt(variance + eps)

@compute @workgroup_size(GROUP)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    join(local);
    let number = linear_id(id, groups) / TEAM;
    let row = row_of(number, p.count, p.steps, p.inner);
    var sum = T(0.0);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        sum += x[row.start + n];
    }
    let mean = fold_sum(sum) / p.n;
    var squares = T(0.0);
    var total = T(0.0);
    var dot = T(0.0);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let centred = x[row.start + n] - mean;
        let h = g[row.start + n] * w[n];
        squares += centred * centred;
        total += h;
        dot += h * centred;
    }
    let inverse = T(1.0) / sqrt(fold_sum(squares) / p.n + p.eps);
    let shift = fold_sum(total) / p.n;
    let share = fold_sum(dot) / p.n * inverse * inverse;
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let at = row.start + n;
        if row.own {
            let own = (g[at] * w[n] - shift - (x[at] - mean) * share) * inverse;
            gx[at] = own;
            if plus {
                gx[p.second + at] = dropped(own, row, n);
            }
        }
    }
    if row.own && local % TEAM == 0u {
        about[number] = vec2<f32>(first(mean), first(inverse));
    }
}
