// As cross_attention, for GPUs: a workgroup shares a pair, in its memory, value by value.
//: use cross_attention_scores
var<workgroup> scores: array<f32, CELLS>; // past the leaky ReLU
var<workgroup> slopes: array<f32, CELLS>; // gradients of the scores over their norms
var<workgroup> norms: array<f32, SIDE>; // of columns
var<workgroup> about: array<vec2<f32>, SIDE>; // of rows: the largest score, 1 / the sum; then in y, shares of columns

fn over_norm(r: u32, l: u32) -> f32 {
    return p.scale * (scores[r * p.columns + l] * (1.0 / divisor(norms[l], p.eps)));
}

fn weight(r: u32, l: u32, len: f32) -> f32 {
    return select(0.0, precise_exp(over_norm(r, l) - about[r].x) * about[r].y, f32(l) < len);
}

@compute @workgroup_size(64)
fn main(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let pair = group.x + group.y * groups.x;
    if pair >= p.count {
        return;
    }
    let first = pair * p.rows * p.columns;
    let cells = p.rows * p.columns;
    let used = queries(words(pair), p.rows);
    let len = context(words(pair), VECTOR * p.columns);
    for (var e = local; e < cells; e += 64u) {
        scores[e] = select(0.0, activated(x[first + e], p.leaky), e / p.columns < used);
        if GRAD {
            slopes[e] = g[first + e];
        }
    }
    workgroupBarrier();
    for (var l = local; l < p.columns; l += 64u) {
        var sum = 0.0;
        for (var r = 0u; r < p.rows && NORMED; r++) {
            sum += scores[r * p.columns + l] * scores[r * p.columns + l];
        }
        norms[l] = sqrt(sum);
    }
    workgroupBarrier();
    for (var r = local; r < p.rows; r += 64u) {
        var most = -3e38;
        for (var l = 0u; l < p.columns; l++) {
            most = max(most, select(-3e38, over_norm(r, l), f32(l) < len));
        }
        about[r] = vec2<f32>(most, 1.0);
        var sum = 0.0;
        for (var l = 0u; l < p.columns; l++) {
            sum += weight(r, l, len);
        }
        about[r] = vec2<f32>(most, 1.0 / select(1.0, sum, sum > 0.0));
    }
    workgroupBarrier();
    if !GRAD {
        for (var e = local; e < cells; e += 64u) {
            y[first + e] = weight(e / p.columns, e % p.columns, len);
        }
        return;
    }
    for (var r = local; r < p.rows; r += 64u) {
        var mean = 0.0;
        for (var l = 0u; l < p.columns; l++) {
            mean += weight(r, l, len) * slopes[r * p.columns + l];
        }
        for (var l = 0u; l < p.columns; l++) {
            let e = r * p.columns + l;
            slopes[e] = select(0.0, p.scale * weight(r, l, len) * (slopes[e] - mean), r < used);
        }
    }
    workgroupBarrier();
    for (var l = local; l < p.columns; l += 64u) {
        var dot = 0.0;
        for (var r = 0u; r < p.rows; r++) {
            dot += scores[r * p.columns + l] * slopes[r * p.columns + l];
        }
        about[l].y = share_of(dot, norms[l], p.eps);
    }
    workgroupBarrier();
    for (var e = local; e < cells; e += 64u) {
        let l = e % p.columns;
        let moved = (slopes[e] - scores[e] * about[l].y) * (1.0 / divisor(norms[l], p.eps));
        y[first + e] = select(0.0, moved * slope(x[first + e], p.leaky), e / p.columns < used);
    }
}
