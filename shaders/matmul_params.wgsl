// The parameters of every kind of product.
struct Params {
    count: u32, // invocations, or workgroups
    m: u32,
    n: u32,
    k: u32,
    batch: vec4<u32>, // inner batch, summed batch, k per split, splits
    a: vec4<u32>, // strides: outer batch, inner batch, summed batch, row
    b: vec4<u32>, // the same
    c: vec4<u32>, // strides: outer batch, inner batch, split, row
    a_col: u32,
    b_col: u32,
    scale: f32,
    outer: u32, // outer batch
    offset: u32, // of the biases from b's weights, and of the sums of a's rows from c
}
