// Multi-head attention without its weights in memory: with s = scale q k + bias, y = sum over keys of softmax(s) v, the
// weights dropped out. An invocation owns a query or a few. Few keys' scores are held in registers or stored in workgroup
// memory; else each pass computes them again. What is between the marks is replaced by the variant's.
//: use attention_rows
@group(0) @binding(4) var<storage, read> plus: array<vec4<f32>>; // [sequences, queries, heads * width]; q if none
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>; // [sequences, queries, heads * width]

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
    let from_query_o = own_place(s_o, PARTS, 0u);
    let query_o = Head(
//: each j
        q[from_query_o + j],
//: end
    );
    var result_o: Head;
    var most_o = NOWHERE;
    var sum_o = 0.0;
//: end
    if HELD {
//: each o
        {
//: each h
            var w_h = scores(s_o, query_o, keys(s, h * CHUNK), h * CHUNK);
            most_o = largest(most_o, w_h);
//: end
//: each h
            w_h = exps(w_h, most_o);
            sum_o = total(sum_o, w_h);
//: end
            let share = 1.0 / sum_o;
//: each h
            result_o = plus_rows(result_o, dropped(s_o, h * CHUNK, scaled(w_h, share)), values(s, h * CHUNK));
//: end
        }
//: end
    } else {
        for (var first = 0u; first < p.other; first += CHUNK) {
            let rows = keys(s, first);
//: each o
            let w_o = scores(s_o, query_o, rows, first);
            store(at_o, 0u, first, w_o);
            most_o = largest(most_o, w_o);
//: end
        }
        for (var first = 0u; first < p.other; first += CHUNK) {
//: each o
            var w_o = stored(at_o, 0u, first);
            if !STORED {
                w_o = scores(s_o, query_o, keys(s, first), first);
            }
            w_o = exps(w_o, most_o);
            store(at_o, 0u, first, w_o);
            sum_o = total(sum_o, w_o);
//: end
        }
//: each o
        let share_o = 1.0 / sum_o;
//: end
        for (var first = 0u; first < p.other; first += CHUNK) {
            let rows = values(s, first);
//: each o
            var w_o = stored(at_o, 0u, first);
            if !STORED {
                w_o = exps(scores(s_o, query_o, keys(s, first), first), most_o);
            }
            result_o = plus_rows(result_o, dropped(s_o, first, scaled(w_o, share_o)), rows);
//: end
        }
    }
//: each o
    if own_row(i, o) < p.own {
        let to = own_place(s_o, 1u, 0u);
        if PLUS {
//: each j
            result_o[j] += plus[to + j];
//: end
        }
//: each j
        y[to + j] = result_o[j];
//: end
    }
//: end
}
