// The gradient of attention's queries, the weights computed again, and what attention_keys needs of each query:
// (largest s, 1 / sum of e^(s - largest), mean slope, 0), where a key's slope is g v, multiplied as dropout multiplies
// its weight, and its mean is by the weights before dropout. An invocation owns a query or a few. Few keys' scores and
// slopes are held in registers or stored in workgroup memory; else each pass computes them again.
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
    let local = 0u;
//: end
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let s = spot(i, lane, 0u);
//: each o
    let s_o = spot(i, lane, o);
    let at_o = o * GROUP + local;
    let real_o = own_row(i, o) < p.own;
    let from_query_o = own_place(s_o, PARTS, 0u);
    let query_o = Head(
//: each j
        q[from_query_o + j],
//: end
    );
    let from_grad_o = own_place(s_o, 1u, 0u);
    let grad_o = Head(
//: each j
        g[from_grad_o + j],
//: end
    );
    var result_o: Head;
    var most_o = NOWHERE;
    var sum_o = 0.0;
    var slope_o = 0.0;
    var share_o: f32;
    var mean_o: f32;
//: end
    if HELD {
//: each o
        {
//: each h
            var w_h = scores(s_o, query_o, keys(s, h * CHUNK), h * CHUNK);
            let d_h = dropped(s_o, h * CHUNK, products(grad_o, values(s, h * CHUNK)));
            most_o = largest(most_o, w_h);
//: end
//: each h
            w_h = exps(w_h, most_o);
            sum_o = total(sum_o, w_h);
            slope_o = total_of(slope_o, w_h, d_h);
//: end
            share_o = 1.0 / sum_o;
            mean_o = slope_o * share_o;
//: each h
            w_h = scaled(w_h, share_o);
            store_biases(s_o, real_o, h * CHUNK, w_h, d_h, mean_o);
            result_o = plus_rows(result_o, score_grads(w_h, d_h, mean_o), keys(s, h * CHUNK));
//: end
        }
//: end
    } else if STORED {
        for (var first = 0u; first < p.other; first += CHUNK) {
            let rows = keys(s, first);
            let others = values(s, first);
//: each o
            let w_o = scores(s_o, query_o, rows, first);
            store(at_o, 0u, first, w_o);
            store(at_o, 1u, first, dropped(s_o, first, products(grad_o, others)));
            most_o = largest(most_o, w_o);
//: end
        }
        for (var first = 0u; first < p.other; first += CHUNK) {
//: each o
            let w_o = exps(stored(at_o, 0u, first), most_o);
            store(at_o, 0u, first, w_o);
            sum_o = total(sum_o, w_o);
            slope_o = total_of(slope_o, w_o, stored(at_o, 1u, first));
//: end
        }
//: each o
        share_o = 1.0 / sum_o;
        mean_o = slope_o * share_o;
//: end
        for (var first = 0u; first < p.other; first += CHUNK) {
            let rows = keys(s, first);
//: each o
            let w_o = scaled(stored(at_o, 0u, first), share_o);
            let d_o = stored(at_o, 1u, first);
            store_biases(s_o, real_o, first, w_o, d_o, mean_o);
            result_o = plus_rows(result_o, score_grads(w_o, d_o, mean_o), rows);
//: end
        }
    } else {
//: each o
        for (var first = 0u; first < p.other; first += CHUNK) {
            let u = scores(s_o, query_o, keys(s, first), first);
            let top = largest(most_o, u);
            let fall = precise_exp(most_o - top);
            let w = exps(u, top);
            most_o = top;
            sum_o = total(sum_o * fall, w);
            slope_o = total_of(slope_o * fall, w, dropped(s_o, first, products(grad_o, values(s, first))));
        }
        share_o = 1.0 / sum_o;
        mean_o = slope_o * share_o;
        for (var first = 0u; first < p.other; first += CHUNK) {
            let rows = keys(s, first);
            let slopes = dropped(s_o, first, products(grad_o, values(s, first)));
            let w = weights(s_o, query_o, rows, first, most_o, share_o);
            store_biases(s_o, real_o, first, w, slopes, mean_o);
            result_o = plus_rows(result_o, score_grads(w, slopes, mean_o), rows);
        }
//: end
    }
//: each o
    if real_o {
//: each j
        gq[from_query_o + j] = result_o[j];
//: end
        about[(s_o.n * p.heads + s_o.head) * p.own + s_o.row] = vec4<f32>(most_o, share_o, mean_o, 0.0);
    }
//: end
}
