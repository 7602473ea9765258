// The gradients of batch norm's w and b from the sums of all chunks, and what that of x takes from them: (g - shift - (x -
// mean) slope) scale where the row counts in the statistics, which move with it. The scale comes last: what all rows lose
// alike adds up in what is before them, so it is rounded as little as can be.
//: use columns

struct Params {
    columns: u32, // of a row, in T
    chunks: u32, // of all parts
}
@group(0) @binding(0) var<storage, read> x: array<T>; // [chunks, 2, columns]: of g's product with normalised x, of g
// [6, columns]: mean, 1 / sqrt(variance + eps), that times w, what the rows weigh, ..
@group(0) @binding(1) var<storage, read> about: array<T>;
@group(0) @binding(2) var<storage, read_write> y: array<T>; // [4, columns]: w's gradient, b's, slope, shift
@group(0) @binding(3) var<uniform> p: Params;
// A divisor in place of the weight of no rows.

@compute @workgroup_size(GROUP)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    join(local);
    let place = place_of(linear_id(id, groups), p.columns);
    let column = place.unit;
    var slope = T(0.0);
    var shift = T(0.0);
    for (var chunk = place.member; chunk < p.chunks; chunk += TEAM) {
        let at = 2u * chunk * p.columns + column;
        slope += x[at];
        shift += x[at + p.columns];
    }
    slope = fold_sum(slope);
    shift = fold_sum(shift);
    if !place.own {
        return;
    }
    // Where no row counts there is nothing to divide.
    let n = max(about[3u * p.columns + column], T(1.0));
    y[column] = slope;
    y[p.columns + column] = shift;
    y[2u * p.columns + column] = slope * about[p.columns + column] / n;
    y[3u * p.columns + column] = shift / n;
}
