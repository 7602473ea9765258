// What layer_norm and its gradient share: their parameters, and the dropout of what a residual is added to.
//: use row
//: use generator
override plus: bool = false; // whether rows are such sums

struct Params {
    count: u32, // rows
    steps: u32, // along a row, in T
    inner: u32, // 1
    n: f32,
    eps: f32,
    second: u32, // where the second of two results is, in T
    low: u32, // the seed
    high: u32,
    rate: f32,
    scale: f32,
}
@group(0) @binding(5) var<uniform> p: Params;

// x / (1 - rate) where the generator's value of the place in all rows is at least rate, else 0.
fn dropped(x: T, row: Row, n: u32) -> T {
    let i = U(row.outer * u32(p.n)) + U(places(n));
    return select(T(0.0), x * p.scale, uniform_at(i, p.low, p.high) >= T(p.rate));
}
