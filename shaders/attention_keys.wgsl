// The gradients of attention's keys and values, the weights computed again from what attention_queries says of each
// query. An invocation owns a key or a few.
//: use attention_rows
@group(0) @binding(4) var<storage, read> g: array<vec4<f32>>; // [sequences, queries, heads * width]: y's gradient
@group(0) @binding(5) var<storage, read> about: array<vec4<f32>>; // [sequences, heads, queries]
@group(0) @binding(6) var<storage, read_write> gk: array<vec4<f32>>; // as k: its gradient
//: values
@group(0) @binding(7) var<storage, read_write> gv: array<vec4<f32>>; // as v: its gradient
fn store_value(place: u32, x: vec4<f32>) { gv[place] = x; }
//: end

alias Abouts = array<vec4<f32>, CHUNK>;

fn queries(s: Spot, first: u32) -> Rows {
    return gathered(Loaded(
//: each t
        q[load_place(s, first, t, PARTS, 0u)],
//: end
    ));
}

fn grads(s: Spot, first: u32) -> Rows {
    return gathered(Loaded(
//: each t
        g[load_place(s, first, t, 1u, 0u)],
//: end
    ));
}

fn abouts(s: Spot, first: u32) -> Abouts {
    let own = about[(s.n * p.heads + s.head) * p.other + other_row(first, s.lane % CHUNK)];
    var b: Abouts;
//: each c
//: spread
    b[c] = own;
//: end
//: end
    return b;
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
    let s = spot(i, lane, 0u);
//: each o
    let s_o = spot(i, lane, o);
    let from_key_o = own_place(s_o, PARTS, K);
    let key_o = Head(
//: each j
        k[from_key_o + j],
//: end
    );
    let from_value_o = own_place(s_o, PARTS, V);
    let value_o = Head(
//: each j
        v[from_value_o + j],
//: end
    );
    var key_grad_o: Head;
    var value_grad_o: Head;
    var bias_o = 0.0;
    if MASKED {
        bias_o = bias[s.n % p.masks * p.keys + s_o.row];
    }
    let from_bias_o = bias_place(s) + s_o.row;
    let from_weight_o = (s.n * p.heads + s.head) * p.other * p.own + s_o.row;
//: end
    for (var first = 0u; first < p.other; first += CHUNK) {
        let rows = queries(s, first);
        let slopes = grads(s, first);
        let a = abouts(s, first);
//: each o
        {
//: each c
            if BIASED {
                bias_o = bias[from_bias_o + other_row(first, c) * p.own];
            }
            let share_c = select(0.0, a[c].y, first + c < p.other);
            let w_c = precise_exp(fma(product(key_o, rows[c]), p.scale, bias_o) - a[c].x) * share_c;
            let kept_c = kept(from_weight_o + (first + c) * p.own);
            let d_c = w_c * (product(value_o, slopes[c]) * kept_c - a[c].z) * p.scale;
            key_grad_o = plus_scaled(key_grad_o, d_c, rows[c]);
            value_grad_o = plus_scaled(value_grad_o, w_c * kept_c, slopes[c]);
//: end
        }
//: end
    }
//: each o
    if own_row(i, o) < p.own {
//: each j
        gk[from_key_o + j] = key_grad_o[j];
        store_value(from_value_o + j, value_grad_o[j]);
//: end
    }
//: end
}
