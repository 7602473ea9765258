// What the kernels of cross-attention's weights share.
//: use cross_attention_steps
struct Params {
    count: u32, // pairs
    rows: u32, // queries
    columns: u32, // of the context, in T
    lens: u32, // number of lengths
    scale: f32,
    eps: f32,
    leaky: f32, // slope below 0
}
@group(0) @binding(0) var<storage, read> x: array<T>; // [pairs, rows, columns]
@group(0) @binding(1) var<storage, read> g: array<T>; // as x: the weights' gradient; x where there is none
@group(0) @binding(2) var<storage, read> lens: array<f32>; // [lens]: words of each caption; x where nothing is masked
@group(0) @binding(3) var<storage, read_write> y: array<T>; // as x: weights, or the scores' gradient
@group(0) @binding(4) var<uniform> p: Params;

// True words of the pair's caption.
fn words(pair: u32) -> f32 { return lens[pair % max(p.lens, 1u)]; }
