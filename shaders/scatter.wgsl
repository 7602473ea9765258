// The gradient of gather: y[r] = sum of g[t] over the tokens t with id r, in order, so that it repeats; an id
// past the table is its last row, as gather reads it. The first pass zeroes y; in the second the first token
// of each row sums for all of them.
override add: bool = false;
struct Params {
    count: u32, // invocations: rows * width to zero, tokens * width to add
    width: u32, // in T
    tokens: u32,
    rows: u32,
}
//: type
alias T = vec4<f32>;
//: end
@group(0) @binding(0) var<storage, read> ids: array<f32>; // [tokens], whole numbers
@group(0) @binding(1) var<storage, read> g: array<T>; // [tokens, width]
@group(0) @binding(2) var<storage, read_write> y: array<T>; // [rows, width]
@group(0) @binding(3) var<uniform> p: Params;

fn row_of(token: u32) -> u32 {
    return min(u32(ids[token]), p.rows - 1u);
}

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    if !add {
        y[i] = T(0.0);
        return;
    }
    let token = i / p.width;
    let own = row_of(token);
    for (var t = 0u; t < token; t++) {
        if row_of(t) == own {
            return;
        }
    }
    var sum = T(0.0);
    for (var t = token; t < p.tokens; t++) {
        if row_of(t) == own {
            sum += g[t * p.width + i % p.width];
        }
    }
    y[own * p.width + i % p.width] = sum;
}
