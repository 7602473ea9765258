// y[t] = table[ids[t]]: rows of an embedding table by token. An id past the table reads its last row.
struct Params {
    count: u32, // tokens * width
    width: u32,
    rows: u32,
}
@group(0) @binding(0) var<storage, read> ids: array<f32>; // [tokens], whole numbers
@group(0) @binding(1) var<storage, read> table: array<f32>; // [rows, width]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [tokens, width]
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let row = min(u32(ids[i / p.width]), p.rows - 1u);
    y[i] = table[row * p.width + i % p.width];
}
