// Path probabilities of dense routing from what the four routers give, r_j of cell j for each output of a pair. In every
// layer but the last: p = r / (s + 1e-8) with s the sum of r; where s is below the gate the first cell weighs 1 more. In
// the last: p = r, a cell below the gate passes on its input with weight 1, and t is the sum of all weights.
override last: bool = false;
struct Params {
    count: u32, // outputs of all pairs
    gate: f32,
}
@group(0) @binding(0) var<storage, read> r: array<f32>; // [4 cells, count]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [3, count]: p; p or p / t; the weights, or 1 / t's
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let own = vec4<f32>(r[i], r[p.count + i], r[2u * p.count + i], r[3u * p.count + i]);
    if last {
        let passed = select(vec4<f32>(0.0), vec4<f32>(1.0), own < vec4<f32>(p.gate));
        let weights = own + passed;
        let total = weights.x + weights.y + weights.z + weights.w;
        y[i] = own;
        y[p.count + i] = own / total;
        y[2u * p.count + i] = passed / total;
        return;
    }
    let sum = own.x + own.y + own.z + own.w;
    let shares = own / (sum + 1e-8);
    y[i] = shares;
    y[p.count + i] = shares;
    y[2u * p.count + i] = shares + vec4<f32>(select(0.0, 1.0, sum < p.gate), 0.0, 0.0, 0.0);
}
