// Cross-attention and what it moves, for pairs of an image and a caption: y = x tanh(a) + b, where a and b are the first and
// the second half of `mapped` as the context is attended. A workgroup owns a pair: its scores become weights in workgroup
// memory, nothing in between is stored. An invocation sums four by four scores, then four channels of eight queries.
//: use cross_attention_steps
struct Params {
    count: u32, // pairs
    rows: u32, // queries
    columns: u32, // of the context
    lens: u32, // number of lengths
    scale: f32,
    eps: f32,
    leaky: f32, // slope below 0
    captions: u32,
    fours: u32, // channels / 4
    room: u32, // rows, rounded up to eights
    x_image: u32, // x's pair of the next image, and of the next caption; 0 repeats
    x_caption: u32,
    context_image: u32, // the same of context and mapped
    context_caption: u32,
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [pairs or fewer, rows, fours]
@group(0) @binding(1) var<storage, read> attended: array<vec4<f32>>; // the context: [pairs or fewer, columns, fours]
@group(0) @binding(2) var<storage, read> mapped: array<vec4<f32>>; // [pairs or fewer, columns, 2, fours]
@group(0) @binding(3) var<storage, read> lens: array<f32>; // [lens]: words of each caption; anything where nothing is masked
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>; // [pairs, rows, fours]
@group(0) @binding(5) var<uniform> p: Params;
const WIDE = 256u;
const o = 0u; // the query that is repeated
var<workgroup> weights: array<f32, CELLS>; // [columns, room]: scores, then weights
var<workgroup> norms: array<f32, SIDE>; // of columns

fn tanh4(v: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(safe_tanh(v.x), safe_tanh(v.y), safe_tanh(v.z), safe_tanh(v.w));
}

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) local: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let pair = group.x + group.y * groups.x;
    if pair >= p.count {
        return;
    }
    let image = pair / p.captions;
    let caption = pair % p.captions;
    let first = (image * p.x_image + caption * p.x_caption) * p.rows * p.fours;
    let other = (image * p.context_image + caption * p.context_caption) * p.columns * p.fours;
    let cells = p.columns * p.room;
    for (var e = local; e < cells; e += WIDE) {
        weights[e] = 0.0;
    }
    workgroupBarrier();

    // Where there are fewer tiles than invocations, several share the channels of one.
    let down = (p.rows + 3u) / 4u;
    let tiles = down * ((p.columns + 3u) / 4u);
    let span = min(tiles, WIDE);
    let shares = WIDE / span;
    for (var base = 0u; base < tiles; base += span) {
        let tile = base + local % span;
        let share = local / span;
        let r = 4u * (tile % down);
        let l = 4u * (tile / down);
        let own = tile < tiles && share < shares;
//: each q
        var sum_q = vec4<f32>(0.0); // of a row by four columns
//: end
        for (var d = share; d < select(0u, p.fours, own); d += shares) {
            let c0 = attended[other + min(l, p.columns - 1u) * p.fours + d];
            let c1 = attended[other + min(l + 1u, p.columns - 1u) * p.fours + d];
            let c2 = attended[other + min(l + 2u, p.columns - 1u) * p.fours + d];
            let c3 = attended[other + min(l + 3u, p.columns - 1u) * p.fours + d];
//: each q
            let x_q = x[first + min(r + q, p.rows - 1u) * p.fours + d];
            sum_q += vec4<f32>(dot(x_q, c0), dot(x_q, c1), dot(x_q, c2), dot(x_q, c3));
//: end
        }
        for (var turn = 0u; turn < shares; turn++) {
            if own && share == turn {
//: each q
                for (var k = 0u; k < 4u; k++) {
                    if l + k < p.columns && r + q < p.rows {
                        weights[(l + k) * p.room + r + q] += sum_q[k];
                    }
                }
//: end
            }
            workgroupBarrier();
        }
    }

    let words = lens[pair % max(p.lens, 1u)];
    let used = queries(words, p.rows);
    let len = context(words, p.columns);
    for (var e = local; e < cells; e += WIDE) {
        weights[e] = select(0.0, activated(weights[e], p.leaky), e % p.room < used);
    }
    workgroupBarrier();
    for (var l = local; l < p.columns; l += WIDE) {
        var sum = 0.0;
        for (var r = 0u; r < p.rows && NORMED; r++) {
            sum += weights[l * p.room + r] * weights[l * p.room + r];
        }
        norms[l] = 1.0 / divisor(sqrt(sum), p.eps);
    }
    workgroupBarrier();
    for (var r = local; r < p.rows; r += WIDE) {
        var most = -3e38;
        for (var l = 0u; l < p.columns; l++) {
            most = max(most, select(-3e38, p.scale * (weights[l * p.room + r] * norms[l]), f32(l) < len));
        }
        var sum = 0.0;
        for (var l = 0u; l < p.columns; l++) {
            let at = l * p.room + r;
            let value = precise_exp(p.scale * (weights[at] * norms[l]) - most);
            weights[at] = select(0.0, value, f32(l) < len);
            sum += weights[at];
        }
        let inverse = 1.0 / select(1.0, sum, sum > 0.0);
        for (var l = 0u; l < p.columns; l++) {
            weights[l * p.room + r] *= inverse;
        }
    }
    workgroupBarrier();

    for (var e = local; e < p.fours * (p.room / 8u); e += WIDE) {
        let c = e % p.fours;
        let r = 8u * (e / p.fours);
//: each o
        var a_o = vec4<f32>(0.0);
        var b_o = vec4<f32>(0.0);
//: end
        for (var l = 0u; l < p.columns; l++) {
            let at = 2u * (other + l * p.fours) + c;
            let a = mapped[at];
            let b = mapped[at + p.fours];
//: each o
            let w_o = weights[l * p.room + r + o];
            a_o += w_o * a;
            b_o += w_o * b;
//: end
        }
//: each o
        if r + o < p.rows {
            let own = (r + o) * p.fours + c;
            y[pair * p.rows * p.fours + own] = x[first + own] * tanh4(a_o) + b_o;
        }
//: end
    }
}
