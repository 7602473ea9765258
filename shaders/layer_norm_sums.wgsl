// The gradients of layer_norm's w and b, sums over its rows: of g (x - mean) / sqrt(variance + eps), and of g.
struct Params {
    count: u32, // columns * chunks
    columns: u32, // of a row, in T
    rows: u32,
    len: u32, // rows of a chunk
}
//: type
alias T = vec4<f32>;
//: end
@group(0) @binding(0) var<storage, read> x: array<T>; // [rows, columns]
@group(0) @binding(1) var<storage, read> g: array<T>; // [rows, columns]: y's gradient
@group(0) @binding(2) var<storage, read> about: array<vec2<f32>>; // [rows]: mean, 1 / sqrt(variance + eps)
@group(0) @binding(3) var<storage, read_write> y: array<T>; // [chunks, 2, columns]
@group(0) @binding(4) var<uniform> p: Params;
// Rows that are summed before their sum is added to the rest: rounding grows with the longer of both.
const PART = 32u;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let chunk = i / p.columns;
    let column = i % p.columns;
    let end = min(chunk * p.len + p.len, p.rows);
    var slopes = T(0.0);
    var shifts = T(0.0);
    for (var first = chunk * p.len; first < end; first += PART) {
        var slope = T(0.0);
        var shift = T(0.0);
        for (var row = first; row < min(first + PART, end); row++) {
            let at = row * p.columns + column;
            slope += g[at] * ((x[at] - about[row].x) * about[row].y);
            shift += g[at];
        }
        slopes += slope;
        shifts += shift;
    }
    let to = 2u * chunk * p.columns + column;
    y[to] = slopes;
    y[to + p.columns] = shifts;
}
