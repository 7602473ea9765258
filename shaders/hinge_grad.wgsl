// The gradient of hinge's similarities: of a pair that counts on a side, that of the side's cost; of an own pair, less
// what those that count get. Of equal largest violations the first counts.
//: use hinge_pairs
@group(0) @binding(2) var<storage, read> g: array<f32>; // [2, n]: the costs' gradient
@group(0) @binding(3) var<storage, read> about: array<vec2<f32>>; // [2, n]: place of the largest violation; weights
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [images, captions]

// The share of a cost's gradient that `pair`, another of an item, gets; its own pair also less those of all.
fn share(side: u32, own: u32, pair: u32) -> f32 {
    let a = about[side * p.n + own];
    let counts = violation(side, own, pair) > 0.0 && (!hardest || pair == u32(a.x));
    let gets = select(0.0, weight(side, own, pair), counts);
    return select(gets, gets - a.y, own == pair);
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
