// y = (s - mean) / sqrt(variance + eps) * w + b along rows, the variance biased: s is x, or x dropped out plus a residual,
// which is stored besides.
//: use layer_norm_params
@group(0) @binding(0) var<storage, read> x: array<T>; // [rows, n]
@group(0) @binding(1) var<storage, read> w: array<T>; // [n]
@group(0) @binding(2) var<storage, read> b: array<T>; // [n]
@group(0) @binding(3) var<storage, read> residual: array<T>; // [rows, n]; x if none
@group(0) @binding(4) var<storage, read_write> y: array<T>; // [rows, n], and at `second` s

fn summed(at: u32) -> T {
    if plus {
        return y[p.second + at];
    }
    return x[at];
}

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
        let at = row.start + n;
        if plus {
            let s = dropped(x[at], row, n) + residual[at];
            if row.own {
                y[p.second + at] = s;
            }
            sum += s;
        } else {
            sum += x[at];
        }
    }
    let mean = fold_sum(sum) / p.n;
    var squares = T(0.0);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let centred = summed(row.start + n) - mean;
        squares += centred * centred;
    }
    let inverse = T(1.0) / sqrt(fold_sum(squares) / p.n + p.eps);
    for (var n = local % TEAM; n < p.steps; n += TEAM) {
        let at = row.start + n;
        if row.own {
            y[at] = (summed(at) - mean) * inverse * w[n] + b[n];
        }
    }
}
