// The margin hinge loss: what each of the first n images (side 0) and captions (side 1) costs. A pair of one and
// another's violates the margin by v = max(s - s of its own pair + margin, 0), unless it is left out; a side's cost is its
// largest v, or the sum of all. With `places` what the gradient needs of each instead: the first place of the largest v,
// and what the violations that count weigh together.
override places: bool = false;
//: use hinge_pairs
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [2, n], or [2, n] of two
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
    var at = 0u;
    var sum = 0.0;
    var weights = 0.0;
    for (var first = 0u; first < end; first += PART) {
        var part = 0.0;
        for (var other = first; other < min(first + PART, end); other++) {
            let v = violation(side, own, other);
            part += v;
            if v > 0.0 {
                weights += weight(side, own, other);
            }
            if v > most {
                most = v;
                at = other;
            }
        }
        sum += part;
    }
    if places {
        y[2u * i] = f32(at);
        y[2u * i + 1u] = select(weights, select(0.0, weight(side, own, at), most > 0.0), hardest);
    } else {
        y[i] = select(sum, most, hardest);
    }
}
