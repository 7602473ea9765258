// y[o, m] = a b / max(|a| |b|, eps) of rows a of x and b of own, which repeats over o.
struct Params {
    count: u32, // outer * rows
    rows: u32,
    width: u32, // of a row, in T
    eps: f32,
}
//: type
alias T = f32;
fn fold(x: T) -> f32 { return x; }
//: end
@group(0) @binding(0) var<storage, read> x: array<T>; // [outer, rows, width]
@group(0) @binding(1) var<storage, read> own: array<T>; // [rows, width]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [outer, rows]
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let row = i % p.rows;
    var products = T(0.0);
    var squares = T(0.0);
    var owns = T(0.0);
    for (var w = 0u; w < p.width; w++) {
        let a = x[i * p.width + w];
        let b = own[row * p.width + w];
        products += a * b;
        squares += a * a;
        owns += b * b;
    }
    let square = fold(squares) * fold(owns);
    y[i] = fold(products) / select(p.eps, sqrt(square), square > p.eps * p.eps);
}
