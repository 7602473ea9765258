// What the kernels of cross-attention's weights share: of scores x, past a leaky ReLU, divided by their norm over the
// queries, and what of a pair is masked. The text between the marks is replaced by the variant's.
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

//: variant
const GRAD = false; // whether y is the scores' gradient
const NORMED = true; // whether scores are divided by their norm,
const PLUS = false; // and that is norm + eps instead of max(norm, eps)
const MASKED_QUERIES = false; // scores past the caption's end are 0
const MASKED_CONTEXT = false; // weights past the caption's end are 0
const VECTOR = 4u; // values of T
const EXACT = true; // whether a row has as many elements as are repeated
const CELLS = 512u; // room in workgroup memory for a pair's scores
const SIDE = 64u; // and for its queries, or its context
const q = 0u; // the element that is repeated
//: end

// Queries that are not masked.
fn queries(pair: u32) -> u32 {
    if MASKED_QUERIES {
        return min(u32(lens[pair % p.lens]), p.rows);
    }
    return p.rows;
}

// Values of a row that are not masked.
fn context(pair: u32) -> f32 {
    let columns = f32(VECTOR * p.columns);
    if MASKED_CONTEXT {
        return min(lens[pair % p.lens], columns);
    }
    return columns;
}

fn activated(x: T) -> T { return select(x * p.leaky, x, x > T(0.0)); }

fn slope(x: T) -> T { return select(T(p.leaky), T(1.0), x > T(0.0)); }

fn divisor(norm: T) -> T {
    if !NORMED {
        return T(1.0);
    }
    if PLUS {
        return norm + p.eps;
    }
    return max(norm, T(p.eps));
}

// What of a score's gradient goes by the norm, where dot is the sum over the queries of scores by their gradients.
fn share_of(dot: T, norm: T) -> T {
    if !NORMED {
        return T(0.0);
    }
    let has_grad = norm > T(select(p.eps, 0.0, PLUS));
    return select(T(0.0), dot / divisor(norm) / select(T(1.0), norm, has_grad), has_grad);
}
