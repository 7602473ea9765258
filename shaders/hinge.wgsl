// The margin hinge loss: what each of the first n images (side 0) and captions (side 1) costs. A pair of one and
// another's violates the margin by v = max(s - s of its own pair + margin, 0), unless it is left out; a side's cost is its
// largest v, or the sum of all.
//: use hinge_pairs
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [2, n]
@group(0) @binding(3) var<uniform> p: Params;
// Values that are summed before their sum is added to the rest: rounding grows with the longer of both.
const PART = 32u;

@compute @workgroup_size(GROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = linear_id(id, groups);
    if i >= p.count {
        return;
    }
    let side = i / p.n;
    let own = i % p.n;
    let end = others(side);
    var most = 0.0;
    var sum = 0.0;
    for (var first = 0u; first < end; first += PART) {
        var part = 0.0;
        for (var other = first; other < min(first + PART, end); other++) {
            let v = violation(side, own, other);
            most = max(most, v);
            part += v;
        }
        sum += part;
    }
    y[i] = select(sum, most, hardest);
}
