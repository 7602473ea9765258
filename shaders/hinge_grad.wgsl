// The gradient of hinge's similarities: of a pair that counts on a side, that of the side's cost; of an own pair, less
// what those that count get. Of equal largest violations the first counts.
//: use hinge_pairs
@group(0) @binding(2) var<storage, read> g: array<f32>; // [2, n]: the costs' gradient
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [images, captions]
@group(0) @binding(4) var<uniform> p: Params;

// The share of a cost's gradient that `pair`, another of an item, gets; of its own pair, less those of all others.
fn share(side: u32, own: u32, pair: u32) -> f32 {
    var top = 0.0;
    var at = 0u;
    var all = 0.0;
    for (var other = 0u; other < others(side); other++) {
        let v = violation(side, own, other);
        if v > 0.0 {
            all += weight(side, own, other);
        }
        if v > top {
            top = v;
            at = other;
        }
    }
    var counts = violation(side, own, pair) > 0.0;
    if hardest {
        counts = counts && at == pair;
        all = select(0.0, weight(side, own, at), top > 0.0);
    }
    let gets = select(0.0, weight(side, own, pair), counts);
    return select(gets, gets - all, own == pair);
}

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let image = i / p.captions;
    let caption = i % p.captions;
    var value = 0.0;
    if image < p.n {
        value += g[image] * share(0u, image, caption);
    }
    if caption < p.n {
        value += g[p.n + caption] * share(1u, caption, image);
    }
    y[i] = value;
}
