// Multi-head attention without its weights in memory: with s = scale q k + bias, y = sum over keys of softmax(s) v, the
// weights dropped out.
// An invocation owns a query. Few keys' scores are held in registers; else each pass computes them again. What lies
// between the marks is replaced by the variant's.
//: use attention_rows
@group(0) @binding(4) var<storage, read> plus: array<vec4<f32>>; // [sequences, queries, heads * width]; q if none
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>; // [sequences, queries, heads * width]

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
    let from_query = own_place(s, PARTS, 0u);
    let query = Head(
//: each j
        q[from_query + j],
//: end
    );
    var result: Head;
    var most = NOWHERE;
    var sum = 0.0;
    if HELD {
//: each h
        var w_h = scores(s, query, keys(s, h * CHUNK), h * CHUNK);
        most = largest(most, w_h);
//: end
//: each h
        w_h = exps(w_h, most);
        sum = total(sum, w_h);
//: end
        let share = 1.0 / sum;
//: each h
        result = plus_rows(result, dropped(s, h * CHUNK, scaled(w_h, share)), values(s, h * CHUNK));
//: end
    } else {
        for (var first = 0u; first < p.other; first += CHUNK) {
            most = largest(most, scores(s, query, keys(s, first), first));
        }
        for (var first = 0u; first < p.other; first += CHUNK) {
            sum = total(sum, exps(scores(s, query, keys(s, first), first), most));
        }
        let share = 1.0 / sum;
        for (var first = 0u; first < p.other; first += CHUNK) {
            let weights = scaled(exps(scores(s, query, keys(s, first), first), most), share);
            result = plus_rows(result, dropped(s, first, weights), values(s, first));
        }
    }
    if i % p.padded >= p.own {
        return;
    }
    let to = own_place(s, 1u, 0u);
    if PLUS {
//: each j
        result[j] += plus[to + j];
//: end
    }
//: each j
    y[to + j] = result[j];
//: end
}
