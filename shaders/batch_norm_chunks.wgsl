// The first part of batch norm's statistics: the moments of each channel of each chunk of rows. A few rows are walked
// twice, the second time about their mean, while they are near.
override masked: bool = false;
//: use moments

struct Params {
    count: u32, // columns * chunks
    columns: u32, // of a row, in T
    rows: u32,
    len: u32, // rows of a chunk
    first: u32, // where the chunks begin among those of all parts
}
@group(0) @binding(0) var<storage, read> x: array<T>; // [rows, columns]
@group(0) @binding(1) var<storage, read> mask: array<f32>; // [rows]; x if not masked
@group(0) @binding(2) var<storage, read_write> y: array<T>; // [chunks of all parts, 3, columns]
@group(0) @binding(3) var<uniform> p: Params;
// Rows that an invocation walks twice before their moments are merged with the rest.
const PART = 64u;

fn weight(row: u32) -> f32 {
    if masked {
        return mask[row];
    }
    return 1.0;
}

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
    let end = min(chunk * p.len + p.len, p.rows);
    var all = Moments(T(0.0), T(0.0), T(0.0));
    for (var first = chunk * p.len + place.member; first < end; first += PART * TEAM) {
        let last = min(first + PART * TEAM, end);
        var n = 0.0;
        var sum = T(0.0);
        for (var row = first; row < last; row += TEAM) {
            n += weight(row);
            sum += x[row * p.columns + column] * weight(row);
        }
        let mean = sum / max(n, TINY);
        var squares = T(0.0);
        for (var row = first; row < last; row += TEAM) {
            let apart = x[row * p.columns + column] - mean;
            squares += apart * apart * weight(row);
        }
        all = merged(all, Moments(T(n), mean, squares));
    }
    all = folded(all);
    if place.own {
        let to = 3u * (p.first + chunk) * p.columns + column;
        y[to] = all.n;
        y[to + p.columns] = all.mean;
        y[to + 2u * p.columns] = all.squares;
    }
}
