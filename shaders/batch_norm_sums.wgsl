// The first part of the gradients of batch norm's w and b: sums over each chunk of rows, of g (x - mean) / sqrt(variance +
// eps), and of g.
//: use columns

struct Params {
    count: u32, // columns * chunks
    columns: u32, // of a row, in T
    rows: u32,
    len: u32, // rows of a chunk
    first: u32, // where the chunks begin among those of all parts
}
@group(0) @binding(0) var<storage, read> x: array<T>; // [rows, columns]
@group(0) @binding(1) var<storage, read> g: array<T>; // [rows, columns]: y's gradient
@group(0) @binding(2) var<storage, read> about: array<T>; // [6, columns]: mean, 1 / sqrt(variance + eps), ..
@group(0) @binding(3) var<storage, read_write> y: array<T>; // [chunks of all parts, 2, columns]
@group(0) @binding(4) var<uniform> p: Params;
// Rows that are summed before their sum is added to the rest: rounding grows with the longer of both.
const PART = 32u;

@compute @workgroup_size(GROUP)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    join(local);
    let place = place_of(linear_id(id, groups), p.count);
    let chunk = place.unit / p.columns;
    let column = place.unit % p.columns;
    let mean = about[column];
    let inverse = about[p.columns + column];
    let end = min(chunk * p.len + p.len, p.rows);
    var slopes = T(0.0);
    var shifts = T(0.0);
    for (var first = chunk * p.len + place.member; first < end; first += PART * TEAM) {
        var slope = T(0.0);
        var shift = T(0.0);
        for (var row = first; row < min(first + PART * TEAM, end); row += TEAM) {
            let at = row * p.columns + column;
            slope += g[at] * ((x[at] - mean) * inverse);
            shift += g[at];
        }
        slopes += slope;
        shifts += shift;
    }
    slopes = fold_sum(slopes);
    shifts = fold_sum(shifts);
    if place.own {
        let to = 2u * (p.first + chunk) * p.columns + column;
        y[to] = slopes;
        y[to + p.columns] = shifts;
    }
}
