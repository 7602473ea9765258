// The gradient of paths' r, from that of the probabilities and that of the shares, whose sum has no gradient.
override last: bool = false;
struct Params {
    count: u32, // outputs of all pairs
    gate: f32,
}
@group(0) @binding(0) var<storage, read> r: array<f32>; // [4 cells, count]
@group(0) @binding(1) var<storage, read> gp: array<vec4<f32>>; // [count]
@group(0) @binding(2) var<storage, read> gs: array<vec4<f32>>; // [count]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [4 cells, count]
@group(0) @binding(4) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let own = vec4<f32>(r[i], r[p.count + i], r[2u * p.count + i], r[3u * p.count + i]);
    var g = gp[i];
    if last {
        let weights = own + select(vec4<f32>(0.0), vec4<f32>(1.0), own < vec4<f32>(p.gate));
        g += gs[i] / (weights.x + weights.y + weights.z + weights.w);
    } else {
        let over = own.x + own.y + own.z + own.w + 1e-8;
        g = (g - dot(g, own / over) + gs[i]) / over;
    }
    y[i] = g.x;
    y[p.count + i] = g.y;
    y[2u * p.count + i] = g.z;
    y[3u * p.count + i] = g.w;
}
