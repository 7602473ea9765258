// Batch norm's statistics from the moments of all chunks, and what the running ones become: they move towards the batch's
// mean and its variance over n - 1.
//: use moments

struct Params {
    columns: u32, // of a row, in T
    chunks: u32, // of all parts
    eps: f32,
    momentum: f32,
}
@group(0) @binding(0) var<storage, read> x: array<T>; // [chunks, 3, columns]
@group(0) @binding(1) var<storage, read> w: array<T>; // [columns]
@group(0) @binding(2) var<storage, read> running_mean: array<T>; // [columns]
@group(0) @binding(3) var<storage, read> running_var: array<T>; // [columns]
// [6, columns]: mean, 1 / sqrt(variance + eps), that times w, what the rows weigh, the running mean and variance
@group(0) @binding(4) var<storage, read_write> y: array<T>;
@group(0) @binding(5) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    join(local);
    let place = place_of(linear_id(id, groups), p.columns);
    let column = place.unit;
    var all = Moments(T(0.0), T(0.0), T(0.0));
    for (var chunk = place.member; chunk < p.chunks; chunk += TEAM) {
        let at = 3u * chunk * p.columns + column;
        all = merged(all, Moments(x[at], x[at + p.columns], x[at + 2u * p.columns]));
    }
    all = folded(all);
    if !place.own {
        return;
    }
    let inverse = T(1.0) / sqrt(all.squares / max(all.n, T(TINY)) + p.eps);
    let unbiased = all.squares / max(all.n - 1.0, T(1.0));
    y[column] = all.mean;
    y[p.columns + column] = inverse;
    y[2u * p.columns + column] = inverse * w[column];
    y[3u * p.columns + column] = all.n;
    y[4u * p.columns + column] = running_mean[column] * (1.0 - p.momentum) + all.mean * p.momentum;
    y[5u * p.columns + column] = running_var[column] * (1.0 - p.momentum) + unbiased * p.momentum;
}
