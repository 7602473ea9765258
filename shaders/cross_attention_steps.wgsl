// What cross-attention does with scores, whoever keeps them: past a leaky ReLU, divided by their norm over the queries, and
// what of a pair is masked. The text between the marks is replaced by the variant's.
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

// Of so many queries those that are not masked, where the caption has so many words.
fn queries(words: f32, rows: u32) -> u32 {
    if MASKED_QUERIES {
        return min(u32(words), rows);
    }
    return rows;
}

// Of so many values of a row those that are not masked.
fn context(words: f32, columns: u32) -> f32 {
    if MASKED_CONTEXT {
        return min(words, f32(columns));
    }
    return f32(columns);
}

fn activated(x: T, leaky: f32) -> T { return select(x * leaky, x, x > T(0.0)); }

fn slope(x: T, leaky: f32) -> T { return select(T(leaky), T(1.0), x > T(0.0)); }

fn divisor(norm: T, eps: f32) -> T {
    if !NORMED {
        return T(1.0);
    }
    if PLUS {
        return norm + eps;
    }
    return max(norm, T(eps));
}

// What of a score's gradient goes by the norm, where dot is the sum over the queries of scores by their gradients.
fn share_of(dot: T, norm: T, eps: f32) -> T {
    if !NORMED {
        return T(0.0);
    }
    let has_grad = norm > T(select(eps, 0.0, PLUS));
    return select(T(0.0), dot / divisor(norm, eps) / select(T(1.0), norm, has_grad), has_grad);
}
