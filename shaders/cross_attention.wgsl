// Weights of cross-attention for pairs of an image and a caption: y = softmax over the context of scale u, where u
// are the scores, past a leaky ReLU, divided by their norm over the queries; or the scores' gradient, for which the
// weights are computed again. An invocation owns a pair and keeps what it knows of the columns in registers, an
// element q of the row each.
//: use cross_attention_scores
//: type
fn fold_sum(x: T) -> f32 { return x.x + x.y + x.z + x.w; }
fn fold_max(x: T) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
fn places(n: f32) -> T { return 4.0 * n + T(0.0, 1.0, 2.0, 3.0); }
//: end

// Element n of the row at `at`; past the row's end the last one.
fn place(at: u32, n: u32) -> u32 {
    if EXACT {
        return at + n;
    }
    return at + min(n, p.columns - 1u);
}

fn store(at: u32, n: u32, value: T) {
    if EXACT || n < p.columns {
        y[at + n] = value;
    }
}

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let pair = linear_id(id, groups);
    if pair >= p.count {
        return;
    }
    let first = pair * p.rows * p.columns;
    let used = queries(words(pair), p.rows);
    let len = context(words(pair), VECTOR * p.columns);
//: each q
    var n_q = T(0.0); // the norm
    var t_q = T(0.0); // scores by their gradients
//: end
    if NORMED {
        for (var r = 0u; r < used; r++) {
            let at = first + r * p.columns;
//: each q
            let v_q = activated(x[place(at, q)], p.leaky);
            n_q += v_q * v_q;
//: end
        }
//: each q
        n_q = sqrt(n_q);
//: end
    }
//: each q
    let i_q = T(1.0) / divisor(n_q, p.eps);
//: end
    for (var r = 0u; r < select(p.rows, used, GRAD); r++) {
        let at = first + r * p.columns;
//: each q
        var f_q = activated(x[place(at, q)], p.leaky);
        if MASKED_QUERIES && !GRAD {
            f_q = select(T(0.0), f_q, r < used);
        }
        let u_q = p.scale * (f_q * i_q);
//: end
        var mosts = T(-3e38);
//: each q
        mosts = max(mosts, select(T(-3e38), u_q, places(f32(q)) < T(len)));
//: end
        let most = fold_max(mosts);
        var sums = T(0.0);
//: each q
        let e_q = select(T(0.0), precise_exp(u_q - most), places(f32(q)) < T(len));
        sums += e_q;
//: end
        let sum = fold_sum(sums);
        let inverse = 1.0 / select(1.0, sum, sum > 0.0);
        if !GRAD {
//: each q
            store(at, q, e_q * inverse);
//: end
        } else {
            var dots = T(0.0);
//: each q
            let w_q = e_q * inverse;
            let g_q = g[place(at, q)];
            dots += w_q * g_q;
//: end
            let mean = fold_sum(dots);
//: each q
            let d_q = p.scale * w_q * (g_q - mean);
            t_q += f_q * d_q;
            store(at, q, d_q);
//: end
        }
    }
    if !GRAD {
        return;
    }
//: each q
    let h_q = share_of(t_q, n_q, p.eps);
//: end
    for (var r = 0u; r < p.rows; r++) {
        let at = first + r * p.columns;
//: each q
        let x_q = x[place(at, q)];
        let z_q = (y[place(at, q)] - activated(x_q, p.leaky) * h_q) * i_q * slope(x_q, p.leaky);
        store(at, q, select(T(0.0), z_q, r < used));
//: end
    }
}
