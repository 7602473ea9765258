// The gradient of attention's queries, the weights computed again, and what attention_keys needs of each query:
// (largest s, 1 / sum of e^(s - largest), mean slope, 0), where a key's slope is g v, multiplied as dropout multiplies
// its weight, and its mean is by the weights before dropout. An invocation owns a query. Few keys' scores and slopes are held in registers; else each pass computes them again.
//: use attention_rows
@group(0) @binding(4) var<storage, read> g: array<vec4<f32>>; // [sequences, queries, heads * width]: y's gradient
@group(0) @binding(5) var<storage, read_write> gq: array<vec4<f32>>; // as q: its gradient
@group(0) @binding(6) var<storage, read_write> about: array<vec4<f32>>; // [sequences, heads, queries]
//: bias
@group(0) @binding(7) var<storage, read_write> gb: array<f32>; // [sequences, heads, queries, keys]: the bias's gradients
fn store_bias(place: u32, x: f32) { gb[place] = x; }
//: end

// The gradients of a step's biases.
fn store_biases(s: Spot, real: bool, first: u32, weights: Each, slopes: Each, mean: f32) {
    if !BIASED || !real {
        return;
    }
    let to = ((s.n * p.heads + s.head) * p.own + s.row) * p.other + first;
//: each c
    if first + c < p.other {
        store_bias(to + c, weights[c] * (slopes[c] - mean));
    }
//: end
}

// Gradients of a query's products with a step's keys.
fn score_grads(weights: Each, slopes: Each, mean: f32) -> Each {
    return Each(
//: each c
        weights[c] * (slopes[c] - mean) * p.scale,
//: end
    );
}

// A step's weights of a query whose largest score is known.
fn weights(s: Spot, query: Head, rows: Rows, first: u32, most: f32, share: f32) -> Each {
    let b = biases(s, first);
    return Each(
//: each c
        precise_exp(fma(product(query, rows[c]), p.scale, b[c]) - most) * share,
//: end
    );
}

//: entry
@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let lane = 0u;
//: end
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let s = spot(i, lane);
    let real = i % p.padded < p.own;
    let from_query = own_place(s, PARTS, 0u);
    let query = Head(
//: each j
        q[from_query + j],
//: end
    );
    let from_grad = own_place(s, 1u, 0u);
    let grad = Head(
//: each j
        g[from_grad + j],
//: end
    );
    var result: Head;
    var most = NOWHERE;
    var sum = 0.0;
    var slope = 0.0;
    var share: f32;
    var mean: f32;
    if HELD {
//: each h
        var w_h = scores(s, query, keys(s, h * CHUNK), h * CHUNK);
        let d_h = dropped(s, h * CHUNK, products(grad, values(s, h * CHUNK)));
        most = largest(most, w_h);
//: end
//: each h
        w_h = exps(w_h, most);
        sum = total(sum, w_h);
        slope = total_of(slope, w_h, d_h);
//: end
        share = 1.0 / sum;
        mean = slope * share;
//: each h
        w_h = scaled(w_h, share);
        store_biases(s, real, h * CHUNK, w_h, d_h, mean);
        result = plus_rows(result, score_grads(w_h, d_h, mean), keys(s, h * CHUNK));
//: end
    } else {
        for (var first = 0u; first < p.other; first += CHUNK) {
            let u = scores(s, query, keys(s, first), first);
            let top = largest(most, u);
            let fall = precise_exp(most - top);
            let w = exps(u, top);
            most = top;
            sum = total(sum * fall, w);
            slope = total_of(slope * fall, w, dropped(s, first, products(grad, values(s, first))));
        }
        share = 1.0 / sum;
        mean = slope * share;
        for (var first = 0u; first < p.other; first += CHUNK) {
            let rows = keys(s, first);
            let slopes = dropped(s, first, products(grad, values(s, first)));
            let w = weights(s, query, rows, first, most, share);
            store_biases(s, real, first, w, slopes, mean);
            result = plus_rows(result, score_grads(w, slopes, mean), rows);
        }
    }
    if !real {
        return;
    }
//: each j
    gq[from_query + j] = result[j];
//: end
    about[(s.n * p.heads + s.head) * p.own + s.row] = vec4<f32>(most, share, mean, 0.0);
}
